"""How the search went: the validation F1 of each trial in turn, and by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csi_job.html.plot import BLUE, GOLD, GREY, TEAL, Figure, Plot, layout, line
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
    from collections.abc import Iterable, Sequence

    from csi_job.report.study_view import Phase, StudyView, TrialView

MAX_CURVES = 100  # more lines than this hide each other
MAX_SINGLE_TICKS = 12  # trials or epochs that each get a tick
NUM_BEST_CURVES = 20  # of these, the best are always drawn


def history_plot(view: StudyView) -> Plot:
    """Show each trial's validation F1 in the order of the trials, and the best so far."""
    key, title = "optimization_history", "Search progress"
    if not any(trial.f1 is not None for trial in view.trials):
        return Plot(key, title, missing="No trial has finished an epoch yet, so there is no validation F1 to show.")
    caption = (
        "Each marker is one trial; the line is the best complete trial so far. Pruned trials are shown at the best F1 "
        "they reached, infeasible and failed trials at the bottom."
    )
    return Plot(key, title, caption, _history(view))


def curves_plot(view: StudyView) -> Plot:
    """Show the validation F1 of all trials by epoch, pruned ones marked where they were stopped."""
    key, title = "curves", "Training curves"
    drawn = [trial for trial in view.trials if trial.curve]
    if not drawn:
        return Plot(key, title, missing="No trial has finished an epoch yet, so there is no curve to show.")
    sampled = _sample_curves(drawn)
    sentence = (
        f"For readability, {len(sampled)} of {words.count(len(drawn))} curves are drawn: the best {NUM_BEST_CURVES} "
        "and others spread evenly over the search."
    )
    cautions = (sentence,) if len(sampled) < len(drawn) else ()
    caption = "Validation F1 of each trial after each epoch. A cross marks where a trial was pruned."
    return Plot(key, title, caption, _curves(view, sampled), cautions=cautions)


def _history(view: StudyView) -> Figure:
    best = view.best
    traces = [_best_so_far(view), *_outcome_traces(view)]
    if (baseline := view.baseline) is not None and baseline.f1 is not None:
        traces.append(markers([baseline], [baseline.number], [baseline.f1], marker=BASELINE_MARKER, name="Baseline"))
    if best is not None and not best.is_baseline:
        name = "Chosen trial" if view.has_cost else "Best trial"
        traces.append(markers([best], [best.number], [best.f1], marker=BEST_MARKER, name=name))
    shapes, annotations = _phase_marks(view)
    shapes += _baseline_line(view)
    result = layout("Trial number", F1_AXIS, shapes=shapes, annotations=annotations)
    result["xaxis"]["range"] = [-0.6, view.trials[-1].number + 0.6]
    result["xaxis"].update({"dtick": 1} if len(view.trials) <= MAX_SINGLE_TICKS else {})
    result["yaxis"]["range"] = f1_range([*_scores(view), _foot(view)])
    return {"data": traces, "layout": result}


def _scores(view: StudyView) -> list[float]:
    return [trial.f1 for trial in view.trials if trial.f1 is not None]


def _foot(view: StudyView) -> float:
    """Return the height at which trials without any F1 stand, a little below the lowest one."""
    scores = _scores(view)
    if not view.with_outcome("infeasible", "failed"):
        return min(scores)
    return min(scores) - 0.06 * max(max(scores) - min(scores), 0.02)


def _best_so_far(view: StudyView) -> dict[str, Any]:
    xs: list[int] = []
    ys: list[float] = []
    for trial in view.with_outcome("complete"):
        if trial.f1 is not None:
            xs.append(trial.number)
            ys.append(max(trial.f1, ys[-1]) if ys else trial.f1)
    if xs:  # to the end of the study, where no later trial was better
        xs.append(view.trials[-1].number)
        ys.append(ys[-1])
    shape = {"shape": "hv"}
    return line(xs, ys, BLUE, width=1.5, line=shape, name="Best so far", hoverinfo="skip", showlegend=bool(xs))


def _outcome_traces(view: StudyView) -> list[dict[str, Any]]:
    """Return a trace of markers an outcome."""
    foot = _foot(view)
    traces = []
    for outcome, marker in OUTCOME_MARKERS.items():
        on_foot = outcome in {"infeasible", "failed"}
        trials = [trial for trial in view.with_outcome(outcome) if on_foot or trial.f1 is not None]
        trials = [trial for trial in trials if trial is not view.best and trial is not view.baseline]
        if trials:
            ys = [foot if on_foot else trial.f1 for trial in trials]
            name = words.OUTCOME_NAMES[outcome]
            traces.append(markers(trials, [trial.number for trial in trials], ys, marker=marker, name=name))
    return traces


