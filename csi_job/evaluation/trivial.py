"""Trivial predictors, which answer the same for every film: what a model must beat to be of any use.

Zone by zone they know the training labels and nothing else: always the commonest score, or always the median score.
"""

from typing import Any, Final

import numpy as np

from csi_job.evaluation.csi import NUM_SCORES, IntArray
from csi_job.evaluation.difference import paired_differences
from csi_job.evaluation.measures import SUMMARY_METRICS, ZONE_METRICS, Predictions
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.radiographs.zones import NUM_CLASSES, ZONES

TRIVIAL: Final = {"commonest": "always the commonest score", "median": "always the median score"}


def constant_scores(train_zones_NZ: IntArray) -> dict[str, IntArray]:
    """Return the score [6] of each zone that each trivial predictor answers; 0 for a zone that is never graded.

    Of several scores that are equally common, and of two middle ones, the lower counts, as in scikit-learn's
    `DummyClassifier` and `statistics.median_low`.
    """
    counts_ZS = (train_zones_NZ[..., None] == np.arange(NUM_SCORES)).sum(axis=0)
    up_to_ZS = counts_ZS.cumsum(axis=1)
    median_Z = (2 * up_to_ZS >= up_to_ZS[:, -1:]).argmax(axis=1)
    return {"commonest": counts_ZS.argmax(axis=1), "median": median_Z}


def compare_with_trivial(
    predictions: Predictions, train_zones_NZ: IntArray, settings: EvaluationSettings
) -> dict[str, Any]:
    """Return each trivial predictor as JSON values: its scores, and the model's differences from it in every metric."""
    compared = {}
    for name, scores_Z in constant_scores(train_zones_NZ).items():
        constant_NZK = np.broadcast_to(np.eye(NUM_CLASSES)[scores_Z], predictions.probabilities_NZK.shape)
        truth = predictions.zones_NZ, predictions.patients_N, predictions.pseudonyms
        differences = paired_differences(predictions, Predictions(constant_NZK, *truth), settings)
        compared[name] = {
            "name": TRIVIAL[name],
            "scores": dict(zip(ZONES, scores_Z.tolist(), strict=True)),
            "metrics": {metric: differences[metric].to_json() for metric in SUMMARY_METRICS},
            "zones": {
                zone: {metric: differences[f"{zone}.{metric}"].to_json() for metric in ZONE_METRICS} for zone in ZONES
            },
        }
    return compared
