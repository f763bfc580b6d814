import plotly.graph_objects as go
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from csi_job.report.figures.history import MAX_CURVES, curves_plot, history_plot, losses_plot
from csi_job.report.study_view import view_study
from tests.support.studies import define
from tests.unit.report.conftest import random_study


def traces(plot):
    go.Figure(plot.figure)  # refuses what plotly does not know
    return {trace["name"]: trace for trace in plot.figure["data"]}


def test_history_has_every_trial_once_under_its_outcome(finished_study, view):
    drawn = traces(history_plot(view))
    numbers = sorted(x for name, trace in drawn.items() if name != "Best so far" for x in trace["x"])
    assert numbers == [trial.number for trial in view.trials if trial.outcome != "waiting"]
    assert drawn["Baseline"]["x"] == [0]
    assert drawn["Best trial"]["x"] == [finished_study.best_trial.number]
    assert drawn["Infeasible"]["x"] == [trial.number for trial in view.with_outcome("infeasible")]


def test_the_best_so_far_never_falls_and_ends_at_the_best(finished_study, view):
    line = traces(history_plot(view))["Best so far"]
    assert line["y"] == sorted(line["y"])
    assert line["y"][-1] == finished_study.best_value


def test_history_marks_the_first_trial_of_each_phase(view):
    layout = history_plot(view).figure["layout"]
    labels = {annotation["text"]: annotation["x"] for annotation in layout["annotations"]}
    assert labels == {"phase 1: random, median, 8 epochs": -0.5, "phase 2: tpe, median, 12 epochs": 19.5}


def test_trials_without_any_f1_stand_below_all_others_and_above_the_end_of_the_axis(view):
    drawn = traces(plot := history_plot(view))
    lowest = min(y for name in ("Complete", "Pruned") for y in drawn[name]["y"])
    (bottom,) = {*drawn["Infeasible"]["y"], *drawn["Failed"]["y"]}
    assert plot.figure["layout"]["yaxis"]["range"][0] < bottom - 0.02 < bottom < lowest  # no marker is cut


def test_curves_show_each_trial_and_mark_where_pruned_ones_ended(view):
    drawn = traces(curves_plot(view))
    ends = {(trial.curve[-1][0] + 1, trial.curve[-1][1]) for trial in view.with_outcome("pruned")}
    assert set(zip(drawn["Pruned here"]["x"], drawn["Pruned here"]["y"], strict=True)) == ends
    assert drawn["Complete"]["x"].count(None) == len(view.with_outcome("complete")) - 2  # best and baseline apart


def test_many_curves_are_sampled_with_the_best_among_them_and_the_page_says_so():
    study = random_study(160)
    plot = curves_plot(view_study(study))
    drawn = traces(plot)
    num_curves = sum(trace["x"].count(None) for trace in drawn.values())
    assert num_curves == MAX_CURVES
    assert f"{MAX_CURVES} of" in plot.warnings[0]
    assert f"Trial {study.best_trial.number}" in drawn


def test_both_losses_of_every_trial_are_drawn_by_epoch(view):
    drawn = traces(losses_plot(view))
    assert drawn.keys() >= {f"{who}, {which}" for who in ("Others", "Baseline") for which in ("training", "validation")}
    num_trials = sum(trace["x"].count(None) for name, trace in drawn.items() if name.endswith("validation"))
    assert num_trials == len([trial for trial in view.trials if trial.losses])
    baseline = drawn["Baseline, training"]
    assert baseline["x"][:2] == [1, 2]
    assert baseline["y"][:2] == [2, 1]
    assert baseline["line"]["dash"] == "dot"
    layouts = [plot(view).figure["layout"] for plot in (losses_plot, curves_plot)]
    assert [layout["xaxis"]["dtick"] for layout in layouts] == [1, 1]  # no half epochs
    assert layouts[0]["yaxis"]["nticks"] == 4  # of a wide range, not every digit is written
    assert layouts[0]["yaxis"]["tickformat"] == "~g"  # 0.5, where plotly's own is 5


def with_weight(weight, **parts):
    """A trial of another program; the space of `define` has weights up to 1."""
    params, distributions = {"unknown_weight": weight}, {"unknown_weight": FloatDistribution(0, 9)}
    return create_trial(params=params, distributions=distributions, **parts)


def test_a_trial_outside_the_space_is_left_out_whatever_its_outcome_once_it_has_an_f1(storage):
    study = define(storage)
    study.add_trial(with_weight(0.5, state=TrialState.COMPLETE, value=0.4))
    failed = {"state": TrialState.FAIL, "intermediate_values": {0: 0.4}}
    study.add_trial(with_weight(5.0, **failed))
    limits = history_plot(view_study(study)).figure["layout"]["yaxis"]["range"]
    assert limits == pytest.approx([0.38, 0.42])  # without room at the bottom for trials that are not drawn
    for weight in (0.5, 5.0):
        study.add_trial(with_weight(weight, **failed))
        study.add_trial(with_weight(weight, state=TrialState.FAIL))
    infeasible = {"infeasible": True, "losses": [[0, 2.0, 1.0]]}
    pruned = {"state": TrialState.PRUNED, "intermediate_values": {0: 0.4}, "user_attrs": infeasible}
    study.add_trial(with_weight(5.0, **pruned))
    drawn = history_plot(view_study(study))
    assert traces(drawn)["Failed"]["x"] == [3, 4, 6]
    assert "Infeasible" not in traces(drawn)
    assert drawn.warnings == ("3 trials that another program added outside the search space are left out.",)
    assert losses_plot(view_study(study)).figure is None


@pytest.mark.parametrize("draw", [history_plot, curves_plot])
def test_where_all_trials_with_an_f1_are_outside_the_space_the_page_says_so(draw, storage):
    study = define(storage)
    assert draw(view_study(study)).missing.startswith("No trial has finished an epoch yet, ")
    study.add_trial(with_weight(5.0, value=0.9, intermediate_values={0: 0.9}))
    assert draw(view_study(study)).missing.startswith("No trial within the search space has finished an epoch yet, ")
    left_out = ("1 trial that another program added outside the search space is left out.",)
    assert history_plot(view_study(study)).warnings == left_out
