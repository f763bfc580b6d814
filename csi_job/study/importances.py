"""How much each hyperparameter explains of the difference between the best trials and the rest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from csi_job.storage.optuna_private import importance_package

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIN_TRIALS: Final = 8  # with fewer, a ranking would be noise
NUM_TOP_TRIALS: Final = 5  # the method's authors ask for at least this many good trials
MAX_TRIALS: Final = 2000  # evenly spread over the ranking, so that a long study does not take long


def param_importances(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Return the importance for `val_f1` of each hyperparameter that varies, highest first; they sum to 1 or are all 0.

    Conditional PED-ANOVA as in Optuna 5, which also rates hyperparameters that only some trials have. Only complete
    trials count. With fewer than `MIN_TRIALS` of them, or if they all used the same hyperparameters, the result is
    empty.

    Args:
        trials: all trials of a study; with two objectives the first value is the F1, and cost plays no part.

    """
    complete = (trial for trial in trials if trial.state is TrialState.COMPLETE and math.isfinite(trial.values[0]))
    ranked = sorted(complete, key=lambda trial: (-trial.values[0], trial.number))
    if len(ranked) > MAX_TRIALS:
        ranked = [ranked[index * (len(ranked) - 1) // (MAX_TRIALS - 1)] for index in range(MAX_TRIALS)]
    names = _varied(ranked)
    if len(ranked) < MIN_TRIALS or not names:
        return {}
    importance = importance_package()
    evaluator = importance.PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, NUM_TOP_TRIALS / len(ranked))))
    with warnings.catch_warnings():  # about few trials, which the report says in plain words
        warnings.simplefilter("ignore")
        found = importance.get_param_importances(_in_memory(ranked, trials), evaluator=evaluator, params=names)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _varied(trials: Iterable[FrozenTrial]) -> list[str]:
    values: dict[str, set[object]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return sorted(name for name, used in values.items() if len(used) > 1)


def _in_memory(ranked: Iterable[FrozenTrial], trials: Iterable[FrozenTrial]) -> optuna.Study:
    """Return the ranked trials as a study with F1 as its one objective, so that the evaluator reads no database."""
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        distributions = trial.distributions | distributions
    study = optuna.create_study(
        storage=optuna.storages.InMemoryStorage(), study_name="importances", direction="maximize"
    )
    for trial in ranked:
        own = {name: distributions[name] for name in trial.params}
        study.add_trial(create_trial(value=trial.values[0], params=trial.params, distributions=own))
    return study
