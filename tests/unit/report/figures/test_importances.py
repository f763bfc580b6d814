import optuna
import plotly.graph_objects as go
import pytest

from csi_job.report.figures.importances import importances_plot
from csi_job.report.study_view import view_study
from csi_job.study.importances import MIN_TRIALS


def view_of(num_trials, phases=()):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(num_trials):
        trial = study.ask()
        for name, value in phases[number % len(phases)].items() if phases else ():
            trial.set_user_attr(name, value)
        trial.suggest_float("unknown_weight", 0.1, 1.0)
        study.tell(trial, 1 - 20 * trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True))
    return view_study(study)


def test_conditional_parameters_are_rated_and_the_page_says_among_which_trials(view):
    plot = importances_plot(view)
    assert {"weight_decay", "learning_rate"} <= view.importances.shares.keys()
    assert any("Weight decay" in warning and "only some trials" in warning for warning in plot.warnings)


def test_few_trials_bring_a_warning_and_fewer_a_reason_instead_of_bars():
    many, few, none = (importances_plot(view_of(number)) for number in (60, MIN_TRIALS, MIN_TRIALS - 1))
    assert many.warnings == ()
    assert any(f"only {MIN_TRIALS} complete trials" in warning for warning in few.warnings)
    assert none.figure is None
    assert f"has {MIN_TRIALS - 1} so far" in none.missing


@pytest.mark.parametrize(("max_epochs", "is_said"), [((4, 4), False), ((4, 8), True)])
def test_numbers_of_epochs_are_called_different_only_where_they_are(max_epochs, is_said):
    samplers = ("random", "tpe")
    phases = [{"sampler": sampler, "max_epochs": epochs} for sampler, epochs in zip(samplers, max_epochs, strict=True)]
    warnings = importances_plot(view_of(60, phases)).warnings
    assert any("different numbers of epochs" in warning for warning in warnings) == is_said


def test_bars_show_the_importances_in_a_valid_figure(view):
    bars = go.Figure(importances_plot(view).figure).data[0]
    assert sorted(bars.x) == pytest.approx(sorted(view.importances.shares.values()))
