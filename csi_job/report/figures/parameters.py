"""How the validation F1 goes with the parameters: all at once, and each alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from csi_job.html.plot import GOLD, GREY, TEAL, Figure, Plot, axis_title, layout, line
from csi_job.report import format as words
from csi_job.report.figures.style import (
    BASELINE_MARKER,
    BEST_MARKER,
    F1_AXIS,
    OUTCOME_MARKERS,
    f1_range,
    markers,
    spread_sample,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution

    from csi_job.report.study_view import StudyView, TrialView

MAX_LINES = 300
MAX_POINTS = 500
NUM_COLUMNS = 3  # of small figures side by side
ROW_HEIGHT_PX = 270
NOT_USED_HEIGHT = -0.13  # where a line passes the axis of a parameter its trial does not have
F1_COLOURS = ("#aab4bf", "#8fb0cf", "#6d9fce", "#4a8ac6", "#1f6fb4")  # low to high
NUM_TICKS = 5
MIN_DECADES_SPAN = 100  # highest over lowest value from which powers of ten label a logarithmic axis
JITTER_STEPS = 41  # places over which marks of one choice are spread, so that they do not hide each other


def parallel_plot(view: StudyView) -> Plot:
    """Show each trial as a line through its parameters, coloured by its validation F1."""
    key, title = "parallel_coordinate", "Hyperparameters together"
    trials = view.ranked + [trial for trial in view.with_outcome("pruned") if trial.f1 is not None]
    names = words.in_order({name for trial in trials for name in trial.params})
    if not trials or not names:
        return Plot(key, title, missing="No trial has finished yet, so there is nothing to draw.")
    sampled, cautions = _sample(trials, MAX_LINES, "lines")
    caption = (
        "Each line is one trial and crosses each axis at the value the trial used. Darker blue means higher F1. A line "
        "that passes below an axis does not use that setting. Click a legend entry to hide or show its trials."
    )
    return Plot(key, title, caption, _parallel(view, sampled, names), cautions=cautions, is_wide=True)


def slices_plot(view: StudyView) -> Plot:
    """Show the validation F1 against each parameter alone."""
    key, title = "slices", "Hyperparameters one by one"
    trials = [trial for trial in view.with_outcome("complete", "pruned") if trial.f1 is not None]
    names = words.in_order({name for trial in trials for name in trial.params})
    if not trials or not names:
        return Plot(key, title, missing="No trial has finished yet, so there is nothing to compare.")
    sampled, cautions = _sample(trials, MAX_POINTS, "trials")
    caption = "Validation F1 against each hyperparameter; one that only some optimizers use shows only their trials."
    return Plot(key, title, caption, _slices(view, sampled, names), cautions=cautions, is_wide=True)


@dataclass(frozen=True)
class _Axis:
    """One vertical axis: heights from 0 to 1 for values, the labels of its ticks, how far equal values spread."""

    name: str
    heights: dict[Any, float]
    ticks: tuple[tuple[float, str], ...]
    spread: float = 0.0


def _sample(trials: list[TrialView], limit: int, things: str) -> tuple[list[TrialView], tuple[str, ...]]:
    if len(trials) <= limit:
        return trials, ()
    best = sorted(trials, key=lambda trial: -(trial.f1 or 0.0))
    sampled = spread_sample(best, limit)
    return sampled, (
        f"For readability, {limit} of {words.count(len(trials))} {things} are drawn, spread evenly over F1.",
    )


def _parallel(view: StudyView, trials: list[TrialView], names: list[str]) -> Figure:
    best = view.best
    axes = [_f1_axis(trials)] + [_axis(view, trials, name) for name in names]
    complete = [trial for trial in trials if trial.outcome == "complete" and trial not in (best, view.baseline)]
    pruned = [trial for trial in trials if trial.outcome == "pruned"]
    traces = [_lines(axes, pruned, GREY, "Pruned", opacity=0.35, width=1, line={"dash": "dot"})]
    traces += [
        _lines(axes, group, color, label, opacity=0.75, width=1.4) for group, color, label in _f1_groups(complete)
    ]
    if view.baseline is not None:
        traces.append(_lines(axes, [view.baseline], TEAL, "Baseline", width=2.5, line={"dash": "dash"}))
    if best is not None and best is not view.baseline:
        traces.append(_lines(axes, [best], GOLD, f"Trial {best.number}", width=3))
    has_gaps = any(name not in trial.params for trial in trials for name in names)
    return {"data": [trace for trace in traces if trace["x"]], "layout": _parallel_layout(axes, has_gaps=has_gaps)}


def _f1_groups(trials: Sequence[TrialView]) -> list[tuple[list[TrialView], str, str]]:
    """Part trials into equal steps of F1, low ones first, each with its colour and label."""
    if not trials:
        return []
    scores = [trial.f1 or 0.0 for trial in trials]
    low, step = min(scores), (max(scores) - min(scores)) / len(F1_COLOURS)
    if step <= 0:
        return [(list(trials), F1_COLOURS[-1], f"F1 {words.score(low)}")]
    groups: list[list[TrialView]] = [[] for _ in F1_COLOURS]
    for trial, f1 in zip(trials, scores, strict=True):
        groups[min(int((f1 - low) / step), len(F1_COLOURS) - 1)].append(trial)
    ends = [low + index * step for index in range(len(F1_COLOURS) + 1)]
    labels = [f"F1 {start:.2f}{words.DASH}{end:.2f}" for start, end in pairwise(ends)]
    return [part for part in zip(groups, F1_COLOURS, labels, strict=True) if part[0]]


def _lines(axes: Sequence[_Axis], trials: Sequence[TrialView], color: str, name: str, **more: Any) -> dict[str, Any]:
    """Return the lines of many trials as one trace, parted by gaps."""
    xs: list[int | None] = []
    ys: list[float | None] = []
    texts: list[str] = []
    for trial in trials:
        xs += [*range(len(axes)), None]
        ys += [_height(axis, trial) for axis in axes] + [None]
        texts += [_line_text(axis, trial) for axis in axes] + [""]
    return line(xs, ys, color, name=name, hovertext=texts, hovertemplate="%{hovertext}<extra></extra>", **more)


def _line_text(axis: _Axis, trial: TrialView) -> str:
    head = f"<b>Trial {trial.number}</b>: F1 {words.score(trial.f1)}"
    return (
        f"{head}<br>{words.parameter_name(axis.name)}: {words.value(trial.params.get(axis.name))}"
        if axis.name
        else head
    )


def _height(axis: _Axis, trial: TrialView) -> float:
    key = trial.f1 if not axis.name else trial.params.get(axis.name)
    if key not in axis.heights:
        return NOT_USED_HEIGHT
    return axis.heights[key] + axis.spread * _jitter(trial)


def _jitter(trial: TrialView) -> float:
    """Return a fixed number from -0.5 to 0.5 that differs between neighbouring trials."""
    return trial.number * 37 % JITTER_STEPS / (JITTER_STEPS - 1) - 0.5


def _f1_axis(trials: Sequence[TrialView]) -> _Axis:
    return _number_axis("", [trial.f1 for trial in trials if trial.f1 is not None], log=False)


def _axis(view: StudyView, trials: Sequence[TrialView], name: str) -> _Axis:
    distribution = view.distributions[name]
    if not isinstance(distribution, CategoricalDistribution):
        values = [trial.params[name] for trial in trials if name in trial.params]
        return _number_axis(name, values, log=_is_log(distribution))
    choices = _choices(distribution, trials, name)
    heights = {choice: (index + 0.5) / len(choices) for index, choice in enumerate(choices)}
    ticks = tuple((height, words.value(choice)) for choice, height in heights.items())
    return _Axis(name, heights, ticks, spread=0.3 / len(choices))


def _number_axis(name: str, values: Sequence[float], *, log: bool) -> _Axis:
    low, high = min(values), max(values)

    def scaled(number: float) -> float:
        if high == low:
            return 0.5
        if log:
            return math.log(number / low) / math.log(high / low)
        return (number - low) / (high - low)

    ticks = tuple((scaled(number), words.number(number)) for number in _tick_values(low, high, log=log))
    return _Axis(name, {number: scaled(number) for number in values}, ticks)


def _tick_values(low: float, high: float, *, log: bool) -> list[float]:
    """Return powers of ten on a logarithmic axis that spans some, else the ends and what lies evenly between them."""
    if high == low:
        return [low]
    if log and high / low >= MIN_DECADES_SPAN:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        return [10.0**power for power in range(first, last + 1)]
    if isinstance(low, int) and isinstance(high, int):
        step = max(1, round((high - low) / (NUM_TICKS - 1)))
        return [*range(low, high - step // 2, step), high]
    shares = [index / (NUM_TICKS - 1) for index in range(NUM_TICKS)]
    return [low + (high - low) * share for share in shares]


def _parallel_layout(axes: Sequence[_Axis], *, has_gaps: bool) -> dict[str, Any]:
    result = layout("", "", height_px=500)
    result["margin"].update(t=120, l=40)
    result["legend"].update(y=1.13)
    foot = NOT_USED_HEIGHT if has_gaps else 0
    result["xaxis"].update(visible=False, range=[-0.5, len(axes) - 0.5])
    result["yaxis"].update(visible=False, range=[foot - 0.04, 1.03])
    rule = {"color": GREY, "width": 1}
    result["shapes"] = [
        {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "line": rule, "layer": "below"}
        for place in range(len(axes))
    ]
    result["annotations"] = [label for place, axis in enumerate(axes) for label in _axis_labels(place, axis)]
    if has_gaps:
        result["annotations"].append(_label(-0.05, NOT_USED_HEIGHT, "not used", xanchor="right"))
    return result


def _axis_labels(place: int, axis: _Axis) -> list[dict[str, Any]]:
    name = words.parameter_name(axis.name) if axis.name else "Validation F1"
    head = _label(place, 1, f"<b>{name.replace(' ', '<br>')}</b>", yref="paper", yanchor="bottom", size=12)
    ticks = [_label(place, height, label, xanchor="right", xshift=-4) for height, label in axis.ticks]
    return [head, *ticks]


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
        suffix = str(index + 1) if index else ""
        traces += _slice_traces(view, trials, name, first=not index, suffix=suffix)
        result[f"xaxis{suffix}"] = {**x_axis, **_slice_x_axis(view, trials, name)}
        title = axis_title(F1_AXIS if index % num_columns == 0 else "")
        result[f"yaxis{suffix}"] = {**y_axis, "title": title, **({"matches": "y"} if index else {})}
    return {"data": traces, "layout": result}


def _slice_traces(
    view: StudyView, trials: list[TrialView], name: str, *, first: bool, suffix: str
) -> list[dict[str, Any]]:
    """Return the marks of one small figure; only the first one's enter the legend, which hides and shows all."""
    having = [trial for trial in trials if name in trial.params]
    marked = {id(view.best), id(view.baseline)}
    groups: list[tuple[str, list[TrialView], dict[str, Any]]] = []
    for outcome in ("complete", "pruned"):
        group = [trial for trial in having if trial.outcome == outcome and id(trial) not in marked]
        groups.append((words.OUTCOME_NAMES[outcome], group, {**OUTCOME_MARKERS[outcome], "opacity": 0.8}))
    groups.append(("Baseline", [trial for trial in having if trial is view.baseline], BASELINE_MARKER))
    groups.append(
        ("Best", [trial for trial in having if trial is view.best and trial is not view.baseline], BEST_MARKER)
    )
    on_axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": first}
    return [
        markers(
            group,
            _slice_xs(view, trials, group, name),
            [trial.f1 for trial in group],
            marker=marker,
            name=label,
            legendgroup=label,
            **on_axes,
        )
        for label, group, marker in groups
        if group or first
    ]


