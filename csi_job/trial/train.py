"""Training of one model with one set of hyperparameters: the epochs, their checkpoints, and resuming from one."""

import logging
import math
import random
import time
import weakref
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from csi_job.cache.dataset import SplitData
from csi_job.errors import (
    CheckpointError,
    CheckpointWriteError,
    ConfigurationError,
    CsiJobError,
    DataError,
    InfeasibleTrialError,
    LeaseLostError,
    StopRequestedError,
)
from csi_job.radiographs.zones import UNKNOWN
from csi_job.trial.checkpoint import CheckpointWriter, load_checkpoint
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.memory import choose_device, free_memory, is_compiler_failure, is_out_of_memory
from csi_job.trial.schedule import EpochResult, Schedule
from csi_job.trial.settings import TrialSettings
from csi_job.trial.trainer import Trainer

SEED_STRIDE = 1_000_003  # a prime above any number of epochs, so that no two (seed, epoch) share a random state
SEED_MODULUS = 2**63
NOT_RESUMED = (InfeasibleTrialError, LeaseLostError, CheckpointError)

logger = logging.getLogger(__name__)


class TrainingHooks(Protocol):
    """Called while a model trains; an exception raised by a hook ends the training."""

    def batch_done(self) -> None:
        """Note that training is alive; called after every batch."""

    def epoch_done(self, result: EpochResult, checkpoint: Path | None) -> None:
        """Take the result of an epoch, and the newest checkpoint on the disk, which may be of an earlier one."""

    def checkpoint_failed(self, error: CheckpointWriteError) -> None:
        """Take the reason why training continues without checkpoints."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished training."""

    best_epoch: int
    best_val_f1: float
    epochs: tuple[EpochResult, ...]
    best_state: dict[str, Tensor] = field(repr=False)
    """The model's state at the best epoch, on the CPU."""
    best_pred_NZ: Tensor | None = field(repr=False)  # noqa: N815 - a tensor carries its axes
    """The validation split's predicted classes at the best epoch; None if its checkpoint is of an earlier version."""
    num_parameters: int
    gflops: float
    """Cost per image, as counted by `model.gflops`."""
    micro_batch: int
    """Images computed at once; less than the batch size if memory ran out."""


def train_model(  # noqa: PLR0913 - two splits, what is searched, what is not, and the run's own state
    train: SplitData,
    validation: SplitData,
    params: Hyperparameters,
    settings: TrialSettings,
    *,
    max_epochs: int,
    seed: int,
    hooks: TrainingHooks,
    checkpoint_folder: Path | None = None,
    resume_from: Path | None = None,
) -> TrainingResult:
    """Train a model until `val_f1` stops improving or `max_epochs` are done.

    On the CPU it is deterministic for a seed: interrupted and resumed training gives the same bits as uninterrupted.
    Checkpoints are written to `checkpoint_folder`, if given, now and then (`CheckpointWriter`), and that of the last
    epoch when the training is interrupted; `resume_from` is one of them, and `max_epochs` includes the epochs before
    it.

    Raises:
        InfeasibleTrialError: out of memory even with one image at a time, or a non-finite loss.
        CheckpointError: the checkpoint cannot be read, or belongs to another training.
        ConfigurationError: the device, architecture, compiler or weights are not available.
        DataError: too few images, or no graded label to validate on.
    """
    run = _Run(params, settings, seed, hooks, checkpoint_folder)
    try:
        run.start(train, validation, resume_from)
        return run.train(max_epochs)
    except (CsiJobError, StopRequestedError) as error:
        if not isinstance(error, NOT_RESUMED):
            run.save_last()
        raise
    except (RuntimeError, MemoryError) as error:
        if settings.compile and is_compiler_failure(error):
            message = "trial.compile: compiling the model failed"
            raise ConfigurationError(message, hint="set trial.compile to false, or install a C compiler") from error
        if not is_out_of_memory(error):
            raise
    finally:
        run.free()
    # Outside the handler, which keeps the frames, and the memory, of the failure alive.
    free_memory()
    hint = "use a smaller architecture, smaller batches or a larger GPU"
    raise InfeasibleTrialError("out of memory: model, optimizer and a batch of images do not fit", hint=hint)


