"""What one statement reads equals what Optuna reads and numpy computes, on both databases."""

import math
import random

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from csi_job.storage.tables import STEPS
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.pruning import median_query, should_prune
from tests.support.studies import define, leased, work_on

DISTRIBUTIONS = {
    "a": FloatDistribution(1e-9, 1, log=True),
    "b": IntDistribution(1, 9, step=2),
    "c": CategoricalDistribution([None, True, "x", 2.5]),
}

NUMBERS = {"a": FloatDistribution(1e-9, 1, log=True), "b": IntDistribution(1, 9, step=2)}


def test_trials_are_read_as_optuna_reads_them(storage, url, tmp_path):
    study, draws = define(storage), random.Random(5)
    work_on(study, tmp_path)
    plain = optuna.load_study(study_name="toy", storage=url.replace("postgresql://", "postgresql+psycopg2://"))
    for _ in range(40):
        params = {"b": draws.choice((1, 3, 5)), "a": draws.random(), "c": draws.choice((None, True, "x", 2.5))}
        steps = {step: draws.choice((draws.random(), math.inf, -math.inf)) for step in draws.sample(range(99), 7)}
        attributes = {"z é": [1, None, math.inf], "a": {"deep": draws.random()}}
        value = draws.choice((draws.random() / 3, math.inf, -math.inf, 1e-300))
        given = {"params": params, "distributions": DISTRIBUTIONS, "intermediate_values": steps, "value": value}
        for writer in (study, plain):
            writer.add_trial(create_trial(**given, user_attrs=attributes, system_attrs=attributes))
    study.add_trial(create_trial(state=TrialState.FAIL))
    plain.enqueue_trial({"a": 0.5})

    trials = storage.get_all_trials(study._study_id)
    assert trials == [storage.get_trial(trial._trial_id) for trial in plain.get_trials()] == plain.get_trials()
    assert [trial.number for trial in trials] == list(range(5 + 2 * 40 + 2))
    assert [*trials[5].params] == ["b", "a", "c"]
    assert (plain.best_value, plain.user_attrs) == (study.best_value, study.user_attrs)


def curves_of(study, values):
    for value in values:
        study.add_trial(create_trial(value=0.5, intermediate_values={0: 0.0, 1: value}))


@pytest.mark.parametrize("num_values", [1, 2, 5, 8, 31])
def test_the_median_equals_numpy_s(storage, num_values):
    study, other = define(storage, num_trials=99), define(storage, name="other")
    curves_of(other, [9.0] * 3)
    values = [random.Random(num_values).random() for _ in range(num_values)]
    curves_of(study, [*values, math.nan])
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={1: 9.0}))

    query = median_query(study, 1)
    row = storage.read(lambda connection: connection.execute(query).one())

    assert row.num_rows == num_values + 1
    assert row.median == pytest.approx(np.median(values), rel=1e-15)


def test_nothing_is_pruned_at_an_epoch_that_no_trial_has_reached(storage):
    study = define(storage)
    query = median_query(study, 7)
    assert [*storage.read(lambda connection: connection.execute(query).one())] == [0, None]
    trial = create_trial(state=TrialState.RUNNING, intermediate_values={7: math.nan})
    assert not should_prune(study, trial)


def test_the_median_has_an_index(storage):
    names = {index["name"] for index in sa.inspect(storage.engine).get_indexes(STEPS.name)}
    assert "csi_job_steps" in names


def test_all_kinds_of_values_survive_a_round_trip(storage):
    study = define(storage, num_trials=2)
    lease = leased(study)
    odd = {"quote ' \" \\ {a,b} %s :x": ["é", None, 1e-300], "NULL": "NULL", "": {"a": math.inf}}
    write = TrialWrite(
        params={name: (kind.to_internal_repr(kind.low), kind) for name, kind in NUMBERS.items()},
        user_attrs=odd,
        system_attrs=odd,
        steps={0: math.nan, 1: math.inf, 2: -math.inf, 3: 0.1 + 0.2},
    )
    storage.write_trial(lease, write)
    storage.write_trial(lease, TrialWrite(user_attrs={"NULL": None}, steps={3: 1 / 3}, values=[-math.inf]))
    storage.write_trial(lease, TrialWrite(state=TrialState.COMPLETE))

    trial = study.trials[0]
    assert trial.params == {name: kind.low for name, kind in NUMBERS.items()}
    assert trial.distributions == NUMBERS
    assert trial.user_attrs == odd | {"NULL": None, "baseline": True}
    assert odd.items() <= trial.system_attrs.items()
    assert math.isnan(trial.intermediate_values.pop(0))
    assert trial.intermediate_values == {1: math.inf, 2: -math.inf, 3: 1 / 3}
    assert trial.values == [-math.inf]
