"""What tests of backup, restore, export and migration share: odd trials, and trials compared without their ids."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

import optuna
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from csi_job.transfer.backup_file import Backup
from csi_job.transfer.stored import StoredLease, StoredTrial

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
ATTRIBUTES = st.dictionaries(NAMES, JSON.map(json.dumps), max_size=3)
# PostgreSQL knows no negative zero in what psycopg2 sends; it equals the other one.
FINITE = st.floats(allow_nan=False).map(lambda value: value + 0.0)
# In UTC, where no hour comes twice (fold).
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)).map(lambda time: time.replace(fold=0))  # noqa: DTZ001
TIMES = st.none() | MOMENTS


@st.composite
def trials(draw: st.DrawFn, number: int) -> StoredTrial:
    state = draw(st.sampled_from(TrialState))
    kinds = draw(st.dictionaries(NAMES, st.sampled_from(DISTRIBUTIONS), max_size=3))
    lease = StoredLease(draw(st.integers(1, 9)), 2, 1, draw(st.none() | NAMES))
    return StoredTrial(
        number,
        state,
        draw(TIMES),
        draw(TIMES),
        params={name: (draw(internal_values(kind)), distribution_to_json(kind)) for name, kind in kinds.items()},
        values=draw(st.lists(FINITE, max_size=3)),
        steps=draw(st.dictionaries(st.integers(-(2**31), 2**31 - 1), FINITE | st.just(math.nan), max_size=4)),
        user_attrs=draw(ATTRIBUTES),
        system_attrs=draw(ATTRIBUTES),
        lease=lease if state is TrialState.RUNNING else None,
    )


def internal_values(kind: Any) -> st.SearchStrategy[float]:
    if isinstance(kind, CategoricalDistribution):
        return st.integers(0, 4).map(float)
    if isinstance(kind, IntDistribution):
        return st.sampled_from([-5.0, 0.0, 5.0])
    return st.floats(kind.low, kind.high).map(lambda value: value + 0.0)


@st.composite
def backups(draw: st.DrawFn) -> Backup:
    return Backup(
        name="toy",
        created=draw(MOMENTS),
        directions=draw(st.lists(st.sampled_from(StudyDirection), min_size=1, max_size=3)),
        user_attrs=draw(ATTRIBUTES),
        system_attrs=draw(ATTRIBUTES),
        trials=[draw(trials(number)) for number in range(draw(st.integers(0, 4)))],
    )


def simple_backup() -> Backup:
    """A study of two trials."""
    params = {"a": (0.5, distribution_to_json(DISTRIBUTIONS[0]))}
    began = datetime(2026, 1, 2, 3, 4, 5, 678900)  # noqa: DTZ001 - in UTC, as stored
    trials = [
        StoredTrial(0, TrialState.COMPLETE, began, began, params, [0.5], {0: 0.25}, {"reason": '"é"'}),
        StoredTrial(1, TrialState.RUNNING, began, None, params, lease=StoredLease(2, 3, 1, "checkpoints/epoch.pt")),
    ]
    return Backup("toy", began, [StudyDirection.MAXIMIZE], {"uid": '"0123"'}, {}, trials)


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
