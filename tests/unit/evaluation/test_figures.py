import json

import numpy as np
import plotly.graph_objects as go
import pytest
from sklearn.metrics import roc_curve

from csi_job.evaluation import figures as plots
from csi_job.evaluation.evaluate import compare_evaluations, confusion_ZKK
from csi_job.html.render import plot_json
from csi_job.radiographs.zones import RISK_CLASSES, ZONES
from tests.unit.evaluation.conftest import certain, evaluated, random_predictions

PLOTS = (plots.confusion_plot, plots.reliability_plot, plots.csi_plot, plots.roc_plot)


def drawn(plot) -> go.Figure:
    """The figure, whose every key plotly knows."""
    return go.Figure(plot.figure)


@pytest.fixture
def evaluation(quick):
    return evaluated(random_predictions(60, 0), quick)


def test_the_patients_right_zones_are_on_the_left(evaluation):
    figure = drawn(plots.confusion_plot(evaluation))
    places = {note.text.split(" (")[0].replace(" ", "_"): (note.x, note.y) for note in figure.layout.annotations}
    assert places.keys() == set(ZONES)
    for height in ("sup", "mid", "inf"):
        assert places[f"right_{height}"][0] < places[f"left_{height}"][0]
    assert places["right_sup"][1] > places["right_mid"][1] > places["right_inf"][1]


def test_confusion_matrices_show_the_counts_with_the_truth_downwards(evaluation):
    figure, counts = drawn(plots.confusion_plot(evaluation)), confusion_ZKK(evaluation.predictions)
    for trace, expected in zip(figure.data, counts, strict=True):
        np.testing.assert_array_equal(trace.text, expected)
    assert figure.layout.yaxis.autorange == "reversed"


def test_images_are_named_by_pseudonym_only(evaluation):
    figure = drawn(plots.csi_plot(evaluation))
    named = {name for trace in figure.data[1:] for name in trace.customdata}
    graded = np.flatnonzero(evaluation.predictions.has_csi_N)
    assert named == {evaluation.predictions.pseudonyms[row] for row in graded}


def test_every_risk_class_has_its_curve_with_its_area(evaluation):
    names = [trace.name for trace in drawn(plots.roc_plot(evaluation)).data[1:]]
    assert [name.split(",")[0] for name in names] == list(RISK_CLASSES)
    num_low = evaluation.to_json()["risk"]["num_true"]["low"]
    assert f"{num_low} of {len(evaluation.predictions)} images:" in names[0]
    assert f"{evaluation.metrics['risk_auroc_low'].value:.2f}" in names[0]


def test_differences_are_signed_so_that_right_is_better(quick, evaluation):
    truth = evaluation.predictions
    perfect = certain(truth.zones_NZ, truth.patients_N)
    object.__setattr__(perfect, "pseudonyms", truth.pseudonyms)
    figure = drawn(plots.differences_plot(compare_evaluations(evaluated(perfect, quick), evaluation)))
    gains = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert gains["CSI: MAE"] > 0
    assert gains["Macro F1"] > 0


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("zones", [np.full((3, 6), 4), np.full((3, 6), 2), np.empty((0, 6))])
def test_nearly_empty_splits_still_give_figures(plot, zones, quick):
    made = plot(evaluated(certain(zones), quick))
    assert drawn(made).data
    assert json.loads(plot_json(made))["layout"]["height"] > 0


@pytest.mark.parametrize("decimals", [1, 9])  # with and without ties
def test_the_roc_curve_is_that_of_scikit_learn(decimals):
    random = np.random.default_rng(3)
    positive_N = random.random(200) < 0.3
    score_N = np.round(random.random(200) + 0.3 * positive_N, decimals)
    expected = roc_curve(positive_N, score_N, drop_intermediate=False)
    for ours, theirs in zip(plots.roc_points(positive_N, score_N), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12)
