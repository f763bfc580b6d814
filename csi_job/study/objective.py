"""The objective of the study: one training."""

from functools import cached_property
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from csi_job.cache.dataset import SplitData
from csi_job.evaluation.bootstrap import resample_weights
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.radiographs.zones import UNKNOWN
from csi_job.storage.attributes import BEST_EPOCH, F1_SE, GFLOPS, IMAGES_PER_S, MICRO_BATCH, NUM_PARAMETERS
from csi_job.study.trial_run import RunningTrial, TrialObjective
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.metrics import Average, confusion, zone_rates
from csi_job.trial.model import gflops
from csi_job.trial.settings import TrialSettings
from csi_job.trial.train import TrainingResult, train_model

BOOTSTRAP: Final = EvaluationSettings(num_bootstrap=200, seed=0)


def training_objective(train: SplitData, validation: SplitData, settings: TrialSettings) -> TrialObjective:
    """Return the objective that trains a model with a trial's hyperparameters.

    Args:
        train: the split to learn from.
        validation: the split that `val_f1` is measured on.
        settings: everything about training that is not searched.

    Returns:
        an objective whose values are the best `val_f1`, and GFLOPs per image if the study has two objectives.
    """
    standard_error = F1StandardError(validation.zones_NZ, validation.patients_N, settings.objective_average)

    def objective(running: RunningTrial[Hyperparameters]) -> list[float]:
        if running.has_two_objectives:
            running.gflops = gflops(running.params.model_arch, train.images_NHW.shape[-1])
        result = train_trial(running, running.params, running.seed, train, validation, settings)
        running.attributes |= {
            GFLOPS: result.gflops,
            IMAGES_PER_S: median(epoch.images_per_s for epoch in result.epochs),
            BEST_EPOCH: result.best_epoch,
            NUM_PARAMETERS: result.num_parameters,
            MICRO_BATCH: result.micro_batch,
        }
        if result.best_pred_NZ is not None and (error := standard_error(result.best_pred_NZ)) is not None:
            running.attributes[F1_SE] = error
        values = [result.best_val_f1]
        return [*values, result.gflops] if running.has_two_objectives else values

    return objective


def train_trial(
    running: RunningTrial[Any],
    params: Hyperparameters,
    seed: int,
    train: SplitData,
    validation: SplitData,
    settings: TrialSettings,
) -> TrainingResult:
    """Train under a trial's lease, from its checkpoint if it is resumed; raise as `train_model` and the hooks do."""
    running.saves_checkpoints = True
    return train_model(
        train,
        validation,
        params,
        settings,
        max_epochs=running.max_epochs,
        seed=seed,
        hooks=running,
        checkpoint_folder=running.checkpoint_folder,
        resume_from=running.resume_from,
    )


class F1StandardError:
    """The standard error of `val_f1` over the validation split's patients, by bootstrap.

    Every trial gets the same resamples, so that trials differ only by their models; they are drawn once.
    """

    def __init__(self, zones_NZ: torch.Tensor, patients_N: torch.Tensor, average: Average) -> None:
        """Set the truth (int64 classes 0-4), each image's patient, and how `val_f1` averages the scores."""
        self.zones_NZ, self.patients_N, self.average = zones_NZ.numpy(), patients_N.numpy(), average

    def __call__(self, pred_NZ: torch.Tensor) -> float | None:
        """Return the standard error for predicted classes 0-4; None if fewer than two patients have graded zones."""
        if len(np.unique(self.patients_N[(self.zones_NZ != UNKNOWN).any(axis=1)])) < 2:  # noqa: PLR2004
            return None
        f1_RZ = zone_rates(confusion(pred_NZ.numpy(), self.zones_NZ, self._weights_RN), self.average).f1
        graded_RZ = ~np.isnan(f1_RZ)
        some_R = graded_RZ.any(axis=1)
        mean_R = np.where(graded_RZ, f1_RZ, 0)[some_R].sum(axis=1) / graded_RZ[some_R].sum(axis=1)
        return float(mean_R.std(ddof=1))

    @cached_property
    def _weights_RN(self) -> npt.NDArray[np.uint16]:  # noqa: N802 - the name carries the axes
        chunks = resample_weights(self.patients_N, BOOTSTRAP)
        return np.concatenate([weights_RN.astype(np.uint16) for weights_RN in chunks])
