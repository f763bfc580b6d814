import optuna
import plotly.graph_objects as go
import pytest
from optuna.trial import TrialState

from csi_job.report.figures.importances import MIN_TRIALS, importances_plot, param_importances
from csi_job.report.study_view import view_study


def one_parameter_matters(num_trials, num_infeasible=0):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(num_trials + num_infeasible):
        trial = study.ask()
        learning_rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
        trial.suggest_float("unknown_weight", 0.1, 1.0)
        if number >= num_trials:
            trial.set_user_attr("infeasible", True)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, 1 - 20 * learning_rate)
    return view_study(study)


def test_the_parameter_that_decides_the_result_is_the_most_important():
    importances = param_importances(one_parameter_matters(60))
    assert next(iter(importances)) == "learning_rate"
    assert importances["learning_rate"] > 0.7
    assert sum(importances.values()) == pytest.approx(1)


def test_infeasible_trials_are_left_out():
    assert param_importances(one_parameter_matters(60, 30)) == param_importances(one_parameter_matters(60))


def test_conditional_parameters_are_rated_and_the_page_says_among_which_trials(finished_study):
    view = view_study(finished_study)
    plot = importances_plot(view)
    assert {"weight_decay", "learning_rate"} <= param_importances(view).keys()
    assert any("Weight decay" in caution and "only some trials" in caution for caution in plot.cautions)


def test_few_trials_bring_a_caution_and_fewer_a_reason_instead_of_bars():
    many, few = importances_plot(one_parameter_matters(60)), importances_plot(one_parameter_matters(MIN_TRIALS))
    none = importances_plot(one_parameter_matters(MIN_TRIALS - 1))
    assert many.cautions == ()
    assert any(f"only {MIN_TRIALS} complete trials" in caution for caution in few.cautions)
    assert none.figure is None
    assert f"has {MIN_TRIALS - 1} so far" in none.missing


def test_bars_are_those_of_the_importances_and_a_valid_figure(finished_study):
    view = view_study(finished_study)
    bars = go.Figure(importances_plot(view).figure).data[0]
    assert sorted(bars.x) == pytest.approx(sorted(param_importances(view).values()))


def test_two_objectives_are_rated_by_f1_alone(two_objectives):
    assert "learning_rate" in param_importances(view_study(two_objectives))


def test_degenerate_studies_give_a_reason(degenerate_study):
    plot = importances_plot(view_study(degenerate_study))
    assert plot.figure is None
    assert plot.missing.endswith(".")
