"""One model in training: its epochs, its validation, and its state for checkpoints.

Inside an epoch nothing waits for the device: batches are drawn, augmented and learned there, and losses and confusion
counts stay there until the epoch's end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from csi_job.errors import InfeasibleTrialError
from csi_job.trial.augment import augment_batch
from csi_job.trial.inference import to_input
from csi_job.trial.loss import CsiLoss, class_weights
from csi_job.trial.memory import MicroBatches, is_out_of_memory
from csi_job.trial.metrics import confusion, mean_f1
from csi_job.trial.model import build_model, gflops

if TYPE_CHECKING:
    from csi_job.cache.dataset import SplitData
    from csi_job.trial.hyperparameters import Hyperparameters
    from csi_job.trial.settings import TrialSettings

BATCH_NORM_WORDS = "more than 1 value per channel"  # torch's ValueError for one image whose features are 1 x 1


@dataclass(frozen=True)
class Validation:
    """Loss and objective on the validation split."""

    loss: float
    f1: float


class Trainer:
    """A model, its optimizer and its data on one device."""

    def __init__(
        self,
        train: SplitData,
        validation: SplitData,
        params: Hyperparameters,
        settings: TrialSettings,
        *,
        normalisation: str,
        device: torch.device,
    ) -> None:
        self.params, self.settings, self.normalisation, self.device = params, settings, normalisation, device
        self.train_data, self.validation_data = _resident(train, device), _resident(validation, device)
        self.model = build_model(params.model_arch, settings.pretrained)
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload] # faster on CPUs too
        self.gflops = gflops(self.model, train.images_NHW.shape[-1])
        torch.backends.cudnn.benchmark = True  # all batches but the last have one shape; only GPUs look at this
        if settings.compile:
            self.model.compile()
        balance_ZK = class_weights(train.zones_NZ) if settings.class_balance else None
        self.loss = CsiLoss(params.unknown_weight, balance_ZK).to(device)
        self.optimizer = make_optimizer(self.model, params)
        self.micro_batches = MicroBatches(params.batch_size)
        self.is_bf16 = _wants_bf16(settings, device)

    def train_epoch(self, seed: int, step_rate: Callable[[int, int], float], batch_done: Callable[[], None]) -> float:
        """Learn every training image once.

        Args:
            seed: of all that is random in this epoch: order, augmentation, dropout.
            step_rate: the learning rate of step i of n.
            batch_done: called after every batch; may raise.

        Returns:
            the mean loss.

        """
        torch.manual_seed(seed)
        self.model.train()
        data = self.train_data
        order = torch.Generator(data.images_NHW.device).manual_seed(seed)
        changes = torch.Generator(self.device).manual_seed(seed)
        batches = batch_indices(len(data), self.params.batch_size, order)
        total = torch.zeros((), device=self.device)
        for step, index_B in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = step_rate(step, len(batches))
            image_BHW, zones_BZ = self._fetch(data, index_B)
            if self.settings.augment.enabled:
                image_BHW, zones_BZ = augment_batch(image_BHW, zones_BZ, self.settings.augment, changes)
            total += self._learn(to_input(image_BHW, self.normalisation), zones_BZ) * len(index_B)
            batch_done()
        return float(total) / len(data)

    def _learn(self, image_BCHW: Tensor, zones_BZ: Tensor) -> Tensor:
        """Take one optimizer step for a batch, in as many pieces as memory asks for; return its loss, on the device."""

        def attempt(pieces: list[slice]) -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            batch_loss = torch.zeros((), device=self.device)
            for piece in pieces:
                share = (piece.stop - piece.start) / len(zones_BZ)
                loss = self.loss(self._logits(image_BCHW[piece]), zones_BZ[piece]) * share
                loss.backward()
                batch_loss += loss.detach()
            self.optimizer.step()
            return batch_loss

        return self.micro_batches.run(len(zones_BZ), attempt)

    def _logits(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_bf16):
            try:
                logits_BZK: Tensor = self.model(image_BCHW)
            except ValueError as error:
                if BATCH_NORM_WORDS not in str(error):
                    raise
                message = "batch norm cannot learn from one image at a time at this image size"
                raise InfeasibleTrialError(message, hint="use larger batches or larger images") from error
        return logits_BZK

    @torch.no_grad()
    def validate(self, batch_done: Callable[[], None]) -> Validation:
        """Return loss and `val_f1` of the validation split."""
        self.model.eval()
        data = self.validation_data
        total = torch.zeros((), device=self.device)
        confusion_ZKK: Tensor | int = 0
        for index_B in torch.split(torch.arange(len(data), device=data.images_NHW.device), self.params.batch_size):
            image_BHW, zones_BZ = self._fetch(data, index_B)
            logits_BZK = self._infer(to_input(image_BHW, self.normalisation))
            total += self.loss(logits_BZK, zones_BZ) * len(index_B)
            confusion_ZKK = confusion_ZKK + confusion(logits_BZK.argmax(dim=-1), zones_BZ)
            batch_done()
        assert isinstance(confusion_ZKK, Tensor)
        f1 = mean_f1(confusion_ZKK.cpu().numpy(), self.settings.objective_average)
        return Validation(float(total) / len(data), f1)

    def _infer(self, image_BCHW: Tensor) -> Tensor:
        def attempt(pieces: list[slice]) -> Tensor:
            return torch.cat([self._logits(image_BCHW[piece]).float() for piece in pieces])

        return self.micro_batches.run(len(image_BCHW), attempt)

    def _fetch(self, data: SplitData, index_B: Tensor) -> tuple[Tensor, Tensor]:
        image_BHW, zones_BZ = data.images_NHW[index_B], data.zones_NZ[index_B]
        if image_BHW.device.type == self.device.type:
            return image_BHW, zones_BZ
        image_BHW, zones_BZ = image_BHW.pin_memory(), zones_BZ.pin_memory()
        return image_BHW.to(self.device, non_blocking=True), zones_BZ.to(self.device, non_blocking=True)

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's state on the CPU, in the plain memory order that model files ask for."""
        state = self.model.state_dict()
        return {name: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, t in state.items()}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs, beside the weights, to go on."""
        return {"optimizer": self.optimizer.state_dict(), "micro_batch": self.micro_batches.size}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()` and the weights as `model`, also on another kind of device than they were made on."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.micro_batches.size = state["micro_batch"]

    def release(self) -> None:
        """Let go of everything on the device, even while an exception's traceback still holds this object."""
        self.__dict__.clear()


def make_optimizer(model: nn.Module, params: Hyperparameters) -> torch.optim.Optimizer:
    """Return the optimizer, one kernel for all weights; `momentum` is that of sgd alone."""
    weights, rate, decay = model.parameters(), params.learning_rate, params.weight_decay
    if params.optimizer == "sgd":
        return torch.optim.SGD(weights, rate, momentum=params.momentum, weight_decay=decay, fused=True)
    kind = torch.optim.AdamW if params.optimizer == "adamw" else torch.optim.Adam
    return kind(weights, rate, weight_decay=decay, fused=True)


def batch_indices(num_images: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Return a random order of the images in batches; a last batch of one joins the one before it.

    Batch norm learns nothing from one image, and may refuse it; no image is left out for that.
    """
    order_N = torch.randperm(num_images, generator=generator, device=generator.device)
    batches = list(torch.split(order_N, batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [order_N[-batch_size - 1 :]]
    return batches


def _resident(data: SplitData, device: torch.device) -> SplitData:
    """Return the split on the device, or as it is where it does not fit."""
    try:
        return data.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return data


def _wants_bf16(settings: TrialSettings, device: torch.device) -> bool:
    if settings.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return settings.precision == "bf16"
