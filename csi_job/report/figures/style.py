"""The one look of all figures: colours that colour-blind readers tell apart, on light and dark paper alike.

Figures are plotly figures as plain dictionaries (`data`, `layout`), which costs neither plotly's import nor its checks
at each refresh; the tests pass every one of them through `plotly.graph_objects.Figure`, which refuses unknown keys.
Text, grid and background take their colours from the style sheet of the page, so that they follow its light or dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from csi_job.report.format import OUTCOME_NAMES, parameter_name, score, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csi_job.report.study_view import TrialView
    from csi_job.storage.attributes import Outcome

Figure = dict[str, Any]
T = TypeVar("T")

# Each has a contrast of at least 3 : 1 on white and on the dark page; the symbols differ too.
BLUE, GREY, RED, PURPLE, TEAL, GOLD = "#3b82c4", "#848e9a", "#d5552b", "#9a6cc4", "#16967f", "#c47a0a"
OUTCOME_MARKERS: dict[Outcome, dict[str, Any]] = {
    "complete": {"color": BLUE, "symbol": "circle", "size": 8},
    "pruned": {"color": GREY, "symbol": "circle-open", "size": 7, "line": {"width": 1.5}},
    "infeasible": {"color": RED, "symbol": "x-thin", "size": 8, "line": {"width": 2, "color": RED}},
    "failed": {"color": PURPLE, "symbol": "cross-thin", "size": 8, "line": {"width": 2, "color": PURPLE}},
    "running": {"color": TEAL, "symbol": "triangle-up-open", "size": 8, "line": {"width": 1.5}},
}
BEST_MARKER = {"color": GOLD, "symbol": "star", "size": 15, "line": {"width": 1, "color": "#ffffff"}}
BASELINE_MARKER = {"color": TEAL, "symbol": "diamond", "size": 11, "line": {"width": 1, "color": "#ffffff"}}
F1_AXIS = "Validation F1 (0 to 1)"


@dataclass(frozen=True)
class Plot:
    """One figure of the report, or the reason why there is none.

    Args:
        key: part of file names, e.g. `optimization_history`.
        title: heading above the figure.
        caption: what is seen, in one or two sentences.
        figure: the figure; None where `missing` says what it waits for.
        missing: one sentence.
        cautions: what the reader must keep in mind, e.g. that few trials stand behind it.
        is_wide: many small parts lie side by side, so a narrow screen scrolls rather than squeezes.

    """

    key: str
    title: str
    caption: str = ""
    figure: Figure | None = None
    missing: str = ""
    cautions: tuple[str, ...] = ()
    is_wide: bool = False


def layout(x_title: str, y_title: str, *, height_px: int = 420, **more: Any) -> dict[str, Any]:
    """Return the layout that all figures share, with titles of the axes and `more` on top."""
    axis = {"automargin": True, "zeroline": False, "ticks": "outside", "ticklen": 4, "tickcolor": GREY}
    return {
        "height": height_px,
        "margin": {"l": 56, "r": 16, "t": 76, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#22303c", "bordercolor": "#22303c", "font": {"color": "#ffffff"}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        "xaxis": {**axis, "title": axis_title(x_title), "showgrid": False},
        "yaxis": {**axis, "title": axis_title(y_title)},
        **more,
    }


def axis_title(text: str) -> dict[str, Any]:
    """Return the title of an axis in the size of its labels."""
    return {"text": text, "font": {"size": 13}, "standoff": 8}


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


def line(xs: Sequence[Any], ys: Sequence[Any], color: str, **more: Any) -> dict[str, Any]:
    """Return one trace of lines; None in `xs` and `ys` parts one line from the next."""
    style = {"color": color, "width": more.pop("width", 2), **more.pop("line", {})}
    return {"type": "scatter", "mode": "lines", "x": list(xs), "y": list(ys), "line": style, **more}


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
