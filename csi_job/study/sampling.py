"""Samplers whose random state depends only on the study's seed and the trial's number."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from csi_job.errors import ConfigurationError
from csi_job.storage.attributes import ATTEMPT, BRACKET, MIN_RESOURCE, PHASE, PRUNER, REDUCTION_FACTOR, WORKER
from csi_job.storage.lease import Lease, worker_name
from csi_job.storage.optuna_private import CostAwareTPESampler, frozen_trial_of, refresh_trials, reseed
from csi_job.storage.storage import storage_of
from csi_job.study.pruning import bracket_of
from csi_job.study.record import phase_of
from csi_job.study.settings import PAUSING, StudySettings
from csi_job.trial.space import SearchSpace

logger = logging.getLogger(__name__)
Suggest = Callable[[optuna.Trial], Any]
ARCH: Final = "model_arch"
COST_SIDE_PX: Final = 224  # which every architecture accepts


class UnconditionalCmaEsSampler(CmaEsSampler):
    """CMA-ES over the numerical parameters that every trial has.

    Optuna's own models all numbers that the trials so far have in common. If a conditional one is among them and a
    later trial lacks it, the dimension changes and CMA-ES is off for good.
    """

    def __init__(self, numbers: dict[str, BaseDistribution], **options: Any) -> None:
        """Model these parameters, and sample the others at random."""
        super().__init__(**options)
        self._numbers = numbers

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the modelled parameters, whatever the trials have in common."""
        del study, trial
        return dict(self._numbers)


def make_sampler(settings: StudySettings, space: SearchSpace) -> BaseSampler:
    """Return the sampler for these settings; `reseed` it before every trial.

    Raises:
        ConfigurationError: CMA-ES with two objectives, or in a space without numbers for it.
    """
    if settings.sampler == "random":
        return RandomSampler(seed=settings.seed)
    if settings.sampler == "cmaes":
        return _cmaes(settings, space)
    options: dict[str, Any] = {"seed": settings.seed, "n_startup_trials": settings.num_startup_trials}
    options |= {"multivariate": True, "group": True, "constant_liar": True}
    archs = space.distributions().get(ARCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.sampler == "tpe_per_cost" and isinstance(archs, CategoricalDistribution):
            return CostAwareTPESampler(ARCH, partial(_costs, archs.choices), **options)
        return TPESampler(**options)


def derived_seed(study_seed: int, number: int) -> int:
    """Return the seed of a trial, which is the same in every worker."""
    return int(np.random.SeedSequence([study_seed, number]).generate_state(1)[0])


def sample_params(
    study: optuna.Study, lease: Lease, suggest: Suggest, settings: StudySettings, seed: int
) -> tuple[optuna.Trial, Any]:
    """Sample a trial's parameters from the history, the study's seed and the trial's number.

    Returns:
        the trial, and what `suggest` returned for it.
    """
    reseed(study.sampler, derived_seed(seed, lease.number))
    with storage_of(study).buffered_ask(lease) as write:
        refresh_trials(study)
        trial = optuna.Trial(study, lease.trial_id)
        params = suggest(trial)
        fixed, known = {name: getattr(settings, name) for name in PHASE}, phase_of(trial)
        if known.get(PRUNER, settings.pruner) not in PAUSING:
            del fixed[MIN_RESOURCE], fixed[REDUCTION_FACTOR]
        if settings.pruner == "hyperband":
            fixed[BRACKET] = bracket_of(study, frozen_trial_of(trial), settings)
        write.user_attrs |= {key: value for key, value in fixed.items() if key not in known}
        write.user_attrs |= {ATTEMPT: lease.attempt, WORKER: worker_name()}
    return trial, params


def format_params(params: Mapping[str, Any]) -> str:
    """Return a trial's parameters for a log."""
    shown = (f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items())
    return ", ".join(shown)


def _costs(archs: Sequence[Any]) -> list[float]:
    """Return the cost of each architecture, the same on every machine.

    It is the square root of the GFLOPs: per GFLOP, large networks would hardly be tried even where they are better
    (`docs/search.md`). The size of the images hardly changes how the costs compare.
    """
    from csi_job.trial.model import gflops  # imports torch

    return [math.sqrt(gflops(arch, COST_SIDE_PX)) for arch in archs]


def _cmaes(settings: StudySettings, space: SearchSpace) -> UnconditionalCmaEsSampler:
    distributions, conditional = space.distributions(), space.conditional()
    numbers: dict[str, BaseDistribution] = {
        name: distribution
        for name, distribution in sorted(distributions.items())
        if isinstance(distribution, (FloatDistribution, IntDistribution))
        and name not in conditional
        and not distribution.single()
    }
    if not numbers:
        message = "CMA-ES needs a number that every trial has, and this space has none"
        raise ConfigurationError(message, got=", ".join(distributions), hint="use the tpe sampler")
    others = [name for name, distribution in distributions.items() if name not in numbers and not distribution.single()]
    if others:
        logger.info("CMA-ES models %s and samples %s at random", ", ".join(numbers), ", ".join(others))
    options = {"seed": settings.seed, "n_startup_trials": max(1, settings.num_startup_trials)}
    return UnconditionalCmaEsSampler(numbers, **options, warn_independent_sampling=False)
