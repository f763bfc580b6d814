"""Recorded learning curves, and which of them stands for a suggestion."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.search_record import BATCH_SIZES
from csi_job.trial.hyperparameters import HYPERPARAMETERS
from csi_job.trial.space import SearchSpace

SPACE = SearchSpace(batch_size={"choices": BATCH_SIZES})
WEIGHTS = {"learning_rate": 4.0, "patience": 0.25, "unknown_weight": 0.25}  # others 1


@dataclass(frozen=True)
class Curve:
    """A recorded training: F1 and seconds of each epoch, and what starting, pausing and resuming it take."""

    params: dict[str, Any]
    val_f1: list[float]
    epoch_s: list[float]
    start_s: float
    save_s: float
    resume_s: float
    infeasible: bool

    @property
    def best(self) -> float:
        """The value of the completed trial; an infeasible one has none."""
        return -math.inf if self.infeasible else max(self.val_f1)


class CurvePool:
    """The curves of one data set."""

    def __init__(self, name: str, curves: Sequence[Curve]) -> None:
        """Take the curves."""
        self.name, self.curves = name, curves
        self.best = max(curve.best for curve in curves)
        self.by_arch: dict[str, list[Curve]] = {}
        for curve in curves:
            self.by_arch.setdefault(curve.params["model_arch"], []).append(curve)
        mean_s = [
            statistics.mean(curve.start_s + sum(curve.epoch_s) for curve in curves) for curves in self.by_arch.values()
        ]
        self.mean_trial_s = statistics.mean(mean_s)

        self.places_NP = {arch: np.stack([place(c.params) for c in own]) for arch, own in self.by_arch.items()}

    def nearest(self, params: dict[str, Any], without: Curve | None = None) -> Curve:
        """Return the curve that stands for these parameters: the nearest, over the parameters that both have."""
        curves = self.by_arch[params["model_arch"]]
        distance_N = np.nansum((self.places_NP[params["model_arch"]] - place(params)) ** 2, axis=1)
        distance_N[[curve is without for curve in curves]] = np.inf
        return curves[int(distance_N.argmin())]


def with_large_gain(pool: CurvePool, gain: float) -> CurvePool:
    """Return the pool as if the large networks learned like Custom_1, with F1 higher by this share, in their own time.

    Too few of their curves are recorded to show how often they win where they do.
    """
    own = pool.by_arch["Custom_1"]
    curves = [*own]
    for arch, others in pool.by_arch.items():
        if arch == "Custom_1":
            continue
        ratio = epoch_s(others) / epoch_s(own)
        costs = {name: statistics.mean(getattr(c, name) for c in others) for name in ("start_s", "save_s", "resume_s")}
        curves += [
            replace(
                curve,
                params=curve.params | {"model_arch": arch},
                val_f1=[f1 * (1 + gain) for f1 in curve.val_f1],
                epoch_s=[seconds * ratio for seconds in curve.epoch_s],
                **costs,
            )
            for curve in own
        ]
    return CurvePool(f"{pool.name}, large networks {gain:+.0%}", curves)


def epoch_s(curves: Sequence[Curve]) -> float:
    """Return the mean seconds of an epoch."""
    return statistics.mean(seconds for curve in curves for seconds in curve.epoch_s)


def place(params: dict[str, Any]) -> np.ndarray:
    """Return a point whose squared distance from another says how alike two trials are; NaN where there is no value."""
    optimizers = [
        math.sqrt(0.5) * (params["optimizer"] == name) for name in HYPERPARAMETERS["optimizer"].space["choices"]
    ]
    numbers = [name for name, one in HYPERPARAMETERS.items() if "low" in one.space] + ["batch_size"]
    return np.array([*optimizers, *(position(name, params[name]) if name in params else math.nan for name in numbers)])


def position(name: str, value: Any) -> float:
    """Return where a number is in its range, from 0 to the root of its weight."""
    space = HYPERPARAMETERS[name].space
    if name == "batch_size":
        return float(BATCH_SIZES.index(value)) / (len(BATCH_SIZES) - 1)
    low, high, value = (math.log(v) if space.get("log") else float(v) for v in (space["low"], space["high"], value))
    return math.sqrt(WEIGHTS.get(name, 1.0)) * (value - low) / (high - low)


def load_pools(path: Path) -> tuple[dict[str, Any], list[CurvePool]]:
    """Return the file's first line, and the curves by data set; a missing resume costs what others of its kind do."""
    header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    pools: dict[str, list[Curve]] = {}
    for row in rows:
        same = [r for r in rows if r["params"]["model_arch"] == row["params"]["model_arch"] and r["resume_s"]]
        for name in ("save_s", "resume_s"):
            row[name] = row[name] or statistics.median(other[name] for other in same)
        given = {name: row[name] for name in ("params", "val_f1", "epoch_s", "start_s", "save_s", "resume_s")}
        if row["val_f1"]:
            pools.setdefault(row["data"], []).append(Curve(**given, infeasible=row["infeasible"]))
    return header, [CurvePool(name, curves) for name, curves in sorted(pools.items())]


def rank_correlation(pool: CurvePool) -> float:
    """Return how well a curve's nearest neighbour predicts its best F1: Spearman's rank correlation."""
    feasible = [curve for curve in pool.curves if not curve.infeasible]
    neighbours = [pool.nearest(curve.params, without=curve).best for curve in feasible]
    return float(spearmanr([curve.best for curve in feasible], neighbours).statistic)
