"""When each trial ran, and on which worker."""

from __future__ import annotations

from datetime import datetime

from csi_job.html import format as fmt
from csi_job.html.plot import Figure, Plot, layout
from csi_job.report.figures.style import OUTCOME_MARKERS, SHOW_HOVERTEXT
from csi_job.report.study_view import StudyView, TrialView

MAX_TRIALS = 1000
ROW_HEIGHT_PX = 34


def timeline_plot(view: StudyView) -> Plot:
    """Show the trials as bars over time, one row per worker."""
    key, title = "timeline", "Trials by worker"
    trials = [trial for trial in view.trials if trial.started is not None and trial.outcome in OUTCOME_MARKERS]
    if not trials:
        return Plot(key, title, missing="No trial has started yet.")
    warning = f"Only the last {MAX_TRIALS} of {fmt.count(len(trials))} trials are drawn."
    warnings = (warning,) if len(trials) > MAX_TRIALS else ()
    caption = (
        "Each bar is one trial, from its start to its end, in the row of the process that ran it last. Gaps are times "
        "in which a worker had nothing to do, or did not run."
    )
    return Plot(key, title, caption, _bars(trials[-MAX_TRIALS:]), warnings=warnings)


def _bars(trials: list[TrialView]) -> Figure:
    now = max(moment for trial in trials for moment in (trial.started, trial.ended) if moment is not None)
    rows = _rows(trials, now)
    traces = []
    for outcome, marker in OUTCOME_MARKERS.items():
        group = [trial for trial in trials if trial.outcome == outcome]
        if group:
            seconds = [((trial.ended or now) - _start(trial)).total_seconds() for trial in group]
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": outcome.capitalize(),
                    "y": [rows[trial.number] for trial in group],
                    "base": [_start(trial).isoformat(timespec="milliseconds") for trial in group],
                    "x": [1000 * max(length, 0.001) for length in seconds],  # a date axis counts milliseconds
                    "marker": {"color": marker["color"], "line": {"width": 1, "color": "rgba(128,128,128,.6)"}},
                    "hovertext": [
                        f"<b>Trial {trial.number}</b>: {outcome}<br>{fmt.duration(length)}"
                        for trial, length in zip(group, seconds, strict=True)
                    ],
                    "hovertemplate": SHOW_HOVERTEXT,
                }
            )
    names = list(dict.fromkeys(rows.values()))
    figure = layout("", "", height_px=140 + ROW_HEIGHT_PX * len(names), barmode="overlay", bargap=0.3)
    figure["xaxis"].update(type="date", showgrid=True)
    figure["yaxis"].update(type="category", categoryorder="array", categoryarray=names[::-1], showgrid=False, ticks="")
    return {"data": traces, "layout": figure}


def _rows(trials: list[TrialView], now: datetime) -> dict[int, str]:
    """Return the row of each trial: its worker's, or one of as few as do not overlap if that is unknown."""
    rows: dict[int, str] = {}
    free_at: list[datetime] = []
    for trial in sorted(trials, key=_start):
        if trial.worker:
            rows[trial.number] = trial.worker
            continue
        lane = next((index for index, free in enumerate(free_at) if free <= _start(trial)), len(free_at))
        free_at[lane : lane + 1] = [trial.ended or now]
        rows[trial.number] = f"unknown {lane + 1}"
    return rows


def _start(trial: TrialView) -> datetime:
    return trial.started or datetime.min  # noqa: DTZ901 - Optuna's times have no zone; those without one are left out
