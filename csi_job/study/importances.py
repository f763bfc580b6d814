"""How much of the difference between the best trials and the rest each hyperparameter explains."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, create_trial

from csi_job.storage.optuna_private import IN_MEMORY_LOGGER, contains_value, importance_package

MIN_TRIALS: Final = 8  # with fewer, a ranking would be noise
NUM_TOP_TRIALS: Final = 5  # the method's authors ask for at least this many good trials
MAX_TRIALS: Final = 2000  # evenly spread over the ranking, so that a long study does not take long

logging.getLogger(IN_MEMORY_LOGGER).setLevel(logging.WARNING)


class Importances(NamedTuple):
    """How much each hyperparameter matters, and how far to trust that."""

    shares: dict[str, float]
    """Highest first; they sum to 1 or are all 0."""
    too_few: tuple[str, ...] = ()
    """Hyperparameters that vary, but in too few trials to be rated."""
    warnings: tuple[str, ...] = ()
    """What Optuna warns of in the rating."""


def param_importances(ranked: Sequence[FrozenTrial], distributions: Mapping[str, BaseDistribution]) -> Importances:
    """Return the importance for `val_f1` of each hyperparameter that varies over at least `MIN_TRIALS` complete trials.

    Conditional PED-ANOVA as in Optuna 5, which also rates hyperparameters that only some trials have. No share is given
    with fewer than `MIN_TRIALS` complete trials, or if they all used the same hyperparameters.

    Args:
        ranked: complete trials, the best F1 first, each with a finite one as its first value; cost plays no part.
        distributions: of each hyperparameter. Values outside them, which another program may have added, do not count.
    """
    if len(ranked) > MAX_TRIALS:
        ranked = [ranked[index * (len(ranked) - 1) // (MAX_TRIALS - 1)] for index in range(MAX_TRIALS)]
    params = [
        {name: value for name, value in trial.params.items() if contains_value(distributions[name], value)}
        for trial in ranked
    ]
    used: dict[str, list[object]] = {}
    for inside in params:
        for name, value in inside.items():
            used.setdefault(name, []).append(value)
    values = {name: used[name] for name in sorted(used) if len(set(used[name])) > 1}
    names = [name for name in values if len(values[name]) >= MIN_TRIALS]
    too_few = tuple(name for name in values if name not in names)
    if not names:
        return Importances({}, too_few)
    importance = importance_package()
    evaluator = importance.PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, NUM_TOP_TRIALS / len(ranked))))
    # The ranked trials as a study with F1 as its one objective, so that the evaluator reads no database.
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="importances", direction="maximize")
    for trial, inside in zip(ranked, params, strict=True):
        own = {name: distributions[name] for name in inside}
        study.add_trial(create_trial(value=trial.values[0], params=inside, distributions=own))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ExperimentalWarning)
        found = importance.get_param_importances(study, evaluator=evaluator, params=names)
    messages = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return Importances(dict(sorted(found.items(), key=lambda item: -item[1])), too_few, messages)
