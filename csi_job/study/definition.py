"""The definition of a study: made once, continued by everyone who agrees with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import optuna
import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import Connection

from csi_job.errors import ConfigurationError
from csi_job.logs import get_logger
from csi_job.storage.attributes import BASELINE, FINGERPRINT, FIXED_PARAMS, OBJECTIVE, SEED, TARGET, UID
from csi_job.storage.claim import Counts, cancel_excess, count_trials
from csi_job.storage.engine import lock_schema, lock_study, upsert
from csi_job.storage.lease import new_token
from csi_job.storage.optuna_private import study_id_of
from csi_job.storage.storage import StudyStorage, storage_of
from csi_job.storage.tables import DIRECTIONS, STUDIES, STUDY_ATTRIBUTES
from csi_job.storage.trial_rows import add_trial
from csi_job.study.pruning import make_pruner
from csi_job.study.sampling import Space, check_sampler, make_sampler
from csi_job.study.settings import StudySettings

logger = get_logger(__name__)
DIRECTIONS_OF: Final = {
    "f1": (StudyDirection.MAXIMIZE,),
    "f1-and-cost": (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE),
}


class SearchedSpace(Space, Protocol):
    """What the definition of a study needs to know of a search space."""

    def fingerprint(self) -> dict[str, Any]:
        """Return the space as JSON-able data."""

    def clip_to_space(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return parameters moved into the space, and one sentence for each adjustment."""


class Keyed(Protocol):
    """What the definition of a study needs to know of a cache."""

    @property
    def key(self) -> str:
        """Return the digest of table, images, split, image size and normalisation."""


@dataclass(frozen=True)
class Definition:
    """What a study is to be."""

    settings: StudySettings
    fingerprint: Fingerprint
    baseline: dict[str, Any]
    """The parameters of trial 0, inside the space."""
    moves: list[str]
    """A sentence for each parameter that was moved there."""

    @classmethod
    def of(
        cls, settings: StudySettings, *, space: SearchedSpace, baseline: Mapping[str, Any], cache: Keyed, average: str
    ) -> Definition:
        """Return the definition that these arguments of `define_study` make."""
        params, moves = space.clip_to_space(baseline)
        return cls(settings, Fingerprint(space.fingerprint(), settings.objective, average, cache.key), params, moves)

    def attributes(self) -> dict[str, Any]:
        """Return what is stored with a study that is made."""
        return {
            FINGERPRINT: self.fingerprint.to_json(),
            TARGET: self.settings.num_trials,
            OBJECTIVE: self.settings.objective,
            SEED: self.settings.seed,
            UID: new_token()[:8],
        }

    def first_trial(self) -> FrozenTrial:
        """Return the baseline as it waits in a study that is made."""
        fixed, mark = {FIXED_PARAMS: self.baseline}, {BASELINE: True}
        return create_trial(state=TrialState.WAITING, system_attrs=fixed, user_attrs=mark)

    def tell_moves(self) -> None:
        """Warn of what was moved."""
        for sentence in self.moves:
            logger.warning("baseline: %s", sentence)

    def check(self, stored: Mapping[str, Any]) -> None:
        """Refuse a study that was made with other settings, or by another program."""
        if not isinstance(stored.get(FINGERPRINT), Mapping):
            message = "a study of this name was made by another program"
            raise ConfigurationError(message, got=self.settings.name, hint="choose another study name")
        self.fingerprint.check(stored[FINGERPRINT], self.settings.name)
        if stored.get(SEED) != self.settings.seed:
            logger.warning("the study was made with seed %s, which stays in force", stored.get(SEED))


def define_study(
    storage: StudyStorage,
    settings: StudySettings,
    *,
    space: SearchedSpace,
    baseline: Mapping[str, Any],
    cache: Keyed,
    average: str = "macro",
) -> optuna.Study:
    """Make the study, or continue it; any number of processes may do this at once.

    The target of a study that exists stays (see `set_target`), and so does its seed.

    Args:
        storage: where the study is.
        settings: name, objective, seed, sampler, pruner; `num_trials` is the target of a study that is made.
        space: the search space.
        baseline: the parameters of trial 0, moved into the space with a warning where they lie outside.
        cache: what the trials are trained on.
        average: how `val_f1` averages the classes.

    Returns:
        the study, with the sampler and pruner of these settings.

    Raises:
        ConfigurationError: a study of this name with another fingerprint, or made by another program.

    """
    check_sampler(settings.sampler, settings.objective)
    sampler, pruner = make_sampler(settings, space), make_pruner(settings)
    definition = Definition.of(settings, space=space, baseline=baseline, cache=cache, average=average)

    def transaction(connection: Connection) -> dict[str, Any]:
        study_id, stored = find_or_make(connection, definition)
        if not stored:
            add_trial(connection, study_id, definition.first_trial())
        return stored

    stored = storage.write(transaction)
    if stored:
        definition.check(stored)
    else:
        definition.tell_moves()
    return optuna.Study(settings.name, storage, sampler=sampler, pruner=pruner)


