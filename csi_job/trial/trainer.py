"""One model in training: the steps of an epoch, validation, and the state for checkpoints.

Within an epoch, the host never waits for the device: batches are sampled, augmented and learned there, and losses and
predictions stay there until the end of the epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from csi_job.cache.dataset import SplitData
from csi_job.errors import InfeasibleTrialError
from csi_job.trial.augment import augment_batch
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.inference import confusion, to_input
from csi_job.trial.loss import CsiLoss, class_weights
from csi_job.trial.memory import MicroBatches, is_out_of_memory
from csi_job.trial.metrics import mean_f1
from csi_job.trial.model import build_model, gflops
from csi_job.trial.settings import TrialSettings

BATCH_NORM_PHRASE = "more than 1 value per channel"  # in torch's ValueError for one image with features of 1 x 1


@dataclass(frozen=True)
class Validation:
    """An epoch's result on the validation split."""

    loss: float
    val_f1: float
    pred_NZ: Tensor  # noqa: N815 - a tensor carries its axes
    """The predicted classes, uint8 on the CPU."""


class Trainer:
    """A model, its optimizer and its data on one device."""

    def __init__(
        self,
        train: SplitData,
        validation: SplitData,
        params: Hyperparameters,
        settings: TrialSettings,
        device: torch.device,
    ) -> None:
        self.params, self.settings, self.device = params, settings, device
        self.train_data, self.validation_data = _move_if_it_fits(train, device), _move_if_it_fits(validation, device)
        self.model = build_model(params.model_arch, settings.pretrained)
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload] # faster on CPUs too
        self.gflops = gflops(params.model_arch, train.images_NHW.shape[-1])
        torch.backends.cudnn.benchmark = True  # all batches except the last have the same shape; for GPUs only
        if settings.compile:
            self.model.compile()
        balance_ZK = class_weights(train.zones_NZ) if settings.class_balance else None
        self.loss = CsiLoss(params.unknown_weight, balance_ZK).to(device)
        self.optimizer = make_optimizer(self.model, params)
        self.micro_batches = MicroBatches(params.batch_size)
        self.is_bf16 = settings.precision == "bf16" or (
            settings.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
        )

    def train_epoch(self, seed: int, step_rate: Callable[[int, int], float], batch_done: Callable[[], None]) -> float:
        """Train on every training image once, and return the mean loss.

        The seed covers everything random in this epoch. `step_rate(i, n)` gives the learning rate of step i of n;
        `batch_done` may raise.
        """
        torch.manual_seed(seed)
        self.model.train()
        data = self.train_data
        order = torch.Generator(data.images_NHW.device).manual_seed(seed)
        augmentation = torch.Generator(self.device).manual_seed(seed)
        batches = batch_indices(len(data), self.params.batch_size, order)
        total = torch.zeros((), device=self.device)
        for step, index_B in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = step_rate(step, len(batches))
            image_BHW, zones_BZ = self._fetch(data, index_B)
            if self.settings.augment.enabled:
                image_BHW, zones_BZ = augment_batch(image_BHW, zones_BZ, self.settings.augment, augmentation)
            total += self._step(to_input(image_BHW, self.train_data.normalisation), zones_BZ) * len(index_B)
            batch_done()
        return float(total) / len(data)

    def _step(self, image_BCHW: Tensor, zones_BZ: Tensor) -> Tensor:
        """Take one optimizer step for a batch, in as many pieces as memory requires; return its loss, on the device."""

        def compute(pieces: list[slice]) -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            batch_loss = torch.zeros((), device=self.device)
            for piece in pieces:
                share = (piece.stop - piece.start) / len(zones_BZ)
                loss = self.loss(self._logits(image_BCHW[piece]), zones_BZ[piece]) * share
                loss.backward()
                batch_loss += loss.detach()
            self.optimizer.step()
            return batch_loss

        return self.micro_batches.run(len(zones_BZ), compute)

    def _logits(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_bf16):
            try:
                logits_BZK: Tensor = self.model(image_BCHW)
            except ValueError as error:
                if BATCH_NORM_PHRASE not in str(error):
                    raise
                message = "batch norm cannot learn from one image at a time at this image size"
                raise InfeasibleTrialError(message, hint="use larger batches or larger images") from error
        return logits_BZK

    @torch.no_grad()
    def validate(self, batch_done: Callable[[], None]) -> Validation:
        """Predict the validation split."""
        self.model.eval()
        data = self.validation_data
        total = torch.zeros((), device=self.device)
        predicted: list[Tensor] = []
        for index_B in torch.split(torch.arange(len(data), device=data.images_NHW.device), self.params.batch_size):
            image_BHW, zones_BZ = self._fetch(data, index_B)
            logits_BZK = self._infer(to_input(image_BHW, self.train_data.normalisation))
            total += self.loss(logits_BZK, zones_BZ) * len(index_B)
            predicted.append(logits_BZK.argmax(dim=-1))
            batch_done()
        pred_NZ = torch.cat(predicted).cpu()
        val_f1 = mean_f1(confusion(pred_NZ, data.zones_NZ.cpu()).numpy(), self.settings.objective_average)
        return Validation(float(total) / len(data), val_f1, pred_NZ.to(torch.uint8))

    def _infer(self, image_BCHW: Tensor) -> Tensor:
        def compute(pieces: list[slice]) -> Tensor:
            return torch.cat([self._logits(image_BCHW[piece]).float() for piece in pieces])

        return self.micro_batches.run(len(image_BCHW), compute)

    def _fetch(self, data: SplitData, index_B: Tensor) -> tuple[Tensor, Tensor]:
        image_BHW, zones_BZ = data.images_NHW[index_B], data.zones_NZ[index_B]
        if image_BHW.device.type == self.device.type:
            return image_BHW, zones_BZ
        image_BHW, zones_BZ = image_BHW.pin_memory(), zones_BZ.pin_memory()
        return image_BHW.to(self.device, non_blocking=True), zones_BZ.to(self.device, non_blocking=True)

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's state on the CPU, contiguous as model files require."""
        state = self.model.state_dict()
        return {name: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, t in state.items()}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to resume, except for the weights."""
        return {"optimizer": self.optimizer.state_dict(), "micro_batch": self.micro_batches.size}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state()`, with the weights as `model`; the device may be of another kind."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.micro_batches.size = state["micro_batch"]

    def free(self) -> None:
        """Drop everything on the device, even while an exception's traceback still references this object."""
        self.__dict__.clear()


def make_optimizer(model: nn.Module, params: Hyperparameters) -> torch.optim.Optimizer:
    """Return the optimizer, fused into one kernel; only sgd uses `momentum`."""
    weights, rate, decay = model.parameters(), params.learning_rate, params.weight_decay
    if params.optimizer == "sgd":
        return torch.optim.SGD(weights, rate, momentum=params.momentum, weight_decay=decay, fused=True)
    kind = torch.optim.AdamW if params.optimizer == "adamw" else torch.optim.Adam
    return kind(weights, rate, weight_decay=decay, fused=True)


def batch_indices(num_images: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Return batches of images in random order; a last batch of one image joins the one before it.

    Batch norm learns nothing from a single image, and may reject it.
    """
    order_N = torch.randperm(num_images, generator=generator, device=generator.device)
    batches = list(torch.split(order_N, batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [order_N[-batch_size - 1 :]]
    return batches


def _move_if_it_fits(data: SplitData, device: torch.device) -> SplitData:
    """Return the split on the device, or unchanged if it does not fit."""
    try:
        return data.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return data
