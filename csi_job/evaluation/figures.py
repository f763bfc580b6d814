"""Figures of an evaluation and of a comparison; images appear under their pseudonyms only.

As in the report, a figure is a plain dictionary; the tests validate each with `plotly.graph_objects.Figure`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from csi_job.evaluation.csi import FloatArray, risk_indices
from csi_job.evaluation.difference import Difference
from csi_job.evaluation.evaluate import Comparison, Evaluation, confusion_ZKK
from csi_job.evaluation.measures import SUMMARY_METRICS, calibration, metric_name
from csi_job.html import format as fmt
from csi_job.html.plot import BLUE, GOLD, GREY, RED, TEAL, Plot, layout, line
from csi_job.radiographs.zones import (
    LOW_RISK_MAX_CSI,
    MEDIUM_RISK_MAX_CSI,
    NUM_CLASSES,
    RISK_CLASSES,
    SCORES,
    UNKNOWN,
    ZONE_NAMES,
    ZONES,
)

Trace = dict[str, Any]
RISK_MARKERS = dict(zip(RISK_CLASSES, ((TEAL, "circle"), (GOLD, "diamond"), (RED, "square")), strict=True))
VERDICT_COLORS = {"better": TEAL, "worse": RED, "within the noise": GREY, "undefined": GREY}
CLASS_NAMES = [*(str(score) for score in SCORES), "?"]
MAX_CSI = float(max(SCORES))
CLEAR_TO_BLUE = [[0, "rgba(59,130,196,0)"], [1, BLUE]]  # shows the page's own paper, light or dark, where nothing is


def confusion_plot(evaluation: Evaluation) -> Plot:
    """Show the six confusion matrices where the zones lie on the film."""
    counts_ZKK = confusion_ZKK(evaluation.predictions)
    num_rows = NUM_CLASSES if counts_ZKK[:, UNKNOWN].any() else UNKNOWN
    figure = layout("predicted", "true", height_px=820, annotations=[])
    x_axis, y_axis = ({**figure[axis], "type": "category", "showgrid": False} for axis in ("xaxis", "yaxis"))
    traces = []
    for index, zone in enumerate(ZONES):
        row, column = divmod(index, 2)
        left, top, number = 0.56 * column, 1 - 0.37 * row, str(index + 1) if index else ""
        across, down = [left, left + 0.44], [round(top - 0.26, 4), top]
        figure[f"xaxis{number}"] = {**x_axis, "domain": across, "anchor": f"y{number}"}
        figure[f"yaxis{number}"] = {**y_axis, "domain": down, "anchor": f"x{number}", "autorange": "reversed"}
        title = f"{ZONE_NAMES[zone]} ({counts_ZKK[index, :UNKNOWN].sum()})"
        place = {"x": left + 0.22, "y": top, "xref": "paper", "yref": "paper"}
        place |= {"xanchor": "center", "yanchor": "bottom"}
        figure["annotations"].append({"text": title, "showarrow": False, "font": {"size": 15}, **place})
        traces.append({**_heatmap(counts_ZKK[index, :num_rows]), "xaxis": f"x{number}", "yaxis": f"y{number}"})
    return Plot(
        "confusion",
        "Scores of the zones",
        "Zones are arranged as on the film, with the patient's right on the left; in parentheses, the images in which "
        "they are graded. Numbers count images, colours show the share within each true score; ? is unknown.",
        {"data": traces, "layout": figure},
    )


def csi_plot(evaluation: Evaluation) -> Plot:
    """Show the predicted against the true CSI mean, one marker per image, with the limits of the risk classes."""
    predictions = evaluation.predictions
    with_csi = np.flatnonzero(predictions.has_csi_N)
    risk_N = risk_indices(predictions.csi_N[with_csi])
    traces = [_diagonal(MAX_CSI, "perfect agreement")]
    for index, (name, (color, symbol)) in enumerate(RISK_MARKERS.items()):
        rows = with_csi[risk_N == index]
        traces.append(
            {
                "type": "scatter",
                "x": predictions.csi_N[rows].tolist(),
                "y": predictions.predicted.csi_N[rows].tolist(),
                "customdata": [predictions.pseudonyms[row] for row in rows],
                "mode": "markers",
                "name": f"true {name} risk",
                "marker": {"color": color, "symbol": symbol, "size": 9, "opacity": 0.75},
                "hovertemplate": "image %{customdata}<br>true %{x:.2f}<br>predicted %{y:.2f}<extra></extra>",
            }
        )
    figure = layout("true CSI mean", "predicted CSI mean", height_px=560)
    figure["xaxis"]["range"] = figure["yaxis"]["range"] = [-0.1, MAX_CSI + 0.1]
    figure["shapes"] = [
        {"type": "line", f"{along}ref": "paper", f"{along}0": 0, f"{along}1": 1, f"{at}0": limit, f"{at}1": limit}
        | {"line": {"color": GREY, "width": 1, "dash": "dot"}}
        for limit in (LOW_RISK_MAX_CSI, MEDIUM_RISK_MAX_CSI)
        for along, at in ("xy", "yx")
    ]
    caption = "One marker per image; dotted lines are the limits of the risk classes."
    return Plot("csi", "CSI mean", caption, {"data": traces, "layout": figure})


def roc_points(positive_N: npt.NDArray[np.bool_], score_N: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return false and true positive rates and thresholds, one point per distinct score, from (0, 0) on.

    These are scikit-learn's `roc_curve(drop_intermediate=False)`, without the seconds that its import takes.
    """
    order_N = np.argsort(-score_N, kind="stable")
    last_T = np.append(np.flatnonzero(np.diff(score_N[order_N])), len(score_N) - 1)
    hits_T = np.cumsum(positive_N[order_N])[last_T]
    rates = ((1 + last_T - hits_T) / (~positive_N).sum(), hits_T / positive_N.sum())
    false_T, true_T = (np.append(0.0, rate_T) for rate_T in rates)
    return false_T, true_T, np.append(np.inf, score_N[order_N][last_T])


