"""The finished trials of a study carried into one with another search space."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from sqlalchemy.engine import Connection

from csi_job.errors import ConfigurationError
from csi_job.logs import progress
from csi_job.storage.attributes import BASELINE, FINGERPRINT, MIGRATED_FROM, TARGET, UID, outcome_of
from csi_job.storage.claim import count_trials
from csi_job.storage.engine import lock_study
from csi_job.storage.storage import StudyStorage
from csi_job.storage.tables import TRIALS, USER_ATTRIBUTES
from csi_job.storage.trial_rows import add_trial
from csi_job.study.definition import (
    Definition,
    Keyed,
    SearchedSpace,
    differences,
    find_or_make,
    find_study,
    load_study,
    store_target,
    stored_attributes,
)
from csi_job.study.settings import StudySettings, checked_name
from csi_job.transfer.stored import StoredTrial, insert_stored, read_stored
from csi_job.trial.hyperparameters import DEFAULTS


@dataclass(frozen=True)
class Migration:
    """What a migration did, and how the new study stands."""

    num_carried: int
    num_there: int
    """Trials that an earlier migration had carried."""
    reasons: tuple[tuple[str, int], ...]
    """Why trials were not carried, with their number, the most frequent first."""
    num_finished: int
    num_waiting: int
    target: int


def migrate_study(
    storage: StudyStorage,
    old_name: str,
    settings: StudySettings,
    *,
    space: FittingSpace,
    baseline: Mapping[str, Any],
    cache: Keyed,
    average: str = "macro",
    num_trials: int | None = None,
) -> Migration:
    """Make or continue a study, and carry another's finished trials into it where its space allows them.

    Everything is one transaction. Each carried trial remembers where it was trained, so that none is carried twice.
    If the baseline is carried it is the new study's too, else the new study's own waits as trial 0.

    Args:
        storage: where both studies are.
        old_name: the study whose trials are carried; it stays as it is.
        settings: of the new study, whose name is `settings.name`.
        space: the new study's search space.
        baseline: as in `define_study`.
        cache: what trials are trained on.
        average: how `val_f1` averages the classes.
        num_trials: the new study's total, which carried trials count towards; by default it is as it was, or the old
            study's, and in any case enough.

    Raises:
        ConfigurationError: no old study, one with another cache, objective or average, a new study that differs from
            the settings, or a total below the trials that the new study has.

    """
    checked_name(settings.name)
    if settings.name == old_name:
        raise ConfigurationError("a study cannot be carried into itself", got=old_name, hint="choose another new name")
    load_study(storage, old_name)  # names the studies that are there, if it is not
    definition = Definition.of(settings, space=space, baseline=baseline, cache=cache, average=average)
    transaction = _Transaction(old_name, definition, space, num_trials)
    migration = storage.write(transaction.run)
    if transaction.made:
        definition.tell_moves()
    return migration


@dataclass
class _Transaction:
    """The transaction, which may run twice where the answer to its COMMIT is lost."""

    old_name: str
    definition: Definition
    space: FittingSpace
    num_trials: int | None
    made: bool = False
    done: Migration | None = None

    def run(self, connection: Connection) -> Migration:
        new_id, there = find_or_make(connection, self.definition)
        old_id = find_study(connection, self.old_name)
        if old_id is None or not lock_study(connection, old_id) or not lock_study(connection, new_id):
            raise ConfigurationError("a study was deleted meanwhile", hint="run the same command again")
        old, new = stored_attributes(connection, old_id), stored_attributes(connection, new_id)
        self._check(old, there)
        baseline = None if there else self.definition.baseline
        fitting = Fitting(self.old_name, old, new.get(UID), self.space, _origins(connection, new_id), baseline)
        carried = [fitted for trial in read_stored(connection, old_id) if (fitted := fitting.fitted(trial))]
        if not there:
            self.made = True
            if not any(BASELINE in trial.user_attrs for trial in carried):
                add_trial(connection, new_id, self.definition.first_trial())
        self._insert(connection, new_id, carried)
        target = self._stored_target(connection, new_id, (there or old)[TARGET])
        if self.done is None or carried:  # else nothing is left to do, since the COMMIT had gone through
            self.done = self._told(connection, new_id, len(carried), fitting, target)
        return self.done

    def _check(self, old: Mapping[str, Any], there: Mapping[str, Any]) -> None:
        """Refuse studies whose values cannot be compared."""
        fingerprint = old.get(FINGERPRINT)
        if not isinstance(fingerprint, Mapping):
            raise ConfigurationError("the old study was made by another program", got=self.old_name)
        no_space = {"space": None}
        if named := differences({**fingerprint, **no_space}, {**self.definition.fingerprint.to_json(), **no_space}):
            message = f"only the space may differ, or values would not compare; study {self.old_name!r}: {named}"
            raise ConfigurationError(message, hint="restore these settings")
        if there:
            self.definition.check(there)

    @staticmethod
    def _insert(connection: Connection, study_id: int, carried: list[StoredTrial]) -> None:
        first = count_trials(connection, study_id).num_all
        numbered = [replace(trial, number=number) for number, trial in enumerate(carried, first)]
        with progress("carrying trials", len(numbered), "trials") as advance:
            insert_stored(connection, study_id, numbered, advance)

    def _stored_target(self, connection: Connection, study_id: int, default: int) -> int:
        """Store the new study's total: as given, else the default and at least what is there."""
        counts = count_trials(connection, study_id)
        num_taken = counts.num_finished + counts.num_running + counts.num_waiting
        if self.num_trials is not None and self.num_trials < num_taken:
            message = f"the new study's total must leave room for its {num_taken} trials, carried and waiting"
            raise ConfigurationError(message, got=self.num_trials, hint=f"e.g. --n-trials {num_taken}")
        target = max(default, num_taken) if self.num_trials is None else self.num_trials
        store_target(connection, study_id, target)
        return target

    @staticmethod
    def _told(connection: Connection, study_id: int, num_carried: int, fitting: Fitting, target: int) -> Migration:
        counts = count_trials(connection, study_id)
        reasons = tuple(fitting.reasons.most_common())
        return Migration(num_carried, fitting.num_there, reasons, counts.num_finished, counts.num_waiting, target)


