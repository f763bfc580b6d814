"""A study's trials, read with one statement."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialModel, TrialValueModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from csi_job.study.rows import parsed_distribution
from csi_job.study.tables import PARAMS, STEPS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES, VALUES

MAX_LISTED: Final = 500  # ids in one IN; more are filtered here, since databases limit the variables of a statement

_VALUES_OF: Final = {kind.name: kind for kind in TrialValueModel.TrialValueType}
_STEPS_OF: Final = {kind.name: kind for kind in TrialIntermediateValueModel.TrialIntermediateValueType}
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
    return [trial for trial in trials if trial._trial_id > after or trial._trial_id in also]  # noqa: SLF001


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
    times = TrialModel()  # Optuna's own conversion from the stored UTC to local time
    times._datetime_start_utc, times._datetime_complete_utc = start, complete  # noqa: SLF001
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=[value for _, value in _numbers(values, TrialValueModel.stored_repr_to_value, _VALUES_OF)] or None,
        datetime_start=times.datetime_start,
        datetime_complete=times.datetime_complete,
        params={name: kind.to_external_repr(internal[name]) for name, kind in distributions.items()},
        distributions=distributions,
        user_attrs={key: json.loads(text) for _, key, _, text in sorted(user_attrs)},
        system_attrs={key: json.loads(text) for _, key, _, text in sorted(system_attrs)},
        intermediate_values=dict(
            _numbers(steps, TrialIntermediateValueModel.stored_repr_to_intermediate_value, _STEPS_OF)
        ),
        trial_id=trial_id,
    )


def _numbers(parts: Sequence[Part], convert: Any, kinds: dict[str, Any]) -> Iterable[tuple[int, float]]:
    """Return places with the numbers that the rows stand for, in order."""
    return [
        (place, value if kind == _FINITE else convert(value, kinds[kind])) for place, kind, value, _ in sorted(parts)
    ]
