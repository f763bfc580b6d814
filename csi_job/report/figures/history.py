"""How the search went: the validation F1 of each trial in turn, and its F1 and losses epoch by epoch."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from csi_job.html import format as fmt
from csi_job.html.plot import BLUE, GOLD, GREY, TEAL, Figure, Plot, layout, line
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
from csi_job.storage.attributes import TrialOutcome

AT_BOTTOM: tuple[TrialOutcome, ...] = ("infeasible", "failed")
MAX_CURVES = 100  # more lines than this hide each other
NUM_BEST_CURVES = 20  # of these, the best are always drawn
MAX_LOSSES = 40  # trials whose losses are drawn
MAX_SINGLE_TICKS = 12  # trials or epochs that each get a tick
# Where a trial's losses have them, their names, and their lines.
LOSSES: tuple[tuple[int, str, dict[str, str]], ...] = ((1, "training", {"dash": "dot"}), (2, "validation", {}))


def history_plot(view: StudyView) -> Plot:
    """Show each trial's validation F1 in order of the trials, and the best so far."""
    key, title = "optimization_history", "Search progress"
    num_outside = len(view.outside)
    left_out = (
        f"{fmt.plural(num_outside, 'trial')} that another program added outside the search space "
        f"{'is' if num_outside == 1 else 'are'} left out."
    )
    warnings = (left_out,) if num_outside else ()
    if not view.scored:
        missing = f"{view.no_trial} has finished an epoch yet, so there is no validation F1 to show."
        return Plot(key, title, missing=missing, warnings=warnings)
    caption = (
        "Each marker is one trial; the line is the best complete trial so far. Pruned trials are shown at the best F1 "
        "they reached, infeasible and failed trials at the bottom."
    )
    return Plot(key, title, caption, _history(view), warnings=warnings)


def curves_plot(view: StudyView) -> Plot:
    """Show the validation F1 of all trials by epoch, with pruned ones marked where they were stopped."""
    key, title = "curves", "Training curves"
    trials = [trial for trial in view.scored if trial.curve]
    if not trials:
        return Plot(key, title, missing=f"{view.no_trial} has finished an epoch yet, so there is no curve to show.")
    sampled = trials
    if len(trials) > MAX_CURVES:
        best = sorted(trials, key=lambda trial: -(trial.f1 or 0.0))[:NUM_BEST_CURVES]
        kept = {trial.number for trial in best}
        others = [trial for trial in trials if trial.number not in kept]
        chosen = [*best, *spread_sample(others, MAX_CURVES - NUM_BEST_CURVES)]
        sampled = sorted(chosen, key=lambda trial: trial.number)
    warning = (
        f"For readability, {len(sampled)} of {fmt.count(len(trials))} curves are drawn: the best {NUM_BEST_CURVES} "
        "and others spread evenly over the search."
    )
    warnings = (warning,) if len(sampled) < len(trials) else ()
    caption = "Validation F1 of each trial after each epoch. A cross marks where a trial was pruned."
    return Plot(key, title, caption, _curves(view, sampled), warnings=warnings)


def losses_plot(view: StudyView) -> Plot:
    """Show the losses of the trials; those of the best trial and of the baseline stand out."""
    key, title = "losses", "Loss curves"
    trials = [trial for trial in view.inside if trial.losses]
    if not trials:
        reason = f"{view.no_trial.lower()} has finished an epoch yet, or an older version trained them"
        missing = f"No losses are stored: {reason}."
        return Plot(key, title, missing=missing)
    caption = (
        "Dotted: training loss; solid: validation loss. A validation loss that rises while the training loss falls "
        "means that the model memorises its training images."
    )
    sampled = spread_sample(trials, MAX_LOSSES)
    special = [(view.baseline, TEAL, "Baseline")]
    if view.best is not view.baseline and view.best is not None:
        special.append((view.best, GOLD, f"Trial {view.best.number}"))
    traces = _loss_traces(view.others(sampled), BLUE, "Others", width=1.2, opacity=0.5)
    for trial, color, name in special:
        traces += _loss_traces([trial] if trial else [], color, name, width=2.8)
    warnings = (f"{len(sampled)} of {fmt.count(len(trials))} trials are drawn.",) if len(sampled) < len(trials) else ()
    result = _epoch_layout("Loss (cross-entropy, log scale)", trials)
    # One diverging trial must not flatten the others; without a format, plotly writes 5 for 0.5.
    result["yaxis"].update(type="log", nticks=4, tickformat="~g")
    return Plot(key, title, caption, {"data": traces, "layout": result}, warnings=warnings)


def _epoch_layout(y_title: str, trials: Sequence[TrialView]) -> Figure:
    """Return the layout of a figure over the epochs of these trials, with a tick at each unless there are many."""
    result = layout("Epoch", y_title)
    num_epochs = max((epoch + 1 for trial in trials for epoch, _ in trial.curve), default=1)
    result["xaxis"].update({"dtick": 1} if num_epochs <= MAX_SINGLE_TICKS else {})
    return result


