"""The definition of a study: the first process creates it, every other one must agree with it."""

import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import optuna
import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import Connection

from csi_job.errors import ConfigurationError, NoStudyError
from csi_job.storage.attributes import (
    BASELINE,
    FINGERPRINT,
    FIXED_PARAMS,
    MAX_EPOCHS_TOTAL,
    OBJECTIVE,
    SEED,
    SETTINGS,
    TARGET,
    UID,
)
from csi_job.storage.engine import lock_schema
from csi_job.storage.lease import new_token
from csi_job.storage.optuna_private import METRIC_NAMES_KEY, SearchStudy
from csi_job.storage.storage import StudyStorage
from csi_job.storage.study_rows import attribute_row, find_study, stored_attributes
from csi_job.storage.tables import DIRECTIONS, STUDIES, STUDY_ATTRIBUTES, STUDY_SYSTEM_ATTRIBUTES
from csi_job.storage.trial_rows import add_trial
from csi_job.study.pruning import make_pruner
from csi_job.study.record import require_fingerprint
from csi_job.study.sampling import make_sampler
from csi_job.study.settings import ObjectiveName, StudySettings, check_objective
from csi_job.trial.space import SearchSpace
from csi_job.work_folder import CONFIRMATION

logger = logging.getLogger(__name__)
METRIC_NAMES: Final = ["validation F1", "GFLOPs per image"]  # as optuna-dashboard shows them
DIRECTIONS_OF: Final = {
    "f1": (StudyDirection.MAXIMIZE,),
    "f1-and-cost": (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE),
}
NUM_DIFFERENCES_NAMED: Final = 10
_ABSENT: Final = "absent"
SETTING_OF: Final = {"objective": "study.objective", "average": "trial.objective_average"}
DATA_PREFIXES: Final = ("radiographs.", "cache.")
CONSEQUENCES: Final = {"cache": DATA_PREFIXES, "baseline": ("space.",)}
"""Parts of the fingerprint that change with others, whose change is then what to name."""


@dataclass(frozen=True)
class Definition:
    """What a study is to be."""

    settings: StudySettings
    space: SearchSpace
    fingerprint: dict[str, Any]
    """What all workers must agree on; sampler, pruner and epochs may change between phases."""
    baseline: dict[str, Any]
    """The parameters of trial 0, inside the space."""
    adjustments: list[str]
    """A sentence for each parameter that was moved there."""
    tree: Mapping[str, Any]
    """All settings that the study stores, for later commands."""

    @classmethod
    def of(
        cls,
        settings: StudySettings,
        space: SearchSpace,
        baseline: Mapping[str, Any],
        *,
        cache_key: str,
        average: str = "macro",
        results: Mapping[str, Any] | None = None,
        tree: Mapping[str, Any] | None = None,
    ) -> Self:
        """Define a study.

        Args:
            settings: name, objective, seed, sampler, pruner; `num_trials` and `max_epochs_total` are the limits of a
                new study.
            space: the search space.
            baseline: the parameters of trial 0, moved into the space where they lie outside.
            cache_key: of the cache that the trials train on.
            average: how `val_f1` averages the classes: `macro` or `weighted`.
            results: the other settings that decide the results of a trial.
            tree: all settings, without secrets and paths of a machine.

        Raises:
            ConfigurationError: a sampler or pruner that cannot search for this objective.
        """
        check_objective(settings)
        params, adjustments = space.clip_to_space(baseline)
        searched = {"space": space.fingerprint(), "objective": settings.objective, "baseline": params}
        fingerprint = {**searched, "average": average, "cache": cache_key, **(results or {})}
        return cls(settings, space, fingerprint, params, adjustments, tree or {})

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of a new study."""
        return {
            FINGERPRINT: self.fingerprint,
            TARGET: self.settings.num_trials,
            MAX_EPOCHS_TOTAL: self.settings.max_epochs_total,
            OBJECTIVE: self.settings.objective,
            SEED: self.settings.seed,
            SETTINGS: dict(self.tree),
            UID: new_token()[:8],
        }

    def first_trial(self) -> FrozenTrial:
        """Return the baseline as a waiting trial."""
        fixed, mark = {FIXED_PARAMS: self.baseline}, {BASELINE: True}
        return create_trial(state=TrialState.WAITING, system_attrs=fixed, user_attrs=mark)

    def log_adjustments(self) -> None:
        """Warn of each baseline parameter that was moved into the space."""
        for sentence in self.adjustments:
            logger.warning("baseline: %s", sentence)

    def warn_of_unknown(self, fingerprint: Mapping[str, Any]) -> None:
        """Warn of what an earlier version did not store in a study's fingerprint."""
        if unknown := sorted(self.fingerprint.keys() - fingerprint.keys()):
            message = "the study is of an earlier version, which did not store %s; give the same values as then"
            logger.warning(message, ", ".join(unknown))

    def check(self, stored: Mapping[str, Any]) -> None:
        """Reject a stored study that has another fingerprint or was created by another program.

        Raises:
            ConfigurationError: with the dotted keys that differ, their stored and their given values.
        """
        fingerprint = require_fingerprint(stored, self.settings.name)
        check_same(fingerprint, self.fingerprint, self.settings.name)
        self.warn_of_unknown(fingerprint)
        if stored.get(SEED) != self.settings.seed:
            logger.warning("the study was created with seed %(seed)s; using that seed", {"seed": stored.get(SEED)})


