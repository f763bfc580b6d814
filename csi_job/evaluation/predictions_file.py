"""Write predictions as they arrive, as CSV (one row per file) or JSON (one array)."""

import io
import json
from collections.abc import Iterable
from itertools import chain
from typing import Any, Literal, TextIO

import numpy as np

from csi_job.errors import Problem
from csi_job.evaluation.csi import FloatArray, IntArray
from csi_job.evaluation.measures import Predictions
from csi_job.evaluation.predict import Prediction, as_text
from csi_job.files import write_csv
from csi_job.radiographs.zones import NUM_CLASSES, RISK_CLASSES, UNKNOWN, ZONES

Results = Iterable[Prediction | Problem]
PredictionFormat = Literal["csv", "json"]

CLASS_NAMES = (*(str(score) for score in range(NUM_CLASSES - 1)), "unknown")
COLUMNS = (
    "file",
    "csi",
    "mean_score",
    "risk",
    *(f"p_{name}_risk" for name in RISK_CLASSES),
    "num_graded_zones",
    *ZONES,
    *(f"{zone}_p_{name}" for zone in ZONES for name in CLASS_NAMES),
    "problem",
)


def write_predictions(results: Results, stream: TextIO, file_format: PredictionFormat) -> list[Problem]:
    """Write each result of `predict_images` as soon as it is available, and return the problems among them.

    A file that could not be read keeps its place, with only `problem` filled in; a doubtful one has scores and a
    `problem`. For CSV, open the stream with `newline=""`.
    """
    problems: list[Problem] = []

    def collecting_problems() -> Results:
        for result in results:
            if isinstance(result, Problem):
                problems.append(result)
            yield result

    if file_format == "csv":
        rows = map(_row, collecting_problems())
        write_csv(stream, COLUMNS, ([row.get(name, "") for name in COLUMNS] for row in rows))
        return problems
    separator = "["
    try:
        for result in collecting_problems():
            entry = _problem(result) if isinstance(result, Problem) else result.to_json()
            stream.write(f"{separator}\n{json.dumps(entry, ensure_ascii=False, allow_nan=False)}")
            separator = ","
    finally:  # valid JSON even if an error ends the results early
        stream.write("[]\n" if separator == "[" else "\n]\n")
    return problems


def split_predictions_csv(predictions: Predictions) -> str:
    """Return a model's predictions for a split beside the truth, one row per image, named by its pseudonym only.

    `patient` numbers the patients of the split. Every metric of the evaluation can be computed from these columns:
    numbers have all their digits, since a rounded 1.000000 would tie images that an AUROC ranks. The CSI is there for
    every image, see `csi.py`.
    """
    predicted, stream = predictions.predicted, io.StringIO(newline="")
    patients_N = np.unique(predictions.patients_N, return_inverse=True)[1]

    def classes(zones_NZ: IntArray) -> Iterable[list[str]]:
        return ([CLASS_NAMES[zone] for zone in zones_Z] for zones_Z in zones_NZ)

    def numbers(values_NV: FloatArray) -> Iterable[list[str]]:
        return (["" if np.isnan(value) else str(value) for value in values_V] for values_V in values_NV)

    columns: dict[tuple[str, ...], Iterable[Iterable[object]]] = {
        ("image", "patient"): zip(predictions.pseudonyms, patients_N.tolist(), strict=True),
        tuple(f"true_{zone}" for zone in ZONES): classes(predictions.zones_NZ),
        ("true_csi",): numbers(predictions.csi_N[:, None]),
        ZONES: classes(predicted.scores_NZ),
        ("csi", "mean_score"): numbers(np.stack([predicted.csi_N, predicted.mean_score_N], axis=1)),
        tuple(f"p_{name}_risk" for name in RISK_CLASSES): numbers(predicted.risk_NR),
        tuple(f"{zone}_p_{name}" for zone in ZONES for name in CLASS_NAMES): numbers(
            predictions.probabilities_NZK.reshape(len(predictions), len(ZONES) * NUM_CLASSES)
        ),
    }
    rows = (list(chain.from_iterable(parts)) for parts in zip(*columns.values(), strict=True))
    write_csv(stream, list(chain.from_iterable(columns)), rows)
    return stream.getvalue()


def _problem(problem: Problem) -> dict[str, str]:
    return {"file": problem.file_id, "problem": problem.what}


def _row(result: Prediction | Problem) -> dict[str, Any]:
    """Return the filled columns: probabilities and CSI with four decimals, scores as digits or `unknown`."""
    if isinstance(result, Problem):
        return _problem(result)
    row: dict[str, Any] = {"file": as_text(result.path), "num_graded_zones": result.num_graded_zones}
    if result.doubt:
        row["problem"] = f"doubtful: {result.doubt}"
    if result.csi is not None and result.risk_probabilities is not None:
        row |= {"csi": f"{result.csi:.4f}", "mean_score": f"{result.mean_score:.4f}", "risk": result.risk}
        risks = zip(RISK_CLASSES, result.risk_probabilities, strict=True)
        row |= {f"p_{name}_risk": f"{value:.4f}" for name, value in risks}
    for zone, score, probabilities_K in zip(ZONES, result.scores, result.probabilities_ZK, strict=True):
        row[zone] = "unknown" if score == UNKNOWN else score
        row |= {f"{zone}_p_{name}": f"{p:.4f}" for name, p in zip(CLASS_NAMES, probabilities_K, strict=True)}
    return row
