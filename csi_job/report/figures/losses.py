"""Training and validation loss of each trial, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csi_job.html import format as fmt
from csi_job.html.plot import BLUE, GOLD, TEAL, Figure, Plot, layout
from csi_job.report.figures.style import Points, joined_lines, spread_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csi_job.report.study_view import StudyView, TrialView

MAX_TRIALS = 40
LOSSES: tuple[tuple[int, str, dict[str, str]], ...] = ((1, "training", {"dash": "dot"}), (2, "validation", {}))


def losses_plot(view: StudyView) -> Plot:
    """Show the losses of the trials; those of the best trial and of the baseline stand out."""
    key, title = "losses", "Loss curves"
    trials = [trial for trial in view.trials if trial.losses]
    if not trials:
        missing = "No losses are stored: no trial has finished an epoch yet, or an older version trained them."
        return Plot(key, title, missing=missing)
    caption = (
        "Dotted: training loss; solid: validation loss. A validation loss that rises while the training loss falls "
        "means that the model memorises its training images."
    )
    sampled = spread_sample(trials, MAX_TRIALS)
    special = [(view.baseline, TEAL, "Baseline")]
    if view.best is not view.baseline and view.best is not None:
        special.append((view.best, GOLD, f"Trial {view.best.number}"))
    plain = [trial for trial in sampled if trial is not view.best and trial is not view.baseline]
    traces = _traces(plain, BLUE, "Others", width=1.2, opacity=0.5)
    for trial, color, name in special:
        traces += _traces([trial] if trial else [], color, name, width=2.8)
    warnings = (f"{len(sampled)} of {fmt.count(len(trials))} trials are drawn.",) if len(sampled) < len(trials) else ()
    figure: Figure = {"data": traces, "layout": layout("Epoch", "Loss (cross-entropy, log scale)")}
    figure["layout"]["yaxis"]["type"] = "log"  # one diverging trial must not flatten the others
    return Plot(key, title, caption, figure, warnings=warnings)


def _traces(trials: Sequence[TrialView], color: str, name: str, **more: Any) -> list[dict[str, Any]]:
    lines = [(place, which, line, [_points(trial, place, which) for trial in trials]) for place, which, line in LOSSES]
    return [
        joined_lines(points, color, f"{name}, {which}", line=line, **more) for _, which, line, points in lines if trials
    ]


def _points(trial: TrialView, place: int, which: str) -> Points:
    head = f"<b>Trial {trial.number}</b><br>"
    return [
        (entry[0] + 1, float(entry[place]), f"{head}epoch {entry[0] + 1}: {which} loss {fmt.value(entry[place])}")
        for entry in trial.losses
    ]
