"""What a better validation F1 costs in computation."""

from typing import Any

from csi_job.html.plot import BLUE, GREY, Figure, Plot, layout, line
from csi_job.report.figures.style import BASELINE_MARKER, BEST_MARKER, F1_AXIS, markers
from csi_job.report.study_view import StudyView, TrialView
from csi_job.study.status import pareto_front


def pareto_plot(view: StudyView) -> Plot:
    """Show F1 against cost, the Pareto front, and the chosen trial of a study with two objectives."""
    key, title = "pareto_front", "F1 versus cost"
    trials = [trial for trial in view.ranked if trial.gflops is not None]
    if not trials:
        return Plot(key, title, missing=f"{view.no_trial} is complete yet, so there is no front to show.")
    caption = "Each marker is one complete trial. No other trial beats those on the line on both F1 and cost."
    caption += f" Chosen: {view.rule}." if view.rule else ""
    return Plot(key, title, caption, _pareto(view, trials))


def _pareto(view: StudyView, trials: list[TrialView]) -> Figure:
    front = pareto_front(trials, lambda trial: (trial.f1 or 0.0, trial.gflops or 0.0))
    front.sort(key=lambda trial: trial.gflops or 0.0)
    marked = {id(trial) for trial in (*front, view.best, view.baseline)}
    dominated = [trial for trial in trials if id(trial) not in marked]
    costs, f1s = [trial.gflops or 0.0 for trial in front], [trial.f1 for trial in front]
    hollow = {"color": GREY, "symbol": "circle-open", "size": 7, "line": {"width": 1.5}}
    traces = [
        line(costs, f1s, BLUE, width=1.5, line={"shape": "hv"}, hoverinfo="skip", showlegend=False),
        _points(dominated, "Dominated", hollow),
        _points(front, "Pareto front", {"color": BLUE, "size": 10}),
    ]
    labelled = {(trial.gflops, trial.f1): trial for trial in front[::-1]}.values()  # the first of those at one point
    names = [f"{trial.params.get('model_arch', '')} (trial {trial.number})" * (trial in labelled) for trial in front]
    middle = (min(costs) + max(costs)) / 2
    sides = ["bottom right" if cost <= middle else "bottom left" for cost in costs]  # never beyond the plot
    traces[-1].update(mode="markers+text", textposition=sides, text=names, cliponaxis=False)
    for trial, marker, name in ((view.baseline, BASELINE_MARKER, "Baseline"), (view.best, BEST_MARKER, "Chosen trial")):
        if trial is not None and trial.gflops is not None:
            traces.append(_points([trial], name, marker))
    return {"data": traces, "layout": layout("Cost (GFLOPs per image)", F1_AXIS)}


def _points(trials: list[TrialView], name: str, marker: dict[str, Any]) -> dict[str, Any]:
    costs, f1s = [trial.gflops for trial in trials], [trial.f1 for trial in trials]
    return markers(trials, costs, f1s, marker=marker, name=name)
