"""The study as a whole, for experiment tracking."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from csi_job.logs import get_logger
from csi_job.study.tracking import WandbTracker

logger = get_logger(__name__)
MIN_TRIALS = 2  # with fewer there is nothing to compare


def track_study(study: optuna.Study, tracker: WandbTracker) -> None:
    """Send importances, a table of the trials and a parallel-coordinates view; what cannot be made is left out."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    importances: dict[str, float] = {}
    parallel = ""
    if len(complete) >= MIN_TRIALS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importances = _importances(study)
            figure = optuna.visualization.plot_parallel_coordinate(study, target=_f1, target_name="val_f1")
            parallel = figure.to_json()
    tracker.study_summary(importances, [_row(trial) for trial in study.get_trials(deepcopy=False)], parallel)


def _importances(study: optuna.Study) -> dict[str, float]:
    try:
        return dict(optuna.importance.get_param_importances(study, target=_f1))
    except (ValueError, RuntimeError) as error:  # e.g. all trials have the same value
        logger.debug("no importances: %s", error)
        return {}


def _f1(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _row(trial: FrozenTrial) -> dict[str, Any]:
    value = trial.values[0] if trial.values else None
    return {"trial": trial.number, "state": trial.state.name.lower(), "val_f1": value, **trial.params}
