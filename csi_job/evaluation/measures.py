"""Every metric of an evaluation as a function of weights: [R, N] in, {name: [R]} out, NaN where undefined.

With all weights one these are scikit-learn's numbers on the same predictions. Zone metrics cover graded zones and the
scores 0-3 with `zero_division=0`; a predicted "unknown" on a graded zone counts as wrong, except in the mean absolute
error, which takes the most probable score given that the zone is graded. CSI and risk metrics cover
images with at least one graded zone. The risk AUROC is the mean one-vs-rest AUROC over the classes that the whole split
can separate; a resample that lacks one of them is degenerate, since a mean over fewer classes is another quantity.
"""

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
from csi_job.radiographs.zones import RISK_CLASSES, UNKNOWN, ZONE_NAMES, ZONES
from csi_job.trial.metrics import confusion, zone_rates

MIN_VARIANCE = 1e-12  # below it CSI values (0 to 3) differ by rounding only
NUM_BINS = 10

METRIC_NAMES = {
    "f1_macro": "Macro F1",
    "f1_weighted": "Weighted F1",
    "accuracy": "Zones: accuracy",
    "mae": "Zones: MAE",
    "csi_mae": "CSI: MAE",
    "csi_rmse": "CSI: RMSE",
    "csi_pearson_r": "CSI: Pearson r",
    "risk_auroc": "Risk: AUROC",
    **{f"risk_auroc_{name}": f"  AUROC {name}" for name in RISK_CLASSES},
    "risk_accuracy": "Risk: accuracy",
}
HEADLINE = "f1_macro"  # chosen in advance: the metric that decides
SUMMARY_METRICS = tuple(METRIC_NAMES)
MEANS_OVER_ZONES = ("f1_macro", "f1_weighted", "accuracy", "mae")
ZONE_METRICS = ("f1_macro", "f1_weighted", "precision", "recall", "accuracy", "mae")
COMPARED = (*SUMMARY_METRICS, *(f"{zone}.{name}" for zone in ZONES for name in ZONE_METRICS))
LOWER_IS_BETTER = {name for name in COMPARED if name.endswith(("mae", "rmse"))}


@dataclass(frozen=True)
class Predictions:
    """A model's class probabilities for the images of a split, and the truth.

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


def why_undefined(name: str, predictions: Predictions) -> str:
    """Explain why a metric is undefined."""
    if "." in name:
        return "the zone is not graded in any image"
    if not predictions.has_csi_N.any():
        return "no image has a graded zone"
    if name == "csi_pearson_r":
        return "the true or the predicted CSI is the same in all images"
    if name == "risk_auroc":
        return "all images are of one risk class"
    risk = name.removeprefix("risk_auroc_")
    truth_N = risk_indices(predictions.csi_N[predictions.has_csi_N])
    return f"{'all images are' if (truth_N == RISK_CLASSES.index(risk)).any() else 'no image is'} of {risk} risk"


def num_patients_measured(name: str, predictions: Predictions) -> int:
    """Return how many patients a metric rests on: those with a graded zone, or with this zone graded.

    For an AUROC they are those of the rarer side: the order of 2 against 19 patients rests on the 2.
    """
    zone, _, _ = name.rpartition(".")
    counts_N = predictions.zones_NZ[:, ZONES.index(zone)] != UNKNOWN if zone else predictions.has_csi_N
    patients_N = predictions.patients_N[counts_N]
    if not name.startswith("risk_auroc"):
        return len(np.unique(patients_N))
    risk_N = risk_indices(predictions.csi_N[counts_N])
    sides = {
        f"risk_auroc_{risk}": [len(np.unique(patients_N[mask_N])) for mask_N in (risk_N == index, risk_N != index)]
        for index, risk in enumerate(RISK_CLASSES)
    }
    chosen = sides.get(name) or [size for pair in sides.values() if all(pair) for size in pair]
    return min(chosen, default=0)


def num_patients_behind(name: str, predictions: Predictions) -> int:
    """Return how many patients could contradict a share of 0 or 1; 0 for a metric that is not a share."""
    is_share = name not in LOWER_IS_BETTER and name != "csi_pearson_r"
    return num_patients_measured(name, predictions) if is_share else 0


def metric_name(name: str) -> str:
    """Return a metric's display name, e.g. `F1, right sup` for `right_sup.f1_macro`."""
    zone, _, _ = name.rpartition(".")
    return f"F1, {ZONE_NAMES[zone]}" if zone else METRIC_NAMES[name]


