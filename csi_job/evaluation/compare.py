"""Two models on the same images: paired differences under the same resamples of patients.

The pairing matters: both models see the same easy and hard patients in each resample, so the interval of the
difference is narrower, and right, where the two separate intervals would overlap for no reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from csi_job.cache.dataset import SplitData
from csi_job.errors import DataError
from csi_job.evaluation.bootstrap import Interval, percentile_interval, resample_weights
from csi_job.evaluation.csi import FloatArray
from csi_job.evaluation.evaluate import Evaluation, describe_bootstrap, describe_images, evaluate_model
from csi_job.evaluation.measures import LOWER_IS_BETTER, SUMMARY_METRICS, ZONE_METRICS, measure
from csi_job.evaluation.model_file import LoadedModel
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.radiographs.zones import ZONES

Outcome = Literal["better", "worse", "within the noise", "undefined"]
HEADLINE = "f1_macro"  # decided before looking: the metric that the outcome is about


@dataclass(frozen=True)
class Difference:
    """The model's value minus the baseline's; shares are of the resamples in which the model is better or worse."""

    metric: str
    model: float | None
    baseline: float | None
    difference: float | None
    interval: Interval
    share_better: float | None
    share_worse: float | None

    @property
    def higher_is_better(self) -> bool:
        """Return whether a positive difference is an improvement."""
        return self.metric not in LOWER_IS_BETTER

    @property
    def outcome(self) -> Outcome:
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
            "share_worse": self.share_worse,
            "higher_is_better": self.higher_is_better,
            "outcome": self.outcome,
        }


@dataclass(frozen=True)
class Comparison:
    """All differences between a model and a baseline on one split."""

    model: Evaluation
    baseline: Evaluation
    differences: dict[str, Difference]

    @property
    def outcome(self) -> str:
        """Return the result in one plain sentence, about the headline metric."""
        headline = self.differences[HEADLINE]
        model, baseline = self.model.predictions, self.baseline.predictions
        if headline.outcome != "undefined" and np.array_equal(model.probabilities_NZK, baseline.probabilities_NZK):
            return "Both models give the same predictions; so they do where the search found the baseline to be best."
        return tell_outcome(headline, self.model.split, self.model.settings.confidence)

    def to_json(self) -> dict[str, Any]:
        """Return every number of the comparison; no patient, file or image is named in it."""
        return {
            "format": 1,
            "model": self.model.model,
            "baseline": self.baseline.model,
            "split": self.model.split,
            "cache": self.model.cache,
            **describe_images(self.model.predictions),
            "bootstrap": describe_bootstrap(self.model.settings),
            "outcome": self.outcome,
            "metrics": {name: difference.to_json() for name, difference in self.differences.items()},
            "warnings": sorted({*self.model.warnings, *self.baseline.warnings}),
        }


def compare_models(
    model: LoadedModel,
    baseline: LoadedModel,
    data: SplitData,
    settings: EvaluationSettings,
    *,
    split: str,
    cache: str,
) -> Comparison:
    """Evaluate both models on a split and compare them; arguments and errors as `evaluate_model`."""
    first = evaluate_model(model, data, settings, split=split, cache=cache)
    return compare_evaluations(first, evaluate_model(baseline, data, settings, split=split, cache=cache))


def compare_evaluations(model: Evaluation, baseline: Evaluation) -> Comparison:
    """Compare two evaluations of the same images under the model's bootstrap settings.

    Raises:
        DataError: the two were made on different images.

    """
    same_images = model.predictions.pseudonyms == baseline.predictions.pseudonyms
    if not same_images or not np.array_equal(model.predictions.zones_NZ, baseline.predictions.zones_NZ):
        what = "the two models were evaluated on different images"
        raise DataError(what, hint="evaluate both on the same cache")
    names = (*SUMMARY_METRICS, *(f"{zone}.{name}" for zone in ZONES for name in ZONE_METRICS))
    resampled = _resampled_differences(model, baseline, names)
    differences = {name: _difference(name, model, baseline, resampled[name]) for name in names}
    return Comparison(model, baseline, differences)


def tell_outcome(difference: Difference, split: str, confidence: float) -> str:
    """Return e.g. `F1 0.412 against 0.398, difference +0.014 (95% interval -0.050 to +0.081): within the noise …`."""
    if difference.difference is None or difference.outcome == "undefined":
        return f"The {split} set is too small to compare the two models: {difference.interval.reason or 'undefined'}."
    verdict = {
        "better": f"the model is better than the baseline on the {split} set",
        "worse": f"the model is worse than the baseline on the {split} set",
        "within the noise": f"the difference is within the noise of the {split} set",
        "undefined": "",
    }[difference.outcome]
    return (
        f"Macro F1 {difference.model:.3f} against the baseline's {difference.baseline:.3f}, difference "
        f"{difference.difference:+.3f} ({confidence:.0%} interval {difference.interval.low:+.3f} to "
        f"{difference.interval.high:+.3f}): {verdict}."
    )


def _resampled_differences(model: Evaluation, baseline: Evaluation, names: Sequence[str]) -> dict[str, FloatArray]:
    """Return model minus baseline [R] for each metric; both are measured under the same weights."""
    chunks: list[dict[str, FloatArray]] = []
    for weights_RN in resample_weights(model.predictions.patients_N, model.settings):
        first, second = measure(model.predictions, weights_RN), measure(baseline.predictions, weights_RN)
        chunks.append({name: first[name] - second[name] for name in names})
    return {name: np.concatenate([chunk[name] for chunk in chunks] or [np.empty(0)]) for name in names}


def _difference(name: str, model: Evaluation, baseline: Evaluation, resampled_R: FloatArray) -> Difference:
    first, second = model.metrics[name].value, baseline.metrics[name].value
    sign = -1 if name in LOWER_IS_BETTER else 1
    gain_R = sign * resampled_R[~np.isnan(resampled_R)]
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
        share_worse=float((gain_R < 0).mean()) if len(gain_R) else None,
    )
