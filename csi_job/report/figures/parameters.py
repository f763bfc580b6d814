"""How the validation F1 varies with the hyperparameters: all together, and one by one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from csi_job.html import format as fmt
from csi_job.html.plot import GREY, Figure, Plot, axis_title, layout
from csi_job.report.figures.style import (
    BASELINE_MARKER,
    BEST_MARKER,
    F1_AXIS,
    OUTCOME_MARKERS,
    Points,
    f1_range,
    highlighted_lines,
    joined_lines,
    markers,
    spread_sample,
)
from csi_job.report.study_view import StudyView, TrialView

MAX_LINES = 300
MAX_POINTS = 500
NUM_COLUMNS = 3  # of small figures side by side
ROW_HEIGHT_PX = 270
NOT_USED_HEIGHT = -0.13  # where a line passes the axis of a parameter that its trial does not have
F1_COLOURS = ("#aab4bf", "#8fb0cf", "#6d9fce", "#4a8ac6", "#1f6fb4")  # low to high
NUM_TICKS = 5
MIN_DECADES_SPAN = 100  # ratio of highest to lowest value from which a logarithmic axis has ticks at powers of ten
JITTER_STEPS = 41  # positions over which markers of one choice are spread, so that they do not hide each other


def parallel_plot(view: StudyView) -> Plot:
    """Show each trial as a line through its hyperparameters, coloured by its validation F1."""
    caption = (
        "Each line is one trial and crosses each axis at the value the trial used. Darker blue means higher F1. A line "
        "that passes below an axis does not use that setting. Click a legend entry to hide or show its trials."
    )
    trials = view.ranked + [trial for trial in view.scored if trial.outcome == "pruned"]
    return _plot(view, trials, "parallel_coordinate", "Hyperparameters together", caption, _parallel, MAX_LINES)


def slices_plot(view: StudyView) -> Plot:
    """Show the validation F1 against each hyperparameter alone."""
    caption = "Validation F1 against each hyperparameter; one that only some optimizers use shows only their trials."
    trials = [trial for trial in view.scored if trial.outcome in ("complete", "pruned")]
    return _plot(view, trials, "slices", "Hyperparameters one by one", caption, _slices, MAX_POINTS)


def _plot(
    view: StudyView,
    trials: list[TrialView],
    key: str,
    title: str,
    caption: str,
    draw: Callable[[StudyView, list[TrialView], list[str]], Figure],
    limit: int,
) -> Plot:
    drawn = trials
    if len(trials) > limit:  # the best trial and the baseline, which have their own traces, are always drawn
        special = [trial for trial in trials if trial is view.best or trial is view.baseline]
        ranked = sorted(view.others(trials), key=lambda trial: -(trial.f1 or 0.0))
        drawn = [*special, *spread_sample(ranked, limit - len(special))]
    names = fmt.in_order({name for trial in drawn for name in trial.params})  # those drawn, so that no axis is empty
    if not names:
        return Plot(key, title, missing=f"{view.no_trial} has finished yet, so there is nothing to draw.")
    warning = f"For readability, {len(drawn)} of {fmt.count(len(trials))} trials are drawn, spread evenly over F1."
    warnings = (warning,) if len(drawn) < len(trials) else ()
    return Plot(key, title, caption, draw(view, drawn, names), warnings=warnings, is_wide=True)


@dataclass(frozen=True)
class _Axis:
    """A vertical axis: heights from 0 to 1 of its values and ticks, and how far equal values are spread."""

    name: str
    """The hyperparameter; empty for F1."""
    heights: dict[Any, float]
    ticks: tuple[tuple[float, str], ...]
    spread: float = 0.0


def _parallel(view: StudyView, trials: list[TrialView], names: list[str]) -> Figure:
    f1_axis = _number_axis("", [trial.f1 for trial in trials if trial.f1 is not None], is_log=False)
    axes = [f1_axis, *(_axis(view, trials, name) for name in names)]

    def points(trial: TrialView) -> Points:
        return [(place, *_point(axis, trial)) for place, axis in enumerate(axes)]

    complete = [trial for trial in view.others(trials) if trial.outcome == "complete"]
    pruned = [trial for trial in view.others(trials) if trial.outcome == "pruned"]
    groups = [
        joined_lines(map(points, group), color, name, opacity=0.75, width=1.4)
        for group, color, name in _f1_groups(complete)
    ]
    dotted = joined_lines(map(points, pruned), GREY, "Pruned", opacity=0.35, width=1, line={"dash": "dot"})
    traces = [dotted, *groups, *highlighted_lines(view, points)]
    has_gaps = any(name not in trial.params for trial in trials for name in names)
    return {"data": [trace for trace in traces if trace["x"]], "layout": _parallel_layout(axes, has_gaps=has_gaps)}


def _f1_groups(trials: Sequence[TrialView]) -> list[tuple[list[TrialView], str, str]]:
    """Divide trials into equal steps of F1, low ones first, each with its colour and label."""
    if not trials:
        return []
    scores = [trial.f1 or 0.0 for trial in trials]
    low, step = min(scores), (max(scores) - min(scores)) / len(F1_COLOURS)
    if step <= 0:
        return [(list(trials), F1_COLOURS[-1], f"F1 {fmt.score(low)}")]
    groups: list[list[TrialView]] = [[] for _ in F1_COLOURS]
    for trial, f1 in zip(trials, scores, strict=True):
        groups[min(int((f1 - low) / step), len(F1_COLOURS) - 1)].append(trial)
    ends = [low + index * step for index in range(len(F1_COLOURS) + 1)]
    labels = [f"F1 {start:.2f}{fmt.DASH}{end:.2f}" for start, end in pairwise(ends)]
    return [part for part in zip(groups, F1_COLOURS, labels, strict=True) if part[0]]


def _point(axis: _Axis, trial: TrialView) -> tuple[float, str]:
    """Return where the line of a trial crosses an axis, and what its point says there."""
    key = trial.params.get(axis.name) if axis.name else trial.f1
    height = axis.heights[key] + axis.spread * _jitter(trial) if key in axis.heights else NOT_USED_HEIGHT
    value = f"<br>{fmt.parameter_name(axis.name)}: {fmt.value(key)}" if axis.name else ""
    return height, f"<b>Trial {trial.number}</b>: F1 {fmt.score(trial.f1)}{value}"


def _jitter(trial: TrialView) -> float:
    """Return a fixed number from -0.5 to 0.5 that differs between neighbouring trials."""
    return trial.number * 37 % JITTER_STEPS / (JITTER_STEPS - 1) - 0.5


def _axis(view: StudyView, trials: Sequence[TrialView], name: str) -> _Axis:
    choices = _choices(view, trials, name)
    if not choices:
        values = [trial.params[name] for trial in trials if name in trial.params]
        return _number_axis(name, values, is_log=view.is_log(name))
    heights = {choice: (index + 0.5) / len(choices) for index, choice in enumerate(choices)}
    ticks = tuple((height, fmt.value(choice)) for choice, height in heights.items())
    return _Axis(name, heights, ticks, spread=0.3 / len(choices))


def _number_axis(name: str, values: Sequence[float], *, is_log: bool) -> _Axis:
    low, high = min(values), max(values)

    def height(number: float) -> float:
        if high == low:
            return 0.5
        if is_log:
            return math.log(number / low) / math.log(high / low)
        return (number - low) / (high - low)

    ticks = tuple((height(number), fmt.tick(number)) for number in _tick_values(low, high, is_log=is_log))
    return _Axis(name, {number: height(number) for number in values}, ticks)


def _tick_values(low: float, high: float, *, is_log: bool) -> list[float]:
    """Return powers of ten on a logarithmic axis that spans several, else the ends and even steps between them."""
    if high == low:
        return [low]
    if is_log and high / low >= MIN_DECADES_SPAN:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        return [10.0**power for power in range(first, last + 1)]
    if isinstance(low, int) and isinstance(high, int):
        step = max(1, round((high - low) / (NUM_TICKS - 1)))
        return [*range(low, high - step // 2, step), high]
    return [low + (high - low) * index / (NUM_TICKS - 1) for index in range(NUM_TICKS)]


def _parallel_layout(axes: Sequence[_Axis], *, has_gaps: bool) -> dict[str, Any]:
    result = layout("", "", height_px=500)
    result["margin"].update(t=120, l=40)
    result["legend"].update(y=1.13)
    bottom = NOT_USED_HEIGHT if has_gaps else 0
    result["xaxis"].update(visible=False, range=[-0.5, len(axes) - 0.5])
    result["yaxis"].update(visible=False, range=[bottom - 0.04, 1.03])
    rule = {"type": "line", "y0": 0, "y1": 1, "line": {"color": GREY, "width": 1}, "layer": "below"}
    result["shapes"] = [{**rule, "x0": place, "x1": place} for place in range(len(axes))]
    result["annotations"] = []
    for place, axis in enumerate(axes):
        head = fmt.parameter_name(axis.name) if axis.name else "Validation F1"
        text = f"<b>{head.replace(' ', '<br>')}</b>"
        ticks = [_label(place, height, label, xanchor="right", xshift=-4) for height, label in axis.ticks]
        result["annotations"] += [_label(place, 1, text, yref="paper", yanchor="bottom", size=12), *ticks]
    if has_gaps:
        result["annotations"].append(_label(-0.05, NOT_USED_HEIGHT, "not used", xanchor="right"))
    return result


def _label(x: float, y: float, text: str, *, size: int = 11, **more: Any) -> dict[str, Any]:
    return {"x": x, "y": y, "text": text, "showarrow": False, "borderpad": 1, "font": {"size": size}, **more}


def _slices(view: StudyView, trials: list[TrialView], names: list[str]) -> Figure:
    num_columns = min(NUM_COLUMNS, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    grid = {"rows": num_rows, "columns": num_columns, "pattern": "independent", "xgap": 0.12, "ygap": 0.28}
    result = layout("", "", height_px=90 + ROW_HEIGHT_PX * num_rows, grid=grid)
    x_axis, y_axis = result["xaxis"], result["yaxis"]
    y_axis["range"] = f1_range([trial.f1 for trial in trials if trial.f1 is not None])
    traces: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        axis_suffix = str(index + 1) if index else ""
        traces += _slice_traces(view, trials, name, axis_suffix)
        result[f"xaxis{axis_suffix}"] = {**x_axis, **_slice_x_axis(view, trials, name)}
        title = axis_title(F1_AXIS if index % num_columns == 0 else "")
        result[f"yaxis{axis_suffix}"] = {**y_axis, "title": title, **({"matches": "y"} if index else {})}
    return {"data": traces, "layout": result}


def _slice_traces(view: StudyView, trials: list[TrialView], name: str, axis_suffix: str) -> list[dict[str, Any]]:
    """Return the markers of one small figure; only those of the first, whose axes have no suffix, enter the legend."""
    best, baseline, best_name = view.best, view.baseline, "Chosen" if view.has_cost else "Best"
    groups: dict[str, tuple[dict[str, Any], list[TrialView]]] = {
        "Complete": ({**OUTCOME_MARKERS["complete"], "opacity": 0.8}, []),
        "Pruned": ({**OUTCOME_MARKERS["pruned"], "opacity": 0.8}, []),
        "Baseline": (BASELINE_MARKER, []),
        best_name: (BEST_MARKER, []),
    }
    for trial in trials:
        if name in trial.params:
            special = "Baseline" if trial is baseline else best_name if trial is best else ""
            groups[special or trial.outcome.capitalize()][1].append(trial)
    on_axes = {"xaxis": f"x{axis_suffix}", "yaxis": f"y{axis_suffix}", "showlegend": not axis_suffix}
    choices = _choices(view, trials, name)
    traces = []
    for label, (marker, group) in groups.items():
        if group or not axis_suffix:
            xs = [trial.params[name] for trial in group]
            if choices:  # they are at 0, 1, …, with a small fixed shift, so that markers do not hide each other
                xs = [choices.index(x) + 0.36 * _jitter(trial) for x, trial in zip(xs, group, strict=True)]
            f1s = [trial.f1 for trial in group]
            traces.append(markers(group, xs, f1s, marker=marker, name=label, legendgroup=label, **on_axes))
    return traces


def _slice_x_axis(view: StudyView, trials: list[TrialView], name: str) -> dict[str, Any]:
    title = {"title": axis_title(fmt.parameter_name(name))}
    if choices := _choices(view, trials, name):
        ticks = {"tickvals": list(range(len(choices))), "ticktext": list(map(fmt.value, choices))}
        return {**title, **ticks, "range": [-0.5, len(choices) - 0.5]}
    values = [trial.params[name] for trial in trials if name in trial.params]
    is_log = view.is_log(name)
    if is_log or (isinstance(values[0], int) and max(values) - min(values) <= NUM_TICKS):
        tick_values = _tick_values(min(values), max(values), is_log=is_log)
        scale = {"type": "log"} if is_log else {}
        return {**title, **scale, "tickvals": tick_values, "ticktext": list(map(fmt.tick, tick_values))}
    return title


def _choices(view: StudyView, trials: Sequence[TrialView], name: str) -> list[Any]:
    """Return the choices of a categorical hyperparameter that some trial used, in the order of the space; else none."""
    used = {trial.params.get(name) for trial in trials}
    return [choice for choice in getattr(view.distributions[name], "choices", ()) if choice in used]
