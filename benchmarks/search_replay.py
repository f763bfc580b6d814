"""Replay search strategies on recorded learning curves, with Optuna's own samplers and pruners.

Run: `python -m benchmarks.search_replay [--seeds N] [--first-seed N] [--budget N] [--unit trials|seconds] [--workers N]
[--large-gain X] [--arms NAME …] [--optunahub FOLDER] [--processes N]`; `--optunahub` is a checkout of the OptunaHub
registry, for its AutoSampler.

A suggestion is trained as the nearest recorded curve (`search_pool`), as often as that is the nearest. The clock counts
recorded CPU seconds: building the model, epochs, and where trials are paused, writing checkpoints and resuming from
them. It leaves out the sampler and the database. The budget of a study is a number of trials, or as much of each
worker's time as that many random trials take without pruning. A target is reached when a *completed* trial has it,
since only that has a model; a missed one counts as the longest study. Arms are compared by seed with the reference's
choices. `--large-gain X` supposes that large networks learned like Custom_1, with F1 higher by this share.
"""

import argparse
import functools
import math
import statistics
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from benchmarks.figures import machine
from benchmarks.search_pool import CurvePool, load_pools, rank_correlation, with_large_gain
from benchmarks.search_record import CURVES
from benchmarks.search_strategies import ARMS, AUTO_SAMPLER, HUB, REFERENCE, Budget, replay_arm

TARGETS = 0.90, 0.95, 0.99
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Outcome:
    """What is kept of a replay."""

    results: tuple[tuple[float, float], ...]
    """When each trial was completed, and its share of the pool's best F1."""
    end_s: float
    """When the last trial ended."""
    spent_s: float
    """By all workers."""
    num_trials: int
    num_epochs: int

    def seconds_to(self, target: float) -> float:
        """Return when a completed trial had this share of the pool's best, infinite if none had."""
        return next((at_s for at_s, share in self.results if share >= target), math.inf)

    @property
    def regret(self) -> float:
        """How far the best completed trial is below the pool's best, as a share of it."""
        return 1 - max((share for _, share in self.results), default=0.0)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=30)
    parser.add_argument("--unit", choices=("trials", "seconds"), default="trials")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--large-gain", type=float)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--optunahub", type=Path, help="checkout of the OptunaHub registry")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--data", nargs="+", help="only these data sets")
    parser.add_argument("--curves", type=Path, default=CURVES)
    arguments = parser.parse_args()
    header, pools = load_pools(arguments.curves)
    print(f"{machine('optuna')}\nCurves: {header}")
    names = [name for name in arguments.arms if name != AUTO_SAMPLER or arguments.optunahub]
    if AUTO_SAMPLER in arguments.arms and AUTO_SAMPLER not in names:
        print(f"{AUTO_SAMPLER}: not measured without --optunahub")
    with ProcessPoolExecutor(arguments.processes, initializer=_begin, initargs=[arguments.optunahub]) as processes:
        for pool in (pool for pool in pools if pool.name in (arguments.data or pool.name)):
            if arguments.large_gain is not None:
                pool = with_large_gain(pool, arguments.large_gain)  # noqa: PLW2901
            budget = Budget(arguments.budget, arguments.unit, arguments.workers)
            describe(pool, budget)
            outcomes: dict[str, list[Outcome]] = {}
            for name in dict.fromkeys([REFERENCE, *names]):
                job = functools.partial(outcome, name, pool, budget, header["max_epochs"])
                seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
                outcomes[name] = list(processes.map(job, seeds, chunksize=5))
                row = describe_arm(outcomes[name], outcomes[REFERENCE])
                print(f"| {name} | {row} |", flush=True)


def _begin(hub: Path | None) -> None:
    """Prepare a process."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    HUB.extend([hub] if hub else [])


def outcome(name: str, pool: CurvePool, budget: Budget, max_epochs: int, seed: int) -> Outcome:
    """Replay one arm with one seed."""
    replay = replay_arm(name, pool, seed, budget, max_epochs)
    results = tuple((at_s, value / pool.best) for at_s, value in replay.results)
    end_s = min(replay.clock_s, replay.budget_s)
    return Outcome(results, end_s, replay.spent_s, replay.num_trials, replay.num_epochs)


def describe(pool: CurvePool, budget: Budget) -> None:
    """Print what there is to find, and the head of the table."""
    numbers = ", ".join(f"{len(curves)} {arch}" for arch, curves in pool.by_arch.items())
    best = ", ".join(f"{arch} {max(curve.best for curve in curves):.3f}" for arch, curves in pool.by_arch.items())
    print(f"\n{pool.name}: {len(pool.curves)} curves ({numbers}), best F1 {pool.best:.4f} ({best})")
    for share in TARGETS:
        print(f"  {share:.0%} of the best: {sum(c.best >= share * pool.best for c in pool.curves)} curves")
    print(f"  nearest neighbour against a left-out curve's best F1: rank correlation {rank_correlation(pool):.2f}")
    bound = (
        f"{budget.num_trials} trials" if budget.unit == "trials" else f"{budget.num_trials * pool.mean_trial_s:.0f} s"
    )
    print(f"  budget {bound}, {budget.num_workers} workers; ratios and differences of means with 95 % intervals\n")
    shares = " / ".join(f"{share:.0%}" for share in TARGETS)
    heads = f"missed {shares}", "time to 90 %", "regret, %", "difference", "seconds spent", "ratio", "trials", "epochs"
    print(f"| | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")


def describe_arm(outcomes: Sequence[Outcome], reference: Sequence[Outcome]) -> str:
    """Return a row of the table."""
    sides = outcomes, reference
    missed = [f"{statistics.mean(math.isinf(o.seconds_to(share)) for o in outcomes):.0%}" for share in TARGETS]
    end_s = max(o.end_s for side in sides for o in side)
    times = [np.array([min(o.seconds_to(TARGETS[0]), end_s) for o in side]) for side in sides]
    regrets = [np.array([100 * o.regret for o in side]) for side in sides]
    spent = [np.array([o.spent_s for o in side]) for side in sides]
    cells = [" / ".join(missed), "{:.2f} [{:.2f}, {:.2f}]".format(*interval(*times, is_ratio=True))]
    cells += [f"{regrets[0].mean():.1f}", "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval(*regrets, is_ratio=False))]
    cells += [f"{spent[0].mean():.0f}", "{:.2f} [{:.2f}, {:.2f}]".format(*interval(*spent, is_ratio=True))]
    cells += [f"{statistics.mean(o.num_trials for o in outcomes):.0f}"]
    return " | ".join([*cells, f"{statistics.mean(o.num_epochs for o in outcomes):.0f}"])


def interval(own_S: np.ndarray, others_S: np.ndarray, *, is_ratio: bool) -> tuple[float, float, float]:
    """Return the ratio or difference of two means over seeds, with its bootstrapped 95 % interval, paired by seed."""
    index_RS = np.random.default_rng(0).integers(len(own_S), size=(NUM_RESAMPLES, len(own_S)))
    own_R, others_R = own_S[index_RS].mean(axis=1), others_S[index_RS].mean(axis=1)
    value_R = own_R / others_R if is_ratio else own_R - others_R
    value = own_S.mean() / others_S.mean() if is_ratio else own_S.mean() - others_S.mean()
    return float(value), *map(float, np.quantile(value_R, (0.025, 0.975)))


if __name__ == "__main__":
    main()
