"""What a better validation F1 costs in computation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi_job.html.plot import BLUE, GREY, Figure, Plot, layout, line
from csi_job.report.figures.style import BASELINE_MARKER, BEST_MARKER, F1_AXIS, markers

if TYPE_CHECKING:
    from csi_job.report.study_view import StudyView, TrialView


def pareto_plot(view: StudyView) -> Plot:
    """Show F1 against cost, the Pareto front, and the chosen trial of a study with two objectives."""
    key, title = "pareto_front", "F1 versus cost"
    trials = [trial for trial in view.ranked if trial.gflops is not None]
    if not trials:
        return Plot(key, title, missing="No trial is complete yet, so there is no front to show.")
    caption = "Each marker is one complete trial. No other trial beats those on the line on both F1 and cost."
    caption += f" Chosen: {view.rule}." if view.rule else ""
    return Plot(key, title, caption, _pareto(view, trials))


def pareto_front(trials: list[TrialView]) -> list[TrialView]:
    """Return the trials that no other beats in both F1 and GFLOPs, cheapest first; each needs both."""
    front: list[TrialView] = []
    for trial in sorted(trials, key=lambda trial: (trial.gflops or 0.0, -(trial.f1 or 0.0), trial.number)):
        if not front or (trial.f1 or 0.0) > (front[-1].f1 or 0.0):
            front.append(trial)
    return front


def _pareto(view: StudyView, trials: list[TrialView]) -> Figure:
    chosen = view.best
    front = pareto_front(trials)
    marked = {id(trial) for trial in (*front, chosen, view.baseline)}
    dominated = [trial for trial in trials if id(trial) not in marked]
    step = {"shape": "hv"}
    traces = [
        line(_costs(front), _f1s(front), BLUE, width=1.5, line=step, hoverinfo="skip", showlegend=False),
        markers(
            dominated,
            _costs(dominated),
            _f1s(dominated),
            marker={"color": GREY, "symbol": "circle-open", "size": 7, "line": {"width": 1.5}},
            name="Dominated",
        ),
        markers(front, _costs(front), _f1s(front), marker={"color": BLUE, "size": 10}, name="Pareto front"),
    ]
    traces[-1].update(mode="markers+text", textposition="bottom right", text=[_short_name(trial) for trial in front])
    for trial, marker, name in ((view.baseline, BASELINE_MARKER, "Baseline"), (chosen, BEST_MARKER, "Chosen trial")):
        if trial is not None and trial.gflops is not None:
            traces.append(markers([trial], _costs([trial]), _f1s([trial]), marker=marker, name=name))
    return {"data": traces, "layout": layout("Cost (GFLOPs per image)", F1_AXIS)}


def _costs(trials: list[TrialView]) -> list[float | None]:
    return [trial.gflops for trial in trials]


def _f1s(trials: list[TrialView]) -> list[float | None]:
    return [trial.f1 for trial in trials]


def _short_name(trial: TrialView) -> str:
    return f"{trial.params.get('model_arch', '')} (trial {trial.number})"
