import json

import plotly.graph_objects as go
import pytest

from csi_job.html import format as fmt
from csi_job.report.figures.parameters import MAX_LINES, MAX_POINTS, NOT_USED_HEIGHT, parallel_plot, slices_plot
from csi_job.report.study_view import view_study
from tests.unit.report.conftest import rare_parameter_study


def num_lines(plot):
    return sum(trace["x"].count(None) for trace in plot.figure["data"])


def test_every_finished_trial_is_one_line_even_without_a_conditional_parameter(view):
    plot = parallel_plot(view)
    go.Figure(plot.figure)
    assert num_lines(plot) == len(view.with_outcome("complete", "pruned"))


def test_a_line_passes_below_the_axes_of_parameters_its_trial_does_not_have(view):
    plot = parallel_plot(view)
    baseline = next(
        trace for trace in plot.figure["data"] if trace["name"] == "Baseline"
    )  # adam: no decay, no momentum
    assert baseline["y"].count(NOT_USED_HEIGHT) == 2
    assert any(annotation["text"] == "not used" for annotation in plot.figure["layout"]["annotations"])


def test_heights_follow_the_values_and_logarithms_where_the_space_is_logarithmic(view):
    plot = parallel_plot(view)
    names = [annotation["text"] for annotation in plot.figure["layout"]["annotations"] if "<b>" in annotation["text"]]
    axis = names.index("<b>Learning<br>rate</b>")
    rates = [trial.params["learning_rate"] for trial in view.with_outcome("complete", "pruned")]
    heights = [
        trace["y"][start + axis] for trace in plot.figure["data"] for start in range(0, len(trace["y"]), len(names) + 1)
    ]
    assert (min(heights), max(heights)) == pytest.approx((0, 1))
    middle = (min(rates) * max(rates)) ** 0.5
    assert sum(height > 0.5 for height in heights) == sum(rate > middle for rate in rates)


def test_a_parameter_of_no_sampled_trial_has_no_axis_and_the_baseline_is_always_drawn():
    view = view_study(rare_parameter_study(2000))
    for plot, limit in ((parallel_plot(view), MAX_LINES), (slices_plot(view), MAX_POINTS)):
        go.Figure(plot.figure)
        assert f"{limit} of {fmt.count(2000)}" in plot.warnings[0]
        titles = json.dumps(plot.figure["layout"])
        assert "Learning" in titles
        assert "Momentum" not in titles
    plot = parallel_plot(view)
    assert num_lines(plot) == MAX_LINES
    lines = {trace["name"]: trace["y"] for trace in plot.figure["data"]}
    assert NOT_USED_HEIGHT not in lines["Baseline"]


def test_slices_show_each_parameter_with_the_trials_that_have_it(view):
    plot = slices_plot(view)
    go.Figure(plot.figure)
    places = {axis["title"]["text"]: key for key, axis in plot.figure["layout"].items() if key.startswith("xaxis")}
    momentum = f"x{places['Momentum'].removeprefix('xaxis')}"
    shown = [x for trace in plot.figure["data"] if trace["xaxis"] == momentum for x in trace["x"]]
    having = [trial for trial in view.with_outcome("complete", "pruned") if "momentum" in trial.params]
    assert sorted(shown) == sorted(trial.params["momentum"] for trial in having)


def test_slices_of_two_objectives_mark_the_chosen_trial_which_need_not_be_the_best(view, cost_view):
    names = [{trace["name"] for trace in slices_plot(each).figure["data"]} for each in (view, cost_view)]
    assert [each & {"Best", "Chosen"} for each in names] == [{"Best"}, {"Chosen"}]


def test_categorical_slices_keep_their_own_labels(view):
    layout = slices_plot(view).figure["layout"]
    labels = {layout[key]["title"]["text"]: layout[key].get("ticktext") for key in layout if key.startswith("xaxis")}
    assert labels["Optimizer"] == ["adam", "adamw", "sgd"]
    assert labels["Batch size"] == ["16", "32", "64", "128"]
    assert labels["Patience (epochs)"] is None