def load_study(storage: StudyStorage, name: str) -> optuna.Study:
    """Open a study to look at it.

    Raises:
        ConfigurationError: there is no study of this name; those that are there are named.

    """
    try:
        return optuna.Study(name, storage, sampler=optuna.samplers.RandomSampler(), pruner=optuna.pruners.NopPruner())
    except KeyError:
        names = [study.study_name for study in storage.get_all_studies()]
        message = "there is no study of this name"
        raise ConfigurationError(message, got=name, allowed=names or "none, the storage is empty") from None


def set_target(study: optuna.Study, *, num_trials: int | None = None, more_trials: int | None = None) -> int:
    """Change the total of finished trials, once, under the study's lock.

    Args:
        study: the study.
        num_trials: the new total.
        more_trials: trials to add to the total, or to what is finished already, whichever is more.

    Returns:
        the target that holds now; waiting trials beyond it are cancelled.

    """
    storage, study_id = storage_of(study), study_id_of(study)
    aim: int | None = num_trials

    def transaction(connection: Connection) -> int:
        nonlocal aim
        lock_study(connection, study_id)
        counts = count_trials(connection, study_id)
        if aim is None:  # else this is the second try of a COMMIT whose answer was lost: nothing is added twice
            aim = _raised(counts, more_trials or 0)
        store_target(connection, study_id, aim)
        cancel_excess(connection, study_id, count_trials(connection, study_id))
        return aim

    return storage.write(transaction)


def _raised(counts: Counts, more_trials: int) -> int:
    return max(counts.target, counts.num_finished) + more_trials


def study_seed(study: optuna.Study) -> int:
    """Return the seed that the study was made with."""
    return int(study.user_attrs.get(SEED, 0))


def find_or_make(connection: Connection, definition: Definition) -> tuple[int, dict[str, Any]]:
    """Find a study, or make it without trials, under the schema's lock.

    Returns:
        its id, and the attributes of a study that was there; none of one that was made.

    """
    lock_schema(connection)
    settings = definition.settings
    study_id = find_study(connection, settings.name)
    if study_id is not None:
        return study_id, stored_attributes(connection, study_id) or {FINGERPRINT: None}
    made = sa.insert(STUDIES).values(study_name=settings.name).returning(STUDIES.c.study_id)
    study_id = int(connection.execute(made).scalar_one())
    directions = [
        {"study_id": study_id, "objective": objective, "direction": direction}
        for objective, direction in enumerate(DIRECTIONS_OF[settings.objective])
    ]
    connection.execute(sa.insert(DIRECTIONS).values(directions))
    rows = [_attribute(study_id, key, value) for key, value in definition.attributes().items()]
    connection.execute(sa.insert(STUDY_ATTRIBUTES).values(rows))
    return study_id, {}


def find_study(connection: Connection, name: str) -> int | None:
    """Return the id of the study of this name, None if there is none."""
    return connection.execute(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)).scalar()


def stored_attributes(connection: Connection, study_id: int) -> dict[str, Any]:
    """Return a study's user attributes."""
    mine = sa.select(STUDY_ATTRIBUTES).where(STUDY_ATTRIBUTES.c.study_id == study_id)
    return {row.key: json.loads(row.value_json) for row in connection.execute(mine)}


def store_target(connection: Connection, study_id: int, target: int) -> None:
    """Store a study's total of finished trials; the caller holds the study's lock."""
    upsert(connection, STUDY_ATTRIBUTES, [_attribute(study_id, TARGET, target)], ("study_id", "key"))


def _attribute(study_id: int, key: str, value: Any) -> dict[str, Any]:
    return {"study_id": study_id, "key": key, "value_json": json.dumps(value)}


NUM_DIFFERENCES_NAMED: Final = 10
_ABSENT: Final = "absent"


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a study; sampler, pruner and epochs are no part of it, they may change between phases."""

    space: Mapping[str, Any]
    """The search space, as `SearchSpace.fingerprint` gives it."""
    objective: str
    """`f1` or `f1-and-cost`."""
    average: str
    """How `val_f1` averages the classes: `macro` or `weighted`."""
    cache: str
    """The key of the cache: table, images, split, image size and normalisation."""

    def to_json(self) -> dict[str, Any]:
        """Return what is stored with the study."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def check(self, stored: Mapping[str, Any], study_name: str) -> None:
        """Refuse a worker whose fingerprint is not the stored one.

        Raises:
            ConfigurationError: with the dotted keys that differ, their stored and their given values.

        """
        check_same(stored, self.to_json(), study_name)


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], study_name: str) -> None:
    """Refuse what differs from what is stored, by its dotted keys."""
    if named := differences(stored, given):
        message = f"study {study_name!r} was made with other settings: {named}"
        raise ConfigurationError(message, hint="restore them, or choose another study name")


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return the dotted keys that differ with both values, in one line; nothing if none does."""
    before, now = _flat(stored), _flat(given)
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key, _ABSENT) != now.get(key, _ABSENT))
    named = [f"{key} (was {_shown(before, key)}, now {_shown(now, key)})" for key in keys[:NUM_DIFFERENCES_NAMED]]
    more = f" and {len(keys) - len(named)} more" if len(keys) > len(named) else ""
    return ", ".join(named) + more


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flat(part, f"{path}.{key}" if path else str(key))
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return _ABSENT if key not in flat else json.dumps(flat[key], ensure_ascii=False)
