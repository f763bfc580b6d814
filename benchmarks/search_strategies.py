"""Search strategies that `benchmarks.search_replay` replays: Optuna's samplers and pruners, and what it has none of."""

import copy
import functools
import heapq
import importlib.util
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from benchmarks.search_pool import SPACE, Curve, CurvePool
from benchmarks.search_record import SIDE_PX
from csi_job.storage.optuna_private import CostAwareTPESampler
from csi_job.study.pruning import HALVING_FACTOR, N_MIN_TRIALS, N_WARMUP_STEPS
from csi_job.trial.hyperparameters import HYPERPARAMETERS
from csi_job.trial.model import gflops

REFERENCE = "TPE, median (reference)"
AUTO_SAMPLER = "AutoSampler, median"
ARCHITECTURES = HYPERPARAMETERS["model_arch"].space["choices"]


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


Seconds = Iterator[float]
"""What a worker spends, step by step."""


@dataclass(frozen=True)
class Budget:
    """What bounds a study: a number of trials, or what as many random ones take of each worker's time."""

    num_trials: int
    unit: Literal["trials", "seconds"]
    num_workers: int = 1


@dataclass
class Replay:
    """A study, its clock, and the values of its completed trials with the time at which each was there."""

    pool: CurvePool
    study: optuna.Study
    budget: Budget
    clock_s: float = 0.0
    spent_s: float = 0.0
    """By all workers."""
    num_trials: int = 0
    num_epochs: int = 0
    results: list[tuple[float, float]] = field(default_factory=list)

    @property
    def max_trials(self) -> int:
        """The study's total, which pausing needs: for a budget in seconds, more than any arm starts."""
        return self.budget.num_trials * (1 if self.budget.unit == "trials" else 10 * self.budget.num_workers)

    @property
    def budget_s(self) -> float:
        """When the clock stops."""
        return math.inf if self.budget.unit == "trials" else self.budget.num_trials * self.pool.mean_trial_s

    def run(self, policy: "Policy") -> None:
        """Let the workers follow a policy, each with its own clock, until the budget is spent."""
        workers = [policy(self) for _ in range(self.budget.num_workers)]
        clocks = [(0.0, number) for number in range(len(workers))]
        while clocks:
            clock_s, number = heapq.heappop(clocks)
            if clock_s > self.budget_s:
                return
            self.clock_s = clock_s
            seconds = next(workers[number], None)
            if seconds is not None:
                self.spent_s += seconds
                heapq.heappush(clocks, (clock_s + seconds, number))

    def can_start(self) -> bool:
        """Whether the budget allows another trial."""
        return self.num_trials < self.max_trials

    def start(self) -> Run:
        """Ask for parameters."""
        trial = self.study.ask()
        SPACE.suggest(trial)
        self.num_trials += 1
        return Run(trial, self.pool.nearest(trial.params))

    def train(self, run: Run) -> Seconds:
        """Train for one epoch and report it, having built the model for the first."""
        yield run.curve.epoch_s[run.num_epochs] + (0.0 if run.num_epochs else run.curve.start_s)
        run.trial.report(run.curve.val_f1[run.num_epochs], run.num_epochs)
        if isinstance(self.study.sampler, PerSecondSampler):
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


Policy = Callable[[Replay], Seconds]


