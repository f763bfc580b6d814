"""The objective `val_f1`: F1 over the scores 0-3 of each zone, from confusion matrices; without torch.

It equals scikit-learn's `f1_score(labels=[0, 1, 2, 3], zero_division=0)` over the graded labels of a zone. Labels of
unknown truth (class 4) are excluded; a 4 predicted for a graded zone counts as wrong.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from csi_job.radiographs.zones import SCORES

Average = Literal["macro", "weighted"]
NUM_SCORES = len(SCORES)
Floats = npt.NDArray[np.float64]


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
