import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csi_job.cache.manifest import load_info
from csi_job.evaluation.evaluate import Evaluation, measure_with_intervals
from csi_job.evaluation.measures import Predictions
from csi_job.evaluation.model_file import FORMAT
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.trial.model import build_model


def random_predictions(num_images: int, seed: int, *, skill: float = 1.5, unknown: float = 0.1, num_patients: int = 0):
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


def certain(zones, patients=None, predicted=None) -> Predictions:
    """Fully confident predictions of `predicted` (default: the truth)."""
    zones_NZ = np.asarray(zones, dtype=np.int64)
    predicted_NZ = zones_NZ if predicted is None else np.asarray(predicted, dtype=np.int64)
    return Predictions(
        probabilities_NZK=np.eye(5)[predicted_NZ],
        zones_NZ=zones_NZ,
        patients_N=np.arange(len(zones_NZ)) if patients is None else np.asarray(patients, dtype=np.int64),
        pseudonyms=tuple(str(index) for index in range(len(zones_NZ))),
    )


@pytest.fixture
def quick():
    return EvaluationSettings(num_bootstrap=200, seed=1)


def evaluated(predictions: Predictions, settings: EvaluationSettings, name: str = "model.safetensors") -> Evaluation:
    metrics = measure_with_intervals(predictions, settings)
    return Evaluation(name, "Custom_1", "test", "0123456789abcdef", predictions, settings, metrics)


def write_model_file(path: Path, *, seed: int = 0, **card) -> Path:
    """A small untrained model with its card in the metadata."""
    torch.manual_seed(seed)
    card = {"architecture": "Custom_1", "image_size_px": 32, "normalisation": "medical", "params": {}} | card
    save_file(build_model("Custom_1").state_dict(), path, {"format": FORMAT, "card": json.dumps(card)})
    return path


@pytest.fixture(scope="session")
def model_file(cache_folder, tmp_path_factory):
    key = load_info(cache_folder).key
    return write_model_file(tmp_path_factory.mktemp("models") / "small.safetensors", data={"cache": key})
