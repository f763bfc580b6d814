"""Carry the finished trials of a study into one with another search space."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial
from sqlalchemy.engine import Connection

from csi_job.errors import ConfigurationError
from csi_job.storage.attributes import (
    BASELINE,
    CONSTRAINTS,
    FINGERPRINT,
    FINISHED,
    MIGRATED_FROM,
    RUNG_PREFIX,
    TARGET,
    UID,
    fingerprint_of,
    outcome_of,
)
from csi_job.storage.claim import count_trials
from csi_job.storage.optuna_private import trial_id_of
from csi_job.storage.storage import StudyStorage
from csi_job.storage.study_rows import find_study, lock_study, store_target, stored_attributes
from csi_job.storage.tables import PARAMS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES
from csi_job.storage.trial_rows import add_trial, count_epochs, read_trials
from csi_job.study.definition import Definition, differences, find_or_create, load_study
from csi_job.study.settings import checked_name
from csi_job.transfer.copy import Row, TrialRows, insert_trial_rows, read_trial_rows
from csi_job.trial.hyperparameters import DEFAULTS
from csi_job.trial.space import SearchSpace

# Whatever else Optuna stores with a trial belongs to the space it was sampled from, e.g. the state of CMA-ES.
KEPT_SYSTEM_ATTRIBUTES: Final = (CONSTRAINTS, RUNG_PREFIX)
UNFINISHED: Final = {"running": "still running", "paused": "still paused", "waiting": "still waiting"}
Origin = tuple[Any, int]
"""The uid of the study a trial was trained in, and its number there."""


@dataclass(frozen=True)
class Migration:
    """What a migration did, and the new study's counts."""

    num_migrated: int
    num_there: int
    """Trials that an earlier migration carried."""
    reasons: tuple[tuple[str, int], ...]
    """Why trials were not carried, with their number, most frequent first."""
    num_finished: int
    num_waiting: int
    target: int
    num_epochs: int
    """Over all its trials, those that were carried included."""
    max_epochs_total: int | None

    @property
    def is_exhausted(self) -> bool:
        """Whether no trial can start before the limit of epochs is raised."""
        return self.max_epochs_total is not None and self.num_epochs >= self.max_epochs_total

    def summary(self, old: str, new: str) -> list[str]:
        """Return, in sentences, what was carried from study `old` to study `new`, what was not, and what is there."""
        there = f"; {self.num_there} were already there" if self.num_there else ""
        waiting = f", {self.num_waiting} waiting" if self.num_waiting else ""
        limit, reached = self.max_epochs_total, ", so no trial starts" if self.is_exhausted else ""
        epochs = [] if limit is None else [f"study {new} has {self.num_epochs} of {limit} epochs{reached}"]
        return [
            f"{self.num_migrated} trials migrated from {old} to {new}{there}",
            *(f"{count} not copied: {reason}" for reason, count in self.reasons),
            *epochs,
            f"study {new} has {self.num_finished} of {self.target} trials{waiting}",
        ]


def migrate_study(
    storage: StudyStorage, old_name: str, definition: Definition, *, num_trials: int | None = None
) -> Migration:
    """Create or continue a study, and carry another's finished trials into it where its space allows them.

    Everything is one transaction. Each carried trial records where it was trained, so that none is carried twice.
    If the old baseline is carried and equals the new one, it takes its place; else the new one waits as trial 0.

    Args:
        storage: where both studies are.
        old_name: the study whose trials are carried; it is not changed.
        definition: of the new study.
        num_trials: the new study's total, which carried trials count towards; by default its own, or the old
            study's, and always enough for the trials that are there.

    Raises:
        ConfigurationError: no old study, one with another cache, objective or average, a new study that differs from
            the settings, or a total below the number of trials that the new study has.
    """
    if checked_name(definition.settings.name) == old_name:
        message = "a study cannot be migrated into itself"
        raise ConfigurationError(message, got=old_name, hint="choose another name for the new study")
    load_study(storage, old_name)  # if it is missing, the error names those that exist
    transaction = _Transaction(old_name, definition, num_trials)
    migration = storage.write(transaction.run)
    if transaction.made:
        definition.log_adjustments()
    return migration