def roc_plot(evaluation: Evaluation) -> Plot:
    """Show the ROC curve of each risk class against the rest, with its area and interval."""
    predictions = evaluation.predictions
    risk_N = risk_indices(predictions.csi_N[predictions.has_csi_N])
    risk_NR = predictions.predicted.risk_NR[predictions.has_csi_N]
    traces = [_diagonal(1, "chance")]
    for index, (name, (color, _)) in enumerate(RISK_MARKERS.items()):
        metric = evaluation.metrics[f"risk_auroc_{name}"]
        if metric.value is None:
            continue
        false_positive, true_positive, threshold = roc_points(risk_N == index, risk_NR[:, index])
        low, high = metric.interval.low, metric.interval.high
        bounds = "" if low is None else f" ({low:.2f} to {high:.2f})"
        traces.append(
            line(
                false_positive.tolist(),
                true_positive.tolist(),
                color,
                width=2.5,
                customdata=np.where(np.isfinite(threshold), threshold, 1).tolist(),
                name=f"{name}, {(risk_N == index).sum()} of {len(risk_N)} images: {metric.value:.2f}{bounds}",
                hovertemplate="P ≥ %{customdata:.2f}<br>sensitivity %{y:.0%}<br>false positives %{x:.0%}"
                "<extra></extra>",
            )
        )
    figure = layout("false positive rate", "true positive rate (sensitivity)", height_px=560)
    for axis in ("xaxis", "yaxis"):
        figure[axis] |= {"range": [-0.02, 1.02], "tickformat": ".0%"}
    caption = (
        "Each class against the rest, by the probability the model gives it. The legend shows the area under each "
        f"curve and its {fmt.percent(evaluation.settings.confidence)} interval."
    )
    return Plot("roc", "Risk class", caption, {"data": traces, "layout": figure})


