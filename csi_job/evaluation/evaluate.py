"""Evaluate a model on a split: every metric with its patient-level interval. Compare two models on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from csi_job.cache.dataset import SplitData
from csi_job.errors import DataError
from csi_job.evaluation.bootstrap import Interval, exact_at_the_bounds, percentile_interval, resampled
from csi_job.evaluation.csi import NUM_SCORES, IntArray, risk_indices
from csi_job.evaluation.difference import Difference, compare_with_trivial, paired_differences
from csi_job.evaluation.measures import (
    SUMMARY_METRICS,
    ZONE_METRICS,
    Predictions,
    calibration,
    measure,
    num_patients_behind,
    num_patients_measured,
    why_undefined,
)
from csi_job.evaluation.model_file import LoadedModel, predict_probabilities
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.radiographs.zones import RISK_CLASSES, ZONES
from csi_job.trial.metrics import confusion

DEFINITIONS = {
    "f1_macro": "mean over zones of the mean F1 of the scores 0-3; graded zones only, a predicted unknown is wrong",
    "f1_weighted": "like f1_macro, each score weighted by how often it occurs",
    "zones": "precision, recall and accuracy over graded zones, means over the scores 0-3; confusion: rows truth 0-4",
    "csi": "predicted: mean expected score of the zones predicted graded (all six if none is); "
    "true: mean over graded zones; images without a graded zone are left out",
    "risk": "class from the CSI: low <= 1.3 < medium <= 2.2 < high; probabilities: exact distribution of the mean "
    "of the same zones' scores given that they are graded, zones independent given the image",
    "risk_auroc": "one class against the rest, mean over the classes that occur in the split",
    "accuracy": "share of the graded zones whose score is right, mean over zones",
    "mae": "mean absolute error of the most probable score given that the zone is graded, mean over zones",
    "trivial": "what answering the same for every image would score, zone by zone: the commonest or the median score "
    "of the training set; difference: the model minus it, with a paired interval",
    "unseen": "whether the model is known to be trained on other patients: the training set of the same cache, without "
    "a warning that images of one patient may be in several splits",
    "interval": "percentile interval over resamples of whole patients; resamples where the metric is undefined are "
    "counted as degenerate and left out; it covers the choice of patients, not the randomness of training; with few "
    "patients a resample may lack a rare score, whose F1 is then 0, so intervals of the macro F1 are biased low; where "
    "a share is 0 or 1 in every resample, the exact (Clopper-Pearson) interval for that many patients, for an AUROC "
    "those of the rarer class; none where there are fewer than two of them, or nearly all resamples agree on another "
    "value",
}


@dataclass(frozen=True)
class Metric:
    """A metric with its interval; `value` is None where it is undefined, and `reason` says why."""

    value: float | None
    interval: Interval
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the metric as JSON values, never NaN."""
        reason = {"reason": self.reason} if self.reason else {}
        return {"value": self.value, **self.interval.to_json(), **reason}


@dataclass(frozen=True)
class Evaluation:
    """A model's metrics on a split, and the predictions behind them."""

    model: str
    architecture: str
    split: str
    cache: str
    predictions: Predictions
    settings: EvaluationSettings
    metrics: dict[str, Metric]
    warnings: tuple[str, ...] = ()
    trivial: dict[str, Any] = field(default_factory=dict)
    """What trivial predictors score on the same images, see `compare_with_trivial`; empty without training labels."""
    card: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The model's, empty if it has none."""
    is_unseen: bool = False
    """Whether the model is known to be trained on none of the patients here: on this cache's training set, without any
    warning that a patient's images may be in several splits."""

    def to_json(self) -> dict[str, Any]:
        """Return every number of the evaluation; it identifies no patient, file or image."""
        risk_RR = risk_confusion_RR(self.predictions)
        return {
            "format": 1,
            "model": self.model,
            "architecture": self.architecture,
            **self.provenance(),
            "metrics": {name: self.metrics[name].to_json() for name in SUMMARY_METRICS},
            "zones": {
                zone: {
                    **{name: self.metrics[f"{zone}.{name}"].to_json() for name in ZONE_METRICS},
                    "num_graded": int(confusion_KK[:NUM_SCORES].sum()),
                    "confusion": confusion_KK.tolist(),
                }
                for zone, confusion_KK in zip(ZONES, confusion_ZKK(self.predictions), strict=True)
            },
            "trivial": self.trivial,
            "risk": {
                "num_true": dict(zip(RISK_CLASSES, risk_RR.sum(axis=1).tolist(), strict=True)),
                "confusion": risk_RR.tolist(),
            },
            "calibration": calibration(self.predictions),
            "definitions": DEFINITIONS,
            "warnings": list(self.warnings),
            "unseen": self.is_unseen,
        }

    def provenance(self) -> dict[str, Any]:
        """Return which images and patients the numbers come from, and how the intervals were computed."""
        return {
            "split": self.split,
            "cache": self.cache,
            "num_images": len(self.predictions),
            "num_patients": self.predictions.num_patients,
            "num_images_with_csi": int(self.predictions.has_csi_N.sum()),
            "bootstrap": {
                "num_resamples": self.settings.num_bootstrap,
                "confidence": self.settings.confidence,
                "seed": self.settings.seed,
                "unit": "patient",
            },
        }


