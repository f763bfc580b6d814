"""What the later stages left under `models/`: candidates, model cards, evaluations, the comparison.

Files of another study or another cache are not shown as results of this one; `notes` says that they are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from csi_job.cache.store import CacheInfo, load_info
from csi_job.errors import DataError
from csi_job.report.files import read_json
from csi_job.study.attributes import FINGERPRINT

if TYPE_CHECKING:
    from pathlib import Path

    from csi_job.report.view import StudyView

Json = dict[str, Any]
FORMAT = 1  # of the files that other stages write; another is left out
MODEL_STEM, BASELINE_STEM = "optimized_model", "baseline_model"


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
    fingerprint = view.attributes.get(FINGERPRINT)
    key = fingerprint.get("cache") if isinstance(fingerprint, dict) else None
    models = work / "models"
    confirmed = _of_cache(models / "hyperopt" / f"{view.name}_optimized_params.json", key)
    card, notes = _own_card(read_json(models / f"{MODEL_STEM}.json"), view.name)
    if card is None:
        return Results(cache=_cache(work, key), confirmed=confirmed, notes=notes)
    stems = (MODEL_STEM, BASELINE_STEM, "comparison")
    evaluation, baseline, comparison = (_of_cache(models / "evaluation" / f"{stem}.json", key) for stem in stems)
    return Results(
        cache=_cache(work, key),
        confirmed=confirmed,
        model_card=card,
        baseline_card=read_json(models / f"{BASELINE_STEM}.json"),
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


def _own_card(card: Json | None, study_name: str) -> tuple[Json | None, tuple[str, ...]]:
    owner = (card or {}).get("study")
    if card is None or owner in (None, study_name):
        return card, ()
    return None, (f"The final model in this folder is of another study ({owner}), so it is not shown here.",)


def _of_cache(path: Path, key: Any) -> Json | None:
    content = read_json(path)
    is_ours = content is not None and content.get("format") == FORMAT and content.get("cache") == key
    return content if is_ours else None


def _cache(work: Path, key: Any) -> CacheInfo | None:
    if not isinstance(key, str) or not key.isalnum():
        return None
    try:
        return load_info(work / "cache" / key)
    except DataError:
        return None