class _Run:
    trainer: Trainer

    def __init__(
        self, params: Hyperparameters, settings: TrialSettings, seed: int, hooks: TrainingHooks, folder: Path | None
    ) -> None:
        self.params, self.settings, self.seed, self.hooks = params, settings, seed, hooks
        self.checkpoints = None if folder is None else CheckpointWriter(folder)
        self.results: list[EpochResult] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_pred_NZ: Tensor | None = None
        self.schedule = Schedule(params.learning_rate, params.patience)
        self.identity: dict[str, Any] = {**params.to_params(), "seed": seed}

    def start(self, train: SplitData, validation: SplitData, resume_from: Path | None) -> None:
        if len(train) < 2 or not bool((validation.zones_NZ != UNKNOWN).any()):  # noqa: PLR2004 - batch norm needs two
            message = "training needs two training images and a graded validation label"
            raise DataError(message, got=f"{len(train)} and {len(validation)} images")
        self.identity |= {"image_size_px": train.images_NHW.shape[-1], "num_images": len(train)}
        device = choose_device(self.settings)
        seed_everything(self.seed)
        self.trainer = Trainer(train, validation, self.params, self.settings, device)
        if resume_from is not None:
            self._resume(resume_from)

    def _resume(self, path: Path) -> None:
        """Continue after the checkpoint's epoch; raise `CheckpointError` if it belongs to another training."""
        state = load_checkpoint(path)
        differing = [name for name, value in self.identity.items() if state.get("identity", {}).get(name) != value]
        if differing:
            message = f"the checkpoint {path.name} belongs to another training: {', '.join(differing)} differ"
            raise CheckpointError(message)
        self.trainer.load_state(state)
        self.results = [EpochResult(**result) for result in state["results"]]
        self.schedule = Schedule(self.params.learning_rate, self.params.patience, self.results)
        self.best_state = state["best"] or state["model"]
        self.best_pred_NZ = state.get("best_predictions")

    def train(self, max_epochs: int) -> TrainingResult:
        while len(self.results) < max_epochs and not self.schedule.should_stop:
            result, pred_NZ, state = self._epoch()
            self.results.append(result)
            self.schedule.update(result)
            if self.schedule.best_epoch == result.epoch:
                self.best_state, self.best_pred_NZ = state["model"], pred_NZ
            self.hooks.epoch_done(result, self._save(result, state))
        return TrainingResult(
            best_epoch=self.schedule.best_epoch,
            best_val_f1=self.schedule.best_val_f1,
            epochs=tuple(self.results),
            best_state={name: tensor.contiguous() for name, tensor in self.best_state.items()},
            best_pred_NZ=self.best_pred_NZ,
            num_parameters=sum(weight.numel() for weight in self.trainer.model.parameters()),
            gflops=self.trainer.gflops,
            micro_batch=self.trainer.micro_batches.size,
        )

    def _epoch(self) -> tuple[EpochResult, Tensor, dict[str, Any]]:
        epoch, start = len(self.results), time.perf_counter()
        train_loss = self.trainer.train_epoch(
            (self.seed * SEED_STRIDE + epoch) % SEED_MODULUS,
            lambda step, num_steps: self.schedule.step_rate(epoch, step, num_steps),
            self.hooks.batch_done,
        )
        train_s = time.perf_counter() - start
        _check_finite(train_loss, "training", epoch)
        learning_rate = self.schedule.learning_rate
        with self.trainer.snapshot() as state:
            validation = self.trainer.validate(self.hooks.batch_done)
        _check_finite(validation.loss, "validation", epoch)
        seconds = time.perf_counter() - start
        images_per_s = len(self.trainer.train_data) / train_s
        values = train_loss, validation.loss, validation.val_f1
        return EpochResult(epoch, *values, learning_rate, images_per_s, seconds), validation.pred_NZ, state

    def _save(self, result: EpochResult, state: dict[str, Any]) -> Path | None:
        if self.checkpoints is None:
            return None
        content = {
            **state,
            "best": {} if self.best_state is state["model"] else self.best_state,  # never the same weights twice
            "best_predictions": self.best_pred_NZ,
            "identity": self.identity,
            "results": [asdict(result) for result in self.results],
        }
        try:
            return self.checkpoints.epoch_done(result.epoch, content, result.seconds)
        except CheckpointWriteError as error:
            self.checkpoints = None
            self.hooks.checkpoint_failed(error)
            return None

    def save_last(self) -> None:
        """Write the last epoch's checkpoint, for the worker that resumes this training."""
        try:
            if self.checkpoints is not None:
                self.checkpoints.flush()
        except CheckpointWriteError as error:
            logger.warning("%s", error)

    def free(self) -> None:
        """Free the model; a collection, which costs as much as a short trial, only if something still refers to it."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        if hasattr(self, "trainer"):
            model = weakref.ref(self.trainer.model)
            self.trainer.free()
            if model() is not None:
                free_memory()


def seed_everything(seed: int) -> None:
    """Seed the random numbers of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries still use the global state
    torch.manual_seed(seed)


def _check_finite(loss: float, which: str, epoch: int) -> None:
    if not math.isfinite(loss):
        message = f"the {which} loss of epoch {epoch + 1} is {loss}"
        raise InfeasibleTrialError(message, hint="narrow space.learning_rate if this happens often")