def _baseline_line(view: StudyView) -> list[dict[str, Any]]:
    if view.baseline is None or view.baseline.f1 is None:
        return []
    dashed = {"color": TEAL, "width": 1.2, "dash": "dash"}
    height = view.baseline.f1
    return [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height, "line": dashed}]


def _phase_marks(view: StudyView) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a vertical line and a label at the first trial of each phase, where there is more than one phase."""
    shapes: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    if len(view.phases) < 2:  # noqa: PLR2004 - one phase needs no mark
        return shapes, labels
    for phase in view.phases:
        x = next(trial.number for trial in view.trials if trial.phase is phase) - 0.5
        dotted = {"color": GREY, "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": dotted})
        labels.append(_phase_label(phase, x))
    return shapes, labels


def _phase_label(phase: Phase, x: float) -> dict[str, Any]:
    place = {"x": x, "y": 0, "yref": "paper", "xanchor": "left", "yanchor": "bottom", "textangle": -90}
    return {"text": phase.label, "showarrow": False, "font": {"size": 11}, **place}


def _sample_curves(trials: Sequence[TrialView]) -> list[TrialView]:
    if len(trials) <= MAX_CURVES:
        return list(trials)
    best = sorted(trials, key=lambda trial: -(trial.f1 or 0.0))[:NUM_BEST_CURVES]
    kept = {trial.number for trial in best}
    others = spread_sample([trial for trial in trials if trial.number not in kept], MAX_CURVES - NUM_BEST_CURVES)
    return sorted([*best, *others], key=lambda trial: trial.number)


def _curves(view: StudyView, trials: Sequence[TrialView]) -> Figure:
    best, baseline = view.best, view.baseline
    plain = [trial for trial in trials if trial not in (best, baseline)]
    pruned = [trial for trial in plain if trial.outcome == "pruned"]
    complete = [trial for trial in plain if trial.outcome == "complete"]
    others = [trial for trial in plain if trial.outcome not in ("pruned", "complete")]
    traces = [
        _curve_trace(pruned, GREY, "Pruned", opacity=0.55, width=1.2),
        _pruned_ends(pruned),
        _curve_trace(others, GREY, "Not finished", opacity=0.8, width=1.2, line={"dash": "dot"}),
        _curve_trace(complete, BLUE, "Complete", opacity=0.65, width=1.4),
    ]
    if baseline is not None:
        traces.append(_curve_trace([baseline], TEAL, "Baseline", width=2.5, line={"dash": "dash"}))
    if best is not None and best is not baseline:
        traces.append(_curve_trace([best], GOLD, f"Trial {best.number}", width=3))
    result = layout("Epoch", F1_AXIS)
    num_epochs = max(epoch + 1 for trial in trials for epoch, _ in trial.curve)
    result["xaxis"].update({"dtick": 1} if num_epochs <= MAX_SINGLE_TICKS else {})
    return {"data": [trace for trace in traces if trace["x"]], "layout": result}


def _curve_trace(trials: Iterable[TrialView], color: str, name: str, **more: Any) -> dict[str, Any]:
    """Return the curves of many trials as one trace, parted by gaps: a trace a trial would be slow in the browser."""
    xs: list[int | None] = []
    ys: list[float | None] = []
    texts: list[str] = []
    for trial in trials:
        for epoch, f1 in trial.curve:
            xs.append(epoch + 1)
            ys.append(f1)
            texts.append(f"<b>Trial {trial.number}</b><br>epoch {epoch + 1}: F1 {words.score(f1)}")
        xs.append(None)
        ys.append(None)
        texts.append("")
    return line(xs, ys, color, name=name, hovertext=texts, hovertemplate="%{hovertext}<extra></extra>", **more)


def _pruned_ends(trials: Sequence[TrialView]) -> dict[str, Any]:
    xs = [trial.curve[-1][0] + 1 for trial in trials]
    ys = [trial.curve[-1][1] for trial in trials]
    marker = {"color": GREY, "symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": GREY}}
    return markers(trials, xs, ys, marker=marker, name="Pruned here", showlegend=False)
