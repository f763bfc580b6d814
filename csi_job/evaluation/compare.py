"""Compare two models on the same images: paired differences under the same resamples of patients.

Pairing matters: both models meet the same easy and hard patients in each resample, so the interval of the difference
is narrower than the overlap of two separate intervals suggests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from csi_job.errors import DataError
from csi_job.evaluation.bootstrap import Interval, percentile_interval, resampled
from csi_job.evaluation.csi import FloatArray
from csi_job.evaluation.evaluate import Evaluation
from csi_job.evaluation.measures import LOWER_IS_BETTER, SUMMARY_METRICS, ZONE_METRICS, measure
from csi_job.radiographs.zones import ZONES

Verdict = Literal["better", "worse", "within the noise", "undefined"]
HEADLINE = "f1_macro"  # chosen in advance: the metric that decides
COMPARED = (*SUMMARY_METRICS, *(f"{zone}.{name}" for zone in ZONES for name in ZONE_METRICS))


@dataclass(frozen=True)
class Difference:
    """The model's value minus the baseline's; `share_better` is the share of resamples in which the model wins."""

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


@dataclass(frozen=True)
class Comparison:
    """All differences between a model and a baseline on one split."""

    model: Evaluation
    baseline: Evaluation
    differences: dict[str, Difference]

    @property
    def summary(self) -> str:
        """Return the result on the headline metric in one sentence."""
        headline, split = self.differences[HEADLINE], self.model.split
        if headline.difference is None or headline.verdict == "undefined":
            reason = headline.interval.reason or "undefined"
            return f"The {split} set is too small to compare the two models: {reason}."
        model, baseline = self.model.predictions, self.baseline.predictions
        if np.array_equal(model.probabilities_NZK, baseline.probabilities_NZK):
            return "Both models make the same predictions, which happens when the search finds the baseline to be best."
        verdict = (
            f"the difference is within the noise of the {split} set"
            if headline.verdict == "within the noise"
            else f"the model is {headline.verdict} than the baseline on the {split} set"
        )
        return (
            f"Macro F1 {headline.model:.3f}, baseline {headline.baseline:.3f}, difference {headline.difference:+.3f} "
            f"({self.model.settings.confidence:.0%} interval {headline.interval.low:+.3f} to "
            f"{headline.interval.high:+.3f}): {verdict}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return every number of the comparison; it identifies no patient, file or image."""
        return {
            "format": 1,
            "model": self.model.model,
            "baseline": self.baseline.model,
            **self.model.provenance(),
            "outcome": self.summary,
            "metrics": {name: difference.to_json() for name, difference in self.differences.items()},
            "warnings": sorted({*self.model.warnings, *self.baseline.warnings}),
        }


def compare_evaluations(model: Evaluation, baseline: Evaluation) -> Comparison:
    """Compare two evaluations of the same images under the model's bootstrap settings.

    Raises:
        DataError: the evaluations cover different images.

    """
    same_images = model.predictions.pseudonyms == baseline.predictions.pseudonyms
    if not same_images or not np.array_equal(model.predictions.zones_NZ, baseline.predictions.zones_NZ):
        raise DataError("the two models were evaluated on different images", hint="evaluate both on the same cache")

    def differences(weights_RN: FloatArray) -> dict[str, FloatArray]:
        first, second = measure(model.predictions, weights_RN), measure(baseline.predictions, weights_RN)
        return {name: first[name] - second[name] for name in COMPARED}

    values_R = resampled(model.predictions.patients_N, model.settings, differences)
    return Comparison(
        model,
        baseline,
        {name: _difference(name, model, baseline, values_R.get(name, np.empty(0))) for name in COMPARED},
    )


def _difference(name: str, model: Evaluation, baseline: Evaluation, resampled_R: FloatArray) -> Difference:
    first, second = model.metrics[name].value, baseline.metrics[name].value
    defined_R = resampled_R[~np.isnan(resampled_R)]
    gain_R = -defined_R if name in LOWER_IS_BETTER else defined_R
    interval = percentile_interval(resampled_R, model.settings.confidence, model.predictions.num_patients)
    if first is None or second is None:
        reason = model.metrics[name].reason or baseline.metrics[name].reason
        interval = Interval(None, None, interval.num_degenerate, reason)
    return Difference(
        metric=name,
        model=first,
        baseline=second,
        difference=None if first is None or second is None else first - second,
        interval=interval,
        share_better=float((gain_R > 0).mean()) if len(gain_R) else None,
    )
