"""What the later stages left under `models/`: candidates, model cards, evaluations, and the comparison.

Files of another study, cache or model are not shown; `notes` mentions those that a reader may expect to see.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csi_job.cache.manifest import CacheInfo, load_info
from csi_job.errors import DataError
from csi_job.files import is_file, read_json
from csi_job.final_model.hyperparams import rename_old_keys
from csi_job.report.study_view import StudyView
from csi_job.storage.attributes import STUDY_UID, is_same_uid, uid_of
from csi_job.work_folder import ModelFolder, WorkFolder

Json = dict[str, Any]
FORMAT = 1  # of the files that other stages write; others are left out


@dataclass(frozen=True)
class Results:
    """Each part is None if its stage has not run yet, or not for this study."""

    cache: CacheInfo | None = None
    confirmed: Json | None = None
    model_card: Json | None = None
    baseline_card: Json | None = None
    evaluation: Json | None = None
    baseline_evaluation: Json | None = None
    comparison: Json | None = None
    folder: ModelFolder | None = None
    """Where the models and their evaluations are."""
    notes: tuple[str, ...] = ()

    @property
    def next_step(self) -> str:
        """The commands that lead to an evaluation."""
        return "csi-job evaluate" if self.model_card else "csi-job train-optimized and csi-job evaluate"


def load_results(view: StudyView, work: Path) -> Results:
    """Return the results of a study in the work folder; missing and damaged files are left out."""
    key, uid = view.fingerprint.get("cache"), uid_of(view.attributes)
    folder = WorkFolder(work)
    models = folder.final(view.name)
    if not is_file(models.optimized_model.with_suffix(".json")):  # version 0.1 wrote only the latest
        models = folder.latest
    card = _read(models.optimized_model.with_suffix(".json"))
    trained_on = key if card is None else card["data"]["cache"]  # on more data than the search, perhaps
    confirmed = _of_cache(folder.optimized_params(view.name), key, trained_on)
    if confirmed is not None and (_is_by_hand(confirmed) or not is_same_uid(confirmed.get(STUDY_UID), uid)):
        confirmed = None
    results = Results(load_cache_info(view, folder), confirmed)
    if card is None:
        return results
    if card["study"] != view.name:
        note = f"The final model in this folder belongs to another study ({card['study']}) and is not shown."
        return replace(results, notes=(note,))
    if not is_same_uid(card.get(STUDY_UID), uid):
        note = "The final model in this folder belongs to a deleted study of the same name and is not shown."
        return replace(results, notes=(note,))
    if _is_by_hand(card):
        note = "The final model in this folder has hyperparameters that are not of this search, and is not shown."
        return replace(results, notes=(note,))
    baseline_card = _read(models.baseline_model.with_suffix(".json"))
    if baseline_card is not None and baseline_card["request"] != card["request"]:  # a training was interrupted
        baseline_card = None
    return _add_evaluations(replace(results, model_card=card, baseline_card=baseline_card, folder=models), models, card)


def _is_by_hand(content: Json) -> bool:
    """Return whether hyperparameters were written by hand: their file names no trial, and no study by its uid."""
    return content.get("trial") is None and content.get(STUDY_UID) is None


def _add_evaluations(results: Results, folder: ModelFolder, card: Json) -> Results:
    """Add the evaluations and their comparison if they are of exactly these models."""
    stems = (folder.optimized_model.stem, folder.baseline_model.stem, "comparison")
    key = card["data"]["cache"]
    evaluation, baseline, comparison = (_of_cache(folder.evaluations / f"{stem}.json", key) for stem in stems)
    if evaluation is None:
        return results
    if evaluation["split"] != "test" or (card.get("test") or {}).get("metrics") != evaluation["metrics"]:
        note = f"The evaluation in {folder.within_work}/evaluation/ is of another model or split and is not shown."
        return replace(results, notes=(note,))
    results = replace(results, evaluation=evaluation)
    if comparison is None or not _is_of(comparison, "model", evaluation):
        return results
    if baseline is None or not _is_of(comparison, "baseline", baseline):
        where = f"{folder.within_work}/evaluation/"
        note = f"The comparison in {where}, with {comparison['baseline']}, is not shown."
        return replace(results, notes=(note,))
    return replace(results, baseline_evaluation=baseline, comparison=comparison)


def _is_of(comparison: Json, side: str, evaluation: Json) -> bool:
    """Whether one side of a comparison is the evaluated model: its numbers agree to the last digit."""
    metrics = comparison["metrics"]
    measures = evaluation["metrics"].items()  # of another version, one may have more of them than the other
    return all(metrics[name][side] == entry["value"] for name, entry in measures if name in metrics)


def _read(path: Path) -> Json | None:
    content = read_json(path)
    return rename_old_keys(content) if content is not None and content.get("format") == FORMAT else None


def _of_cache(path: Path, *keys: Any) -> Json | None:
    content = _read(path)
    return content if content is not None and content["cache"] in keys else None


def load_cache_info(view: StudyView, folder: WorkFolder) -> CacheInfo | None:
    """Describe the cache that a study trains on; None if it is not there."""
    key = view.fingerprint.get("cache")
    if not isinstance(key, str) or not key.isalnum():
        return None
    try:
        return load_info(folder.cache(key))
    except DataError:
        return None
