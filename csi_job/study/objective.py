"""The objective of the study: one training."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from csi_job.errors import CheckpointWriteError
from csi_job.logs import get_logger
from csi_job.study.attributes import BEST_EPOCH, F1_STD, GFLOPS, IMAGES_PER_S, MICRO_BATCH, NUM_PARAMETERS
from csi_job.study.running import Objective, RunningTrial
from csi_job.study.uncertainty import training_f1_error
from csi_job.trial.model import build_model, gflops
from csi_job.trial.train import TrainingResult, train_model

if TYPE_CHECKING:
    from csi_job.cache.dataset import SplitData
    from csi_job.trial.hyperparameters import Hyperparameters
    from csi_job.trial.settings import TrialSettings

logger = get_logger(__name__)


def training_objective(
    train: SplitData, validation: SplitData, settings: TrialSettings, *, normalisation: str
) -> Objective:
    """Return the objective that trains a model with a trial's hyperparameters.

    Args:
        train: the split to learn from.
        validation: the split that `val_f1` is measured on.
        settings: everything of training that is not searched.
        normalisation: of the pixels, by name.

    Returns:
        an objective whose values are the best `val_f1`, and GFLOPs an image where the study has two objectives.

    """

    def objective(running: RunningTrial[Hyperparameters]) -> list[float]:
        if running.has_two_objectives:
            model = build_model(running.params.model_arch)
            running.gflops = gflops(model, train.images_NHW.shape[-1])
        result = _train(running, train, validation, settings, normalisation)
        running.attributes |= _attributes(result)
        running.check()
        running.attributes[F1_STD] = training_f1_error(result, running.params, validation, settings, normalisation)
        values = [result.best_val_f1]
        return [*values, result.gflops] if running.has_two_objectives else values

    return objective


def _train(
    running: RunningTrial[Hyperparameters],
    train: SplitData,
    validation: SplitData,
    settings: TrialSettings,
    normalisation: str,
) -> TrainingResult:
    options: dict[str, Any] = {
        "normalisation": normalisation,
        "max_epochs": running.max_epochs,
        "seed": running.seed,
        "hooks": running,
    }
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
        # A full disk is not the trial's fault, and would fail every trial after it as well.
        logger.warning("%s; trial %d goes on without checkpoints", error, running.number)
    return train_model(train, validation, running.params, settings, **options, resume_from=running.promoted)


def _attributes(result: TrainingResult) -> dict[str, Any]:
    """Return what the report tells of a training beside its curve."""
    return {
        GFLOPS: result.gflops,
        IMAGES_PER_S: median(epoch.images_per_s for epoch in result.epochs),
        BEST_EPOCH: result.best_epoch,
        NUM_PARAMETERS: result.num_parameters,
        MICRO_BATCH: result.micro_batch,
    }
