"""What the figures of trials share: markers, hover texts, axes.

Figures are plotly figures as plain dictionaries (`data`, `layout`), which costs neither plotly's import nor its checks
at each refresh; the tests pass every one of them through `plotly.graph_objects.Figure`, which refuses unknown keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from csi_job.html.plot import BLUE, GOLD, GREY, PURPLE, RED, TEAL
from csi_job.report.format import OUTCOME_NAMES, parameter_name, score, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csi_job.report.study_view import TrialView
    from csi_job.storage.attributes import TrialOutcome

T = TypeVar("T")

# The symbols differ too.
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


def markers(trials: Sequence[TrialView], xs: Sequence[Any], ys: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return one trace of markers, a trial a marker, with what is known of the trial on hover."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(xs),
        "y": list(ys),
        "hovertext": [describe(trial) for trial in trials],
        "hovertemplate": "%{hovertext}<extra></extra>",
        **more,
    }


def describe(trial: TrialView) -> str:
    """Return the hover text of a trial; plotly reads a little HTML there, so `<` is escaped."""
    head = f"<b>Trial {trial.number}</b>{' (baseline)' if trial.is_baseline else ''}: {OUTCOME_NAMES[trial.outcome]}"
    lines = [head, f"Validation F1 {score(trial.f1)}, {trial.num_epochs} epochs"]
    lines += [f"{parameter_name(name)}: {_escaped(value(trial.params[name]))}" for name in sorted(trial.params)]
    if trial.reason:
        lines.append(_escaped(trial.reason[:120]))
    return "<br>".join(lines)


def f1_range(scores: Sequence[float]) -> list[float]:
    """Return the ends of an F1 axis: what was reached with some air, so that one value does not stand in a void."""
    low, high = min(scores), max(scores)
    air = max(0.08 * (high - low), 0.02)
    return [low - air, high + air]


def spread_sample(items: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` items, evenly spread over the whole and always with the first and the last."""
    if len(items) <= limit:
        return list(items)
    step = (len(items) - 1) / (limit - 1)
    return [items[round(index * step)] for index in range(limit)]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
