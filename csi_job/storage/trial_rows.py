"""Trials as rows of Optuna's tables, read and written with few statements."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from csi_job.storage.attributes import CONSTRAINT, CURVE, INFEASIBLE, REASON, RUNG_PREFIX, readable_by_optuna
from csi_job.storage.engine import now_utc, upsert
from csi_job.storage.optuna_private import (
    STEP_TYPES,
    VALUE_TYPES,
    contains,
    from_stored_step,
    from_stored_value,
    to_stored_step,
    to_stored_value,
    trial_id_of,
)
from csi_job.storage.tables import PARAMS, STEPS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES, VALUES

MAX_LISTED: Final = 500  # ids in one IN clause, since databases limit a statement's variables

parsed_distribution = lru_cache(maxsize=4096)(json_to_distribution)  # a study has few, each stored once per trial


# Writing


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


def insert_running(connection: Connection, study_id: int, number: int) -> int:
    """Insert a trial that starts now, with the next number, and return its id; the caller holds the study's lock."""
    return _insert(connection, study_id, number, state_changes(connection, TrialState.RUNNING))


def add_trial(connection: Connection, study_id: int, template: FrozenTrial) -> int:
    """Insert a trial with all its parts and return its id; the caller holds the study's lock.

    Its number is the count of trials, which assumes that numbers have no gaps.
    """
    count = sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
    times = {"datetime_start": _utc(template.datetime_start), "datetime_complete": _utc(template.datetime_complete)}
    number = connection.execute(count).scalar_one()
    trial_id = _insert(connection, study_id, number, {"state": template.state, **times})
    attributes = template.user_attrs, template.system_attrs
    write = TrialWrite(params_to_write(template), *attributes, template.intermediate_values, template.values or ())
    write_rows(connection, trial_id, write)
    return trial_id


def params_to_write(trial: FrozenTrial) -> dict[str, tuple[float, BaseDistribution]]:
    """Return a trial's parameters as `TrialWrite` has them."""
    kinds = trial.distributions
    return {name: (kinds[name].to_internal_repr(value), kinds[name]) for name, value in trial.params.items()}


def _insert(connection: Connection, study_id: int, number: int, columns: dict[str, Any]) -> int:
    insert = sa.insert(TRIALS).values(study_id=study_id, number=number, **columns)
    return int(connection.execute(insert.returning(TRIALS.c.trial_id)).scalar_one())


def _utc(local: datetime | None) -> datetime | None:
    """Return a naive local time as it is stored: naive, in UTC."""
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)


def write_rows(connection: Connection, trial_id: int, write: TrialWrite) -> None:
    """Write the rows of one trial; the caller has checked that it may."""
    for table, rows, keys in child_rows(trial_id, write):
        upsert(connection, table, rows, keys)
    if write.state is not None:
        set_state(connection, trial_id, write.state)


def set_state(connection: Connection, trial_id: int, state: TrialState) -> None:
    """Change a trial's state and set its start or end to now."""
    changes = state_changes(connection, state)
    connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(**changes))


def state_changes(connection: Connection, state: TrialState) -> dict[str, Any]:
    """Return the columns of a trial that change with its state."""
    if state is TrialState.RUNNING:
        return {"state": state, "datetime_start": now_utc(connection)}
    if not state.is_finished():
        return {"state": state}
    # Not before the start, even if the database's clock was set back in between.
    latest = sa.func.max if connection.dialect.name == "sqlite" else sa.func.greatest
    end = latest(now_utc(connection), sa.func.coalesce(TRIALS.c.datetime_start, now_utc(connection)))
    return {"state": state, "datetime_complete": end}


def child_rows(trial_id: int, write: TrialWrite) -> list[tuple[sa.Table, list[dict[str, Any]], tuple[str, ...]]]:
    """Return what is written beside the trial's own row: tables, their rows, and the columns of their unique keys."""
    params = [
        {"param_name": name, "param_value": value, "distribution_json": distribution_to_json(kind)}
        for name, (value, kind) in write.params.items()
    ]
    steps = [(step, *to_stored_step(float(value))) for step, value in write.steps.items()]
    values = [(objective, *to_stored_value(float(value))) for objective, value in enumerate(write.values)]
    step_columns = ("step", "intermediate_value", "intermediate_value_type")
    written: list[tuple[sa.Table, str, list[dict[str, Any]]]] = [
        (PARAMS, "param_name", params),
        (USER_ATTRIBUTES, "key", _attribute_rows(write.user_attrs)),
        (SYSTEM_ATTRIBUTES, "key", _attribute_rows(write.system_attrs)),
        (STEPS, "step", [dict(zip(step_columns, row, strict=True)) for row in steps]),
        (VALUES, "objective", [dict(zip(("objective", "value", "value_type"), row, strict=True)) for row in values]),
    ]
    return [
        (table, [{"trial_id": trial_id, **row} for row in rows], ("trial_id", key))
        for table, key, rows in written
        if rows
    ]