@dataclass(frozen=True)
class Comparison:
    """All differences between a model and a baseline on one split."""

    model: Evaluation
    baseline: Evaluation
    differences: dict[str, Difference]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the warnings about either model, each once."""
        return tuple(dict.fromkeys((*self.model.warnings, *self.baseline.warnings)))

    def to_json(self) -> dict[str, Any]:
        """Return every number of the comparison; it identifies no patient, file or image."""
        return {
            "format": 1,
            "model": self.model.model,
            "baseline": self.baseline.model,
            **self.model.provenance(),
            "metrics": {name: difference.to_json() for name, difference in self.differences.items()},
            "warnings": list(self.warnings),
        }


def evaluate_model(
    loaded: LoadedModel,
    data: SplitData,
    settings: EvaluationSettings,
    *,
    split: str,
    cache: str,
    train_zones_NZ: torch.Tensor | None = None,
    warnings: Sequence[str] = (),
) -> Evaluation:
    """Run the model on a split and measure it, keeping `split`, the key of its `cache` and `warnings`.

    `train_zones_NZ`, the labels of the training set, are what trivial predictors know.
    """
    predictions = Predictions(
        probabilities_NZK=predict_probabilities(loaded, data.images_NHW, settings.batch_size),
        zones_NZ=data.zones_NZ.cpu().numpy().astype(np.int64),
        patients_N=data.patients_N.cpu().numpy().astype(np.int64),
        pseudonyms=tuple(data.pseudonyms),
    )
    absent = {  # whose F1 counts as 0
        zone: [str(score) for score in range(NUM_SCORES) if score not in zone_N]
        for zone, zone_N in zip(ZONES, predictions.zones_NZ.T, strict=True)
    }
    absences = [
        f"{zone} has no image scored {', '.join(scores)}; the macro F1 counts that as 0"
        if len(scores) < NUM_SCORES
        else f"{zone} is graded in no image; no metric counts it"
        for zone, scores in absent.items()
        if scores
    ]
    return Evaluation(
        model=loaded.name,
        architecture=loaded.architecture,
        split=split,
        cache=cache,
        predictions=predictions,
        settings=settings,
        metrics=measure_with_intervals(predictions, settings),
        warnings=(*warnings, *absences),
        trivial={}
        if train_zones_NZ is None
        else compare_with_trivial(predictions, train_zones_NZ.cpu().numpy(), settings),
        card=loaded.card,
    )


def compare_evaluations(model: Evaluation, baseline: Evaluation) -> Comparison:
    """Compare two evaluations under the model's bootstrap settings; raise `DataError` if they cover other images."""
    same_images = model.predictions.pseudonyms == baseline.predictions.pseudonyms
    if not same_images or not np.array_equal(model.predictions.zones_NZ, baseline.predictions.zones_NZ):
        raise DataError("the two models were evaluated on different images", hint="evaluate both on the same cache")
    return Comparison(model, baseline, paired_differences(model.predictions, baseline.predictions, model.settings))


def measure_with_intervals(predictions: Predictions, settings: EvaluationSettings) -> dict[str, Metric]:
    """Return every metric by name, with the percentile interval of its bootstrap distribution."""
    point = measure(predictions, np.ones((1, len(predictions))))
    values_R = resampled(predictions.patients_N, settings, partial(measure, predictions))
    return {
        name: Metric(
            value=None if np.isnan(value) else float(value),
            interval=exact_at_the_bounds(
                percentile_interval(
                    values_R.get(name, np.empty(0)), settings.confidence, num_patients_measured(name, predictions)
                ),
                num_patients_behind(name, predictions),
                settings.confidence,
            ),
            reason=why_undefined(name, predictions) if np.isnan(value) else "",
        )
        for name, (value,) in point.items()
    }


def confusion_ZKK(predictions: Predictions) -> IntArray:  # noqa: N802 - the name carries the axes
    """Return the confusion matrices [6, 5, 5]: rows truth, columns prediction."""
    return confusion(predictions.predicted.scores_NZ, predictions.zones_NZ).astype(np.int64)


def risk_confusion_RR(predictions: Predictions) -> IntArray:  # noqa: N802 - the name carries the axes
    """Return the confusion matrix of the risk classes [3, 3]: rows truth, columns prediction."""
    with_csi = predictions.has_csi_N
    counts_RR = np.zeros((len(RISK_CLASSES), len(RISK_CLASSES)), dtype=np.int64)
    predicted_N = risk_indices(predictions.predicted.csi_N[with_csi])
    np.add.at(counts_RR, (risk_indices(predictions.csi_N[with_csi]), predicted_N), 1)
    return counts_RR
