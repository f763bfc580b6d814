import plotly.graph_objects as go

from csi_job.report.figures.pareto import pareto_plot
from csi_job.report.study_view import view_study


def front_of(view):
    return next(trace for trace in pareto_plot(view).figure["data"] if trace.get("name") == "Pareto front")


def test_the_front_is_optunas_ties_included_from_the_cheapest_on(two_objectives):
    best = two_objectives.best_trials
    two_objectives.add_trial(best[0])  # as good and as cheap
    expected = sorted((trial.values[1], trial.values[0]) for trial in two_objectives.best_trials)
    assert len(expected) == len(best) + 1
    front = front_of(view_study(two_objectives))
    assert [*zip(front["x"], front["y"], strict=True)] == expected
    assert sum(map(bool, front["text"])) == len({*expected})  # labels do not hide each other


def test_the_chosen_trial_is_marked_and_every_complete_trial_drawn(cost_view):
    plot = pareto_plot(cost_view)
    go.Figure(plot.figure)
    drawn = {trace["name"]: trace for trace in plot.figure["data"] if "name" in trace}
    assert drawn["Chosen trial"]["x"] == [cost_view.best.gflops]
    marked = {*drawn["Dominated"]["y"], *drawn["Pareto front"]["y"], *drawn["Baseline"]["y"]}
    assert marked | {cost_view.best.f1} == {trial.f1 for trial in cost_view.ranked}
    assert "standard error" in plot.caption


def test_labels_of_the_front_stay_inside_the_plot(cost_view):
    front = front_of(cost_view)
    sides = dict(zip(front["x"], front["textposition"], strict=True))
    assert sides[min(sides)] == "bottom right"
    assert sides[max(sides)] == "bottom left"
