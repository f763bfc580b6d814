"""When each trial ran, and on which worker."""

from datetime import datetime

from csi_job.html import format as fmt
from csi_job.html.plot import Figure, Plot, layout
from csi_job.report.figures.style import OUTCOME_MARKERS, SHOW_HOVERTEXT
from csi_job.report.study_view import Run, StudyView, TrialView

MAX_TRIALS = 1000
ROW_HEIGHT_PX = 34


def timeline_plot(view: StudyView) -> Plot:
    """Show the trials as bars over time, one row per worker."""
    key, title = "timeline", "Trials by worker"
    trials = [trial for trial in view.inside if trial.runs and trial.outcome in OUTCOME_MARKERS]
    if not trials:
        return Plot(key, title, missing=f"{view.no_trial} has started yet.")
    warning = f"Only the last {MAX_TRIALS} of {fmt.count(len(trials))} trials are drawn."
    warnings = (warning,) if len(trials) > MAX_TRIALS else ()
    caption = (
        "Each bar is one trial, from its start to its end, in the row of the process that ran it last; a trial that "
        "was paused has a bar for each time it ran. Gaps are times in which a worker had nothing to do, or did not run."
    )
    return Plot(key, title, caption, _bars(trials[-MAX_TRIALS:]), warnings=warnings)


def _bars(trials: list[TrialView]) -> Figure:
    runs = [run for trial in trials for run in trial.runs]
    now = max(moment for run in runs for moment in (run.start, run.end) if moment is not None)
    ends = {run: run.end or now for run in runs}
    rows: dict[Run, str] = {}  # the worker's, or one of as few as do not overlap if that is unknown
    free_at: list[datetime] = []
    for run in sorted(ends, key=lambda run: run.start):
        if run.worker:
            rows[run] = run.worker
            continue
        lane = next((index for index, free in enumerate(free_at) if free <= run.start), len(free_at))
        free_at[lane : lane + 1] = [ends[run]]
        rows[run] = f"unknown {lane + 1}"
    traces = []
    for outcome, marker in OUTCOME_MARKERS.items():
        group = [(trial, run) for trial in trials if trial.outcome == outcome for run in trial.runs]
        if group:
            # Two naive times lie an hour more or less apart if the clocks were changed in between.
            seconds = [(ends[run].astimezone() - run.start.astimezone()).total_seconds() for _, run in group]
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": outcome.capitalize(),
                    "y": [rows[run] for _, run in group],
                    "base": [run.start.isoformat(timespec="milliseconds") for _, run in group],
                    "x": [1000 * max(length, 0.001) for length in seconds],  # a date axis counts milliseconds
                    "marker": {"color": marker["color"], "line": {"width": 1, "color": "rgba(128,128,128,.6)"}},
                    "hovertext": [
                        f"<b>Trial {trial.number}</b>: {outcome}<br>{fmt.duration(length)}"
                        for (trial, _), length in zip(group, seconds, strict=True)
                    ],
                    "hovertemplate": SHOW_HOVERTEXT,
                }
            )
    names = list(dict.fromkeys(rows.values()))
    figure = layout("", "", height_px=140 + ROW_HEIGHT_PX * len(names), barmode="overlay", bargap=0.3)
    figure["xaxis"].update(type="date", showgrid=True)
    figure["yaxis"].update(type="category", categoryorder="array", categoryarray=names[::-1], showgrid=False, ticks="")
    return {"data": traces, "layout": figure}
