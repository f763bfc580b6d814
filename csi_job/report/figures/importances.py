"""Which parameters the result depended on, and how far that can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi_job.html.plot import BLUE, Figure, Plot, layout
from csi_job.report import format as words
from csi_job.study.importances import MIN_TRIALS

if TYPE_CHECKING:
    from csi_job.report.study_view import StudyView

NUM_STABLE_TRIALS = 50  # from here the best tenth holds that many


def importances_plot(view: StudyView) -> Plot:
    """Show the importance of each parameter for the validation F1, from the complete trials alone."""
    key, title = "param_importances", "Hyperparameter importance"
    trials = view.ranked
    if len(trials) < MIN_TRIALS:
        has = f"this study has {len(trials)} so far"
        return Plot(key, title, missing=f"Importance needs at least {MIN_TRIALS} complete trials; {has}.")
    if not view.importances:
        return Plot(
            key, title, missing="All complete trials used the same hyperparameters, so there is nothing to compare."
        )
    caption = (
        "How much of the difference between the best trials and the rest each hyperparameter explains. "
        "Pruned and infeasible trials are excluded."
    )
    return Plot(key, title, caption, _bars(view.importances), cautions=_cautions(view))


def _bars(importances: dict[str, float]) -> Figure:
    names = list(reversed(importances))
    shares = [importances[name] for name in names]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": shares,
        "y": [words.parameter_name(name) for name in names],
        "text": [f"{share:.0%}" for share in shares],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": BLUE},
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    figure_layout = layout("Importance (share of total)", "", height_px=100 + 34 * len(names), bargap=0.35)
    figure_layout["margin"].update(t=36)
    figure_layout["xaxis"].update(range=[0, max(shares, default=0) * 1.12 or 1], tickformat=".0%", showgrid=True)
    figure_layout["yaxis"].update(showgrid=False, ticks="")
    return {"data": [bars], "layout": figure_layout}


def _cautions(view: StudyView) -> tuple[str, ...]:
    trials, cautions = view.ranked, []
    if len(trials) < NUM_STABLE_TRIALS:
        cautions.append(
            f"Based on only {words.plural(len(trials), 'complete trial')}; "
            f"with fewer than {NUM_STABLE_TRIALS} the ranking can still change."
        )
    names = words.in_order(set(view.importances))
    partial = [words.parameter_name(name) for name in names if any(name not in trial.params for trial in trials)]
    if partial:
        cautions.append(f"{words.listed(partial)}: used by only some trials and rated among those.")
    if len({trial.phase for trial in trials}) > 1:
        cautions.append("Trials of all phases are pooled, although they had different numbers of epochs.")
    return tuple(cautions)
