"""Trials written to Optuna's tables with few statements."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from csi_job.storage.engine import now_utc, upsert
from csi_job.storage.optuna_private import (
    STEP_TYPES,
    VALUE_TYPES,
    from_stored_step,
    from_stored_value,
    to_stored_step,
    to_stored_value,
    trial_id_of,
)
from csi_job.storage.tables import PARAMS, STEPS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES, VALUES

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


def child_rows(trial_id: int, write: TrialWrite) -> list[tuple[sa.Table, list[dict[str, Any]], tuple[str, ...]]]:
    """Return what is written beside the trial's own row: tables, their rows, and the columns that tell rows apart."""
    written = [
        (PARAMS, [_param_row(trial_id, name, *param) for name, param in write.params.items()], "param_name"),
        (USER_ATTRIBUTES, [_attribute_row(trial_id, key, value) for key, value in write.user_attrs.items()], "key"),
        (SYSTEM_ATTRIBUTES, [_attribute_row(trial_id, key, value) for key, value in write.system_attrs.items()], "key"),
        (STEPS, [step_row(trial_id, step, value) for step, value in write.steps.items()], "step"),
        (VALUES, [_value_row(trial_id, index, value) for index, value in enumerate(write.values)], "objective"),
    ]
    return [(table, rows, ("trial_id", key)) for table, rows, key in written if rows]


def write_trial(connection: Connection, trial_id: int, write: TrialWrite) -> None:
    """Write the rows of one trial; whether the caller may is not asked here."""
    for table, rows, keys in child_rows(trial_id, write):
        upsert(connection, table, rows, keys)
    if write.state is not None:
        set_state(connection, trial_id, write.state)


def set_state(connection: Connection, trial_id: int, state: TrialState) -> None:
    """Change a trial's state and stamp its start or end."""
    changes = state_changes(connection, state)
    connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(**changes))


def state_changes(connection: Connection, state: TrialState) -> dict[str, Any]:
    """Return the columns of a trial that change with its state."""
    if state is TrialState.RUNNING:
        return {"state": state, "datetime_start": now_utc(connection)}
    return {"state": state} | ({"datetime_complete": now_utc(connection)} if state.is_finished() else {})


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


