"""Which parameters the result depended on, and how far that can be trusted."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from csi_job.html.plot import BLUE, Figure, Plot, layout
from csi_job.report import format as words
from csi_job.report.figures.style import spread_sample

if TYPE_CHECKING:
    from csi_job.report.study_view import StudyView, TrialView

MIN_TRIALS = 8  # below, a ranking would be noise
NUM_TOP_TRIALS = 5  # the method's authors ask for at least this many good trials
MAX_TRIALS = 2000  # spread over the study, so that a long one does not take long
NUM_STABLE_TRIALS = 50  # from here the best tenth holds that many


def importances_plot(view: StudyView) -> Plot:
    """Show the importance of each parameter for the validation F1, from the complete trials alone."""
    key, title = "param_importances", "Hyperparameter importance"
    trials = view.ranked()
    varied = _varied(trials)
    if len(trials) < MIN_TRIALS:
        has = f"this study has {len(trials)} so far"
        return Plot(key, title, missing=f"Importance needs at least {MIN_TRIALS} complete trials; {has}.")
    if not varied:
        return Plot(
            key, title, missing="All complete trials used the same hyperparameters, so there is nothing to compare."
        )
    caption = (
        "How much of the difference between the best trials and the rest each hyperparameter explains. "
        "Pruned and infeasible trials are excluded."
    )
    return Plot(key, title, caption, _bars(param_importances(view)), cautions=_cautions(trials, varied))


def param_importances(view: StudyView) -> dict[str, float]:
    """Return the importance of each varied parameter, the highest first; they sum to 1, or all are 0.

    Source: conditional PED-ANOVA as in Optuna 5, which also rates parameters that only some trials have.
    """
    trials = spread_sample(view.ranked(), MAX_TRIALS)
    names = _varied(trials)
    if len(trials) < MIN_TRIALS or not names:
        return {}
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, NUM_TOP_TRIALS / len(trials))))
    with warnings.catch_warnings():  # on few trials, which the cautions tell in our words
        warnings.simplefilter("ignore")
        found = get_param_importances(_as_study(view, trials), evaluator=evaluator, params=names)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _as_study(view: StudyView, trials: list[TrialView]) -> optuna.Study:
    """Return the complete trials with their F1 as a study in memory: no database is read, cost plays no part."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="importances", direction="maximize")
    for trial in trials:
        distributions = {name: view.distributions[name] for name in trial.params}
        frozen = create_trial(
            state=TrialState.COMPLETE, value=trial.f1, params=trial.params, distributions=distributions
        )
        study.add_trial(frozen)
    return study


def _varied(trials: list[TrialView]) -> list[str]:
    values: dict[str, set[object]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return words.in_order({name for name, taken in values.items() if len(taken) > 1})


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


def _cautions(trials: list[TrialView], varied: list[str]) -> tuple[str, ...]:
    cautions = []
    if len(trials) < NUM_STABLE_TRIALS:
        cautions.append(
            f"Based on only {words.plural(len(trials), 'complete trial')}; "
            f"with fewer than {NUM_STABLE_TRIALS} the ranking can still change."
        )
    partial = [name for name in varied if any(name not in trial.params for trial in trials)]
    if partial:
        names = words.listed([words.parameter_name(name) for name in partial])
        cautions.append(f"{names}: used by only some trials and rated among those.")
    if len({trial.phase for trial in trials}) > 1:
        cautions.append("Trials of all phases are pooled, although they had different numbers of epochs.")
    return tuple(cautions)
