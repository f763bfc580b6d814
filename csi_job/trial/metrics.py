"""The objective `val_f1`: F1 over the scores 0-3 of each zone, from confusion matrices; without torch.

It equals scikit-learn's `f1_score(labels=[0, 1, 2, 3], zero_division=0)` over the graded labels of a zone. Labels of
unknown truth (class 4) are excluded; a 4 predicted for a graded zone counts as wrong.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES, SCORES

Average = Literal["macro", "weighted"]
NUM_SCORES = len(SCORES)
WEIGHTED = (  # said where `objective_average` is `weighted`
    "The validation F1 of search and training weights each score by how often it occurs, so it is not comparable with "
    "the macro F1 of the evaluation, which counts every score equally."
)
Floats = npt.NDArray[np.float64]


def confusion(pred_NZ: npt.ArrayLike, true_NZ: npt.ArrayLike, weights_RN: npt.NDArray[Any] | None = None) -> Floats:
    """Count images by zone, truth and prediction.

    Args:
        pred_NZ: classes 0-4.
        true_NZ: likewise.
        weights_RN: how often each image counts, per resample; None: once.

    Returns:
        `confusion_ZKK`, or with weights `[R, Z, K, K]`: rows are the truth, columns the prediction.
    """
    shape = (NUM_ZONES, NUM_CLASSES, NUM_CLASSES)
    cell_NZ = (np.arange(NUM_ZONES) * NUM_CLASSES + np.asarray(true_NZ)) * NUM_CLASSES + np.asarray(pred_NZ)
    cells, weights = cell_NZ.ravel(), np.ones((1, len(cell_NZ))) if weights_RN is None else weights_RN
    counts = [np.bincount(cells, np.repeat(weight_N, NUM_ZONES), math.prod(shape)) for weight_N in weights]
    confusion_RZKK = np.array(counts, dtype=np.float64).reshape(-1, *shape)
    return confusion_RZKK[0] if weights_RN is None else confusion_RZKK


class ZoneRates(NamedTuple):
    """The rates of each zone, `[…, Z]`: means over its four scores; NaN for a zone without graded labels."""

    f1: Floats
    precision: Floats
    recall: Floats


def zone_rates(confusion_ZKK: npt.ArrayLike, average: Average = "macro") -> ZoneRates:
    """Return the rates of each zone, where a division by zero counts as 0.

    Args:
        confusion_ZKK: counts `[…, Z, 5, 5]`, rows are the truth; leading axes (bootstrap samples) are kept.
        average: `macro`: every score counts the same; `weighted`: by its frequency.
    """
    graded = np.asarray(confusion_ZKK, dtype=np.float64)[..., :NUM_SCORES, :]  # rows whose truth is a score
    support = graded.sum(axis=-1)  # includes predicted 4s, which are wrong
    predicted = graded[..., :NUM_SCORES].sum(axis=-2)
    hits, total = np.diagonal(graded, axis1=-2, axis2=-1), support.sum(axis=-1)
    rates = _ratio(2 * hits, support + predicted), _ratio(hits, predicted), _ratio(hits, support)
    means = (r.mean(axis=-1) if average == "macro" else _ratio((r * support).sum(axis=-1), total) for r in rates)
    return ZoneRates(*(np.where(total > 0, mean, np.nan) for mean in means))


def mean_f1(confusion_ZKK: npt.ArrayLike, average: Average = "macro") -> float:
    """Return `val_f1`: the mean F1 over the zones with graded labels, NaN if there are none."""
    f1_Z = zone_rates(confusion_ZKK, average).f1
    graded = ~np.isnan(f1_Z)
    return float(f1_Z[graded].mean()) if graded.any() else math.nan


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
