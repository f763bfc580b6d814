import plotly.graph_objects as go

from csi_job.report.figures.pareto import pareto_front, pareto_plot
from csi_job.report.study_view import view_study


def test_the_front_is_optunas(two_objectives):
    front = pareto_front(view_study(two_objectives).ranked)
    expected = {(trial.values[0], trial.values[1]) for trial in two_objectives.best_trials}
    assert {(trial.f1, trial.gflops) for trial in front} == expected
    assert len(front) > 1


def test_the_chosen_trial_is_marked_and_every_complete_trial_drawn(two_objectives):
    view = view_study(two_objectives)
    plot = pareto_plot(view)
    go.Figure(plot.figure)
    drawn = {trace["name"]: trace for trace in plot.figure["data"] if "name" in trace}
    assert drawn["Chosen trial"]["x"] == [view.best.gflops]
    marked = {*drawn["Dominated"]["y"], *drawn["Pareto front"]["y"], *drawn["Baseline"]["y"]}
    assert marked | {view.best.f1} == {trial.f1 for trial in view.ranked}
    assert "standard error" in plot.caption


def test_degenerate_studies_give_a_figure_or_a_reason(degenerate_study):
    plot = pareto_plot(view_study(degenerate_study))
    assert bool(plot.figure) != bool(plot.missing)
    go.Figure(plot.figure)