def measure(predictions: Predictions, weights_RN: FloatArray) -> dict[str, FloatArray]:
    """Return every metric for each row of weights, by name (`f1_macro`, `right_sup.recall`, `risk_auroc_high`, …)."""
    confusion_RZKK = confusion(predictions.predicted.scores_NZ, predictions.zones_NZ, weights_RN)
    graded_RZSK = confusion_RZKK[:, :, :NUM_SCORES, :]
    hits_RZ = np.trace(graded_RZSK[..., :NUM_SCORES], axis1=2, axis2=3)
    rates = zone_rates(confusion_RZKK)
    by_name = {
        "f1_macro": rates.f1,
        "f1_weighted": zone_rates(confusion_RZKK, "weighted").f1,
        "precision": rates.precision,
        "recall": rates.recall,
        "accuracy": _ratio(hits_RZ, graded_RZSK.sum(axis=(2, 3))),
    }
    values = {f"{zone}.{name}": by_name[name][:, index] for name in by_name for index, zone in enumerate(ZONES)}
    graded_NZ = predictions.zones_NZ != UNKNOWN
    graded_Z = graded_NZ.any(axis=0)
    error_NZ = np.abs(predictions.predicted.given_graded_NZ - predictions.zones_NZ) * graded_NZ
    mae_RZ = _ratio(weights_RN @ error_NZ.astype(np.float64), weights_RN @ graded_NZ.astype(np.float64))
    values |= {f"{zone}.mae": mae_RZ[:, index] for index, zone in enumerate(ZONES)}
    for name in MEANS_OVER_ZONES:
        zones_RZ = np.stack([values[f"{zone}.{name}"] for zone in ZONES], axis=1)[:, graded_Z]
        values[name] = zones_RZ.mean(axis=1) if graded_Z.any() else np.full(len(weights_RN), np.nan)
    with_csi = predictions.has_csi_N
    true_N, predicted_N = predictions.csi_N[with_csi], predictions.predicted.csi_N[with_csi]
    weights_RN = weights_RN[:, with_csi]
    values["csi_mae"] = _mean(weights_RN, np.abs(predicted_N - true_N))
    values["csi_rmse"] = np.sqrt(_mean(weights_RN, (predicted_N - true_N) ** 2))
    values["csi_pearson_r"] = _pearson(true_N, predicted_N, weights_RN)
    risk_NR = predictions.predicted.risk_NR[with_csi]
    return values | _risk_values(risk_indices(true_N), risk_indices(predicted_N), risk_NR, weights_RN)


def _risk_values(
    true_N: IntArray, predicted_N: IntArray, risk_NR: FloatArray, weights_RN: FloatArray
) -> dict[str, FloatArray]:
    """Return the accuracy of the risk class, its AUROC per class, and their mean over the separable classes."""
    values = {
        f"risk_auroc_{name}": weighted_auroc(true_N == index, risk_NR[:, index], weights_RN)
        for index, name in enumerate(RISK_CLASSES)
    }
    separable = [  # some images belong to the class, others do not
        values[f"risk_auroc_{name}"]
        for index, name in enumerate(RISK_CLASSES)
        if 0 < (true_N == index).sum() < len(true_N)
    ]
    values["risk_auroc"] = np.mean(separable, axis=0) if separable else np.full(len(weights_RN), np.nan)
    values["risk_accuracy"] = _mean(weights_RN, (true_N == predicted_N).astype(np.float64))
    return values


def weighted_auroc(positive_N: npt.NDArray[np.bool_], score_N: FloatArray, weights_RN: FloatArray) -> FloatArray:
    """Return the AUROC [R] as the Mann-Whitney statistic, ties counted half; NaN if one class is missing."""
    if len(score_N) == 0:
        return np.full(len(weights_RN), np.nan)
    order_N = np.argsort(score_N, kind="stable")
    starts_G = np.flatnonzero(np.diff(score_N[order_N], prepend=-np.inf))
    sorted_RN = weights_RN[:, order_N]
    positive_RG = np.add.reduceat(sorted_RN * positive_N[order_N], starts_G, axis=1)
    negative_RG = np.add.reduceat(sorted_RN * ~positive_N[order_N], starts_G, axis=1)
    below_RG = np.cumsum(negative_RG, axis=1) - negative_RG / 2
    pairs_R = positive_RG.sum(axis=1) * negative_RG.sum(axis=1)
    return _ratio((positive_RG * below_RG).sum(axis=1), pairs_R)


def _pearson(true_N: FloatArray, predicted_N: FloatArray, weights_RN: FloatArray) -> FloatArray:
    """Return the correlation [R]; NaN where either side is constant."""
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
    return _ratio(weights_RN @ values_N, weights_RN.sum(axis=1))


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide element by element; NaN where the denominator is zero."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), np.nan)


def calibration(predictions: Predictions) -> dict[str, Any]:
    """Return the bins of a reliability diagram and the expected calibration error over all graded zones.

    The confidence of a zone is the probability of its most probable score given that it is graded, from the same
    distribution as the CSI and the risk probabilities. scikit-learn's `calibration_curve` gives the same bins, but not
    how many zones are in each, which the error and the diagram need.
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
