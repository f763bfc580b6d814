"""Which hyperparameters the result depended on, and how far that can be trusted."""

from csi_job.html import format as fmt
from csi_job.html.plot import BLUE, Figure, Plot, layout
from csi_job.report.study_view import StudyView
from csi_job.study.importances import MIN_TRIALS

NUM_STABLE_TRIALS = 50  # from here on the best tenth holds as many trials as the method needs


def importances_plot(view: StudyView) -> Plot:
    """Show the importance of each hyperparameter for the validation F1."""
    key, title = "param_importances", "Hyperparameter importance"
    if len(view.ranked) < MIN_TRIALS:
        missing = f"Importance needs at least {MIN_TRIALS} complete trials; this study has {len(view.ranked)} so far."
        return Plot(key, title, missing=missing)
    if not view.importances.shares:
        missing = "All complete trials used the same hyperparameters, so there is nothing to compare."
        if view.importances.too_few:
            missing = f"No hyperparameter varies over at least {MIN_TRIALS} complete trials, so none can be rated."
        return Plot(key, title, missing=missing)
    caption = (
        "How much of the difference between the best trials and the rest each hyperparameter explains. "
        "Pruned and infeasible trials are excluded."
    )
    return Plot(key, title, caption, _bars(view.importances.shares), warnings=_warnings(view))


def _bars(importances: dict[str, float]) -> Figure:
    names = list(reversed(importances))
    shares = [importances[name] for name in names]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": shares,
        "y": [fmt.parameter_name(name) for name in names],
        "text": [f"{share:.0%}" for share in shares],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": BLUE},
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    result = layout("Importance (share of total)", "", height_px=100 + 34 * len(names), bargap=0.35)
    result["margin"].update(t=36)
    result["xaxis"].update(range=[0, max(shares) * 1.12 or 1], tickformat=".0%", showgrid=True)
    result["yaxis"].update(showgrid=False, ticks="")
    return {"data": [bars], "layout": result}


def _warnings(view: StudyView) -> tuple[str, ...]:
    trials, warnings = view.ranked, []
    if len(trials) < NUM_STABLE_TRIALS:
        warnings.append(
            f"Based on only {fmt.plural(len(trials), 'complete trial')}; "
            f"with fewer than {NUM_STABLE_TRIALS} the ranking can still change."
        )
    names = fmt.in_order(set(view.importances.shares))
    partial = [fmt.parameter_name(name) for name in names if any(name not in trial.params for trial in trials)]
    if partial:
        warnings.append(f"{fmt.listed(partial)}: used by only some trials and rated among those.")
    if view.importances.too_few:
        too_few = [fmt.parameter_name(name) for name in fmt.in_order(set(view.importances.too_few))]
        warnings.append(f"{fmt.listed(too_few)}: used by fewer than {MIN_TRIALS} complete trials, too few to rate.")
    warnings += [f"Optuna: {text}" for text in view.importances.warnings]
    if len({trial.phase.max_epochs for trial in trials if trial.phase}) > 1:
        warnings.append("Trials of all phases are pooled, although they had different numbers of epochs.")
    return tuple(warnings)
