"""Write predictions as they arrive, as CSV (one row per file) or JSON (one array)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, TextIO

from csi_job.errors import Problem
from csi_job.evaluation.predict import Prediction, as_text
from csi_job.files import write_csv
from csi_job.radiographs.zones import NUM_CLASSES, RISK_CLASSES, UNKNOWN, ZONES

Results = Iterable[Prediction | Problem]
PredictionFormat = Literal["csv", "json"]

CLASS_NAMES = (*(str(score) for score in range(NUM_CLASSES - 1)), "unknown")
COLUMNS = (
    "file",
    "csi",
    "risk",
    *(f"p_{name}_risk" for name in RISK_CLASSES),
    "num_graded_zones",
    *ZONES,
    *(f"{zone}_p_{name}" for zone in ZONES for name in CLASS_NAMES),
    "problem",
)


def write_predictions(results: Results, stream: TextIO, file_format: PredictionFormat) -> list[Problem]:
    """Write each result of `predict_images` as soon as it is available, and return the problems among them.

    A file that could not be read keeps its place, with only `problem` filled in. For CSV, open the stream with
    `newline=""`.
    """
    problems: list[Problem] = []

    def collecting_problems() -> Results:
        for result in results:
            if isinstance(result, Problem):
                problems.append(result)
            yield result

    if file_format == "json":
        _write_json(collecting_problems(), stream)
        return problems
    rows = map(_row, collecting_problems())
    write_csv(stream, COLUMNS, ([row.get(name, "") for name in COLUMNS] for row in rows))
    return problems


def _write_json(results: Results, stream: TextIO) -> None:
    """Write an array with one object per line, which stays valid JSON if an error ends the results early."""
    separator = "["
    try:
        for result in results:
            entry = _problem(result) if isinstance(result, Problem) else result.to_json()
            stream.write(f"{separator}\n{json.dumps(entry, ensure_ascii=False, allow_nan=False)}")
            separator = ","
    finally:
        stream.write("[]\n" if separator == "[" else "\n]\n")


def _problem(problem: Problem) -> dict[str, str]:
    return {"file": problem.file_id, "problem": problem.what}


def _row(result: Prediction | Problem) -> dict[str, Any]:
    """Return the filled columns: probabilities and CSI with four decimals, scores as digits or `unknown`."""
    if isinstance(result, Problem):
        return _problem(result)
    row: dict[str, Any] = {"file": as_text(result.path), "num_graded_zones": result.num_graded_zones}
    if result.csi is not None and result.risk_probabilities is not None:
        row |= {"csi": f"{result.csi:.4f}", "risk": result.risk}
        risks = zip(RISK_CLASSES, result.risk_probabilities, strict=True)
        row |= {f"p_{name}_risk": f"{value:.4f}" for name, value in risks}
    for zone, score, probabilities_K in zip(ZONES, result.scores, result.probabilities_ZK, strict=True):
        row[zone] = "unknown" if score == UNKNOWN else score
        row |= {f"{zone}_p_{name}": f"{p:.4f}" for name, p in zip(CLASS_NAMES, probabilities_K, strict=True)}
    return row
