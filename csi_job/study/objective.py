"""The objective of the study: one training."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from csi_job.errors import CheckpointWriteError
from csi_job.evaluation.bootstrap import resampled
from csi_job.evaluation.measures import weighted_confusion
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.logs import get_logger
from csi_job.storage.attributes import BEST_EPOCH, F1_SE, GFLOPS, IMAGES_PER_S, MICRO_BATCH, NUM_PARAMETERS
from csi_job.study.trial_run import RunningTrial, TrialObjective
from csi_job.trial.inference import predict_logits
from csi_job.trial.memory import choose_device, free_memory, is_out_of_memory
from csi_job.trial.metrics import Average, zone_f1
from csi_job.trial.model import build_model, gflops
from csi_job.trial.train import TrainingResult, train_model

if TYPE_CHECKING:
    import numpy.typing as npt

    from csi_job.cache.dataset import SplitData
    from csi_job.evaluation.csi import FloatArray
    from csi_job.trial.hyperparameters import Hyperparameters
    from csi_job.trial.settings import TrialSettings
    from csi_job.trial.train import TrainingResult


logger = get_logger(__name__)
# The same resamples for every trial, so that trials differ only by their models.
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

    def objective(running: RunningTrial[Hyperparameters]) -> list[float]:
        if running.has_two_objectives:
            model = build_model(running.params.model_arch)
            running.gflops = gflops(model, train.images_NHW.shape[-1])
        result = _train(running, train, validation, settings)
        running.attributes |= _attributes(result)
        running.check()
        running.attributes[F1_SE] = training_f1_error(result, running.params, validation, settings)
        values = [result.best_val_f1]
        return [*values, result.gflops] if running.has_two_objectives else values

    return objective


def _train(
    running: RunningTrial[Hyperparameters],
    train: SplitData,
    validation: SplitData,
    settings: TrialSettings,
) -> TrainingResult:
    options: dict[str, Any] = {"max_epochs": running.max_epochs, "seed": running.seed, "hooks": running}
    try:
        return train_model(
            train,
            validation,
            running.params,
            settings,
            **options,
            checkpoint_folder=running.checkpoint_folder,
            resume_from=running.resume_from,
        )
    except CheckpointWriteError as error:
        # A full disk is not the trial's fault, and would fail every later trial as well.
        logger.warning("%s; trial %d continues without checkpoints", error, running.number)
    return train_model(train, validation, running.params, settings, **options, resume_from=running.promoted)


def _attributes(result: TrainingResult) -> dict[str, Any]:
    """Return what the report shows of a training besides its curve."""
    return {
        GFLOPS: result.gflops,
        IMAGES_PER_S: median(epoch.images_per_s for epoch in result.epochs),
        BEST_EPOCH: result.best_epoch,
        NUM_PARAMETERS: result.num_parameters,
        MICRO_BATCH: result.micro_batch,
    }


def f1_standard_error(
    pred_NZ: torch.Tensor, true_NZ: torch.Tensor, patients_N: npt.NDArray[np.int64], average: Average
) -> float:
    """Return the standard error of `val_f1` over patients, by bootstrap.

    Args:
        pred_NZ: int64 classes 0-4.
        true_NZ: int64 classes 0-4.
        patients_N: each image's patient.
        average: how `val_f1` averages the scores.

    """

    def mean_f1(weights_RN: FloatArray) -> dict[str, FloatArray]:
        f1_RZ = zone_f1(weighted_confusion(pred_NZ.numpy(), true_NZ.numpy(), weights_RN), average)
        graded_RZ = ~np.isnan(f1_RZ)
        return {"f1": np.where(graded_RZ, f1_RZ, 0).sum(axis=1) / np.maximum(graded_RZ.sum(axis=1), 1)}

    return float(resampled(patients_N, BOOTSTRAP, mean_f1)["f1"].std(ddof=1))


def training_f1_error(
    result: TrainingResult,
    params: Hyperparameters,
    validation: SplitData,
    settings: TrialSettings,
) -> float | None:
    """Return the standard error of a training's best `val_f1`, None if memory runs out."""
    device = choose_device(settings)
    try:
        model = build_model(params.model_arch)
        model.load_state_dict(result.best_state)
        batch_size = min(result.micro_batch, params.batch_size)
        model.to(device)
        logits_NZK = predict_logits(model, validation.images_NHW, validation.normalisation, batch_size, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        free_memory()
    patients_N = validation.patients_N.cpu().numpy()
    return f1_standard_error(
        logits_NZK.argmax(dim=-1), validation.zones_NZ.cpu(), patients_N, settings.objective_average
    )
