"""What the figures of trials share: markers, hover texts, axes.

Figures are plotly figures as plain dictionaries (`data`, `layout`), which saves importing plotly and its checks at each
refresh; the tests pass every one of them through `plotly.graph_objects.Figure`, which rejects unknown keys.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, TypeVar

from csi_job.html import format as fmt
from csi_job.html.plot import BLUE, GOLD, GREY, PURPLE, RED, TEAL, line
from csi_job.report.study_view import StudyView, TrialView
from csi_job.storage.attributes import TrialOutcome

T = TypeVar("T")
Points = list[tuple[int, float, str]]  # x, y and hover text of each point of a line

# Symbols differ as well as colours.
OUTCOME_MARKERS: dict[TrialOutcome, dict[str, Any]] = {
    "complete": {"color": BLUE, "symbol": "circle", "size": 8},
    "pruned": {"color": GREY, "symbol": "circle-open", "size": 7, "line": {"width": 1.5}},
    "infeasible": {"color": RED, "symbol": "x-thin", "size": 8, "line": {"width": 2, "color": RED}},
    "failed": {"color": PURPLE, "symbol": "cross-thin", "size": 8, "line": {"width": 2, "color": PURPLE}},
    "running": {"color": TEAL, "symbol": "triangle-up-open", "size": 8, "line": {"width": 1.5}},
    "paused": {"color": TEAL, "symbol": "diamond-open", "size": 7, "line": {"width": 1.5}},
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


def joined_lines(lines: Iterable[Points], color: str, name: str, **more: Any) -> dict[str, Any]:
    """Return many lines as one trace with gaps: one trace per line would slow the browser down."""
    points = [point for points in lines for point in (*points, (None, None, ""))]
    xs, ys, texts = ([point[index] for point in points] for index in range(3))
    return line(xs, ys, color, name=name, hovertext=texts, hovertemplate=SHOW_HOVERTEXT, **more)


def highlighted_lines(view: StudyView, points: Callable[[TrialView], Points]) -> list[dict[str, Any]]:
    """Return the lines of the baseline and of the best trial, which stand out from the others."""
    best, baseline = view.best, view.baseline
    traces = []
    if baseline is not None:
        traces.append(joined_lines([points(baseline)], TEAL, "Baseline", width=2.5, line={"dash": "dash"}))
    if best is not None and best is not baseline:
        traces.append(joined_lines([points(best)], GOLD, f"Trial {best.number}", width=3))
    return traces


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
    params = {name: escape(fmt.value(value), quote=False) for name, value in sorted(trial.params.items())}
    lines = [
        f"<b>Trial {trial.number}</b>{baseline}: {trial.outcome.capitalize()}",
        f"Validation F1 {fmt.score(trial.f1)}, {trial.num_epochs} epochs",
        *(f"{fmt.parameter_name(name)}: {value}" for name, value in params.items()),
    ]
    return "<br>".join([*lines, *([escape(trial.reason[:120], quote=False)] if trial.reason else [])])