def stop(replay: Replay) -> Seconds:
    """Run each trial until its end, or until the study's pruner stops it."""
    while replay.can_start():
        run = replay.start()
        while not run.is_done:
            yield from replay.train(run)
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

    def __call__(self, replay: Replay) -> Seconds:
        """Run until the budget is spent; several workers share one instance."""
        while True:
            promoted = self._promotable()
            if promoted is not None:
                run = self.paused.pop(promoted)
                yield run.curve.resume_s
            elif replay.can_start():
                run = replay.start()
            else:
                return
            yield from self._train(replay, run)
            set_paused(replay.study, self.paused)

    def _train(self, replay: Replay, run: Run) -> Seconds:
        while not run.is_done:
            yield from replay.train(run)
            if run.is_done or not self._is_rung(run.num_epochs):
                continue
            ranked = self.ranking.setdefault(run.num_epochs, [])
            best = run.best
            ranked.insert(sum(max(r.curve.val_f1[: run.num_epochs]) >= best for r in ranked), run)
            if run not in ranked[: len(ranked) // self.reduction_factor]:
                yield run.curve.save_s
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


def freeze_thaw(replay: Replay, step_epochs: int = 3) -> Seconds:
    """Give a few epochs to the trial whose predicted end is best, and start a new trial after every second time.

    A paused trial's end is predicted as its best F1 so far, times the median gain from there of the trials that went
    further; so this is only like freeze-thaw, whose model of the curves is a Gaussian process.
    """
    runs: list[Run] = []
    open_runs: dict[int, Run] = {}
    for turn in range(sys.maxsize):
        if replay.can_start() and (turn % 3 == 0 or not open_runs):
            run = replay.start()
            runs.append(run)
        elif not open_runs:
            return
        else:
            number = max(open_runs, key=lambda number: predicted(open_runs[number], runs))
            run = open_runs.pop(number)
            set_paused(replay.study, open_runs)
            yield run.curve.resume_s
        for _ in range(min(step_epochs, len(run.curve.val_f1) - run.num_epochs)):
            yield from replay.train(run)
        if run.is_done:
            replay.end(run)
        else:
            yield run.curve.save_s
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


class PerCostSampler(CostAwareTPESampler, PausedAsPrunedSampler):
    """TPE whose expected improvement is per power of the architecture's GFLOPs."""

    def __init__(self, exponent: float = 1.0, **options: Any) -> None:
        """Take the power, and TPE's options."""
        super().__init__("model_arch", lambda: [cost**exponent for cost in self.costs()], **options)

    def costs(self) -> Sequence[float]:
        """Return the cost of each architecture."""
        return [gflops(arch, SIDE_PX) for arch in ARCHITECTURES]


class PerSecondSampler(PerCostSampler):
    """TPE whose expected improvement is per second that an epoch of the architecture has taken so far."""

    def __init__(self, **options: Any) -> None:
        """Take TPE's options."""
        super().__init__(**options)
        self.epoch_s: dict[str, list[float]] = {}

    def after_epoch(self, curve: Curve, epoch: int) -> None:
        """Note what an epoch took."""
        self.epoch_s.setdefault(curve.params["model_arch"], []).append(curve.epoch_s[epoch])

    def costs(self) -> Sequence[float]:
        """Return the mean seconds of each architecture, of all together where it has not been tried."""
        means = {arch: statistics.mean(seconds) for arch, seconds in self.epoch_s.items()}
        return [means.get(arch, statistics.mean(means.values())) for arch in ARCHITECTURES]


@dataclass(frozen=True)
class Arm:
    """A strategy."""

    sampler: Callable[[int], BaseSampler]
    pruner: Callable[[int], BasePruner] = lambda _: NopPruner()
    policy: Callable[[], Policy] = lambda: stop


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
    "TPE, ASHA that pauses": Arm(tpe(PausedAsPrunedSampler), policy=Asha),
    "the same, paused seen as bad": Arm(tpe(), policy=Asha),
    "TPE, ASHA that pauses at 3 and 6, 1 of 2": Arm(tpe(PausedAsPrunedSampler), policy=functools.partial(Asha, 2, 3)),
    "random, ASHA that pauses": Arm(lambda seed: RandomSampler(seed=seed), policy=Asha),
    "freeze-thaw-like": Arm(tpe(PausedAsPrunedSampler), policy=lambda: freeze_thaw),
    "TPE per second, median": Arm(tpe(PerSecondSampler), median),
    "TPE per second, no pruning": Arm(tpe(PerSecondSampler)),
    "TPE per root GFLOP, no pruning": Arm(tpe(functools.partial(PerCostSampler, 0.5))),
    "TPE per GFLOP, median": Arm(tpe(PerCostSampler), median),
    "TPE per GFLOP, no pruning": Arm(tpe(PerCostSampler)),
}


def replay_arm(name: str, pool: CurvePool, seed: int, budget: Budget, max_epochs: int) -> Replay:
    """Replay one arm on one data set with one seed."""
    arm = ARMS[name]
    sampler, pruner = arm.sampler(seed), arm.pruner(max_epochs)
    study = optuna.create_study(study_name=str(seed), direction="maximize", sampler=sampler, pruner=pruner)
    replay = Replay(pool, study, budget)
    replay.run(arm.policy())
    return replay
