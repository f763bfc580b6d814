import math
import random

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from csi_job.storage.optuna_private import study_id_of, trial_id_of
from csi_job.storage.rungs import Rungs, standings_of_paused
from csi_job.study.pruning import make_pruner, should_prune, should_prune_at_cost
from csi_job.study.settings import StudySettings
from tests.support.studies import define, work_on


def running(values, number=99, **system_attrs):
    trial = create_trial(state=TrialState.RUNNING, intermediate_values=values, system_attrs=system_attrs)
    trial.number, trial._trial_id = number, number + 1
    return trial


def add(study, *curves, **options):
    for curve in curves:
        study.add_trial(create_trial(value=curve[-1], intermediate_values=dict(enumerate(curve)), **options))


@pytest.mark.filterwarnings("ignore:All-NaN")  # of Optuna's
@pytest.mark.parametrize("share_nan", [0.0, 0.3, 0.9, 1.0])
def test_the_median_is_that_of_optunas_pruner_on_the_entire_study(storage, share_nan):
    study, costly = define(storage), define(storage, name="costs", objective="f1-and-cost")
    draws = random.Random(3)

    def curve():
        return [math.nan if draws.random() < share_nan else draws.random() for _ in range(draws.randint(1, 6))]

    decisions = []
    for number in range(100):
        if number % 3 == 0:
            values = curve()
            study.add_trial(create_trial(value=0.0, intermediate_values=dict(enumerate(values))))
            attributes = {"curve": [*enumerate(values)], "gflops": 1.0}
            costly.add_trial(create_trial(values=[0.0, 1.0], user_attrs=attributes))
        trial = running(dict(enumerate(curve())), number)
        expected = bool(optuna.pruners.MedianPruner(5, n_warmup_steps=1, n_min_trials=5).prune(study, trial))
        assert should_prune(study, trial) is expected
        assert should_prune_at_cost(costly, trial.intermediate_values, gflops=1.0) is expected
        decisions.append(expected)
    assert set(decisions) == {True, False}


def test_nothing_is_pruned_before_enough_trials_reached_the_epoch_nor_by_the_pruner_none(storage):
    study = define(storage)
    add(study, *[[0.9, 0.9, 0.9]] * 4)
    assert not should_prune(study, running({0: 0.0, 1: 0.0}))
    add(study, [0.9, 0.9, 0.9])
    assert should_prune(study, running({0: 0.0, 1: 0.0}))
    assert not should_prune(study, running({0: 0.0}))  # the first epoch shows too little
    assert not should_prune(study, running(dict.fromkeys(range(9), 0.0)))  # none has come so far
    assert not should_prune(study, running({0: 0.0, 1: 0.95}))
    assert not should_prune(define(storage, pruner="none"), running({0: 0.0, 1: 0.0}))


def test_infeasible_and_failed_trials_are_not_compared_with(storage):
    study = define(storage)
    add(study, *[[0.5, 0.5]] * 5)
    for state in (TrialState.PRUNED, TrialState.FAIL):
        for _ in range(20):
            study.add_trial(create_trial(state=state, intermediate_values={0: 0.9, 1: 0.9}))
    assert not should_prune(study, running({0: 0.6, 1: 0.6}))


def test_successive_halving_is_that_of_optuna_and_keeps_its_rungs(storage, tmp_path):
    given = {"num_trials": 16, "max_epochs": 6, "pruner": "successive_halving", "sampler": "random"}
    study = define(storage, **given)
    work_on(study, tmp_path, **given)
    twin = optuna.create_study(pruner=make_pruner(StudySettings(pruner="successive_halving")), direction="maximize")
    for trial in study.trials:
        ask = twin.ask()
        for step, value in trial.intermediate_values.items():
            ask.report(value, step)
            pruned = ask.should_prune()
            assert pruned is (trial.state is TrialState.PRUNED and step == trial.last_step)
        state = trial.state
        twin.tell(ask, trial.value if state is TrialState.COMPLETE else None, state=state)
        rungs = {key: value for key, value in trial.system_attrs.items() if "rung" in key}
        assert rungs == {key: value for key, value in twin.trials[-1].system_attrs.items() if "rung" in key}
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize(("constraint", "is_pruned"), [({"constraints:trainable": 1.0}, False), ({}, True)])
def test_infeasible_trials_compete_for_no_rung(storage, tmp_path, constraint, *, is_pruned):
    study = define(storage, pruner="successive_halving", num_trials=9)
    for _ in range(8):
        study.add_trial(create_trial(state=TrialState.PRUNED, system_attrs={"completed_rung_0": 0.9, **constraint}))
    work_on(study, tmp_path, pruner="successive_halving", num_trials=9)
    assert (study.trials[0].state is TrialState.PRUNED) is is_pruned


def test_with_two_objectives_a_cheap_trial_is_compared_with_the_cheap(storage):
    study = define(storage, objective="f1-and-cost")
    for f1, gflops in [(0.8, 4.0)] * 9 + [(0.5, 1.0)] * 5:
        curve = [[0, f1], [1, f1]]
        study.add_trial(create_trial(values=[f1, gflops], user_attrs={"curve": curve, "gflops": gflops}))
    for value in (None, math.nan, "x", 0.1, [[0, 0.9]]):  # by another program
        study.add_trial(
            create_trial(values=[0.9, 0.1], user_attrs={"curve": curve, "gflops": value if value != 0.1 else True})
        )
        study.add_trial(create_trial(values=[0.9, 0.1], user_attrs={"curve": value, "gflops": 0.1}))
    cases = [((0.6, 0.6), 1.0), ((0.4, 0.4), 1.0), ((0.6, 0.6), 4.0), ((0.4, 0.4), 0.5), ((0.4,), 4.0), ((), 4.0)]
    pruned = [should_prune_at_cost(study, dict(enumerate(curve)), gflops=gflops) for curve, gflops in cases]
    assert pruned == [False, True, True, False, False, False]  # nobody is as cheap as 0.5 GFLOPs


def test_ranking_paused_trials_does_not_compare_each_epoch_with_all_others(storage):
    def num_instructions(num_epochs):
        study = define(storage, name=f"of {num_epochs} epochs", num_trials=99)
        add(study, *[[trial / 9 + epoch for epoch in range(num_epochs)] for trial in range(9)])
        ids, ticks = [trial_id_of(trial) for trial in study.get_trials()], []
        with storage.read_engine.connect() as connection:
            sqlite = connection.connection.dbapi_connection
            sqlite.set_progress_handler(lambda: ticks.append(1), 100)
            standings_of_paused(connection, study_id_of(study), ids, Rungs(1, 3))
            sqlite.set_progress_handler(None, 0)
        return len(ticks)

    assert num_instructions(400) < 3 * num_instructions(200)
