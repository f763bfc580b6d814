"""Differences between two sets of predictions for the same images, under the same resamples of patients.

Pairing matters: both meet the same easy and hard patients in each resample, so the interval of the difference is
narrower than the overlap of two separate intervals suggests.

The other set is a baseline's, or a trivial predictor's, which answers the same for every film and is what a model must
beat to be of any use. Such a predictor knows nothing but the training labels of each zone.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from csi_job.evaluation.bootstrap import ROUNDING, Interval, exact_at_the_bounds, percentile_interval, resampled
from csi_job.evaluation.csi import NUM_SCORES, FloatArray, IntArray
from csi_job.evaluation.measures import (
    COMPARED,
    LOWER_IS_BETTER,
    SUMMARY_METRICS,
    ZONE_METRICS,
    Predictions,
    measure,
    num_patients_measured,
    why_undefined,
)
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.radiographs.zones import NUM_CLASSES, ZONES

Verdict = Literal["better", "worse", "within the noise", "undefined"]
TRIVIAL: Final = {"commonest": "always the commonest score", "median": "always the median score"}


@dataclass(frozen=True)
class Difference:
    """The model's value minus the baseline's.

    `share_better` is the share of resamples in which the model wins; None where the resamples give no interval either.
    """

    metric: str
    model: float | None
    baseline: float | None
    difference: float | None
    interval: Interval
    share_better: float | None

    @property
    def higher_is_better(self) -> bool:
        """Return whether a positive difference is an improvement."""
        return self.metric not in LOWER_IS_BETTER

    @property
    def verdict(self) -> Verdict:
        """Return `better` or `worse` only where the whole interval lies on one side of zero."""
        low, high = self.interval.low, self.interval.high
        if low is None or high is None:
            return "undefined"
        if low <= 0 <= high:
            return "within the noise"
        return "better" if (low > 0) == self.higher_is_better else "worse"

    def to_json(self) -> dict[str, Any]:
        """Return the difference as JSON values, never NaN."""
        return {
            "model": self.model,
            "baseline": self.baseline,
            "difference": self.difference,
            **self.interval.to_json(),
            "share_better": self.share_better,
            "higher_is_better": self.higher_is_better,
            "outcome": self.verdict,
        }


def paired_differences(
    model: Predictions, baseline: Predictions, settings: EvaluationSettings
) -> dict[str, Difference]:
    """Return the difference in every metric between predictions for the same images in the same order."""

    def differences(weights_RN: FloatArray) -> dict[str, FloatArray]:
        first, second = measure(model, weights_RN), measure(baseline, weights_RN)
        return {name: first[name] - second[name] for name in COMPARED}

    ones_1N = np.ones((1, len(model)))
    first, second = measure(model, ones_1N), measure(baseline, ones_1N)
    values_R = resampled(model.patients_N, settings, differences)
    found = {}
    for name in COMPARED:
        resampled_R = values_R.get(name, np.empty(0))
        interval = percentile_interval(resampled_R, settings.confidence, num_patients_measured(name, model))
        one, other = (None if np.isnan(values[name][0]) else float(values[name][0]) for values in (first, second))
        if one is None or other is None:
            reason = why_undefined(name, model if one is None else baseline)
            interval = Interval(None, None, interval.num_degenerate, reason)
        elif abs(one - other) > ROUNDING:
            interval = exact_at_the_bounds(interval, 0, settings.confidence)
        defined_R = resampled_R[~np.isnan(resampled_R)]
        gain_R = -defined_R if name in LOWER_IS_BETTER else defined_R
        share_better = None if interval.low is None else float((gain_R > 0).mean())
        difference = None if one is None or other is None else one - other
        found[name] = Difference(name, one, other, difference, interval, share_better)
    return found


def constant_scores(train_zones_NZ: IntArray) -> dict[str, IntArray]:
    """Return the score [6] of each zone that each trivial predictor answers; 0 for a zone that is never graded.

    Of several scores that are equally common, and of two middle ones, the lower counts, as in scikit-learn's
    `DummyClassifier` and `statistics.median_low`.
    """
    counts_ZS = (train_zones_NZ[..., None] == np.arange(NUM_SCORES)).sum(axis=0)
    up_to_ZS = counts_ZS.cumsum(axis=1)
    median_Z = (2 * up_to_ZS >= up_to_ZS[:, -1:]).argmax(axis=1)
    return {"commonest": counts_ZS.argmax(axis=1), "median": median_Z}


def compare_with_trivial(
    predictions: Predictions, train_zones_NZ: IntArray, settings: EvaluationSettings
) -> dict[str, Any]:
    """Return each trivial predictor as JSON values: its scores, and the model's differences from it in every metric."""
    compared = {}
    for name, scores_Z in constant_scores(train_zones_NZ).items():
        constant_NZK = np.broadcast_to(np.eye(NUM_CLASSES)[scores_Z], predictions.probabilities_NZK.shape)
        truth = predictions.zones_NZ, predictions.patients_N, predictions.pseudonyms
        differences = paired_differences(predictions, Predictions(constant_NZK, *truth), settings)
        compared[name] = {
            "name": TRIVIAL[name],
            "scores": dict(zip(ZONES, scores_Z.tolist(), strict=True)),
            "metrics": {metric: differences[metric].to_json() for metric in SUMMARY_METRICS},
            "zones": {
                zone: {metric: differences[f"{zone}.{metric}"].to_json() for metric in ZONE_METRICS} for zone in ZONES
            },
        }
    return compared
