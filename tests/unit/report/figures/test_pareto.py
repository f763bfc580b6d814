import plotly.graph_objects as go

from csi_job.report.figures.pareto import pareto_front, pareto_plot


def test_the_front_is_optunas(two_objectives, cost_view):
    front = pareto_front(cost_view.ranked)
    expected = {(trial.values[0], trial.values[1]) for trial in two_objectives.best_trials}
    assert {(trial.f1, trial.gflops) for trial in front} == expected
    assert len(front) > 1


def test_the_chosen_trial_is_marked_and_every_complete_trial_drawn(cost_view):
    plot = pareto_plot(cost_view)
    go.Figure(plot.figure)
    drawn = {trace["name"]: trace for trace in plot.figure["data"] if "name" in trace}
    assert drawn["Chosen trial"]["x"] == [cost_view.best.gflops]
    marked = {*drawn["Dominated"]["y"], *drawn["Pareto front"]["y"], *drawn["Baseline"]["y"]}
    assert marked | {cost_view.best.f1} == {trial.f1 for trial in cost_view.ranked}
    assert "standard error" in plot.caption


def test_labels_of_the_front_stay_inside_the_plot(cost_view):
    front = next(trace for trace in pareto_plot(cost_view).figure["data"] if trace.get("name") == "Pareto front")
    sides = dict(zip(front["x"], front["textposition"], strict=True))
    assert sides[min(sides)] == "bottom right"
    assert sides[max(sides)] == "bottom left"
