"""Trials as the tables hold them: read and inserted many at once, with nothing lost, added or rounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Row

from csi_job.storage.engine import upsert
from csi_job.storage.lease import RELEASED_AT_S, new_token
from csi_job.storage.optuna_private import from_stored_step, from_stored_value, to_stored_value
from csi_job.storage.storage import StudyStorage
from csi_job.storage.tables import LEASES, PARAMS, STEPS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES, VALUES
from csi_job.storage.trial_rows import parsed_distribution, step_row

NUM_AT_ONCE: Final = 500  # trials in one round of inserts
Result = TypeVar("Result")


@dataclass(frozen=True)
class StoredLease:
    """What is to be known of a running trial by whoever takes it over."""

    attempt: int = 1
    num_epochs: int = 0
    num_lost: int = 0
    checkpoint: str | None = None


@dataclass
class StoredTrial:
    """One trial; attributes and distributions are JSON texts as stored, times are naive and in UTC."""

    number: int
    state: TrialState
    datetime_start: datetime | None
    datetime_complete: datetime | None
    params: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Internal value and distribution by name."""
    values: list[float] = field(default_factory=list)
    steps: dict[int, float] = field(default_factory=dict)
    user_attrs: dict[str, str] = field(default_factory=dict)
    system_attrs: dict[str, str] = field(default_factory=dict)
    lease: StoredLease | None = None

    def user_attributes(self) -> dict[str, Any]:
        """Return the user attributes as Python values."""
        return {key: json.loads(text) for key, text in self.user_attrs.items()}

    def external_params(self) -> dict[str, Any]:
        """Return the parameters as the objective saw them."""
        return {name: parsed_distribution(text).to_external_repr(value) for name, (value, text) in self.params.items()}


def snapshot(storage: StudyStorage, operation: Callable[[Connection], Result]) -> Result:
    """Run an operation that only reads, all of whose statements see the same moment; workers go on meanwhile."""
    options: dict[str, Any] = {"sqlite_readonly": True}
    if not storage.address.is_sqlite:
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

    def look() -> Result:
        with storage.engine.connect().execution_options(**options) as connection, connection.begin():
            return operation(connection)

    return storage.retry.call(look)


def read_stored(connection: Connection, study_id: int) -> list[StoredTrial]:
    """Return all trials of a study, by number."""
    query = sa.select(TRIALS).where(TRIALS.c.study_id == study_id).order_by(TRIALS.c.number, TRIALS.c.trial_id)
    trials = {
        row.trial_id: StoredTrial(row.number, row.state, row.datetime_start, row.datetime_complete)
        for row in connection.execute(query)
    }
    for row in _parts(connection, PARAMS, study_id):
        trials[row.trial_id].params[row.param_name] = (row.param_value, row.distribution_json)
    for row in _parts(connection, VALUES, study_id, VALUES.c.objective):
        trials[row.trial_id].values.append(from_stored_value(row.value, row.value_type))
    for row in _parts(connection, STEPS, study_id):
        stored = row.intermediate_value, row.intermediate_value_type
        trials[row.trial_id].steps[row.step] = from_stored_step(*stored)
    for row in _parts(connection, USER_ATTRIBUTES, study_id):
        trials[row.trial_id].user_attrs[row.key] = row.value_json
    for row in _parts(connection, SYSTEM_ATTRIBUTES, study_id):
        trials[row.trial_id].system_attrs[row.key] = row.value_json
    for row in _parts(connection, LEASES, study_id):
        if trials[row.trial_id].state is TrialState.RUNNING:
            trials[row.trial_id].lease = StoredLease(row.attempt, row.num_epochs, row.num_lost, row.checkpoint)
    return [*trials.values()]


def _parts(connection: Connection, table: sa.Table, study_id: int, *order: sa.Column[Any]) -> Iterator[Row[Any]]:
    joined = sa.select(table).join(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
    key = next(iter(table.primary_key))
    return iter(connection.execute(joined.where(TRIALS.c.study_id == study_id).order_by(*order, key)))


def insert_stored(
    connection: Connection,
    study_id: int,
    trials: Sequence[StoredTrial],
    advance: Callable[[int], None] = lambda _num_trials: None,
) -> None:
    """Insert trials under their numbers, in few statements; the caller holds the study's lock.

    A running trial is left to the next worker: its lease counts as given back, and as no lost attempt.

    Args:
        connection: inside the transaction.
        study_id: the study.
        trials: by number, none of which the study has.
        advance: told how many more trials are inserted.

    """
    insert = sa.insert(TRIALS).returning(TRIALS.c.number, TRIALS.c.trial_id)
    for first in range(0, len(trials), NUM_AT_ONCE):
        chunk = trials[first : first + NUM_AT_ONCE]
        made = connection.execute(insert, [_trial_row(study_id, trial) for trial in chunk])
        ids = {row.number: row.trial_id for row in made}
        rows: dict[sa.Table, list[dict[str, Any]]] = {}
        for trial in chunk:
            for table, part in _rows(ids[trial.number], trial):
                rows.setdefault(table, []).append(part)
        for table, parts in rows.items():
            connection.execute(sa.insert(table), parts)
        leases = [
            {"trial_id": ids[trial.number], **_lease_row(trial.lease or StoredLease())}
            for trial in chunk
            if trial.state is TrialState.RUNNING
        ]
        if leases:  # a deleted trial of the same id may have left one
            upsert(connection, LEASES, leases, ("trial_id",))
        advance(len(chunk))


def _trial_row(study_id: int, trial: StoredTrial) -> dict[str, Any]:
    times = {"datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}
    return {"study_id": study_id, "number": trial.number, "state": trial.state, **times}


def _rows(trial_id: int, trial: StoredTrial) -> Iterator[tuple[sa.Table, dict[str, Any]]]:
    """Yield all rows of a trial but its own, each with its table."""
    mine = {"trial_id": trial_id}
    for name, (internal, distribution) in trial.params.items():
        yield PARAMS, mine | {"param_name": name, "param_value": internal, "distribution_json": distribution}
    for objective, value in enumerate(trial.values):
        stored, kind = to_stored_value(value)
        yield VALUES, mine | {"objective": objective, "value": stored, "value_type": kind}
    for step, value in trial.steps.items():
        yield STEPS, step_row(trial_id, step, value)
    for key, text in trial.user_attrs.items():
        yield USER_ATTRIBUTES, mine | {"key": key, "value_json": text}
    for key, text in trial.system_attrs.items():
        yield SYSTEM_ATTRIBUTES, mine | {"key": key, "value_json": text}


def _lease_row(lease: StoredLease) -> dict[str, Any]:
    return {
        "token": new_token(),
        "owner": "",
        "attempt": lease.attempt,
        "renewed_at_s": RELEASED_AT_S,
        "lease_s": 0.0,
        "num_epochs": lease.num_epochs,
        "num_lost": lease.num_lost,
        "checkpoint": lease.checkpoint,
    }
