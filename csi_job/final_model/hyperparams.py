"""Read the file of hyperparameters that the final model starts from."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csi_job.errors import ConfigurationError, CsiJobError, explain_os_errors
from csi_job.storage.attributes import FINGERPRINT, SETTINGS, STUDY_UID, UID, fingerprint_of, is_same_uid
from csi_job.study.settings import ALLOWED_NAMES, can_be_ours
from csi_job.trial.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from csi_job.study.record import StudyRecord

MAX_BYTES = 10_000_000  # far above an optimized_params.json with hundreds of candidates
HINT = "use models/hyperopt/<study>_best_params.json, which `csi-job report` writes again, or a file like it"


@dataclass(frozen=True)
class HyperparamsFile:
    """The content of a hyperparameters file."""

    params: Hyperparameters
    study: str
    """The study they come from, or the name to give the results."""
    max_epochs: int
    trial: int | None = None
    value: float | None = None
    """Validation F1 of that trial."""
    is_confirmed: bool = False
    cache: str = ""
    """Key of the cache that was searched on, if known."""
    names_study: bool = False
    """Whether the file names its study."""
    record: StudyRecord | None = None
    """What the file itself records of its study."""
    uid: str | None = None
    """The study's uid, if known."""

    @property
    def is_search_result(self) -> bool:
        """Whether it names a study and was not confirmed over seeds: then other trials of it are candidates too."""
        return self.names_study and not self.is_confirmed

    def record_of_study(self, found: StudyRecord | None) -> StudyRecord | None:
        """Return the record found under the study's name if it is the same study, else what the file itself records."""
        return found if found is not None and is_same_uid(self.uid, found.uid) else self.record


def read_hyperparams(path: Path, *, default_study: str, default_max_epochs: int) -> HyperparamsFile:
    """Read `<study>_best_params.json`, `<study>_optimized_params.json`, or a file written by hand.

    A file written by hand holds the hyperparameters by name, either alone or under `params` next to `study` and
    `max_epochs`, which have defaults.

    Raises:
        ConfigurationError: the file is missing or not a JSON object, or a name or value in it is not allowed.
    """
    content = _content(path)
    params = content.get("params", content)
    if not isinstance(params, dict) or not params:
        what = f"{path.name} contains no hyperparameters"
        raise ConfigurationError(what, got=params, allowed="a JSON object of them, or one under `params`", hint=HINT)
    try:
        hyperparameters = Hyperparameters.from_params(params)
    except CsiJobError as error:
        raise ConfigurationError(f"{path.name}: {error}") from None
    form = content if "params" in content else {}
    study, trial, max_epochs = (form.get(name) for name in ("study", "trial", "max_epochs"))
    if study is not None and not (isinstance(study, str) and can_be_ours(study)):  # it would name files
        what = f"{path.name}: study cannot be used as a name"
        raise ConfigurationError(what, got=study, allowed=ALLOWED_NAMES)
    max_epochs = default_max_epochs if max_epochs is None else max_epochs
    if not is_count(max_epochs):
        what = f"{path.name}: max_epochs cannot be used"
        raise ConfigurationError(what, got=max_epochs, allowed="an integer of at least 1")
    fingerprint: Any = form.get("fingerprint")
    value: Any = form.get("value")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    searched_on = fingerprint.get("cache") if isinstance(fingerprint, dict) else None
    caches = (form.get("cache"), searched_on)  # in the file itself once confirmed
    return HyperparamsFile(
        params=hyperparameters,
        study=default_study if study is None else study,
        max_epochs=max_epochs,
        trial=trial if _is_int(trial) else None,
        value=float(value) if is_number and abs(value) <= sys.float_info.max else None,
        is_confirmed=form.get("confirmed") is True,
        cache=next((key for key in caches if isinstance(key, str)), ""),
        names_study=study is not None,
        record=_record(form),
        uid=form.get(STUDY_UID),
    )


def rename_old_keys(content: dict[str, Any]) -> dict[str, Any]:
    """Return a model card or an `optimized_params.json` with today's keys; version 0.1 wrote `spread` for `std`."""

    def renamed(entry: dict[str, Any]) -> dict[str, Any]:
        return {"std" if key == "spread" else key: value for key, value in entry.items()}

    candidates = {"candidates": [renamed(row) for row in content["candidates"]]} if "candidates" in content else {}
    return renamed(content) | candidates


def _content(path: Path) -> dict[str, Any]:
    with explain_os_errors("the hyperparameters file cannot be read", path, kind=ConfigurationError, hint=HINT):
        if path.stat().st_size > MAX_BYTES:
            raise ConfigurationError("the hyperparameters file is too large", got=str(path), hint=HINT)
        text = path.read_bytes()
    try:
        content = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ConfigurationError("the hyperparameters file is not JSON", got=str(path), hint=HINT) from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path.name} must contain a JSON object", got=content, hint=HINT)
    return content


def is_count(value: Any) -> bool:
    """Return whether a value from outside is an integer of at least 1."""
    return _is_int(value) and value >= 1


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _record(content: dict[str, Any]) -> StudyRecord | None:
    """Return what the file records of its study, None where it records nothing."""
    from csi_job.study.record import StudyRecord  # with the database's packages

    fingerprint, settings = fingerprint_of(content), content.get(SETTINGS)
    if not fingerprint or not isinstance(settings, dict):
        return None
    if not isinstance(settings.get("study", {}), dict) or content.get("study") is None:
        return None
    baseline = fingerprint.get("baseline")
    attributes = {FINGERPRINT: fingerprint, SETTINGS: settings, UID: content.get(STUDY_UID)}
    return StudyRecord(str(content["study"]), attributes, baseline if isinstance(baseline, dict) else {})