def reliability_plot(evaluation: Evaluation) -> Plot:
    """Show how often the most probable score is right against how probable the model says it is."""
    bins = calibration(evaluation.predictions)["bins"]
    most = max((entry["num_zones"] for entry in bins), default=1)
    model = {
        "type": "scatter",
        "x": [entry["confidence"] for entry in bins],
        "y": [entry["accuracy"] for entry in bins],
        "customdata": [entry["num_zones"] for entry in bins],
        "mode": "lines+markers",
        "name": "this model (area: number of zones)",
        "marker": {"size": [8 + 22 * (entry["num_zones"] / most) ** 0.5 for entry in bins], "color": BLUE},
        "hovertemplate": "%{customdata} zones<br>confidence %{x:.0%}<br>correct %{y:.0%}<extra></extra>",
    }
    figure = layout("probability of the most probable score", "share of zones where it is correct", height_px=460)
    for axis in ("xaxis", "yaxis"):
        figure[axis] |= {"range": [0, 1.04], "tickformat": ".0%"}
    caption = "On the dashed line, the model is right as often as it claims. Below it, the model is overconfident."
    data = [_diagonal(1, "perfectly calibrated"), model]
    return Plot("reliability", "Are its probabilities reliable?", caption, {"data": data, "layout": figure})


def differences_plot(comparison: Comparison) -> Plot:
    """Show the differences with their intervals, errors with the sign reversed so that right means better."""
    shown = [comparison.differences[name] for name in (*SUMMARY_METRICS, *(f"{zone}.f1_macro" for zone in ZONES))]
    traces = []
    for verdict, color in VERDICT_COLORS.items():
        defined = [entry for entry in shown if entry.verdict == verdict and entry.difference is not None]
        if defined:
            traces.append(_forest(defined, verdict, color))
    figure = layout("← baseline better · model better →", "", height_px=620)
    figure["xaxis"] |= {"showgrid": True}
    names = [metric_name(entry.metric) for entry in reversed(shown)]
    figure["yaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": names, "showgrid": False}
    zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1}
    figure["shapes"] = [{**zero, "line": {"color": GREY, "width": 1.5}}]
    caption = (
        f"Model minus baseline with {fmt.percent(comparison.model.settings.confidence)} intervals over patients. "
        "Errors have their sign reversed, so right is always better. Errors are in score points, everything else is a "
        "share."
    )
    return Plot("differences", "Differences", caption, {"data": traces, "layout": figure})


def _forest(differences: list[Difference], verdict: str, color: str) -> Trace:
    gains, above, below = [], [], []
    for entry in differences:
        sign = 1 if entry.higher_is_better else -1
        gain = sign * (entry.difference or 0.0)
        bounds = [sign * bound for bound in (entry.interval.low, entry.interval.high) if bound is not None] or [gain]
        gains.append(gain)
        above.append(max(bounds) - gain)
        below.append(gain - min(bounds))
    return {
        "type": "scatter",
        "x": gains,
        "y": [metric_name(entry.metric) for entry in differences],
        "error_x": {"type": "data", "symmetric": False, "array": above, "arrayminus": below},
        "mode": "markers",
        "name": verdict,
        "marker": {"color": color, "size": 10},
        "customdata": [[entry.model, entry.baseline] for entry in differences],
        "hovertemplate": "%{y}<br>model %{customdata[0]:.3f}<br>baseline %{customdata[1]:.3f}<br>gain %{x:+.3f}"
        "<extra></extra>",
    }


def _heatmap(counts_KK: np.ndarray) -> Trace:
    return {
        "type": "heatmap",
        "z": (counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)).tolist(),
        "x": CLASS_NAMES,
        "y": CLASS_NAMES[: len(counts_KK)],
        "customdata": counts_KK.tolist(),
        "text": counts_KK.tolist(),
        "texttemplate": "%{text}",
        "colorscale": CLEAR_TO_BLUE,
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "true %{y}, predicted %{x}: %{customdata}<br>%{z:.0%} of this true score<extra></extra>",
    }


def _diagonal(end: float, name: str) -> Trace:
    return line([0, end], [0, end], GREY, width=1.5, line={"dash": "dash"}, name=name, hoverinfo="skip")
