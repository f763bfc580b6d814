"""Every private name of Optuna that this package uses, each with its reason.

Optuna is pinned to a minor version; `tests/unit/storage/test_optuna_private.py` checks each name against it.
"""

import copy
import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Final, Self

import numpy as np
import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb import storage as rdb
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.study.study import _SYSTEM_ATTR_METRIC_NAMES
from optuna.trial import BaseTrial, FrozenTrial, TrialState
from sqlalchemy.orm import scoped_session, sessionmaker

from csi_job.errors import ConfigurationError
from csi_job.storage.attributes import outcome_of

# ruff: noqa: SLF001 - that is what this module is for

# The tables, which our statements read and write directly: Optuna's own methods take several statements for each.
METADATA: Final[sa.MetaData] = models.BaseModel.metadata
SCHEMA_VERSION: Final[int] = models.SCHEMA_VERSION
HEAD_REVISION: Final = "v3.2.0.a"  # of its Alembic scripts, which are slow to read

# How the tables store a number that may be infinite or NaN: a number or NULL, and a type.
to_stored_value: Final = models.TrialValueModel.value_to_stored_repr
from_stored_value: Final = models.TrialValueModel.stored_repr_to_value
VALUE_TYPES: Final[dict[str, Any]] = dict(models.TrialValueModel.TrialValueType.__members__)
to_stored_step: Final = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
from_stored_step: Final = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
STEP_TYPES: Final[dict[str, Any]] = dict(models.TrialIntermediateValueModel.TrialIntermediateValueType.__members__)

# Where `Study.set_metric_names` keeps the names: its own transaction would not be the one that creates the study.
METRIC_NAMES_KEY: Final[str] = _SYSTEM_ATTR_METRIC_NAMES

# It logs a line about each study in memory, which concerns nobody.
IN_MEMORY_LOGGER: Final = "optuna.storages._in_memory"

# Random states within the samplers we use, and samplers within samplers.
_RANDOM_STATES: Final = ("_rng", "_cma_rng")
_INNER_SAMPLERS: Final = ("_random_sampler", "_independent_sampler")

GOOD_SHARE: Final = 0.1  # of a TPE sampler's trials, up to 250 of them


def importance_package() -> ModuleType:
    """Return `optuna.importance` without scikit-learn (over a second of CPU), which fANOVA and MDI alone need.

    Neither can be used in the module returned here. A later import of `optuna.importance` gets all of it.
    """
    name, loaded = "optuna.importance", sys.modules.get("sklearn")
    if name in sys.modules or loaded is not None:
        return importlib.import_module(name)
    before = vars(optuna).get("importance")
    sys.modules["sklearn"] = None  # type: ignore[assignment] # Optuna then takes it as not installed
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["sklearn"]
        for module in [module for module in sys.modules if f"{module}.".startswith(f"{name}.")]:
            del sys.modules[module]
        vars(optuna)["importance"] = before


def study_id_of(study: optuna.Study | FrozenStudy) -> int:
    """Return a study's key in the tables; only its name is public."""
    return int(study._study_id)


def trial_id_of(trial: optuna.Trial | FrozenTrial) -> int:
    """Return a trial's key in the tables; only its number is public."""
    return int(trial._trial_id)


def hyperband_bracket(pruner: HyperbandPruner, study: optuna.Study, trial: FrozenTrial) -> int:
    """Return the bracket that Optuna's Hyperband gives a trial, by a hash of its number; `pruner` must be new."""
    pruner._try_initialization(study)
    return pruner._get_bracket_id(study, trial)


def backend_of(study: optuna.Study) -> BaseStorage:
    """Return the storage beneath the cache that every `optuna.Study` wraps around an `RDBStorage`."""
    storage = study._storage
    return getattr(storage, "_backend", storage)


def refresh_trials(study: optuna.Study) -> None:
    """Read the study's trials again, as `Study.ask` does, which would also create a trial."""
    study._thread_local.cached_all_trials = None
    study._storage.get_all_trials(study._study_id, deepcopy=False)


def frozen_trial_of(trial: optuna.Trial) -> FrozenTrial:
    """Return what a pruner is given of a trial; `optuna.Trial` hides its intermediate values."""
    return trial._cached_frozen_trial


def enqueued_params(trial: BaseTrial) -> dict[str, Any]:
    """Return the parameters that a trial was enqueued with, empty if there are none.

    `Trial.system_attrs` is deprecated, and `FixedTrial` has nothing of the kind.
    """
    frozen = getattr(trial, "_cached_frozen_trial", None)
    return {} if frozen is None else frozen.system_attrs.get("fixed_params", {})


def contains(distribution: BaseDistribution, internal_value: float) -> bool:
    """Return whether Optuna takes an internal value to be inside a distribution."""
    return bool(distribution._contains(internal_value))


