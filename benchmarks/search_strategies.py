"""Search strategies that `benchmarks.search_replay` replays: Optuna's samplers and pruners, and what it has none of."""

import contextlib
import copy
import functools
import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from benchmarks.search_pool import SPACE, Curve, CurvePool
from csi_job.study.pruning import HALVING_FACTOR, N_MIN_TRIALS, N_WARMUP_STEPS
from csi_job.trial.hyperparameters import HYPERPARAMETERS

REFERENCE = "TPE, median (reference)"
AUTO_SAMPLER = "AutoSampler, median"


@dataclass(eq=False)
class Run:
    """One trial of a replay."""

    trial: optuna.Trial
    curve: Curve
    num_epochs: int = 0

    @property
    def best(self) -> float:
        """Best F1 so far."""
        return max(self.curve.val_f1[: self.num_epochs])

    @property
    def is_done(self) -> bool:
        """Whether the curve is at its end."""
        return self.num_epochs == len(self.curve.val_f1)


class BudgetSpentError(Exception):
    """The clock has reached the budget."""


@dataclass
class Replay:
    """A study, its clock, and the values of its completed trials with the time at which each was there."""

    pool: CurvePool
    study: optuna.Study
    budget_s: float
    clock_s: float = 0.0
    num_trials: int = 0
    num_epochs: int = 0
    results: list[tuple[float, float]] = field(default_factory=list)

    @property
    def max_trials(self) -> int:
        """The study's total, which pausing needs: more than any arm starts."""
        return round(10 * self.budget_s / self.pool.mean_trial_s)

    def spend(self, seconds: float) -> None:
        """Advance the clock; raise `BudgetSpentError` past the budget."""
        self.clock_s += seconds
        if self.clock_s > self.budget_s:
            raise BudgetSpentError

    def start(self) -> Run:
        """Ask for parameters and build the model."""
        trial = self.study.ask()
        SPACE.suggest(trial)
        run = Run(trial, self.pool.nearest(trial.params))
        self.num_trials += 1
        self.spend(run.curve.start_s)
        return run

    def train(self, run: Run) -> None:
        """Train for one epoch and report it."""
        self.spend(run.curve.epoch_s[run.num_epochs])
        run.trial.report(run.curve.val_f1[run.num_epochs], run.num_epochs)
        if isinstance(self.study.sampler, CostAwareSampler):
            self.study.sampler.after_epoch(run.curve, run.num_epochs)
        run.num_epochs += 1
        self.num_epochs += 1

    def end(self, run: Run) -> None:
        """Finish a trial whose curve is at its end."""
        if run.curve.infeasible:
            run.trial.set_constraint("infeasible", 1.0)
            self.study.tell(run.trial, state=TrialState.PRUNED)
            return
        self.study.tell(run.trial, run.best)
        self.results.append((self.clock_s, run.best))


def stop(replay: Replay) -> None:
    """Run each trial until its end, or until the study's pruner stops it."""
    while True:
        run = replay.start()
        while not run.is_done:
            replay.train(run)
            if not run.is_done and run.num_epochs > N_WARMUP_STEPS and run.trial.should_prune():
                replay.study.tell(run.trial, state=TrialState.PRUNED)
                break
        else:
            replay.end(run)