def define_study(storage: StudyStorage, definition: Definition) -> optuna.Study:
    """Create the study, or continue it; any number of processes may do so at once.

    An existing study keeps its limits (see `set_target`) and its seed.

    Returns:
        the study, with the sampler and pruner of these settings.

    Raises:
        ConfigurationError: a study of this name has another fingerprint, or was created by another program.
    """

    def transaction(connection: Connection) -> dict[str, Any]:
        study_id, stored = find_or_create(connection, definition)
        if not stored:
            add_trial(connection, study_id, definition.first_trial())
        return stored

    if not storage.write(transaction):
        definition.log_adjustments()
    study = join_study(storage, definition.settings, definition.space)
    definition.check(study.user_attrs)  # of the study that was opened, whatever became of the one found before
    return study


def join_study(storage: StudyStorage, settings: StudySettings, space: SearchSpace) -> optuna.Study:
    """Open a study for running trials, with the sampler and pruner of these settings."""
    sampler, pruner = make_sampler(settings, space), make_pruner(settings)
    return SearchStudy(settings.name, storage, sampler=sampler, pruner=pruner)


def load_study(storage: StudyStorage, name: str) -> optuna.Study:
    """Open a study for reading.

    Raises:
        NoStudyError: there is no study of this name; the message lists the existing ones.
    """
    try:
        return optuna.Study(name, storage, sampler=optuna.samplers.RandomSampler(), pruner=optuna.pruners.NopPruner())
    except KeyError:
        names = [study.study_name for study in storage.get_all_studies()]
        names = [name for name in names if not name.endswith(CONFIRMATION)]
        message = "there is no study of this name"
        raise NoStudyError(message, got=name, allowed=names or "none, the storage is empty") from None


def find_or_create(connection: Connection, definition: Definition) -> tuple[int, dict[str, Any]]:
    """Find a study, or create it without trials, under the schema's lock.

    Returns:
        its id, and the attributes of an existing study, none of a new one.
    """
    lock_schema(connection)
    settings = definition.settings
    study_id = find_study(connection, settings.name)
    if study_id is not None:
        return study_id, stored_attributes(connection, study_id) or {FINGERPRINT: None}
    return insert_study(connection, settings.name, settings.objective, definition.attributes()), {}


