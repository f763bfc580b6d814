"""One model in training: the steps of an epoch, validation, and the state for checkpoints.

Within an epoch, the host never waits for the device: batches are sampled, augmented and learned there, and losses and
predictions stay there until the end of the epoch. Images that do not fit there are fetched a few batches ahead.
"""

import importlib.util
import logging
import math
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from csi_job.cache.dataset import SplitData
from csi_job.errors import InfeasibleTrialError
from csi_job.files import make_folder
from csi_job.trial.augment import augment_batch
from csi_job.trial.graph import Graphs
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.inference import HALF_TYPES, choose_precision, to_input
from csi_job.trial.loss import CsiLoss, class_weights
from csi_job.trial.memory import MicroBatches, choose_device, is_compiler_failure, is_out_of_memory
from csi_job.trial.metrics import confusion, mean_f1
from csi_job.trial.model import build_model, gflops
from csi_job.trial.settings import TrialSettings

logger = logging.getLogger(__name__)

VALIDATION_FACTOR = 4  # images of a validation batch on a GPU, per image of a training batch, which needs more memory
# Training images of 224 px from which `auto` compiles. A compilation takes 17 s and saves 67 us per image
# (docs/performance.md), which 253,000 images pay back: 5 epochs of these. In the default space no trial stops earlier,
# since patience is at least 5. A trial's own patience must not count: a study would compare compiled with uncompiled
# trials. What it saves in other networks was not measured.
COMPILED_FROM = {"Custom_1": 253_000 // 5}
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
        self.on_host = train, validation
        self.train_data, self.validation_data = (_on_device_if_it_fits(split, device) for split in self.on_host)
        self.model = build_model(params.model_arch, settings.pretrained)
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload] # faster on CPUs too
        self.gflops = gflops(params.model_arch, train.images_NHW.shape[-1])
        self.compiled: Callable[..., Any] = self.model
        if pays_to_compile(settings, params.model_arch, train.images_NHW.shape, device):
            torch.compiler.reset()  # forgets earlier models: code compiled eight times would not be compiled again
            self.compiled = torch.compile(self.model, dynamic=False)
        balance_ZK = class_weights(train.zones_NZ) if settings.class_balance else None
        self.loss = CsiLoss(params.unknown_weight, balance_ZK).to(device)
        precision = choose_precision(settings.precision, device)
        self.half_type = HALF_TYPES.get(precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.optimizer = make_optimizer(self.model, params)
        if self.scaler.is_enabled():
            start_momentum(self.optimizer)
        self.augmentation = torch.Generator(device)
        self.graphs = Graphs(device, self.augmentation, enabled=settings.cuda_graphs)
        shape = params.model_arch, train.images_NHW.shape[-1], device
        self.micro_batches = self.validation_batches = MicroBatches(params.batch_size, self._relieve, shape)
        self.validation_batch_size = params.batch_size
        if device.type == "cuda":
            self.validation_batch_size *= VALIDATION_FACTOR
            self.validation_batches = MicroBatches(self.validation_batch_size, self._relieve, (*shape, "validation"))

    def _relieve(self) -> bool:
        """Free what only saves time: the data, then the recorded graphs, which save more; return whether there was any.

        Raises:
            torch.OutOfMemoryError: a graph is being recorded; its function is then called directly.
        """
        if self.graphs.is_recording:
            raise torch.OutOfMemoryError("out of memory")
        on_device = self.train_data, self.validation_data
        is_resident = any(split is not host for split, host in zip(on_device, self.on_host, strict=True))
        self.train_data, self.validation_data = self.on_host
        for split in self.on_host:
            split.leave_devices()
        if is_resident:
            logger.warning("out of memory; the images leave the GPU for this trial, which takes longer")
        return is_resident or self.graphs.release()

    def train_epoch(self, seed: int, step_rate: Callable[[int, int], float], batch_done: Callable[[], None]) -> float:
        """Train on every training image once, and return the mean loss.

        The seed covers everything random in this epoch. `step_rate(i, n)` gives the learning rate of step i of n;
        `batch_done` may raise.
        """
        torch.manual_seed(seed)
        self.augmentation.manual_seed(seed)
        self.model.train()
        order = torch.Generator(self.device).manual_seed(seed)  # the same wherever the data are
        batches = batch_indices(len(self.train_data), self.params.batch_size, order, self.train_data.images_NHW.device)
        total = torch.zeros((), device=self.device)
        with closing(self._fetch(lambda: self.train_data, batches)) as fetched:
            for step, batch in enumerate(fetched):
                set_learning_rate(self.optimizer, step_rate(step, len(batches)))
                total += self.graphs.call(self._train_batch, *batch) * len(batches[step])
                batch_done()
        return float(total) / len(self.train_data)

    def _train_batch(self, image_BHW: Tensor, zones_BZ: Tensor) -> Tensor:
        """Augment a batch and take one optimizer step, in as many pieces as memory requires; return its loss."""
        if self.settings.augment.enabled:
            image_BHW, zones_BZ = augment_batch(image_BHW, zones_BZ, self.settings.augment, self.augmentation)
        image_BCHW = to_input(image_BHW, self.train_data.normalisation)

        def compute(pieces: list[slice]) -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            batch_loss = torch.zeros((), device=self.device)
            for piece in pieces:
                share = (piece.stop - piece.start) / len(zones_BZ)
                loss = self.loss(self._logits(image_BCHW[piece]), zones_BZ[piece]) * share
                self.scaler.scale(loss).backward()
                batch_loss += loss.detach()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return batch_loss

        try:
            return self.micro_batches.run(len(zones_BZ), compute)
        except RuntimeError as error:
            if self.settings.compile != "auto" or not is_compiler_failure(error):
                raise
            reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            logger.warning("training %s without compiling it, which failed: %s", self.params.model_arch, reason)
        self.compiled = self.model
        return self.micro_batches.run(len(zones_BZ), compute)

    def _logits(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        usual = self.model.training and len(image_BCHW) == min(self.params.batch_size, self.micro_batches.size)
        network = self.compiled if usual else self.model  # one compilation per model: that of the commonest shape
        with torch.autocast(self.device.type, dtype=self.half_type, enabled=self.half_type is not None):
            try:
                logits_BZK: Tensor = network(image_BCHW)
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
        num_images = len(self.validation_data)
        total = torch.zeros((), device=self.device)
        predicted: list[Tensor] = []
        order_N = torch.arange(num_images, device=self.validation_data.images_NHW.device)
        batches = torch.split(order_N, self.validation_batch_size)
        with closing(self._fetch(lambda: self.validation_data, batches)) as fetched:
            for batch in fetched:
                loss, pred_BZ = self.graphs.call(self._validate_batch, *batch)
                total += loss * len(pred_BZ)
                predicted.append(pred_BZ.to(torch.uint8))  # a copy
                batch_done()
        pred_NZ = torch.cat(predicted).cpu()
        val_f1 = mean_f1(confusion(pred_NZ, self.on_host[1].zones_NZ), self.settings.objective_average)
        return Validation(float(total) / num_images, val_f1, pred_NZ)

    def _validate_batch(self, image_BHW: Tensor, zones_BZ: Tensor) -> tuple[Tensor, Tensor]:
        image_BCHW = to_input(image_BHW, self.train_data.normalisation)

        def compute(pieces: list[slice]) -> Tensor:
            return torch.cat([self._logits(image_BCHW[piece]).float() for piece in pieces])

        logits_BZK = self.validation_batches.run(len(zones_BZ), compute)
        return self.loss(logits_BZK, zones_BZ), logits_BZK.argmax(dim=-1)

    def _fetch(
        self, data: Callable[[], SplitData], indices: Sequence[Tensor]
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield the images and zones of batches, from the GPU until the data leave it (`_relieve`)."""
        for step, index_B in enumerate(indices):
            if data().images_NHW.is_cpu:
                yield from data().fetch_ahead(indices[step:], self.device)
                return
            yield data().images_NHW[index_B], data().zones_NZ[index_B]

    @contextmanager
    def snapshot(self) -> Iterator[dict[str, Any]]:
        """Yield a copy of what a checkpoint needs to resume, on the host, complete when the block ends.

        A GPU copies it to pinned memory while it computes what is in the block, which must not change the state.
        """
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(self.device))
        state = {"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict()}
        with torch.cuda.stream(stream):
            copy = tree_map_only(Tensor, lambda t: t.detach().to("cpu", non_blocking=True, copy=True), state)
        yield {**copy, "scaler": self.scaler.state_dict(), "micro_batch": self.micro_batches.size}
        if stream is not None:
            stream.synchronize()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `snapshot()`; the device may be of another kind."""
        self.model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # the device's, whatever device the checkpoint is from
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.micro_batches.size = state["micro_batch"]

    def free(self) -> None:
        """Drop everything on the device, even while an exception's traceback still references this object."""
        self.__dict__.clear()


def may_compile(settings: TrialSettings, device: torch.device) -> bool:
    """Return whether any network may be compiled; `auto`: on a GPU, with Triton and the C compiler that it needs."""
    if settings.compile != "auto":
        return settings.compile
    has_triton = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return has_triton and bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def pays_to_compile(settings: TrialSettings, arch: str, shape_NHW: Sequence[int], device: torch.device) -> bool:
    """Return whether to compile a network; `auto`: if there are enough training images to pay for it.

    It depends on nothing else, so that on like machines a study compiles all trials of an architecture or none.
    """
    if settings.compile != "auto":
        return settings.compile
    num_images, *size_px = shape_NHW
    images_of_224_px = num_images * math.prod(size_px) / 224**2
    return may_compile(settings, device) and images_of_224_px >= COMPILED_FROM.get(arch, math.inf)


def keep_compiled(settings: TrialSettings, folder: Path) -> None:
    """Let torch.compile keep code in a folder for later processes, unless the environment names another.

    It serves several processes at once, and any GPU: torch finds what suits the network, the GPU and all versions.
    """
    if may_compile(settings, choose_device(settings)):
        with suppress(OSError):  # a read-only folder: then torch uses the one for temporary files
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(make_folder(folder / f"torch-{torch.__version__}")))


def make_optimizer(model: nn.Module, params: Hyperparameters) -> torch.optim.Optimizer:
    """Return the optimizer, fused into one kernel; only sgd uses `momentum`.

    On a GPU its learning rate is a tensor there, which a recorded CUDA graph reads.
    """
    device, rate, decay = next(model.parameters()).device, params.learning_rate, params.weight_decay
    on_gpu = device.type == "cuda"
    options: dict[str, Any] = {"lr": torch.tensor(rate, device=device) if on_gpu else rate, "fused": True}
    if params.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=params.momentum, weight_decay=decay, **options)
    kind = torch.optim.AdamW if params.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), weight_decay=decay, capturable=on_gpu, **options)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start sgd's momentum at 0; torch would start it undefined if loss scaling skips the first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step, where the optimizer keeps it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def batch_indices(
    num_images: int, batch_size: int, generator: torch.Generator, device: torch.device | None = None
) -> list[Tensor]:
    """Return batches of images in random order, on a device; a last batch of one image joins the one before it.

    Batch norm learns nothing from a single image, and may reject it.
    """
    order_N = torch.randperm(num_images, generator=generator, device=generator.device).to(device)
    batches = list(torch.split(order_N, batch_size))
    if batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [order_N[-batch_size - 1 :]]
    return batches


def _on_device_if_it_fits(data: SplitData, device: torch.device) -> SplitData:
    """Return the split on the device, or unchanged if it does not fit."""
    try:
        return data.on(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return data