@dataclass
class _Transaction:
    """The transaction; it runs again if the reply to its COMMIT is lost."""

    old_name: str
    definition: Definition
    num_trials: int | None
    made: bool = False
    done: Migration | None = None

    def run(self, connection: Connection) -> Migration:
        new_id, there = find_or_create(connection, self.definition)
        old_id = find_study(connection, self.old_name)
        if old_id is None or not lock_study(connection, old_id) or not lock_study(connection, new_id):
            raise ConfigurationError("a study was deleted in the meantime", hint="run the same command again")
        old, new = stored_attributes(connection, old_id), stored_attributes(connection, new_id)
        self._check(old, there)
        query = sa.select(USER_ATTRIBUTES.c.value_json).join(TRIALS, TRIALS.c.trial_id == USER_ATTRIBUTES.c.trial_id)
        texts = connection.execute(query.where(TRIALS.c.study_id == new_id, USER_ATTRIBUTES.c.key == MIGRATED_FROM))
        origins = {_origin(json.loads(text)) for text in texts.scalars()}
        matcher = TrialMatcher(self.old_name, old, new.get(UID), self.definition.space, origins)
        baseline = None if there else self.definition.baseline
        carried = _carried(connection, old_id, matcher, baseline)
        if not there:
            self.made = True
            if not any(row["key"] == BASELINE for trial in carried for row in trial.parts.get(USER_ATTRIBUTES, ())):
                add_trial(connection, new_id, self.definition.first_trial())
        first = count_trials(connection, new_id).num_all
        numbered = [TrialRows({**trial.own, "number": first + i}, trial.parts) for i, trial in enumerate(carried)]
        insert_trial_rows(connection, new_id, numbered, "migrating trials")
        counts = count_trials(connection, new_id)
        num_taken = counts.num_finished + counts.num_running + counts.num_waiting
        if self.num_trials is not None and self.num_trials < num_taken:
            message = f"the new study's total is below the {num_taken} trials that are carried or waiting"
            raise ConfigurationError(message, got=self.num_trials, hint=f"e.g. --n-trials {num_taken}")
        target = max((there or old)[TARGET], num_taken) if self.num_trials is None else self.num_trials
        store_target(connection, new_id, target)
        if self.done is None or carried:  # else an earlier try committed, and nothing is left to carry
            reasons = tuple(matcher.reasons.most_common())
            now = {name: getattr(counts, name) for name in ("num_finished", "num_waiting", "max_epochs_total")}
            now |= {"target": target, "num_epochs": count_epochs(connection, new_id)}
            self.done = Migration(len(carried), matcher.num_there, reasons, **now)
        return self.done

    def _check(self, old: Mapping[str, Any], there: Mapping[str, Any]) -> None:
        """Refuse studies whose values are not comparable."""
        fingerprint = fingerprint_of(old)
        if not fingerprint:
            raise ConfigurationError("the old study was made by another program", got=self.old_name)
        new = {key: value for key, value in self.definition.fingerprint.items() if key in fingerprint}
        searched = {"space": None, "baseline": None}
        if named := differences({**fingerprint, **searched}, {**new, **searched}):
            why = "only the space may differ, otherwise results are not comparable"
            raise ConfigurationError(f"{why}; study {self.old_name!r}: {named}", hint="restore these settings")
        if there:
            self.definition.check(there)


@dataclass
class TrialMatcher:
    """Finds the trials of an old study that a new one can have, and counts the others by reason."""

    old_name: str
    old: Mapping[str, Any]
    """Attributes of the old study."""
    new_uid: str | None
    space: SearchSpace
    origins: set[Origin]
    """Where the trials that the new study has were trained."""
    reasons: Counter[str] = field(default_factory=Counter)
    num_there: int = 0

    def __post_init__(self) -> None:
        """Collect the defaults that the old study used and that have changed since."""
        forms = self.old[FINGERPRINT].get("space", {})
        dropped = {
            name: form["value"] for name, form in forms.items() if isinstance(form, Mapping) and form.get("dropped")
        }
        self._old_defaults = {name: value for name, value in dropped.items() if value != DEFAULTS.get(name)}

    def match(self, trial: FrozenTrial) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return a trial's parameters in the new space and its origin; None if it is not to be carried."""
        outcome = outcome_of(trial)
        if outcome not in FINISHED:
            self.reasons[UNFINISHED.get(outcome, outcome)] += 1
            return None
        trained_here = {"study": self.old_name, "uid": self.old.get(UID), "trial": trial.number}
        origin = trial.user_attrs.get(MIGRATED_FROM, trained_here)
        if _origin(origin) in self.origins or origin["uid"] == self.new_uid:
            self.num_there += 1
            return None
        try:
            params, reason = self.space.convert(self._old_defaults | trial.params)
        except ConfigurationError as error:  # a hyperparameter or value that this version does not know
            params, reason = {}, str(error)
        if reason:
            self.reasons[reason] += 1
            return None
        return params, origin


def _carried(
    connection: Connection, old_id: int, matcher: TrialMatcher, baseline: Mapping[str, Any] | None
) -> list[TrialRows]:
    """Return the matching trials as rows of the new study; one with the parameters of `baseline` may become it."""
    distributions = matcher.space.distributions()

    def param_row(name: str, value: Any) -> Row:
        kind = distributions[name]
        text = distribution_to_json(kind)
        return {"param_name": name, "param_value": float(kind.to_internal_repr(value)), "distribution_json": text}

    # Trials first: one that is finished there is so in the rows too, which workers may write in between.
    trials = read_trials(connection, old_id)
    rows = {trial.own["trial_id"]: trial for trial in read_trial_rows(connection, old_id)}
    carried = []
    for trial in trials:
        if (matched := matcher.match(trial)) is None:
            continue
        params, origin = matched
        trial_rows = rows[trial_id_of(trial)]
        dropped = {MIGRATED_FROM} if params == baseline else {MIGRATED_FROM, BASELINE}
        user_attrs = [row for row in trial_rows.parts.get(USER_ATTRIBUTES, ()) if row["key"] not in dropped]
        user_attrs.append({"key": MIGRATED_FROM, "value_json": json.dumps(origin)})
        notes = trial_rows.parts.get(SYSTEM_ATTRIBUTES, ())
        changed: dict[sa.Table, list[Row]] = {
            PARAMS: [param_row(name, value) for name, value in params.items()],
            USER_ATTRIBUTES: user_attrs,
            SYSTEM_ATTRIBUTES: [row for row in notes if row["key"].startswith(KEPT_SYSTEM_ATTRIBUTES)],
        }
        carried.append(TrialRows(trial_rows.own, trial_rows.parts | changed))
    return carried


def _origin(attribute: Mapping[str, Any]) -> Origin:
    return attribute["uid"], int(attribute["trial"])
