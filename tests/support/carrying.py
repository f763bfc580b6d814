"""What tests of copy, export and migration share: odd trials, and trials compared without their ids."""

import math
from collections.abc import Mapping
from datetime import datetime
from operator import itemgetter
from typing import Any

import optuna
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from csi_job.storage import tables
from csi_job.storage.study_rows import attribute_row
from csi_job.storage.trial_rows import TrialWrite, child_rows
from csi_job.transfer.copy import StudyRows, TrialRows

LIVE_LEASE = {"token": "t", "owner": "host", "renewed_at_s": 1e12, "lease_s": 60.0}
LEASE_COLUMNS = ("attempt", "num_epochs", "num_lost", "checkpoint")

DISTRIBUTIONS = (
    FloatDistribution(-1e300, 1e300),
    FloatDistribution(1e-300, 1.0, log=True),
    IntDistribution(-5, 5, step=5),
    CategoricalDistribution([None, True, "é", 2.5, 3]),
)
# Neither database keeps half a surrogate pair in a name, nor PostgreSQL a zero character.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ATTRIBUTES = st.dictionaries(NAMES, JSON, max_size=3)
# PostgreSQL knows no negative zero in what psycopg2 sends; it equals the other one.
FINITE = st.floats(allow_nan=False).map(lambda value: value + 0.0)
# In UTC, where no hour comes twice (fold).
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)).map(lambda time: time.replace(fold=0))  # noqa: DTZ001
TIMES = st.none() | MOMENTS


@st.composite
def trials(draw: st.DrawFn, number: int) -> TrialRows:
    state = draw(st.sampled_from(TrialState))
    kinds = draw(st.dictionaries(NAMES, st.sampled_from(DISTRIBUTIONS), max_size=3))
    return trial_rows(
        number,
        state,
        *draw(st.tuples(TIMES, TIMES)),
        params={name: (draw(internal_values(kind)), kind) for name, kind in kinds.items()},
        values=draw(st.lists(FINITE, max_size=3)),
        steps=draw(st.dictionaries(st.integers(-(2**31), 2**31 - 1), FINITE | st.just(math.nan), max_size=4)),
        user_attrs=draw(ATTRIBUTES),
        system_attrs=draw(ATTRIBUTES),
        lease=(draw(st.integers(1, 9)), 2, 1, draw(st.none() | NAMES)) if state is TrialState.RUNNING else None,
    )


def internal_values(kind: Any) -> st.SearchStrategy[float]:
    if isinstance(kind, CategoricalDistribution):
        return st.integers(0, 4).map(float)
    if isinstance(kind, IntDistribution):
        return st.sampled_from([-5.0, 0.0, 5.0])
    return st.floats(kind.low, kind.high).map(lambda value: value + 0.0)


@st.composite
def studies(draw: st.DrawFn) -> StudyRows:
    directions = draw(st.lists(st.sampled_from(StudyDirection), min_size=1, max_size=3))
    made = [draw(trials(number)) for number in range(draw(st.integers(0, 4)))]
    return study_rows(directions, draw(ATTRIBUTES), draw(ATTRIBUTES), made)


def simple_study() -> StudyRows:
    """A study of two trials."""
    params = {"a": (0.5, DISTRIBUTIONS[0])}
    began = datetime(2026, 1, 2, 3, 4, 5, 678900)  # noqa: DTZ001 - in UTC, as stored
    first = trial_rows(
        0, TrialState.COMPLETE, began, began, params=params, values=[0.5], steps={0: 0.25}, user_attrs={"reason": "é"}
    )
    second = trial_rows(1, TrialState.RUNNING, began, params=params, lease=(2, 3, 1, "checkpoints/epoch.pt"))
    return study_rows([StudyDirection.MAXIMIZE], {"uid": "0123"}, {}, [first, second])


