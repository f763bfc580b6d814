"""Figures of an evaluation and of a comparison; images appear by pseudonym only."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from sklearn.metrics import roc_curve

from csi_job.evaluation.compare import Comparison, Difference
from csi_job.evaluation.csi import risk_indices
from csi_job.evaluation.evaluate import Evaluation, confusion_ZKK
from csi_job.evaluation.measures import SUMMARY_METRICS, calibration
from csi_job.evaluation.tables import metric_name
from csi_job.radiographs.zones import (
    LOW_RISK_MAX_CSI,
    MEDIUM_RISK_MAX_CSI,
    NUM_CLASSES,
    RISK_CLASSES,
    SCORES,
    UNKNOWN,
    ZONES,
)

# Told apart by colour-blind readers; the contrast is at least 3 : 1 on white.
BLUE, GREY, RED, TEAL, GOLD = "#3b82c4", "#848e9a", "#d5552b", "#16967f", "#c47a0a"
RISK_COLORS = dict(zip(RISK_CLASSES, (TEAL, GOLD, RED), strict=True))
RISK_SYMBOLS = dict(zip(RISK_CLASSES, ("circle", "diamond", "square"), strict=True))
OUTCOME_COLORS = {"better": TEAL, "worse": RED, "within the noise": GREY, "undefined": GREY}
MAX_CSI = float(max(SCORES))


def confusion_figure(evaluation: Evaluation) -> go.Figure:
    """Return the six confusion matrices where the zones lie on the film: the patient's right is on the left side."""
    counts_ZKK = confusion_ZKK(evaluation.predictions)
    num_rows = NUM_CLASSES if counts_ZKK[:, UNKNOWN].any() else UNKNOWN
    titles = [f"{zone} ({counts_ZKK[index, :UNKNOWN].sum()} graded)" for index, zone in enumerate(ZONES)]
    figure = make_subplots(3, 2, subplot_titles=titles, horizontal_spacing=0.14, vertical_spacing=0.11)
    names = [*(str(score) for score in SCORES), "unknown"]
    for index in range(len(ZONES)):
        counts_KK = counts_ZKK[index, :num_rows]
        share_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
        figure.add_trace(_heatmap(counts_KK, share_KK, names), row=index // 2 + 1, col=index % 2 + 1)
    figure.update_xaxes(title_text="predicted", type="category")
    figure.update_yaxes(title_text="true", type="category", autorange="reversed")
    return figure.update_layout(**_layout(height_px=1000))


def reliability_figure(evaluation: Evaluation) -> go.Figure:
    """Return how often the most probable score is right, against how probable the model says it is."""
    content = calibration(evaluation.predictions)
    bins = content["bins"]
    figure = go.Figure(_diagonal(0, 1, "perfectly calibrated"))
    sizes = [8 + 22 * np.sqrt(entry["num_zones"] / max(entry["num_zones"] for entry in bins)) for entry in bins]
    figure.add_scatter(
        x=[entry["confidence"] for entry in bins],
        y=[entry["accuracy"] for entry in bins],
        customdata=[entry["num_zones"] for entry in bins],
        mode="lines+markers",
        name="this model (area: number of zones)",
        marker={"size": sizes, "color": BLUE},
        hovertemplate="%{customdata} zones<br>says %{x:.0%}<br>right in %{y:.0%}<extra></extra>",
    )
    figure.update_xaxes(title_text="probability of the most probable score", range=[0, 1.04], tickformat=".0%")
    figure.update_yaxes(title_text="share of zones where it is right", range=[0, 1.04], tickformat=".0%")
    return figure.update_layout(**_layout())


def csi_figure(evaluation: Evaluation) -> go.Figure:
    """Return the predicted against the true CSI mean, an image a marker, with the limits of the risk classes."""
    predictions = evaluation.predictions
    with_csi = np.flatnonzero(predictions.has_csi_N)
    risk_N = risk_indices(predictions.csi_N[with_csi])
    figure = go.Figure(_diagonal(0, MAX_CSI, "perfect agreement"))
    for index, name in enumerate(RISK_CLASSES):
        rows = with_csi[risk_N == index]
        figure.add_scatter(
            x=predictions.csi_N[rows],
            y=predictions.predicted.csi_N[rows],
            customdata=[predictions.pseudonyms[row] for row in rows],
            mode="markers",
            name=f"truly {name} risk",
            marker={"color": RISK_COLORS[name], "symbol": RISK_SYMBOLS[name], "size": 9, "opacity": 0.75},
            hovertemplate="image %{customdata}<br>true %{x:.2f}<br>predicted %{y:.2f}<extra></extra>",
        )
    for limit in (LOW_RISK_MAX_CSI, MEDIUM_RISK_MAX_CSI):
        figure.add_hline(y=limit, line={"color": GREY, "width": 1, "dash": "dot"})
        figure.add_vline(x=limit, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_xaxes(title_text="true CSI mean", range=[-0.1, MAX_CSI + 0.1])
    figure.update_yaxes(title_text="predicted CSI mean", range=[-0.1, MAX_CSI + 0.1])
    return figure.update_layout(**_layout(height_px=560))


def roc_figure(evaluation: Evaluation) -> go.Figure:
    """Return the ROC curve of each risk class against the rest, with its area and interval."""
    predictions = evaluation.predictions
    risk_N = risk_indices(predictions.csi_N[predictions.has_csi_N])
    said_NR = predictions.predicted.risk_NR[predictions.has_csi_N]
    figure = go.Figure(_diagonal(0, 1, "chance"))
    for index, name in enumerate(RISK_CLASSES):
        metric = evaluation.metrics[f"risk_auroc_{name}"]
        if metric.value is None:
            continue
        false_positive, true_positive, threshold = roc_curve(risk_N == index, said_NR[:, index])
        interval = metric.interval
        bounds = "" if interval.low is None else f" ({interval.low:.2f} to {interval.high:.2f})"
        figure.add_scatter(
            x=false_positive,
            y=true_positive,
            customdata=np.where(np.isfinite(threshold), threshold, 1),
            mode="lines",
            name=f"{name}: {metric.value:.2f}{bounds}",
            line={"color": RISK_COLORS[name], "width": 2.5},
            hovertemplate="P ≥ %{customdata:.2f}<br>found %{y:.0%}<br>false alarms %{x:.0%}<extra></extra>",
        )
    figure.update_xaxes(title_text="false alarms among the others", range=[-0.02, 1.02], tickformat=".0%")
    figure.update_yaxes(title_text="found in the class", range=[-0.02, 1.02], tickformat=".0%")
    return figure.update_layout(**_layout(height_px=560))


def differences_figure(comparison: Comparison) -> go.Figure:
    """Return the differences with their intervals, each turned so that the right side means a better model."""
    names = (*SUMMARY_METRICS, *(f"{zone}.f1_macro" for zone in ZONES))
    figure = go.Figure()
    for outcome, color in OUTCOME_COLORS.items():
        shown = [comparison.differences[name] for name in names if comparison.differences[name].outcome == outcome]
        drawn = [difference for difference in shown if difference.difference is not None]
        if drawn:
            figure.add_trace(_forest(drawn, outcome, color))
    figure.add_vline(x=0, line={"color": GREY, "width": 1.5})
    figure.update_xaxes(title_text="← baseline better     gain     model better →", zeroline=False)
    ordered = [metric_name(name) for name in reversed(names)]
    figure.update_yaxes(categoryorder="array", categoryarray=ordered, type="category")
    return figure.update_layout(**_layout(height_px=620))


def _forest(differences: list[Difference], outcome: str, color: str) -> go.Scatter:
    signs = [1 if difference.higher_is_better else -1 for difference in differences]
    gains = [sign * (difference.difference or 0.0) for sign, difference in zip(signs, differences, strict=True)]
    ends = [
        sorted(sign * bound for bound in (difference.interval.low, difference.interval.high) if bound is not None)
        for sign, difference in zip(signs, differences, strict=True)
    ]
    return go.Scatter(
        x=gains,
        y=[metric_name(difference.metric) for difference in differences],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [end[1] - gain if end else 0 for gain, end in zip(gains, ends, strict=True)],
            "arrayminus": [gain - end[0] if end else 0 for gain, end in zip(gains, ends, strict=True)],
        },
        mode="markers",
        name=outcome,
        marker={"color": color, "size": 10},
        customdata=[[difference.model, difference.baseline] for difference in differences],
        hovertemplate="%{y}<br>model %{customdata[0]:.3f}<br>baseline %{customdata[1]:.3f}<br>gain %{x:+.3f}"
        "<extra></extra>",
    )


def _heatmap(counts_KK: np.ndarray, share_KK: np.ndarray, names: list[str]) -> go.Heatmap:
    return go.Heatmap(
        z=share_KK,
        x=names,
        y=names[: len(counts_KK)],
        customdata=counts_KK,
        text=counts_KK,
        texttemplate="%{text}",
        colorscale=[[0, "#ffffff"], [1, BLUE]],
        zmin=0,
        zmax=1,
        showscale=False,
        xgap=1,
        ygap=1,
        hovertemplate="true %{y}, predicted %{x}: %{customdata}<br>%{z:.0%} of this truth<extra></extra>",
    )


def _diagonal(low: float, high: float, name: str) -> go.Scatter:
    line = {"color": GREY, "width": 1.5, "dash": "dash"}
    return go.Scatter(x=[low, high], y=[low, high], mode="lines", name=name, line=line, hoverinfo="skip")


def _layout(height_px: int = 460) -> dict[str, Any]:
    return {
        "height": height_px,
        "template": "plotly_white",
        "margin": {"l": 64, "r": 16, "t": 48, "b": 56},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