def insert_study(connection: Connection, name: str, objective: ObjectiveName, attributes: Mapping[str, Any]) -> int:
    """Insert a study without trials and return its id; the caller holds the schema's lock."""
    new = sa.insert(STUDIES).values(study_name=name).returning(STUDIES.c.study_id)
    study_id = int(connection.execute(new).scalar_one())
    directions = [
        {"study_id": study_id, "objective": number, "direction": direction}
        for number, direction in enumerate(DIRECTIONS_OF[objective])
    ]
    connection.execute(sa.insert(DIRECTIONS).values(directions))
    rows = [attribute_row(study_id, key, value) for key, value in attributes.items()]
    connection.execute(sa.insert(STUDY_ATTRIBUTES).values(rows))
    names = attribute_row(study_id, METRIC_NAMES_KEY, METRIC_NAMES[: len(directions)])
    connection.execute(sa.insert(STUDY_SYSTEM_ATTRIBUTES).values(names))
    return study_id


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], study_name: str) -> None:
    """Raise `ConfigurationError` with the settings in which the given fingerprint differs from the stored one.

    Earlier versions stored fewer settings; those that are not stored are not compared.
    """
    stored, known = _with_steps(stored), _with_steps({key: given[key] for key in given if key in stored})
    if named := differences(stored, known):
        message = f"study {study_name!r} was created with other settings: {named}"
        raise ConfigurationError(message, hint=_way_out(stored, known, study_name))


def _with_steps(fingerprint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a fingerprint with the step of each range of whole numbers, where one of 1 may have been left out."""

    def is_whole_range(form: Any) -> bool:
        return isinstance(form, Mapping) and isinstance(form.get("low"), int) and isinstance(form.get("high"), int)

    space = fingerprint.get("space")
    if not isinstance(space, Mapping):
        return fingerprint
    forms = {
        name: {**form, "step": form.get("step", 1)} if is_whole_range(form) and not form.get("log") else form
        for name, form in space.items()
    }
    return {**fingerprint, "space": forms}


def without_data(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint without the data, which a final model may have more of."""
    return {key: value for key, value in fingerprint.items() if not f"{key}.".startswith(DATA_PREFIXES)}


def _way_out(stored: Mapping[str, Any], given: Mapping[str, Any], study_name: str) -> str:
    changed = {key for key in stored if stored[key] != given.get(key)}
    if changed <= {"space", "baseline"}:
        migrate = shlex.join(["csi-job", "study", "migrate", study_name, "NEW"])
        return f"restore them, choose another study name, or carry its trials there: {migrate}"
    weights = given.get("trial", {}).get("pretrained"), stored.get("trial", {}).get("pretrained")
    if weights[0] == "none" and weights[1] not in ("none", "imagenet", None):
        return "give --pretrained FILE with the weights of this SHA-256, or choose another study name"
    return "restore them, or choose another study name"


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """List the dotted keys that differ, with both values, in one line; empty if none does."""

    def shown(flat: Mapping[str, Any], key: str) -> str:
        return json.dumps(flat[key], ensure_ascii=False) if key in flat else _ABSENT

    before, now = flatten(stored), flatten(given)
    changed = {key for key in before.keys() | now.keys() if before.get(key, _ABSENT) != now.get(key, _ABSENT)}
    for part, causes in CONSEQUENCES.items():
        if any(key.startswith(causes) for key in changed):
            changed = {key for key in changed if key.startswith(causes) or not f"{key}.".startswith(f"{part}.")}
    keys = sorted(changed)
    named = [f"{SETTING_OF.get(key, key)} (was {shown(before, key)}, now {shown(now, key)})" for key in keys]
    more = f" and {len(keys) - NUM_DIFFERENCES_NAMED} more" if len(keys) > NUM_DIFFERENCES_NAMED else ""
    return ", ".join(named[:NUM_DIFFERENCES_NAMED]) + more


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted paths."""
    if not isinstance(value, Mapping):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= flatten(part, f"{path}.{key}" if path else str(key))
    return flat
