"""Trials in Optuna's tables: read and written with few statements."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialModel, TrialValueModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection, Row

from csi_job.study.database import now_utc, upsert
from csi_job.study.tables import PARAMS, STEPS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES, VALUES

MAX_LISTED: Final = 500  # ids in one IN; more are filtered here, since databases limit the variables of a statement

parsed_distribution = lru_cache(maxsize=4096)(json_to_distribution)  # a study has few, each stored once a trial


@dataclass
class TrialWrite:
    """What is written to a trial in one transaction.

    `params` holds internal values with their distributions, `steps` intermediate values, `values` final ones.
    """

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    values: Sequence[float] = ()
    state: TrialState | None = None


def write_trial(connection: Connection, trial_id: int, write: TrialWrite) -> None:
    """Write the rows of one trial; whether the caller may is not asked here."""
    if write.params:
        rows = [_param_row(trial_id, name, *param) for name, param in write.params.items()]
        upsert(connection, PARAMS, rows, ("trial_id", "param_name"))
    for table, attributes in ((USER_ATTRIBUTES, write.user_attrs), (SYSTEM_ATTRIBUTES, write.system_attrs)):
        if attributes:
            rows = [_attribute_row(trial_id, key, value) for key, value in attributes.items()]
            upsert(connection, table, rows, ("trial_id", "key"))
    if write.steps:
        rows = [step_row(trial_id, step, value) for step, value in write.steps.items()]
        upsert(connection, STEPS, rows, ("trial_id", "step"))
    if write.values:
        rows = [_value_row(trial_id, objective, value) for objective, value in enumerate(write.values)]
        upsert(connection, VALUES, rows, ("trial_id", "objective"))
    if write.state is not None:
        set_state(connection, trial_id, write.state)


def set_state(connection: Connection, trial_id: int, state: TrialState) -> None:
    """Change a trial's state and stamp its start or end."""
    stamps: dict[str, Any] = {}
    if state is TrialState.RUNNING:
        stamps["datetime_start"] = now_utc(connection)
    elif state.is_finished():
        stamps["datetime_complete"] = now_utc(connection)
    connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(state=state, **stamps))


def insert_trial(connection: Connection, study_id: int, number: int, state: TrialState) -> int:
    """Insert a trial and return its id; the caller holds the study's lock."""
    start = now_utc(connection) if state is TrialState.RUNNING else None
    row = {"study_id": study_id, "number": number, "state": state, "datetime_start": start}
    result = connection.execute(sa.insert(TRIALS).values(**row).returning(TRIALS.c.trial_id))
    return int(result.scalar_one())


def remove_steps(connection: Connection, trial_id: int, first: int) -> None:
    """Remove a trial's intermediate values from this step on, and the pruner's notes, which stem from them."""
    connection.execute(sa.delete(STEPS).where(STEPS.c.trial_id == trial_id, STEPS.c.step >= first))
    notes = SYSTEM_ATTRIBUTES.c.key.startswith("completed_rung_", autoescape=True)
    connection.execute(sa.delete(SYSTEM_ATTRIBUTES).where(SYSTEM_ATTRIBUTES.c.trial_id == trial_id, notes))


def read_trials(
    connection: Connection, study_id: int, *, after: int = -1, also: Collection[int] = ()
) -> list[FrozenTrial]:
    """Return a study's trials with an id greater than `after` or among `also`, by id."""
    chosen = TRIALS.c.trial_id > after
    if also and len(also) <= MAX_LISTED:
        chosen = sa.or_(chosen, TRIALS.c.trial_id.in_(sorted(also)))
    elif also:
        chosen = sa.true()
    wanted = sa.and_(TRIALS.c.study_id == study_id, chosen)
    rows = connection.execute(sa.select(TRIALS).where(wanted).order_by(TRIALS.c.trial_id)).all()
    rows = [row for row in rows if row.trial_id > after or row.trial_id in also]
    return _with_parts(connection, rows, wanted)


