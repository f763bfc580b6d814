from __future__ import annotations

import numpy as np
import pytest

from csi_job.evaluation.measures import Predictions
from csi_job.evaluation.settings import EvaluationSettings


def draw_predictions(num_images: int, seed: int, *, skill: float = 1.5, unknown: float = 0.1, num_patients: int = 0):
    """Random truth and probabilities that know something of it; `unknown` is the share of ungraded zones."""
    generator = np.random.default_rng(seed)
    severity = generator.integers(0, 4, size=(num_images, 1))
    zones_NZ = np.clip(severity + generator.integers(-1, 2, size=(num_images, 6)), 0, 3)
    zones_NZ = np.where(generator.random((num_images, 6)) < unknown, 4, zones_NZ)
    logits_NZK = generator.normal(size=(num_images, 6, 5)) + skill * np.eye(5)[zones_NZ]
    exp_NZK = np.exp(logits_NZK)
    return Predictions(
        probabilities_NZK=exp_NZK / exp_NZK.sum(axis=2, keepdims=True),
        zones_NZ=zones_NZ.astype(np.int64),
        patients_N=generator.integers(0, num_patients or num_images, size=num_images).astype(np.int64),
        pseudonyms=tuple(f"{index:012x}" for index in range(num_images)),
    )


def certain(zones, patients=None, said=None) -> Predictions:
    """Predictions that are sure of `said` (default: the truth)."""
    zones_NZ = np.asarray(zones, dtype=np.int64)
    said_NZ = zones_NZ if said is None else np.asarray(said, dtype=np.int64)
    return Predictions(
        probabilities_NZK=np.eye(5)[said_NZ],
        zones_NZ=zones_NZ,
        patients_N=np.arange(len(zones_NZ)) if patients is None else np.asarray(patients, dtype=np.int64),
        pseudonyms=tuple(str(index) for index in range(len(zones_NZ))),
    )


@pytest.fixture
def quick() -> EvaluationSettings:
    return EvaluationSettings(num_bootstrap=200, seed=1)