@dataclass
class Asha:
    """Pause each trial at each rung unless it is in the best 1/factor there; resume it when it comes to be.

    As `--pruner asha` does, it prunes a paused trial that would not be resumed even if all other trials of the study's
    total were worse.
    """

    reduction_factor: int = HALVING_FACTOR
    first_rung: int = 1
    ranking: dict[int, list[Run]] = field(default_factory=dict)
    """The trials that reached each rung, the best first."""
    paused: dict[int, Run] = field(default_factory=dict)

    def __call__(self, replay: Replay) -> None:
        """Run until the budget is spent."""
        while True:
            promoted = self._promotable()
            if promoted is None:
                run = replay.start()
            else:
                run = self.paused.pop(promoted)
                replay.spend(run.curve.resume_s)
            self._train(replay, run)
            set_paused(replay.study, self.paused)

    def _train(self, replay: Replay, run: Run) -> None:
        while not run.is_done:
            replay.train(run)
            if run.is_done or not self._is_rung(run.num_epochs):
                continue
            ranked = self.ranking.setdefault(run.num_epochs, [])
            best = run.best
            ranked.insert(sum(max(r.curve.val_f1[: run.num_epochs]) >= best for r in ranked), run)
            if run not in ranked[: len(ranked) // self.reduction_factor]:
                replay.spend(run.curve.save_s)
                self.paused[run.trial.number] = run
                self._prune_beaten(replay, run.num_epochs)
                return
        replay.end(run)

    def _prune_beaten(self, replay: Replay, rung: int) -> None:
        for run in self.ranking[rung][replay.max_trials // self.reduction_factor :]:
            if self.paused.pop(run.trial.number, None):
                replay.study.tell(run.trial, state=TrialState.PRUNED)

    def _is_rung(self, num_epochs: int) -> bool:
        while num_epochs > self.first_rung and num_epochs % self.reduction_factor == 0:
            num_epochs //= self.reduction_factor
        return num_epochs == self.first_rung

    def _promotable(self) -> int | None:
        for rung, ranked in sorted(self.ranking.items(), reverse=True):
            for run in ranked[: len(ranked) // self.reduction_factor]:
                if run.trial.number in self.paused and run.num_epochs == rung:
                    return run.trial.number
        return None


def pause(replay: Replay, reduction_factor: int = HALVING_FACTOR, first_rung: int = 1) -> None:
    """Run ASHA that pauses."""
    Asha(reduction_factor, first_rung)(replay)


pause_late = functools.partial(pause, reduction_factor=2, first_rung=3)


def freeze_thaw(replay: Replay, step_epochs: int = 3) -> None:
    """Give a few epochs to the trial whose predicted end is best, and start a new trial after every second time.

    A paused trial's end is predicted as its best F1 so far, times the median gain from there of the trials that went
    further; so this is only like freeze-thaw, whose model of the curves is a Gaussian process.
    """
    runs: list[Run] = []
    open_runs: dict[int, Run] = {}
    for turn in range(sys.maxsize):
        if turn % 3 == 0 or not open_runs:
            run = replay.start()
            runs.append(run)
        else:
            number = max(open_runs, key=lambda number: predicted(open_runs[number], runs))
            run = open_runs.pop(number)
            set_paused(replay.study, open_runs)
            replay.spend(run.curve.resume_s)
        for _ in range(min(step_epochs, len(run.curve.val_f1) - run.num_epochs)):
            replay.train(run)
        if run.is_done:
            replay.end(run)
        else:
            replay.spend(run.curve.save_s)
            open_runs[run.trial.number] = run
            set_paused(replay.study, open_runs)


def predicted(run: Run, runs: Sequence[Run]) -> float:
    """Return a trial's predicted best F1."""
    longer = [other for other in runs if other.num_epochs > run.num_epochs]
    gains = [other.best / max(*other.curve.val_f1[: run.num_epochs], 0.01) for other in longer]
    return run.best * (statistics.median(gains) if gains else 1.0)


def set_paused(study: optuna.Study, paused: dict[int, Run]) -> None:
    """Let the sampler know which trials are paused, if it is to treat them as pruned."""
    if isinstance(study.sampler, PausedAsPrunedSampler):
        study.sampler.paused = set(paused)


class PausedAsPrunedSampler(TPESampler):
    """TPE that sees paused trials as pruned ones, by their last epoch; TPE itself counts running trials as bad."""

    paused: set[int] = set()  # noqa: RUF012 - replaced, never changed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See Optuna."""
        return super().infer_relative_search_space(self._seen(study), trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """See Optuna."""
        return super().sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """See Optuna."""
        return super().sample_independent(self._seen(study), trial, param_name, param_distribution)

    def _seen(self, study: optuna.Study) -> Any:
        return _Seen(study, self.paused)


class _Seen:
    """A study whose paused trials are pruned."""

    def __init__(self, study: optuna.Study, paused: set[int]) -> None:
        self.study, self.paused = study, paused

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:  # noqa: FBT001, FBT002, ARG002 - Optuna's
        trials = self.study.get_trials(deepcopy=False)
        seen = [self._pruned(trial) if trial.number in self.paused else trial for trial in trials]
        return [trial for trial in seen if states is None or trial.state in states]

    get_trials = _get_trials

    @staticmethod
    def _pruned(trial: FrozenTrial) -> FrozenTrial:
        trial = copy.copy(trial)
        trial.state = TrialState.PRUNED
        return trial


class CostAwareSampler(PausedAsPrunedSampler):
    """TPE whose expected improvement is per second that an epoch of the architecture has taken so far."""

    def __init__(self, **options: Any) -> None:
        """Take TPE's options."""
        super().__init__(**options)
        self.epoch_s: dict[str, list[float]] = {}

    def after_epoch(self, curve: Curve, epoch: int) -> None:
        """Note what an epoch took."""
        self.epoch_s.setdefault(curve.params["model_arch"], []).append(curve.epoch_s[epoch])

    def _compute_acquisition_func(self, samples: dict[str, np.ndarray], mpe_below: Any, mpe_above: Any) -> np.ndarray:
        ratio = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        if "model_arch" not in samples:
            return ratio
        gamma = 0.1  # TPE's share of good trials: improvement is expected by (gamma + (1 - gamma) bad / good)^-1
        means = {arch: statistics.mean(seconds) for arch, seconds in self.epoch_s.items()}
        choices = HYPERPARAMETERS["model_arch"].space["choices"]
        costs = np.log([means.get(arch, statistics.mean(means.values())) for arch in choices])
        return -np.logaddexp(np.log(gamma), np.log(1 - gamma) - ratio) - costs[samples["model_arch"].astype(int)]


@dataclass(frozen=True)
class Arm:
    """A strategy."""

    sampler: Callable[[int], BaseSampler]
    pruner: Callable[[int], BasePruner] = lambda _: NopPruner()
    policy: Callable[[Replay], None] = stop


def tpe(kind: type[TPESampler] = TPESampler) -> Callable[[int], TPESampler]:
    """Return csi-job's TPE of this kind, by seed."""
    return lambda seed: kind(seed=seed, n_startup_trials=10, multivariate=True, group=True, constant_liar=True)


def median(_: int) -> BasePruner:
    """Return Optuna's pruner that decides like csi-job's."""
    return MedianPruner(N_MIN_TRIALS, n_warmup_steps=N_WARMUP_STEPS, n_min_trials=N_MIN_TRIALS)


HUB: list[Path] = []


def auto_sampler(seed: int) -> BaseSampler:
    """Return OptunaHub's AutoSampler from the given checkout."""
    path = HUB[0] / "package" / "samplers" / "auto_sampler" / "_sampler.py"
    spec = importlib.util.spec_from_file_location("auto_sampler", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sampler: BaseSampler = module.AutoSampler(seed=seed)
    return sampler


ARMS: dict[str, Arm] = {
    REFERENCE: Arm(tpe(), median),
    "TPE, no pruning": Arm(tpe()),
    "random, no pruning": Arm(lambda seed: RandomSampler(seed=seed)),
    "random, median": Arm(lambda seed: RandomSampler(seed=seed), median),
    "GP, no pruning": Arm(lambda seed: GPSampler(seed=seed)),
    "GP, median": Arm(lambda seed: GPSampler(seed=seed), median),
    AUTO_SAMPLER: Arm(auto_sampler, median),
    "TPE, Hyperband": Arm(tpe(), lambda max_epochs: HyperbandPruner(1, max_epochs)),
    "TPE, ASHA that stops": Arm(
        tpe(), lambda _: SuccessiveHalvingPruner(min_resource=1, reduction_factor=HALVING_FACTOR)
    ),
    "TPE, ASHA that stops from epoch 3, 1 of 2": Arm(
        tpe(), lambda _: SuccessiveHalvingPruner(min_resource=2, reduction_factor=2)
    ),
    "TPE, ASHA that pauses": Arm(tpe(PausedAsPrunedSampler), policy=pause),
    "the same, paused seen as bad": Arm(tpe(), policy=pause),
    "TPE, ASHA that pauses at 3 and 6, 1 of 2": Arm(tpe(PausedAsPrunedSampler), policy=pause_late),
    "random, ASHA that pauses": Arm(lambda seed: RandomSampler(seed=seed), policy=pause),
    "freeze-thaw-like": Arm(tpe(PausedAsPrunedSampler), policy=freeze_thaw),
    "TPE per second, median": Arm(tpe(CostAwareSampler), median),
    "TPE per second, no pruning": Arm(tpe(CostAwareSampler)),
}


def replay_arm(name: str, pool: CurvePool, seed: int, budget_s: float, max_epochs: int) -> Replay:
    """Replay one arm on one data set with one seed."""
    arm = ARMS[name]
    sampler, pruner = arm.sampler(seed), arm.pruner(max_epochs)
    study = optuna.create_study(study_name=str(seed), direction="maximize", sampler=sampler, pruner=pruner)
    replay = Replay(pool, study, budget_s)
    with contextlib.suppress(BudgetSpentError):
        arm.policy(replay)
    return replay