def _history(view: StudyView) -> Figure:
    best, baseline = view.best, view.baseline
    scores = [trial.f1 for trial in view.scored if trial.f1 is not None]
    bottom = min(scores)
    if any(trial.outcome in AT_BOTTOM for trial in view.inside):  # a little below all others
        bottom -= 0.06 * max(max(scores) - min(scores), 0.02)
    traces = [_best_so_far(view)]
    for outcome, marker in OUTCOME_MARKERS.items():
        is_low = outcome in AT_BOTTOM
        candidates = view.inside if is_low else view.scored
        trials = view.others(trial for trial in candidates if trial.outcome == outcome)
        if trials:
            numbers, ys = [trial.number for trial in trials], [bottom if is_low else trial.f1 for trial in trials]
            traces.append(markers(trials, numbers, ys, marker=marker, name=outcome.capitalize()))
    if baseline is not None and baseline.f1 is not None:
        traces.append(markers([baseline], [baseline.number], [baseline.f1], marker=BASELINE_MARKER, name="Baseline"))
    if best is not None and not best.is_baseline:
        name = "Chosen trial" if view.has_cost else "Best trial"
        traces.append(markers([best], [best.number], [best.f1], marker=BEST_MARKER, name=name))
    shapes, annotations = [], []
    for phase in view.phases if len(view.phases) > 1 else ():  # a line and a label at the first trial of each
        x = next(trial.number for trial in view.trials if trial.phase is phase) - 0.5
        dotted = {"color": GREY, "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": dotted})
        place = {"x": x, "y": 0, "yref": "paper", "xanchor": "left", "yanchor": "bottom", "textangle": -90}
        annotations.append({"text": phase.label, "showarrow": False, "font": {"size": 11}, **place})
    result = layout("Trial number", F1_AXIS, shapes=shapes, annotations=annotations)
    if baseline is not None and baseline.f1 is not None:
        dashed = {"color": TEAL, "width": 1.2, "dash": "dash"}
        level = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": baseline.f1, "y1": baseline.f1}
        shapes.append({**level, "line": dashed})
    result["xaxis"]["range"] = [-0.6, view.trials[-1].number + 0.6]
    result["xaxis"].update({"dtick": 1} if len(view.trials) <= MAX_SINGLE_TICKS else {})
    result["yaxis"]["range"] = f1_range([*scores, bottom])
    return {"data": traces, "layout": result}


def _best_so_far(view: StudyView) -> dict[str, Any]:
    complete = sorted(view.ranked, key=lambda trial: trial.number)
    xs, ys = [trial.number for trial in complete], [*accumulate((trial.f1 or 0.0 for trial in complete), max)]
    if xs:  # extend the line to the end of the study
        xs.append(view.trials[-1].number)
        ys.append(ys[-1])
    shape = {"shape": "hv"}
    return line(xs, ys, BLUE, width=1.5, line=shape, name="Best so far", hoverinfo="skip", showlegend=bool(xs))


def _curves(view: StudyView, trials: Sequence[TrialView]) -> Figure:
    plain = view.others(trials)
    pruned = [trial for trial in plain if trial.outcome == "pruned"]
    cross = {"color": GREY, "symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": GREY}}
    last_epochs, last_f1s = [trial.curve[-1][0] + 1 for trial in pruned], [trial.curve[-1][1] for trial in pruned]
    complete = [trial for trial in plain if trial.outcome == "complete"]
    others = [trial for trial in plain if trial.outcome not in ("pruned", "complete")]
    traces = [
        joined_lines(map(_curve, pruned), GREY, "Pruned", opacity=0.55, width=1.2),
        markers(pruned, last_epochs, last_f1s, marker=cross, name="Pruned here", showlegend=False),
        joined_lines(map(_curve, others), GREY, "Not finished", opacity=0.8, width=1.2, line={"dash": "dot"}),
        joined_lines(map(_curve, complete), BLUE, "Complete", opacity=0.65, width=1.4),
        *highlighted_lines(view, _curve),
    ]
    return {"data": [trace for trace in traces if trace["x"]], "layout": _epoch_layout(F1_AXIS, trials)}


def _curve(trial: TrialView) -> Points:
    head = f"<b>Trial {trial.number}</b><br>"
    return [(epoch + 1, f1, f"{head}epoch {epoch + 1}: F1 {fmt.score(f1)}") for epoch, f1 in trial.curve]


def _loss_traces(trials: Sequence[TrialView], color: str, name: str, **more: Any) -> list[dict[str, Any]]:
    traces = []
    for place, which, style in LOSSES if trials else ():
        curves: list[Points] = []
        for trial in trials:
            losses = [(entry[0] + 1, float(entry[place])) for entry in trial.losses]
            head = f"<b>Trial {trial.number}</b><br>epoch"
            curves.append([(epoch, loss, f"{head} {epoch}: {which} loss {fmt.value(loss)}") for epoch, loss in losses])
        traces.append(joined_lines(curves, color, f"{name}, {which}", line=style, **more))
    return traces
