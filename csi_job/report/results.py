"""What the later stages left under `models/`: candidates, model cards, evaluations, the comparison.

Only what belongs together is shown: files of another study, cache, or of a model that was trained anew since, are left
out, and `notes` says that they are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from csi_job.cache.manifest import CacheInfo, load_info
from csi_job.errors import DataError
from csi_job.files import read_json
from csi_job.final_model.hyperparams import rename_old_keys
from csi_job.report import format as words
from csi_job.work_folder import WorkFolder

if TYPE_CHECKING:
    from pathlib import Path

    from csi_job.report.study_view import StudyView

Json = dict[str, Any]
FORMAT = 1  # of the files that other stages write; another is left out
MIN_PATIENTS = 20  # below, bootstrap intervals are known to be too narrow


@dataclass(frozen=True)
class Results:
    """Each part is None where its stage has not run yet, or not for this study."""

    cache: CacheInfo | None = None
    confirmed: Json | None = None
    model_card: Json | None = None
    baseline_card: Json | None = None
    evaluation: Json | None = None
    baseline_evaluation: Json | None = None
    comparison: Json | None = None
    notes: tuple[str, ...] = ()


def load_results(view: StudyView, work: Path) -> Results:
    """Read what is there for a study; what is missing or damaged is left out.

    Args:
        view: the study.
        work: the work folder.

    """
    key = view.fingerprint.get("cache")
    folder = WorkFolder(work)
    confirmed = _of_cache(folder.optimized_params(view.name), key)
    cache = _cache(folder, key)
    card = _of_format(folder.optimized_model.with_suffix(".json"))
    if card is not None and card["study"] != view.name:
        note = f"The final model in this folder belongs to another study ({card['study']}) and is not shown."
        return Results(cache=cache, confirmed=confirmed, notes=(note,))
    if card is None:
        return Results(cache=cache, confirmed=confirmed)
    evaluation, baseline, comparison, notes = _on_test_set(folder, card, key)
    return Results(
        cache=cache,
        confirmed=confirmed,
        model_card=card,
        baseline_card=_of_format(folder.baseline_model.with_suffix(".json")),
        evaluation=evaluation,
        baseline_evaluation=baseline,
        comparison=comparison,
        notes=notes,
    )


@dataclass(frozen=True)
class Measured:
    """A metric or a difference with its interval; None for what is undefined or not there."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def few_patients(evaluation: Json) -> str:
    """Return a caution where so few patients were tested that their intervals promise too much, else nothing."""
    num_patients = evaluation["num_patients"]
    if num_patients >= MIN_PATIENTS:
        return ""
    return (
        f"With only {words.plural(num_patients, 'test patient')}, the intervals are too narrow: any difference is a "
        "hint that needs more patients to confirm it."
    )


def measured(content: Json | None, name: str, zone: str = "") -> Measured:
    """Return a metric of an evaluation, or a difference of a comparison.

    Args:
        content: the evaluation or comparison.
        name: e.g. `f1_macro`.
        zone: the zone whose metric is meant, all together where empty.

    """
    if content is None:
        return Measured()
    group = content.get("zones", {}).get(zone, {}) if zone else content.get("metrics", {})
    entry = group.get(name, {})
    low, high = entry.get("interval") or (None, None)
    return Measured(entry.get("value", entry.get("difference")), low, high)


def _on_test_set(
    folder: WorkFolder, card: Json, key: Any
) -> tuple[Json | None, Json | None, Json | None, tuple[str, ...]]:
    """Return the evaluations of model and baseline and their comparison, as far as they are of this very model."""
    stems = (folder.optimized_model.stem, folder.baseline_model.stem, "comparison")
    evaluation, baseline, comparison = (_of_cache(folder.evaluations / f"{stem}.json", key) for stem in stems)
    if evaluation is None:
        return None, None, None, ()
    if evaluation["split"] != "test" or (card.get("test") or {}).get("metrics") != evaluation["metrics"]:
        return (
            None,
            None,
            None,
            ("The evaluation in models/evaluation/ is of another model or split and is not shown.",),
        )
    if comparison is None or not _is_of(comparison, "model", evaluation):
        return evaluation, None, None, ()
    if baseline is None or not _is_of(comparison, "baseline", baseline):
        return (
            evaluation,
            None,
            None,
            (f"The comparison in models/evaluation/, with {comparison['baseline']}, is not shown.",),
        )
    return evaluation, baseline, comparison, ()


def _is_of(comparison: Json, side: str, evaluation: Json) -> bool:
    """Return whether one side of a comparison is the model of an evaluation: the same numbers to the last digit."""
    metrics = comparison["metrics"]
    return all(metrics[name][side] == entry["value"] for name, entry in evaluation["metrics"].items())


def _of_format(path: Path) -> Json | None:
    content = read_json(path)
    return rename_old_keys(content) if content is not None and content.get("format") == FORMAT else None


def _of_cache(path: Path, key: Any) -> Json | None:
    content = _of_format(path)
    return content if content is not None and content["cache"] == key else None


def _cache(folder: WorkFolder, key: Any) -> CacheInfo | None:
    if not isinstance(key, str) or not key.isalnum():
        return None
    try:
        return load_info(folder.cache(key))
    except DataError:
        return None