def _attribute_rows(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def remove_steps(connection: Connection, trial_id: int, first: int) -> None:
    """Remove a trial's intermediate values from this step on, and the rungs that a pruner derived from them."""
    connection.execute(sa.delete(STEPS).where(STEPS.c.trial_id == trial_id, STEPS.c.step >= first))
    is_rung = SYSTEM_ATTRIBUTES.c.key.startswith(RUNG_PREFIX, autoescape=True)
    connection.execute(sa.delete(SYSTEM_ATTRIBUTES).where(SYSTEM_ATTRIBUTES.c.trial_id == trial_id, is_rung))


# Reading


def read_trials(
    connection: Connection, study_id: int, *, after: int = -1, also: Collection[int] = ()
) -> list[FrozenTrial]:
    """Return a study's trials with an id greater than `after` or among `also`, ordered by id."""
    chosen = TRIALS.c.trial_id > after
    if also and len(also) <= MAX_LISTED:
        chosen = sa.or_(chosen, TRIALS.c.trial_id.in_(sorted(also)))
    elif also:
        chosen = sa.true()
    trials = _read(connection, sa.and_(TRIALS.c.study_id == study_id, chosen))
    return [trial for trial in trials if trial_id_of(trial) > after or trial_id_of(trial) in also]


def read_trial(connection: Connection, trial_id: int) -> FrozenTrial | None:
    """Return one trial, None if none has this id."""
    trials = _read(connection, TRIALS.c.trial_id == trial_id)
    return trials[0] if trials else None


def stored_distribution(connection: Connection, trial_id: int, name: str) -> BaseDistribution | None:
    """Return a distribution that the trial's study has stored for a parameter, if any."""
    study_id = sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id).scalar_subquery()
    query = sa.select(PARAMS.c.distribution_json).join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id)
    text = connection.execute(query.where(TRIALS.c.study_id == study_id, PARAMS.c.param_name == name)).scalar()
    return None if text is None else parsed_distribution(text)