def _param_row(trial_id: int, name: str, value: float, distribution: BaseDistribution) -> dict[str, Any]:
    text = distribution_to_json(distribution)
    return {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": text}


def _attribute_row(trial_id: int, key: str, value: Any) -> dict[str, Any]:
    return {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}


def step_row(trial_id: int, step: int, value: float) -> dict[str, Any]:
    """Return the row of `trial_intermediate_values` for a number."""
    stored, kind = to_stored_step(float(value))
    return {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}


def _value_row(trial_id: int, objective: int, value: float) -> dict[str, Any]:
    stored, kind = to_stored_value(float(value))
    return {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}


MAX_LISTED: Final = 500  # ids in one IN; more are filtered here, since databases limit the variables of a statement

_FINITE: Final = "FINITE"

Part = tuple[int, str, Any, Any]
"""A row of a child table: its place among the trial's rows, a name or type, a number and a text, or None."""


def read_trials(
    connection: Connection, study_id: int, *, after: int = -1, also: Collection[int] = ()
) -> list[FrozenTrial]:
    """Return a study's trials with an id greater than `after` or among `also`, by id."""
    chosen = TRIALS.c.trial_id > after
    if also and len(also) <= MAX_LISTED:
        chosen = sa.or_(chosen, TRIALS.c.trial_id.in_(sorted(also)))
    elif also:
        chosen = sa.true()
    trials = _read(connection, sa.and_(TRIALS.c.study_id == study_id, chosen))
    return [trial for trial in trials if trial_id_of(trial) > after or trial_id_of(trial) in also]


def read_trial(connection: Connection, trial_id: int) -> FrozenTrial | None:
    """Return one trial, or nothing if there is none of this id."""
    trials = _read(connection, TRIALS.c.trial_id == trial_id)
    return trials[0] if trials else None


def _read(connection: Connection, wanted: sa.ColumnElement[bool]) -> list[FrozenTrial]:
    """Read trials with all their parts as they stand at one moment."""
    parts: defaultdict[int, tuple[list[Part], ...]] = defaultdict(lambda: ([], [], [], [], []))
    trials = []
    for part, trial_id, place, name, number, text, start, complete in connection.execute(_query(wanted)).all():
        if part < 0:
            trials.append((trial_id, place, TrialState[name], start, complete))
        else:
            parts[trial_id][part].append((place, name, number, text))
    return [_frozen(trial, *parts[trial[0]]) for trial in sorted(trials)]


def _query(wanted: sa.ColumnElement[bool]) -> sa.CompoundSelect[Any]:
    chosen = sa.select(TRIALS.c.trial_id).where(wanted).cte("chosen")
    ids = sa.select(chosen.c.trial_id)
    nothing, state = sa.cast(sa.null(), TRIALS.c.datetime_start.type), sa.cast(TRIALS.c.state, sa.String)
    head: tuple[Any, ...] = (
        sa.literal_column("-1").label("part"),
        TRIALS.c.trial_id,
        TRIALS.c.number,
        state,
        _no_number,
        _no_text,
    )
    trials = sa.select(*head, TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
    selects: list[sa.Select[Any]] = [trials.where(TRIALS.c.trial_id.in_(ids))]
    for index, (table, *columns) in enumerate(_CHILDREN):
        part: sa.Select[Any] = sa.select(sa.literal_column(str(index)), table.c.trial_id, *columns, nothing, nothing)
        selects.append(part.where(table.c.trial_id.in_(ids)))
    return sa.union_all(*selects)


_no_number: Final = sa.cast(sa.null(), sa.Float(53))
_no_text: Final = sa.cast(sa.null(), sa.Text)


def _typed(table: sa.Table, place: str, kind: str, number: str) -> tuple[Any, ...]:
    return table, table.c[place], sa.cast(table.c[kind], sa.String), table.c[number], _no_text


def _named(table: sa.Table, place: str, name: str, number: Any, text: str) -> tuple[Any, ...]:
    return table, table.c[place], table.c[name], number, table.c[text]


_CHILDREN: Final = (
    _named(PARAMS, "param_id", "param_name", PARAMS.c.param_value, "distribution_json"),
    _typed(VALUES, "objective", "value_type", "value"),
    _typed(STEPS, "step", "intermediate_value_type", "intermediate_value"),
    _named(USER_ATTRIBUTES, "trial_user_attribute_id", "key", _no_number, "value_json"),
    _named(SYSTEM_ATTRIBUTES, "trial_system_attribute_id", "key", _no_number, "value_json"),
)


def _frozen(
    trial: tuple[Any, ...],
    params: list[Part],
    values: list[Part],
    steps: list[Part],
    user_attrs: list[Part],
    system_attrs: list[Part],
) -> FrozenTrial:
    trial_id, number, state, start, complete = trial
    distributions = {name: parsed_distribution(text) for _, name, _, text in sorted(params)}
    internal = {name: value for _, name, value, _ in params}
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=[value for _, value in _numbers(values, from_stored_value, VALUE_TYPES)] or None,
        datetime_start=_local_time(start),
        datetime_complete=_local_time(complete),
        params={name: kind.to_external_repr(internal[name]) for name, kind in distributions.items()},
        distributions=distributions,
        user_attrs={key: json.loads(text) for _, key, _, text in sorted(user_attrs)},
        system_attrs={key: json.loads(text) for _, key, _, text in sorted(system_attrs)},
        intermediate_values=dict(_numbers(steps, from_stored_step, STEP_TYPES)),
        trial_id=trial_id,
    )


def _local_time(utc: datetime | None) -> datetime | None:
    """Return a stored time as `FrozenTrial` has it: naive, in the local zone."""
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _numbers(parts: Sequence[Part], convert: Any, kinds: dict[str, Any]) -> Iterable[tuple[int, float]]:
    """Return places with the numbers that the rows stand for, in order."""
    return [
        (place, value if kind == _FINITE else convert(value, kinds[kind])) for place, kind, value, _ in sorted(parts)
    ]