def study_rows(
    directions: list[StudyDirection], user_attrs: dict[str, Any], system_attrs: dict[str, Any], made: list[TrialRows]
) -> StudyRows:
    parts: dict[Any, list[Any]] = {
        tables.DIRECTIONS: [{"objective": index, "direction": direction} for index, direction in enumerate(directions)],
        tables.STUDY_ATTRIBUTES: [attribute_row(0, *pair) for pair in user_attrs.items()],
        tables.STUDY_SYSTEM_ATTRIBUTES: [attribute_row(0, *pair) for pair in system_attrs.items()],
    }
    return StudyRows("toy", parts, made)


def trial_rows(
    number: int,
    state: TrialState,
    start: datetime | None = None,
    complete: datetime | None = None,
    *,
    lease: tuple[int, int, int, str | None] | None = None,
    **parts: Any,
) -> TrialRows:
    """A trial as the tables hold it; times are in UTC, a lease has attempt, epochs, lost attempts, checkpoint."""
    own = {"number": number, "state": state, "datetime_start": start, "datetime_complete": complete}
    rows: dict[Any, list[Any]] = {table: part for table, part, _ in child_rows(0, TrialWrite(**parts))}
    if lease is not None:
        rows[tables.LEASES] = [LIVE_LEASE | dict(zip(LEASE_COLUMNS, lease, strict=True))]
    return TrialRows(own, rows)


def without_ids(study: StudyRows) -> dict[str, Any]:
    """Everything in the rows of a study except ids, and what a copy changes: uid, and by whom trials are held."""
    return {**plain_parts(study.parts), "trials": [(plain_row(t.own), plain_parts(t.parts)) for t in study.trials]}


def plain_parts(parts: Mapping[Any, list[Any]]) -> dict[str, list[dict[str, Any]]]:
    by_name = sorted(((table.name, rows) for table, rows in parts.items() if rows), key=itemgetter(0))
    return {name: [plain_row(row) for row in rows] for name, rows in by_name}


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    if row.get("key") == "uid":
        return {"key": "uid"}
    names = sorted(name for name in row if name not in LIVE_LEASE and not name.endswith("_id"))
    return {name: row[name] for name in names}


def plain(trial: FrozenTrial) -> dict[str, Any]:
    """All of a trial but its id, with comparable not-a-numbers."""
    parts = {name: part for name, part in vars(trial).items() if name != "_trial_id"}
    steps = {step: "nan" if math.isnan(value) else value for step, value in trial.intermediate_values.items()}
    return {**parts, "intermediate_values": steps}


def plain_study(study: optuna.Study) -> dict[str, Any]:
    """All of a study but its ids."""
    return {
        "directions": study.directions,
        "user_attrs": study.user_attrs,
        "system_attrs": study._storage.get_study_system_attrs(study._study_id),
        "trials": [plain(trial) for trial in study.trials],
    }


def odd_trials(study: optuna.Study) -> None:
    """Add finished and waiting trials with everything that is hard to store."""
    study.set_user_attr("text", "é\u2028 'quoted'\n")
    study._storage.set_study_system_attr(study._study_id, "deep", {"a": [None, 1e-300]})
    params = {"a": 0.1 + 0.2, "b": 3, "c": None}
    kinds = {
        "a": FloatDistribution(1e-5, 1, log=True),
        "b": IntDistribution(1, 9, step=2),
        "c": CategoricalDistribution([None, True, "x", 2.5]),
    }
    for state, value in ((TrialState.COMPLETE, -math.inf), (TrialState.PRUNED, math.inf), (TrialState.FAIL, None)):
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params=params,
                distributions=kinds,
                intermediate_values={0: math.nan, 1: math.inf, 2: -math.inf, 3: 5e-324, 7: 0.0},
                user_attrs={"é": [1, None, {"deep": "\u2028"}], "nan": math.nan},
                system_attrs={"constraints:x": 1.0},
            )
        )
    study.enqueue_trial({"x": 0.25})
