"""What the figures of trials share: markers, hover texts, axes.

Figures are plotly figures as plain dictionaries (`data`, `layout`), which saves importing plotly and its checks at each
refresh; the tests pass every one of them through `plotly.graph_objects.Figure`, which rejects unknown keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from csi_job.html.plot import BLUE, GOLD, GREY, PURPLE, RED, TEAL
from csi_job.report import format as fmt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csi_job.report.study_view import TrialView
    from csi_job.storage.attributes import TrialOutcome

T = TypeVar("T")

# Symbols differ as well as colours.
OUTCOME_MARKERS: dict[TrialOutcome, dict[str, Any]] = {
    "complete": {"color": BLUE, "symbol": "circle", "size": 8},
    "pruned": {"color": GREY, "symbol": "circle-open", "size": 7, "line": {"width": 1.5}},
    "infeasible": {"color": RED, "symbol": "x-thin", "size": 8, "line": {"width": 2, "color": RED}},
    "failed": {"color": PURPLE, "symbol": "cross-thin", "size": 8, "line": {"width": 2, "color": PURPLE}},
    "running": {"color": TEAL, "symbol": "triangle-up-open", "size": 8, "line": {"width": 1.5}},
}
BEST_MARKER = {"color": GOLD, "symbol": "star", "size": 15, "line": {"width": 1, "color": "#ffffff"}}
BASELINE_MARKER = {"color": TEAL, "symbol": "diamond", "size": 11, "line": {"width": 1, "color": "#ffffff"}}
F1_AXIS = "Validation F1 (0 to 1)"
SHOW_HOVERTEXT = "%{hovertext}<extra></extra>"


def markers(trials: Sequence[TrialView], xs: Sequence[Any], ys: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return a trace with one marker per trial, which describes the trial on hover."""
    texts = [_description(trial) for trial in trials]
    trace = {"type": "scatter", "mode": "markers", "x": list(xs), "y": list(ys)}
    return {**trace, "hovertext": texts, "hovertemplate": SHOW_HOVERTEXT, **more}


def f1_range(scores: Sequence[float]) -> list[float]:
    """Return the limits of an F1 axis: the values with a margin, so that equal values do not fill the plot."""
    low, high = min(scores), max(scores)
    margin = max(0.08 * (high - low), 0.02)
    return [low - margin, high + margin]


def spread_sample(items: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` items, evenly spread, always with the first and the last."""
    if len(items) <= limit:
        return list(items)
    step = (len(items) - 1) / (limit - 1)
    return [items[round(index * step)] for index in range(limit)]


def _description(trial: TrialView) -> str:
    """Return the hover text of a trial; plotly understands some HTML, so `<` is escaped."""
    baseline = " (baseline)" if trial.is_baseline else ""
    lines = [
        f"<b>Trial {trial.number}</b>{baseline}: {fmt.OUTCOME_NAMES[trial.outcome]}",
        f"Validation F1 {fmt.score(trial.f1)}, {trial.num_epochs} epochs",
        *(f"{fmt.parameter_name(name)}: {_escaped(fmt.value(trial.params[name]))}" for name in sorted(trial.params)),
    ]
    return "<br>".join([*lines, *([_escaped(trial.reason[:120])] if trial.reason else [])])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
