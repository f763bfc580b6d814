"""Every metric of an evaluation as a function of weights: [R, N] in, {name: [R]} out, NaN where undefined.

With weights of one these are scikit-learn's numbers on the same predictions. Zone metrics are over graded zones and
the scores 0-3 with `zero_division=0`; a predicted "unknown" on a graded zone counts as wrong. CSI and risk metrics are
over images with at least one graded zone. The risk AUROC is the mean of one class against the rest over the classes
that can be told apart in the whole split; a resample that lacks one of them is degenerate, for the mean of fewer
classes would be another quantity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from csi_job.evaluation.csi import (
    NUM_SCORES,
    CsiPredictions,
    FloatArray,
    IntArray,
    predict_csi,
    risk_indices,
    score_distributions,
    true_csi,
)
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES, RISK_CLASSES, UNKNOWN, ZONES
from csi_job.trial.metrics import zone_f1, zone_precision, zone_recall

MIN_VARIANCE = 1e-12  # below it CSI values (0 to 3) are one value and rounding

SUMMARY_METRICS = (
    "f1_macro",
    "f1_weighted",
    "csi_mae",
    "csi_rmse",
    "csi_pearson_r",
    "risk_auroc",
    *(f"risk_auroc_{name}" for name in RISK_CLASSES),
    "risk_accuracy",
)
LOWER_IS_BETTER = ("csi_mae", "csi_rmse")
ZONE_METRICS = ("f1_macro", "f1_weighted", "precision", "recall", "accuracy")


@dataclass(frozen=True)
class Predictions:
    """A model's probabilities for the images of a split, beside the truth.

    Args:
        probabilities_NZK: class probabilities [N, 6, 5]; the last axis sums to 1.
        zones_NZ: true classes [N, 6], 0 to 4 (4: not graded).
        patients_N: index of each image's patient.
        pseudonyms: keyed hashes of the file names, for plots.

    """

    probabilities_NZK: FloatArray  # noqa: N815 - an array carries its axes
    zones_NZ: IntArray  # noqa: N815
    patients_N: IntArray  # noqa: N815
    pseudonyms: tuple[str, ...]
    predicted: CsiPredictions = field(init=False)
    csi_N: FloatArray = field(init=False)  # noqa: N815

    def __post_init__(self) -> None:
        """Derive the predicted and the true CSI once."""
        object.__setattr__(self, "predicted", predict_csi(self.probabilities_NZK))
        object.__setattr__(self, "csi_N", true_csi(self.zones_NZ))

    @property
    def has_csi_N(self) -> npt.NDArray[np.bool_]:  # noqa: N802 - the name carries the axis
        """Images with at least one graded zone."""
        return ~np.isnan(self.csi_N)

    @property
    def num_patients(self) -> int:
        """Patients of these images."""
        return len(np.unique(self.patients_N))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.zones_NZ)


def measure(predictions: Predictions, weights_RN: FloatArray) -> dict[str, FloatArray]:
    """Return every metric for each row of weights, by name (`f1_macro`, `right_sup.recall`, `risk_auroc_high`, …)."""
    confusion_RZKK = weighted_confusion(predictions.predicted.scores_NZ, predictions.zones_NZ, weights_RN)
    values = {f"{zone}.{name}": value for zone, name, value in _zone_values(confusion_RZKK)}
    graded_Z = (predictions.zones_NZ != UNKNOWN).any(axis=0)
    for name in ("f1_macro", "f1_weighted"):
        zones_RZ = np.stack([values[f"{zone}.{name}"] for zone in ZONES], axis=1)[:, graded_Z]
        values[name] = zones_RZ.mean(axis=1) if graded_Z.any() else np.full(len(weights_RN), np.nan)
    with_csi = predictions.has_csi_N
    values |= _csi_values(predictions.csi_N[with_csi], predictions.predicted.csi_N[with_csi], weights_RN[:, with_csi])
    return values | _risk_values(predictions, weights_RN)


def weighted_confusion(scores_NZ: IntArray, zones_NZ: IntArray, weights_RN: FloatArray) -> FloatArray:
    """Return confusion matrices [R, 6, 5, 5] (rows: truth, columns: prediction) under each row of weights."""
    cell_NZ = zones_NZ * NUM_CLASSES + scores_NZ
    one_hot_NZC = np.eye(NUM_CLASSES**2)[cell_NZ].reshape(len(cell_NZ), NUM_ZONES * NUM_CLASSES**2)
    counts_RC: FloatArray = weights_RN @ one_hot_NZC
    return counts_RC.reshape(-1, NUM_ZONES, NUM_CLASSES, NUM_CLASSES)


def _zone_values(confusion_RZKK: FloatArray) -> list[tuple[str, str, FloatArray]]:
    """Return (zone, metric, [R]); NaN where a zone has no graded image under the weights."""
    graded_RZSK = confusion_RZKK[:, :, :NUM_SCORES, :]
    num_RZ = graded_RZSK.sum(axis=(2, 3))
    hits_RZ = np.trace(graded_RZSK[..., :NUM_SCORES], axis1=2, axis2=3)
    by_name = {
        "f1_macro": zone_f1(confusion_RZKK, "macro"),
        "f1_weighted": zone_f1(confusion_RZKK, "weighted"),
        "precision": zone_precision(confusion_RZKK),
        "recall": zone_recall(confusion_RZKK),
        "accuracy": np.where(num_RZ > 0, hits_RZ / np.where(num_RZ > 0, num_RZ, 1), np.nan),
    }
    return [(zone, name, value_RZ[:, index]) for name, value_RZ in by_name.items() for index, zone in enumerate(ZONES)]


def _csi_values(true_N: FloatArray, predicted_N: FloatArray, weights_RN: FloatArray) -> dict[str, FloatArray]:
    """Return MAE, RMSE and Pearson r of the CSI mean."""
    error_N = predicted_N - true_N
    return {
        "csi_mae": _mean(weights_RN, np.abs(error_N)),
        "csi_rmse": np.sqrt(_mean(weights_RN, error_N**2)),
        "csi_pearson_r": _pearson(true_N, predicted_N, weights_RN),
    }


def _risk_values(predictions: Predictions, weights_RN: FloatArray) -> dict[str, FloatArray]:
    """Return the accuracy of the risk class and its AUROC, class by class and their mean."""
    with_csi = predictions.has_csi_N
    weights_RN = weights_RN[:, with_csi]
    truth_N = risk_indices(predictions.csi_N[with_csi])
    said_N = risk_indices(predictions.predicted.csi_N[with_csi])
    risk_NR = predictions.predicted.risk_NR[with_csi]
    values = {
        f"risk_auroc_{name}": weighted_auroc(truth_N == index, risk_NR[:, index], weights_RN)
        for index, name in enumerate(RISK_CLASSES)
    }
    told_apart = [f"risk_auroc_{RISK_CLASSES[index]}" for index in classes_told_apart(truth_N)]
    undefined_R = np.full(len(weights_RN), np.nan)
    values["risk_auroc"] = np.mean([values[name] for name in told_apart], axis=0) if told_apart else undefined_R
    values["risk_accuracy"] = _mean(weights_RN, (truth_N == said_N).astype(np.float64))
    return values


def classes_told_apart(truth_N: IntArray) -> list[int]:
    """Return the risk classes that some images have and others have not."""
    return [index for index in range(len(RISK_CLASSES)) if 0 < (truth_N == index).sum() < len(truth_N)]


def weighted_auroc(positive_N: npt.NDArray[np.bool_], score_N: FloatArray, weights_RN: FloatArray) -> FloatArray:
    """Return the area under the ROC curve [R] as the Mann-Whitney statistic, ties counted half; NaN for one class."""
    if len(score_N) == 0:
        return np.full(len(weights_RN), np.nan)
    order_N = np.argsort(score_N, kind="stable")
    starts_G = np.flatnonzero(np.diff(score_N[order_N], prepend=-np.inf))
    sorted_RN = weights_RN[:, order_N]
    positive_RG = np.add.reduceat(sorted_RN * positive_N[order_N], starts_G, axis=1)
    negative_RG = np.add.reduceat(sorted_RN * ~positive_N[order_N], starts_G, axis=1)
    below_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
    pairs_R = positive_RG.sum(axis=1) * negative_RG.sum(axis=1)
    return np.where(pairs_R > 0, (positive_RG * below_RG).sum(axis=1) / np.where(pairs_R > 0, pairs_R, 1), np.nan)


def _pearson(true_N: FloatArray, predicted_N: FloatArray, weights_RN: FloatArray) -> FloatArray:
    """Return the correlation [R]; NaN where either side is one value."""
    true_RN = true_N - _mean(weights_RN, true_N)[:, None]
    predicted_RN = predicted_N - _mean(weights_RN, predicted_N)[:, None]
    total_R = weights_RN.sum(axis=1)
    share_RN = weights_RN / np.where(total_R > 0, total_R, 1)[:, None]
    variances_R = (share_RN * true_RN**2).sum(axis=1), (share_RN * predicted_RN**2).sum(axis=1)
    defined_R = np.minimum(*variances_R) > MIN_VARIANCE
    scale_R = np.sqrt(np.where(defined_R, variances_R[0] * variances_R[1], 1))
    return np.where(defined_R, (share_RN * true_RN * predicted_RN).sum(axis=1) / scale_R, np.nan)


def _mean(weights_RN: FloatArray, values_N: FloatArray) -> FloatArray:
    """Return the weighted mean [R]; NaN where the weights sum to zero."""
    total_R = weights_RN.sum(axis=1)
    return np.where(total_R > 0, weights_RN @ values_N / np.where(total_R > 0, total_R, 1), np.nan)


NUM_BINS = 10


def calibration(predictions: Predictions) -> dict[str, Any]:
    """Return the bins of confidence and the expected calibration error over all graded zones.

    The confidence of a zone is the probability of its most probable score given that it is graded, the same
    distribution that the CSI and the risk probabilities come from.
    """
    graded_NZ = predictions.zones_NZ != UNKNOWN
    score_MS = score_distributions(predictions.probabilities_NZK)[graded_NZ]
    confidence_M = score_MS.max(axis=1)
    correct_M = (score_MS.argmax(axis=1) == predictions.zones_NZ[graded_NZ]).astype(np.float64)
    bin_M = np.minimum((confidence_M * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    num_B = np.bincount(bin_M, minlength=NUM_BINS)
    confidence_B = np.bincount(bin_M, confidence_M, minlength=NUM_BINS) / np.maximum(num_B, 1)
    accuracy_B = np.bincount(bin_M, correct_M, minlength=NUM_BINS) / np.maximum(num_B, 1)
    bins = [
        {
            "low": index / NUM_BINS,
            "high": (index + 1) / NUM_BINS,
            "num_zones": int(num_B[index]),
            "confidence": float(confidence_B[index]),
            "accuracy": float(accuracy_B[index]),
        }
        for index in np.flatnonzero(num_B)
    ]
    error = float((num_B * np.abs(confidence_B - accuracy_B)).sum() / num_B.sum()) if num_B.any() else None
    return {"expected_calibration_error": error, "bins": bins}
