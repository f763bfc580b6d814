"""How far the probabilities of zone scores can be believed: reliability bins and expected calibration error.

Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from csi_job.evaluation.csi import score_distributions
from csi_job.evaluation.measures import Predictions
from csi_job.radiographs.zones import UNKNOWN

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
