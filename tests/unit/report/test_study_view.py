from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from csi_job.report.study_view import view_study
from csi_job.storage.attributes import FIXED_PARAMS
from csi_job.study.studies import enqueue_trial
from csi_job.study.target import set_target
from csi_job.trial.space import SearchSpace
from tests.support.studies import counted, define, work_on


def test_outcomes_agree_with_optunas_states(finished_study, view):
    states = Counter(trial.state for trial in finished_study.get_trials())
    counts = view.counts()
    assert counts["complete"] == states[TrialState.COMPLETE] > 10
    assert counts["pruned"] + counts["infeasible"] == states[TrialState.PRUNED]
    assert counts["infeasible"] == sum("infeasible" in trial.user_attrs for trial in finished_study.get_trials()) > 0
    assert (counts["failed"], counts["running"], counts["waiting"]) == (2, 1, 1)
    assert view.num_finished == states[TrialState.COMPLETE] + states[TrialState.PRUNED]


def test_a_pruned_trial_has_the_best_f1_of_its_curve(finished_study, view):
    pruned = view.with_outcome("pruned")
    assert pruned
    for trial in pruned:
        assert trial.f1 == max(finished_study.trials[trial.number].intermediate_values.values())


def test_ranking_is_by_f1_with_optunas_best_trial_first(finished_study, view):
    ranked = view.ranked
    assert ranked[0].number == finished_study.best_trial.number
    assert [trial.f1 for trial in ranked] == sorted((trial.f1 for trial in ranked), reverse=True)


def test_phases_differ_by_sampler_pruner_and_epochs(view):
    phases = [(phase.number, phase.sampler, phase.max_epochs) for phase in view.phases]
    assert phases == [(1, "random", 8), (2, "tpe", 12)]
    assert view.trials[0].phase is view.phases[0]
    assert view.trials[25].phase is view.phases[1]


def test_two_objectives_take_f1_and_cost_from_the_values_and_the_curve_from_its_attribute(two_objectives, cost_view):
    assert cost_view.has_cost
    for trial in cost_view.with_outcome("complete"):
        f1, gflops = two_objectives.trials[trial.number].values
        assert (trial.f1, trial.gflops) == (pytest.approx(f1), gflops)
        assert max(value for _, value in trial.curve) == pytest.approx(f1)


def test_the_baseline_is_the_marked_trial_once_it_is_complete(view, degenerate_view):
    assert view.baseline.number == 0
    baseline = degenerate_view.baseline
    assert baseline is None or (baseline.is_baseline and baseline.outcome == "complete")


@pytest.mark.parametrize(("fixed", "params"), [({"learning_rate": 0.01}, {"learning_rate": 0.01}), ("foreign", {})])
def test_a_waiting_trial_has_the_parameters_that_it_was_enqueued_with(fixed, params):
    study = optuna.create_study()
    study.add_trial(create_trial(state=TrialState.WAITING, system_attrs={FIXED_PARAMS: fixed}))
    assert view_study(study).trials[0].params == params


def test_trials_with_other_rungs_are_of_another_phase():
    study = optuna.create_study()
    asha = {"sampler": "tpe", "pruner": "asha", "max_epochs": 8, "min_resource": 2, "reduction_factor": 2}
    for attributes in (asha, asha, asha | {"min_resource": 3}):
        study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=attributes))
    view = view_study(study)
    assert [trial.phase.pruning for trial in view.trials] == [*["asha (2, 4, 8, …)"] * 2, "asha (3, 6, 12, …)"]
    assert len(view.phases) == 2


def test_no_trial_of_ours_is_outside_a_space_without_the_default_before_it_has_its_parameters(storage, tmp_path):
    space = SearchSpace(model_arch={"choices": ["Custom_1", "resnet18"]})  # the demo's
    study = define(storage, space=space, num_trials=3)
    assert view_study(study).outside == frozenset()  # the baseline waits
    study.enqueue_trial({"model_arch": "ResNet50"})  # by another program; it fails before sampling
    enqueue_trial(study, space, {"unknown_weight": 0.5})
    set_target(study, num_trials=2)  # cancels it
    work_on(study, tmp_path, num_trials=2, suggest=space.suggest)
    enqueue_trial(study, space, {"unknown_weight": 0.6}, raise_total=True)
    view = view_study(study)
    assert [trial.outcome for trial in view.trials] == ["complete", "failed", "cancelled", "complete", "waiting"]
    assert [trial.number for trial in view.trials if not trial.params] == [1, 2]
    assert view.outside == frozenset()
    study.add_trial(create_trial(value=0.9))  # trained, so as if with the default
    assert view_study(study).outside == {5}


def test_a_study_is_viewed_in_two_statements_its_trials_and_its_attributes(storage, tmp_path):
    study = define(storage)
    work_on(study, tmp_path)
    with counted(storage.engine) as statements:
        view_study(study)
    assert [statement.split()[0] for statement in statements if statement != "BEGIN"] == ["WITH", "SELECT"]


def test_losses_of_epochs_that_a_resumed_trial_has_yet_to_compute_again_are_not_shown():
    study = optuna.create_study()
    losses = [[epoch, 1.0, 2.0] for epoch in range(3)]
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values={0: 0.5}, user_attrs={"losses": losses}))
    assert view_study(study).trials[0].losses == ((0, 1.0, 2.0),)