def _origins(connection: Connection, study_id: int) -> set[Origin]:
    """Return where the carried trials of a study were trained."""
    query = sa.select(USER_ATTRIBUTES.c.value_json).join(TRIALS, TRIALS.c.trial_id == USER_ATTRIBUTES.c.trial_id)
    texts = connection.execute(query.where(TRIALS.c.study_id == study_id, USER_ATTRIBUTES.c.key == MIGRATED_FROM))
    return {origin_of(json.loads(text)) for text in texts.scalars()}


# What else Optuna keeps with a trial belongs to the space it was drawn from, e.g. the state of CMA-ES.
KEPT: Final = ("constraints", "completed_rung_")
FINISHED: Final = ("complete", "pruned", "infeasible")
UNFINISHED: Final = {"running": "still running", "waiting": "still waiting"}
Origin = tuple[Any, int]
"""The uid of the study where a trial was trained, and its number there."""


class FittingSpace(SearchedSpace, Protocol):
    """What a migration needs to know of a search space."""

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distribution of every parameter, conditional ones too."""

    def convert(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Return a trial's parameters as one of this space has them, or nothing and the reason."""


def origin_of(attribute: Mapping[str, Any]) -> Origin:
    """Return where a carried trial was trained."""
    return attribute["uid"], int(attribute["trial"])


@dataclass
class Fitting:
    """Turns trials of an old study into those of a new one; counts what could not be turned."""

    old_name: str
    old: Mapping[str, Any]
    """Attributes of the old study."""
    new_uid: str | None
    space: FittingSpace
    origins: set[Origin]
    """Where the trials that the new study has were trained."""
    baseline: Mapping[str, Any] | None
    """The new study's baseline, if an equal one of the old study is to take its place."""
    reasons: Counter[str] = field(default_factory=Counter)
    num_there: int = 0

    def __post_init__(self) -> None:
        """Note what the old study used without drawing it, where that is another default now, and how the new draws."""
        forms = self.old[FINGERPRINT].get("space", {})
        unsearched = {
            name: form["value"] for name, form in forms.items() if isinstance(form, Mapping) and form.get("dropped")
        }
        self._others = {name: value for name, value in unsearched.items() if value != DEFAULTS.get(name)}
        kinds = self.space.distributions()
        self._distributions = {name: (kind, distribution_to_json(kind)) for name, kind in kinds.items()}

    def fitted(self, trial: StoredTrial) -> StoredTrial | None:
        """Return a trial as one of the new study, but for its number; None if it is none, or there already."""
        outcome = outcome_of(trial.state, trial.user_attributes())
        if outcome not in FINISHED:
            self.reasons[UNFINISHED.get(outcome, outcome)] += 1
            return None
        given = {"study": self.old_name, "uid": self.old.get(UID), "trial": trial.number}
        origin = json.loads(trial.user_attrs.get(MIGRATED_FROM, json.dumps(given)))
        if origin_of(origin) in self.origins or origin["uid"] == self.new_uid:
            self.num_there += 1
            return None
        try:
            params, reason = self.space.convert(self._others | trial.external_params())
        except ConfigurationError as error:  # a hyperparameter or value that this version does not know
            params, reason = {}, str(error)
        if reason:
            self.reasons[reason] += 1
            return None
        return self._carried(trial, params, origin)

    def _carried(self, trial: StoredTrial, params: Mapping[str, Any], origin: Mapping[str, Any]) -> StoredTrial:
        user_attrs = trial.user_attrs | {MIGRATED_FROM: json.dumps(origin)}
        if params != self.baseline:
            user_attrs.pop(BASELINE, None)
        internal = {}
        for name, value in params.items():
            kind, text = self._distributions[name]
            internal[name] = (float(kind.to_internal_repr(value)), text)
        notes = {key: text for key, text in trial.system_attrs.items() if key.startswith(KEPT)}
        return replace(trial, params=internal, user_attrs=user_attrs, system_attrs=notes)