def _slice_xs(view: StudyView, trials: list[TrialView], group: list[TrialView], name: str) -> list[Any]:
    """Return the values; choices as places 0, 1, … with a small fixed shift, so that marks do not hide each other."""
    if not isinstance(view.distributions[name], CategoricalDistribution):
        return [trial.params[name] for trial in group]
    places = {choice: place for place, choice in enumerate(_choices(view.distributions[name], trials, name))}
    return [places[trial.params[name]] + 0.36 * _jitter(trial) for trial in group]


def _slice_x_axis(view: StudyView, trials: list[TrialView], name: str) -> dict[str, Any]:
    title = {"title": axis_title(words.parameter_name(name))}
    distribution = view.distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        choices = _choices(distribution, trials, name)
        labels = [words.value(choice) for choice in choices]
        places = list(range(len(choices)))
        return {**title, "tickvals": places, "ticktext": labels, "range": [-0.5, len(choices) - 0.5]}
    values = [trial.params[name] for trial in trials if name in trial.params]
    if _is_log(distribution) or (isinstance(values[0], int) and max(values) - min(values) <= NUM_TICKS):
        ticks = _tick_values(min(values), max(values), log=_is_log(distribution))
        scale = {"type": "log"} if _is_log(distribution) else {}
        return {**title, **scale, "tickvals": ticks, "ticktext": [words.number(tick) for tick in ticks]}
    return title


def _choices(distribution: BaseDistribution, trials: Sequence[TrialView], name: str) -> list[Any]:
    """Return the choices of a categorical parameter that some trial used, in the order of the space."""
    used = {trial.params.get(name) for trial in trials}
    return [choice for choice in getattr(distribution, "choices", ()) if choice in used]


def _is_log(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, (FloatDistribution, IntDistribution)) and distribution.log
