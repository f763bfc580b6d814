"""The objective `val_f1`: F1 over the scores 0-3 of each zone, from confusion matrices; without torch.

It equals scikit-learn's `f1_score(labels=[0, 1, 2, 3], zero_division=0)` over the graded labels of a zone. Labels of
unknown truth (class 4) are excluded; a 4 predicted for a graded zone counts as wrong.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from csi_job.radiographs.zones import SCORES

Average = Literal["macro", "weighted"]
NUM_SCORES = len(SCORES)
Floats = npt.NDArray[np.float64]


def zone_f1(confusion_ZKK: npt.ArrayLike, average: Average = "macro") -> Floats:
    """Return the F1 of each zone.

    Args:
        confusion_ZKK: counts `[…, Z, 5, 5]`, rows are the truth; leading axes (bootstrap samples) are kept.
        average: `macro`: the mean over the four scores; `weighted`: weighted by the frequency of each score.

    Returns:
        float64 `[…, Z]`; NaN for a zone without graded labels.
    """
    rates = score_rates(confusion_ZKK)
    return _averaged(rates.f1, rates.support, average)


def zone_precision(confusion_ZKK: npt.ArrayLike) -> Floats:
    """Return the precision of each zone, the mean over its four scores; otherwise as `zone_f1`."""
    rates = score_rates(confusion_ZKK)
    return _averaged(rates.precision, rates.support, "macro")


def zone_recall(confusion_ZKK: npt.ArrayLike) -> Floats:
    """Return the recall of each zone, the mean over its four scores; otherwise as `zone_f1`."""
    rates = score_rates(confusion_ZKK)
    return _averaged(rates.recall, rates.support, "macro")


def mean_f1(confusion_ZKK: npt.ArrayLike, average: Average = "macro") -> float:
    """Return `val_f1`: the mean F1 over the zones with graded labels, NaN if there are none."""
    zone_f1_Z = zone_f1(confusion_ZKK, average)
    graded = ~np.isnan(zone_f1_Z)
    return float(zone_f1_Z[graded].mean()) if graded.any() else math.nan


@dataclass(frozen=True)
class ScoreRates:
    """Rates of each score in each zone, `[…, Z, 4]`; 0 instead of a division by zero."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Floats
    """Number of labels with this score."""


def score_rates(confusion_ZKK: npt.ArrayLike) -> ScoreRates:
    """Return precision, recall and F1 of each score in each zone from counts `[…, Z, 5, 5]`."""
    graded = np.asarray(confusion_ZKK, dtype=np.float64)[..., :NUM_SCORES, :]  # rows whose truth is a score
    support = graded.sum(axis=-1)  # includes predicted 4s, which are wrong
    predicted = graded[..., :NUM_SCORES].sum(axis=-2)
    hits = np.diagonal(graded, axis1=-2, axis2=-1)
    f1 = _ratio(2 * hits, support + predicted)
    return ScoreRates(_ratio(hits, predicted), _ratio(hits, support), f1, support)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _averaged(rate: Floats, support: Floats, average: Average) -> Floats:
    total = support.sum(axis=-1)
    mean = rate.mean(axis=-1) if average == "macro" else _ratio((rate * support).sum(axis=-1), total)
    return np.where(total > 0, mean, np.nan)
