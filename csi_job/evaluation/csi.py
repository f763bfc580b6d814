"""From class probabilities of the zones to scores, the CSI mean and the risk class.

The CSI averages the zones that the model predicts to be graded (argmax is a score, not unknown), as the true CSI
averages graded zones. An image without any uses all six, so that every image has a CSI and two models are compared on
the same images; `num_graded_N` is 0 for such an image.

A zone contributes its score distribution given that it is graded, p(s) / (1 - p(unknown)). The CSI is the expected
score, which uses what the model knows between two scores. The risk probabilities are the mass of that same
distribution below, between and above the two limits, with zones independent given the image. The risk class follows
from the CSI by the CSI-Predictor project's limits, not clinically validated.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csi_job.radiographs.zones import (
    LOW_RISK_MAX_CSI,
    MEDIUM_RISK_MAX_CSI,
    NUM_ZONES,
    RISK_CLASSES,
    SCORES,
    UNKNOWN,
    risk_class,
)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NUM_SCORES = len(SCORES)
NUM_TOTALS = NUM_ZONES * max(SCORES) + 1  # sums of six scores: 0 to 18


@dataclass(frozen=True)
class CsiPredictions:
    """Scores, CSI and risk of N images."""

    scores_NZ: IntArray  # noqa: N815 - an array carries its axes
    """Most probable class of each zone, 0 to 4."""
    num_graded_N: IntArray  # noqa: N815
    """Zones predicted graded; 0 where all six are used."""
    csi_N: FloatArray  # noqa: N815
    """CSI mean, 0 to 3."""
    risk_NR: FloatArray  # noqa: N815
    """Probability of low, medium and high risk; rows sum to 1."""
    given_graded_NZ: IntArray  # noqa: N815
    """Most probable score of each zone, 0 to 3, given that it is graded."""
    mean_score_N: FloatArray  # noqa: N815
    """Mean of `scores_NZ` over the zones predicted graded; NaN where none is."""


def predict_csi(probabilities_NZK: FloatArray) -> CsiPredictions:
    """Return scores, CSI and risk probabilities for class probabilities [N, 6 zones, 5 classes]."""
    scores_NZ = probabilities_NZK.argmax(axis=2).astype(np.int64)
    graded_NZ = scores_NZ != UNKNOWN
    used_NZ = graded_NZ | ~graded_NZ.any(axis=1, keepdims=True)
    score_NZS = score_distributions(probabilities_NZK)
    expected_NZ = score_NZS @ np.asarray(SCORES, dtype=np.float64)
    csi_N = (expected_NZ * used_NZ).sum(axis=1) / used_NZ.sum(axis=1)
    total_NT = np.zeros((len(score_NZS), NUM_TOTALS))  # the score distributions of the used zones, convolved
    total_NT[:, 0] = 1
    for zone in range(NUM_ZONES):
        added_NT = np.zeros_like(total_NT)
        for score in SCORES:
            added_NT[:, score:] += total_NT[:, : NUM_TOTALS - score] * score_NZS[:, zone, score, None]
        total_NT = np.where(used_NZ[:, zone, None], added_NT, total_NT)
    risk_NR = (total_NT[:, :, None] * _RISK_OF_TOTAL_GTR[used_NZ.sum(axis=1)]).sum(axis=1)
    return CsiPredictions(
        scores_NZ, graded_NZ.sum(axis=1), csi_N, risk_NR, score_NZS.argmax(axis=2).astype(np.int64), true_csi(scores_NZ)
    )


def score_distributions(probabilities_NZK: FloatArray) -> FloatArray:
    """Return P(score | graded) [N, 6 zones, 4 scores]; uniform where no score has any probability."""
    scores_NZS = probabilities_NZK[..., :NUM_SCORES]
    mass_NZ1 = scores_NZS.sum(axis=2, keepdims=True)
    return np.where(mass_NZ1 > 0, scores_NZS / np.where(mass_NZ1 > 0, mass_NZ1, 1), 1 / NUM_SCORES)


def true_csi(zones_NZ: npt.NDArray[np.integer]) -> FloatArray:
    """Return the mean over graded zones of each image [N]; NaN where none is graded."""
    graded_NZ = zones_NZ != UNKNOWN
    num_graded_N = graded_NZ.sum(axis=1)
    total_N = (zones_NZ * graded_NZ).sum(axis=1).astype(np.float64)
    return np.where(num_graded_N > 0, total_N / np.maximum(num_graded_N, 1), np.nan)


def risk_indices(csi_N: FloatArray) -> IntArray:
    """Return 0 low, 1 medium, 2 high for each CSI, which must not be NaN."""
    return np.searchsorted([LOW_RISK_MAX_CSI, MEDIUM_RISK_MAX_CSI], csi_N, side="left").astype(np.int64)


# One-hot risk classes [number of zones 0..6, total 0..18, 3], by division like `risk_class`; no image uses 0 zones.
_RISK_OF_TOTAL_GTR = np.array(
    [
        [[float(name == risk_class(total / max(num_zones, 1))) for name in RISK_CLASSES] for total in range(NUM_TOTALS)]
        for num_zones in range(NUM_ZONES + 1)
    ]
)
