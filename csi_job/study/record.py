"""What a study records of how it was created; later commands take it in place of the defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from csi_job.errors import ConfigurationError, NoStudyError
from csi_job.storage import attributes as stored
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.storage.study_rows import find_study, stored_attributes
from csi_job.storage.tables import STUDIES, TRIALS, USER_ATTRIBUTES
from csi_job.storage.trial_rows import read_trial
from csi_job.study.settings import StudySettings
from csi_job.trial.hyperparameters import HYPERPARAMETERS, Hyperparameters
from csi_job.work_folder import CONFIRMATION

Tree = dict[str, Any]


@dataclass(frozen=True)
class StudyRecord:
    """A study as its database, or a file that names it, records it."""

    name: str
    attributes: Mapping[str, Any]
    baseline: Mapping[str, Any] = field(default_factory=dict)
    """The parameters of trial 0; empty if unknown."""
    phase: Mapping[str, Any] = field(default_factory=dict)
    """The study settings of the latest phase."""

    @property
    def uid(self) -> str | None:
        """Its uid, None if unknown."""
        return stored.uid_of(self.attributes)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What all workers of the study must agree on."""
        return self.attributes[stored.FINGERPRINT]  # type: ignore[no-any-return]

    @property
    def cache_key(self) -> str:
        """The key of the cache that its trials train on."""
        return str(self.fingerprint.get("cache", ""))

    def settings(self) -> Tree:
        """Return the settings it was created with, and its present limits and phase.

        Earlier versions stored only a fingerprint, so that the other settings of their studies are unknown.
        """
        tree: Tree = stored.settings_of(self.attributes)
        if not tree:
            tree = {
                "space": space_settings(self.fingerprint),
                "trial": {"objective_average": self.fingerprint.get("average", "macro")},
            }
        current = {"num_trials": stored.TARGET, "objective": stored.OBJECTIVE, "seed": stored.SEED}
        current |= {"max_epochs_total": stored.MAX_EPOCHS_TOTAL}
        known = ({name: self.attributes[key]} for name, key in current.items() if key in self.attributes)
        study = {name: value for one in known if _is_valid(one) for name, value in one.items()}
        tree = {**tree, "study": {**tree.get("study", {}), **study, **self.phase, "name": self.name}}
        if self.baseline:
            tree["baseline"] = Hyperparameters.from_params(self.baseline).__dict__
        return tree


def space_settings(fingerprint: Mapping[str, Any]) -> Tree:
    """Return the settings of a fingerprint's search space, without the hyperparameters of a later version."""
    space: Tree = {}
    for name, form in fingerprint.get("space", {}).items():
        if name in HYPERPARAMETERS:
            is_always_searched = "when" in HYPERPARAMETERS[name].space and "when" not in form
            space[name] = None if form.get("dropped") else form | ({"when": {}} if is_always_searched else {})
    return space


def require_fingerprint(attributes: Mapping[str, Any], study_name: str) -> dict[str, Any]:
    """Return the fingerprint among a study's attributes; raise `ConfigurationError` if another program made it."""
    fingerprint = stored.fingerprint_of(attributes)
    if not fingerprint:
        message = "a study of this name was created by another program"
        raise ConfigurationError(message, got=study_name, hint="choose another study name")
    return fingerprint


def read_record(
    settings: StorageSettings, work: Path, name: str, *, or_only: bool = False, to_continue: bool = False
) -> StudyRecord | None:
    """Return what a study records; None if there is no such study of ours, or no usable database.

    `or_only` takes the only study of the database where none has this name.

    Raises:
        ConfigurationError: there is a database that cannot be used, or a study of this name that is not ours, and
            `to_continue`.
        StorageUnavailableError: the database could not be reached within `connect_s`.
    """
    try:
        storage = open_storage(settings, work, create=False)
    except NoStudyError:
        return None
    except ConfigurationError:
        if to_continue:
            raise
        return None  # the command that needs the study reports it
    try:
        return storage.read(lambda connection: _read(connection, name, or_only=or_only, to_continue=to_continue))
    finally:
        storage.close()


def _read(connection: Connection, name: str, *, or_only: bool, to_continue: bool) -> StudyRecord | None:
    query = sa.select(STUDIES.c.study_name).where(~STUDIES.c.study_name.endswith(CONFIRMATION)).limit(2)
    names = connection.execute(query).scalars().all() if or_only else []
    study_id = find_study(connection, name)
    if study_id is None and len(names) == 1:
        [name] = names
        study_id = find_study(connection, name)
    attributes = {} if study_id is None else stored_attributes(connection, study_id)
    if study_id is not None and to_continue:
        require_fingerprint(attributes, name)
    if study_id is None or not stored.fingerprint_of(attributes):
        return None
    with_attribute = sa.select(TRIALS.c.trial_id).join(USER_ATTRIBUTES).where(TRIALS.c.study_id == study_id)
    baselines = with_attribute.where(USER_ATTRIBUTES.c.key == stored.BASELINE).order_by(TRIALS.c.number)
    started = with_attribute.where(USER_ATTRIBUTES.c.key == stored.SAMPLER, TRIALS.c.state != TrialState.WAITING)
    first = _first_trial(connection, baselines)
    last = _first_trial(connection, started.order_by(TRIALS.c.number.desc()))
    baseline = first and (first.params or first.system_attrs.get(stored.FIXED_PARAMS))
    return StudyRecord(name, attributes, baseline if isinstance(baseline, dict) else {}, phase_of(last) if last else {})


def _first_trial(connection: Connection, query: sa.Select[Any]) -> FrozenTrial | None:
    trial_id = connection.execute(query.limit(1)).scalar()
    return None if trial_id is None else read_trial(connection, trial_id)


def phase_of(trial: FrozenTrial | Trial) -> Tree:
    """Return the study settings that a trial ran with; none if another program stored something else under them."""
    attributes = trial.user_attrs
    phase = {key: attributes[key] for key in stored.PHASE if key in attributes}
    return phase if _is_valid(phase) else {}


def _is_valid(settings: Tree) -> bool:
    """Return whether these are possible settings of a study."""
    try:
        StudySettings.model_validate(settings)
    except ValidationError:
        return False
    return True