def has_complete(connection: Connection, study_id: int) -> bool:
    """Return whether a trial of a study is complete."""
    is_complete = (TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
    return connection.execute(sa.select(TRIALS.c.trial_id).where(*is_complete).limit(1)).first() is not None


def count_epochs(connection: Connection, study_id: int) -> int:
    """Return the number of epochs stored over all trials of a study, whatever became of them."""
    is_here = TRIALS.c.study_id == study_id
    steps = sa.select(sa.func.count()).select_from(STEPS.join(TRIALS, TRIALS.c.trial_id == STEPS.c.trial_id))
    curves = sa.select(USER_ATTRIBUTES.c.value_json).join(TRIALS, TRIALS.c.trial_id == USER_ATTRIBUTES.c.trial_id)
    texts = connection.execute(curves.where(is_here, USER_ATTRIBUTES.c.key == CURVE)).scalars()
    of_curves = sum(len(curve) for text in texts if isinstance(curve := json.loads(text), list))
    return connection.execute(steps.where(is_here)).scalar_one() + of_curves


class Part(NamedTuple):
    """A row of one of the tables with parts of trials, in the columns that all of them share in `_query`."""

    order: int
    """The row's place among those of its trial and table."""
    key: str
    """A name, or the type of the number."""
    number: float | None
    text: str | None


def _read(connection: Connection, wanted: sa.ColumnElement[bool]) -> list[FrozenTrial]:
    """Read trials with all their parts in one statement: a consistent snapshot."""
    parts: defaultdict[int, tuple[list[Part], ...]] = defaultdict(lambda: ([], [], [], [], []))
    trials = []
    for table, trial_id, order, key, number, text, start, complete in connection.execute(_query(wanted)).all():
        if table < 0:
            trials.append((trial_id, order, TrialState[key], start, complete))
        else:
            parts[trial_id][table].append(Part(order, key, number, text))
    return [_frozen(trial, *parts[trial[0]]) for trial in sorted(trials)]


def _query(wanted: sa.ColumnElement[bool]) -> sa.CompoundSelect[Any]:
    chosen = sa.select(TRIALS.c.trial_id).where(wanted).cte("chosen")
    ids = sa.select(chosen.c.trial_id)
    no_time, state = sa.cast(sa.null(), TRIALS.c.datetime_start.type), sa.cast(TRIALS.c.state, sa.String)
    head: tuple[Any, ...] = (sa.literal_column("-1").label("part"), TRIALS.c.trial_id, TRIALS.c.number, state)
    times = (TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
    selects: list[sa.Select[Any]] = [sa.select(*head, _NO_NUMBER, _NO_TEXT, *times).where(TRIALS.c.trial_id.in_(ids))]
    for index, (table, *columns) in enumerate(_PART_TABLES):
        part: sa.Select[Any] = sa.select(sa.literal_column(str(index)), table.c.trial_id, *columns, no_time, no_time)
        selects.append(part.where(table.c.trial_id.in_(ids)))
    return sa.union_all(*selects)


_NO_NUMBER: Final = sa.cast(sa.null(), sa.Float(53))
_NO_TEXT: Final = sa.cast(sa.null(), sa.Text)


def _numbers_of(table: sa.Table, order: str, kind: str, number: str) -> tuple[Any, ...]:
    return table, table.c[order], sa.cast(table.c[kind], sa.String), table.c[number], _NO_TEXT


def _texts_of(table: sa.Table, order: str, name: str, number: Any, text: str) -> tuple[Any, ...]:
    return table, table.c[order], table.c[name], number, table.c[text]


# Where the parts of a trial are, in the order in which `_frozen` takes them, and the columns of each as in `Part`.
_PART_TABLES: Final = (
    _texts_of(PARAMS, "param_id", "param_name", PARAMS.c.param_value, "distribution_json"),
    _numbers_of(VALUES, "objective", "value_type", "value"),
    _numbers_of(STEPS, "step", "intermediate_value_type", "intermediate_value"),
    _texts_of(USER_ATTRIBUTES, "trial_user_attribute_id", "key", _NO_NUMBER, "value_json"),
    _texts_of(SYSTEM_ATTRIBUTES, "trial_system_attribute_id", "key", _NO_NUMBER, "value_json"),
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
    internal: dict[str, Any] = {part.key: part.number for part in params if part.number is not None}
    distributions = {part.key: parsed_distribution(part.text or "") for part in sorted(params) if part.key in internal}
    user = _attributes(user_attrs)
    system = readable_by_optuna(_attributes(system_attrs), user)
    outside = [part.key for part in params if part.number is None]  # NaN
    outside += [name for name, kind in distributions.items() if not contains(kind, internal[name])]
    if outside and state in (TrialState.COMPLETE, TrialState.PRUNED):
        # Version 0.1 trained such a trial if another program enqueued it. It counts, but no result is based on it.
        state, values = TrialState.PRUNED, []
        user |= {INFEASIBLE: True, REASON: f"outside the search space: {', '.join(outside)}"}
        system[CONSTRAINT] = 1.0
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=[*_numbers(values, from_stored_value, VALUE_TYPES).values()] or None,
        datetime_start=start and local_time(start),
        datetime_complete=complete and local_time(complete),
        params={name: kind.to_external_repr(internal[name]) for name, kind in distributions.items()},
        distributions=distributions,
        user_attrs=user,
        system_attrs=system,
        intermediate_values=_numbers(steps, from_stored_step, STEP_TYPES),
        trial_id=trial_id,
    )


def local_time(utc: datetime) -> datetime:
    """Return a stored time as `FrozenTrial` has it: naive, in the local zone, of a repeated hour with its `fold`."""
    local = datetime.fromtimestamp(utc.replace(microsecond=0, tzinfo=UTC).timestamp())  # noqa: DTZ006 - as it has it
    return local.replace(microsecond=utc.microsecond)


def _numbers(parts: list[Part], convert: Callable[..., float], types: dict[str, Any]) -> dict[int, float]:
    return {
        part.order: part.number
        if part.key == "FINITE" and part.number is not None
        else convert(part.number, types[part.key])
        for part in sorted(parts)
    }


def _attributes(parts: list[Part]) -> dict[str, Any]:
    return {part.key: json.loads(part.text or "") for part in sorted(parts)}