def contains_value(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a parameter's value, e.g. a choice, is inside a distribution."""
    try:
        return contains(distribution, distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


def reseed(sampler: BaseSampler, seed: int) -> None:
    """Set every random state within a sampler.

    `BaseSampler.reseed_rng` takes no seed.

    Raises:
        ConfigurationError: there is no random state where the samplers we use keep theirs.
    """
    if not _reseed(sampler, seed):
        message = "this sampler has no random state that can be set, so workers could draw the same points"
        raise ConfigurationError(message, got=type(sampler).__name__, allowed=("tpe", "random", "cmaes"))


def _reseed(sampler: BaseSampler, seed: int) -> int:
    states = [getattr(sampler, name) for name in _RANDOM_STATES if hasattr(sampler, name)]
    for state in states:
        state.rng.seed(seed)
    inner = [getattr(sampler, name) for name in _INNER_SAMPLERS if hasattr(sampler, name)]
    return len(states) + sum(_reseed(one, seed) for one in inner)


class CostAwareTPESampler(TPESampler):
    """TPE that maximises expected improvement per cost of a choice.

    TPE ranks candidates by their density among good trials over that among bad ones, with which expected improvement
    rises: 1 / (p + (1 - p) bad / good), where p is the share of good trials (Bergstra et al., Algorithms for
    Hyper-Parameter Optimization, 2011).
    """

    def __init__(self, name: str, costs: Callable[[], Sequence[float]], **options: Any) -> None:
        """Take TPE's options, a parameter with choices, and what returns the cost of each choice."""
        super().__init__(**options)
        self._name, self._costs = name, costs

    def _compute_acquisition_func(self, samples: dict[str, np.ndarray], mpe_below: Any, mpe_above: Any) -> np.ndarray:
        log_ratio = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        if self._name not in samples:
            return log_ratio
        log_improvement = -np.logaddexp(np.log(GOOD_SHARE), np.log1p(-GOOD_SHARE) - log_ratio)
        log_costs = np.log(np.array(self._costs()))
        return np.asarray(log_improvement - log_costs[samples[self._name].astype(int)])


class SearchStudy(optuna.Study):
    """A study whose sampler learns from paused trials as from pruned ones.

    Samplers read by `_get_trials`; the cache beneath it must not take these trials to be finished.
    """

    def get_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        """Return the trials as they are."""
        return super()._get_trials(*args, **options)

    def _get_trials(self, deepcopy: Any = True, states: Any = None, use_cache: Any = False) -> list[FrozenTrial]:  # noqa: FBT002 - Optuna's
        trials = map(_seen_by_sampler, super()._get_trials(deepcopy, None, use_cache))
        return [trial for trial in trials if states is None or trial.state in states]


def _seen_by_sampler(trial: FrozenTrial) -> FrozenTrial:
    if outcome_of(trial) != "paused":
        return trial
    trial = copy.copy(trial)
    trial.state = TrialState.PRUNED
    return trial


class PrunerStudy:
    """Stands in for the study that a pruner is given, so that a subclass chooses which trials it sees.

    Successive halving writes with `study._storage.set_trial_system_attr`, which the subclass has.
    """

    @property
    def _storage(self) -> Self:
        return self


# The private methods that `_CachedStorage` calls, by the public names under which a subclass overrides them.
_METHODS: Final = {
    "create_trial": "_create_new_trial",
    "write_param": "_set_trial_param",
    "list_trials": "_get_trials",
    "best_trial_id": "_get_best_trial_id",
}


class OptunaStorage(RDBStorage):
    """`RDBStorage` over a given engine; subclasses override its private methods under public names.

    The parent's constructor is not called: it formats braces in the URL, keeps the password in it, and connects at
    once. Everything that it sets is set here.
    """

    def __init_subclass__(cls) -> None:
        """Let methods with the public names take the place of the private ones."""
        for name in vars(cls).keys() & _METHODS.keys():
            setattr(cls, _METHODS[name], vars(cls)[name])

    def __init__(self, url: str, engine: sa.Engine) -> None:
        """Use this engine, whose tables exist; the URL may be without secrets."""
        self.url, self.engine = url, engine
        self.engine_kwargs: dict[str, Any] = {}
        self.skip_compatibility_check = True
        self.heartbeat_interval = self.grace_period = None
        self.heartbeat_stale_trial_callback = self.failed_trial_callback = None
        self.scoped_session = scoped_session(sessionmaker(bind=engine))

    def migration_url(self) -> str:
        """Return the URL by which `upgrade` connects."""
        return self.url

    @property
    def _version_manager(self) -> rdb._VersionManager:  # type: ignore[override]
        # Not an attribute, since it connects when it is made.
        return rdb._VersionManager(self.migration_url(), self.engine, self.scoped_session)

    def best_trial_id(self, study_id: int, direction: StudyDirection) -> int:
        """Return the id of the best complete trial."""
        return super()._get_best_trial_id(study_id, direction)
