"""Patient-level bootstrap: patients are resampled, not images, because images of one patient are not independent.

A resample is a row of weights, how many times each image counts. Metrics map weights [R, N] to values [R], so one
vectorised pass computes the point estimate (all weights one) and every resample alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csi_job.evaluation.csi import FloatArray
from csi_job.evaluation.settings import EvaluationSettings

MIN_DEFINED = 0.5  # least fraction of resamples in which the metric must be defined; fewer are a biased subset
ROUNDING = 1e-9  # more than equal values differ by
MAX_WEIGHTS = 2_000_000  # weights in memory at once: 16 MB, whatever the number of images


@dataclass(frozen=True)
class Interval:
    """A percentile interval, or none with the reason; a resample is degenerate where the metric is undefined."""

    low: float | None
    high: float | None
    num_degenerate: int
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the interval as JSON values, never NaN."""
        bounds = None if self.low is None else [self.low, self.high]
        reason = {"interval_reason": self.reason} if self.reason else {}
        return {"interval": bounds, "num_degenerate_resamples": self.num_degenerate, **reason}


def resample_weights(patients_N: npt.NDArray[np.integer], settings: EvaluationSettings) -> Iterator[FloatArray]:
    """Yield weights [R, N] of `num_bootstrap` resamples in chunks; the same patients and seed give the same weights."""
    patients, index_N = np.unique(patients_N, return_inverse=True)
    if len(patients) == 0:
        return
    generator = np.random.default_rng(settings.seed)
    shares_P = np.full(len(patients), 1 / len(patients))
    chunk = max(1, MAX_WEIGHTS // len(index_N))
    for start in range(0, settings.num_bootstrap, chunk):
        size = min(chunk, settings.num_bootstrap - start)
        yield generator.multinomial(len(patients), shares_P, size=size)[:, index_N].astype(np.float64)


def resampled(
    patients_N: npt.NDArray[np.integer],
    settings: EvaluationSettings,
    measure: Callable[[FloatArray], dict[str, FloatArray]],
) -> dict[str, FloatArray]:
    """Return each metric's values [R] over all resamples; empty if there are no images."""
    chunks = [measure(weights_RN) for weights_RN in resample_weights(patients_N, settings)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in (chunks[0] if chunks else ())}


def exact_at_the_bounds(interval: Interval, num_patients: int, confidence: float) -> Interval:
    """Return an interval; where every resample of a share gives 0 or 1, the exact one (Clopper-Pearson) instead.

    A model that makes no error on few patients makes none in any resample of them either, which says nothing about the
    next patient; the exact interval does. Of any other metric on which nearly all resamples agree, none is known.
    """
    if interval.low is None or interval.high is None or interval.high - interval.low > ROUNDING:
        return interval
    if not num_patients or interval.low not in (0, 1):
        return Interval(None, None, interval.num_degenerate, "the same in nearly every resample")
    bound = ((1 - confidence) / 2) ** (1 / num_patients)
    low, high = (bound, 1.0) if interval.low == 1 else (0.0, 1 - bound)
    return replace(interval, low=low, high=high)


def percentile_interval(values_R: FloatArray, confidence: float, num_patients: int) -> Interval:
    """Return the central interval of the defined (not NaN) values."""
    defined = values_R[~np.isnan(values_R)]
    num_degenerate = len(values_R) - len(defined)
    if num_patients < 2:  # noqa: PLR2004 - every resample of one patient is the same
        return Interval(None, None, num_degenerate, "measured on fewer than two patients")
    if len(defined) < MIN_DEFINED * len(values_R):
        return Interval(None, None, num_degenerate, f"undefined in {num_degenerate} of {len(values_R)} resamples")
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high), num_degenerate)
