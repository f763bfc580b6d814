import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from csi_job.report.figures.history import curves_plot, history_plot
from csi_job.report.figures.parameters import parallel_plot, slices_plot
from csi_job.report.study_view import view_study
from csi_job.study.importances import MIN_TRIALS
from tests.support.studies import SPACE, define, work_on


def importances_of(study):
    return view_study(study).importances


def one_parameter_matters(num_trials, num_infeasible=0, *, has_cost=False):
    directions = ["maximize", "minimize"] if has_cost else ["maximize"]
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(num_trials + num_infeasible):
        trial = study.ask()
        learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
        cost = trial.suggest_float("unknown_weight", 0.1, 1.0)
        if number >= num_trials:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, [1 - 20 * learning_rate, cost] if has_cost else 1 - 20 * learning_rate)
    return study


def test_the_parameter_that_decides_the_result_is_the_most_important():
    importances = importances_of(one_parameter_matters(60)).shares
    assert next(iter(importances)) == "learning_rate"
    assert importances["learning_rate"] > 0.7
    assert sum(importances.values()) == pytest.approx(1)


@pytest.mark.parametrize("other", [{"num_infeasible": 30}, {"has_cost": True}])
def test_neither_a_trial_that_is_not_complete_nor_the_cost_counts(other):
    complete, both = one_parameter_matters(60), one_parameter_matters(60, **other)
    assert importances_of(both) == importances_of(complete)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("unknown_weight", 5.0, FloatDistribution(0, 9)), ("optimizer", "rmsprop", CategoricalDistribution(["rmsprop"]))],
)
def test_a_trial_that_another_program_added_outside_the_space_does_not_count(storage, tmp_path, name, value, kind):
    study = define(storage, num_trials=12)
    work_on(study, tmp_path, num_trials=12, pruner="none")
    before = view_study(study)
    assert before.importances.shares
    study.add_trial(create_trial(value=0.99, params={name: value}, distributions={name: kind}))
    after = view_study(study)
    assert [trial.number for trial in after.ranked] == [trial.number for trial in before.ranked]
    assert after.importances == before.importances
    for draw in (curves_plot, slices_plot, parallel_plot):
        assert draw(after).figure == draw(before).figure
    drawn, known = history_plot(after), history_plot(before)
    points = [(trace["x"], trace["y"]) for trace in known.figure["data"] if trace["name"] != "Best so far"]
    assert [(trace["x"], trace["y"]) for trace in drawn.figure["data"] if trace["name"] != "Best so far"] == points
    assert drawn.figure["data"][0]["y"] == known.figure["data"][0]["y"]
    assert drawn.warnings == ("1 trial that another program added outside the search space is left out.",)
    assert known.warnings == ()


def test_the_space_decides_and_not_the_distributions_of_the_trial_that_comes_first(storage, tmp_path):
    study = define(storage, num_trials=31)
    first = {"unknown_weight": 0.5, "optimizer": "sgd", "patience": 1}  # trial 0, the baseline, has no patience
    narrow = SPACE.distributions() | {"patience": IntDistribution(1, 2)}
    study.add_trial(create_trial(value=0.5, params=first, distributions=narrow))
    work_on(study, tmp_path, num_trials=31, pruner="none", sampler="random")
    view = view_study(study)
    assert view.distributions == SPACE.distributions()
    assert view.importances.shares.keys() == first.keys()


def test_too_few_trials_or_equal_ones_give_no_importances():
    assert importances_of(one_parameter_matters(MIN_TRIALS)).shares
    assert importances_of(one_parameter_matters(MIN_TRIALS - 1)).shares == {}
    study = optuna.create_study(direction="maximize")
    for _ in range(MIN_TRIALS):
        study.enqueue_trial({"learning_rate": 0.1})
        trial = study.ask({"learning_rate": optuna.distributions.FloatDistribution(1e-5, 1e-1)})
        study.tell(trial, 0.5)
    assert importances_of(study).shares == {}


@pytest.mark.parametrize(("num_with", "too_few"), [(MIN_TRIALS - 1, ("momentum",)), (MIN_TRIALS, ())])
def test_a_parameter_of_too_few_trials_is_not_rated_and_optunas_warnings_are_kept(num_with, too_few):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(40):
        trial = study.ask()
        f1 = trial.suggest_float("unknown_weight", 0.1, 1.0)
        if number < num_with:
            f1 += trial.suggest_float("momentum", 0.5, 0.99)
        study.tell(trial, f1)
    importances = importances_of(study)
    assert {*importances.shares, *too_few} == {"momentum", "unknown_weight"}
    assert importances.too_few == too_few
    assert all("importance" in warning for warning in importances.warnings)