def read_trial(connection: Connection, trial_id: int) -> FrozenTrial | None:
    """Return one trial, or nothing if there is none of this id."""
    wanted = TRIALS.c.trial_id == trial_id
    trials = _with_parts(connection, connection.execute(sa.select(TRIALS).where(wanted)).all(), wanted)
    return trials[0] if trials else None


def _with_parts(connection: Connection, rows: Sequence[Row[Any]], wanted: sa.ColumnElement[bool]) -> list[FrozenTrial]:
    if not rows:
        return []
    if len(rows) <= MAX_LISTED:
        wanted = TRIALS.c.trial_id.in_([row.trial_id for row in rows])
    parts = {table: _children(connection, table, wanted) for table in (PARAMS, VALUES, STEPS)}
    attributes = {table: _children(connection, table, wanted) for table in (USER_ATTRIBUTES, SYSTEM_ATTRIBUTES)}
    return [_frozen(row, parts, attributes) for row in rows]


def _children(connection: Connection, table: sa.Table, wanted: sa.ColumnElement[bool]) -> Mapping[int, list[Row[Any]]]:
    key = next(iter(table.primary_key))
    query = sa.select(table).join(TRIALS, TRIALS.c.trial_id == table.c.trial_id).where(wanted).order_by(key)
    children: defaultdict[int, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(query):
        children[row.trial_id].append(row)
    return children


def _frozen(
    row: Row[Any],
    parts: Mapping[sa.Table, Mapping[int, list[Row[Any]]]],
    attributes: Mapping[sa.Table, Mapping[int, list[Row[Any]]]],
) -> FrozenTrial:
    trial_id = row.trial_id
    params = [
        (p.param_name, p.param_value, parsed_distribution(p.distribution_json)) for p in _of(parts, PARAMS, trial_id)
    ]
    values = sorted(_of(parts, VALUES, trial_id), key=lambda value: value.objective)
    times = TrialModel()  # Optuna's own conversion from the stored UTC to local time
    times._datetime_start_utc, times._datetime_complete_utc = row.datetime_start, row.datetime_complete  # noqa: SLF001
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[TrialValueModel.stored_repr_to_value(value.value, value.value_type) for value in values] or None,
        datetime_start=times.datetime_start,
        datetime_complete=times.datetime_complete,
        params={name: distribution.to_external_repr(value) for name, value, distribution in params},
        distributions={name: distribution for name, _, distribution in params},
        user_attrs={a.key: json.loads(a.value_json) for a in _of(attributes, USER_ATTRIBUTES, trial_id)},
        system_attrs={a.key: json.loads(a.value_json) for a in _of(attributes, SYSTEM_ATTRIBUTES, trial_id)},
        intermediate_values={step.step: step_value(step) for step in _of(parts, STEPS, trial_id)},
        trial_id=trial_id,
    )


def _of(parts: Mapping[sa.Table, Mapping[int, list[Row[Any]]]], table: sa.Table, trial_id: int) -> list[Row[Any]]:
    return parts[table].get(trial_id, [])


def step_value(row: Row[Any]) -> float:
    """Return the number that a row of `trial_intermediate_values` stands for."""
    return float(
        TrialIntermediateValueModel.stored_repr_to_intermediate_value(
            row.intermediate_value, row.intermediate_value_type
        )
    )


def _param_row(trial_id: int, name: str, value: float, distribution: BaseDistribution) -> dict[str, Any]:
    text = distribution_to_json(distribution)
    return {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": text}


def _attribute_row(trial_id: int, key: str, value: Any) -> dict[str, Any]:
    return {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}


def step_row(trial_id: int, step: int, value: float) -> dict[str, Any]:
    """Return the row of `trial_intermediate_values` for a number."""
    stored, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(float(value))
    return {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}


def _value_row(trial_id: int, objective: int, value: float) -> dict[str, Any]:
    stored, kind = TrialValueModel.value_to_stored_repr(float(value))
    return {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
