"""Devices and their memory: detecting that it ran out, freeing it, and training in micro-batches.

Running out of memory is not a crash: the batch is computed in smaller pieces whose gradients add up to the same step.
Only a model that does not fit with one image at a time is infeasible.
"""

import gc
import itertools
import logging
import math
from collections.abc import Callable
from typing import TypeVar

import torch

from csi_job.errors import InfeasibleTrialError, ResourceError
from csi_job.trial.settings import TrialSettings

# How libraries below torch report that memory ran out.
OUT_OF_MEMORY_PHRASES = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
)

T = TypeVar("T")

fitting_sizes: dict[object, int] = {}
"""Micro-batches that memory was enough for, in this process."""

logger = logging.getLogger(__name__)


def choose_device(settings: TrialSettings) -> torch.device:
    """Return the device to run on; raise `ResourceError` if a GPU is requested and there is none.

    That is the machine's fault: elsewhere, or here once its driver is repaired, the same command works.
    """
    has_gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not has_gpu:
        hint = "use --device auto or cpu, or check the driver with nvidia-smi"
        raise ResourceError("trial.device is cuda, but torch finds no GPU", hint=hint)
    if not has_gpu or settings.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # with its index, so that it equals its tensors' device


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the host ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in OUT_OF_MEMORY_PHRASES)


def is_compiler_failure(error: BaseException) -> bool:
    """Return whether torch.compile, or the compiler it calls, failed."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def free_memory() -> None:
    """Free what a finished trial or a failed batch still holds on the device."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing if no GPU was used


class MicroBatches:
    """Computes batches in pieces of at most `size` images.

    Whenever memory runs out, `relieve` may free some and return True; otherwise `size` is halved, also for later ones
    with the same key.
    """

    def __init__(self, size: int, relieve: Callable[[], bool] = lambda: False, key: object = None) -> None:
        self.key = key, size
        self.size, self.relieve = fitting_sizes.get(self.key, size), relieve

    def pieces(self, num_images: int) -> list[slice]:
        """Cut a batch into the fewest pieces, of even size: batch norm cannot handle a last piece of one image."""
        num_pieces = math.ceil(num_images / self.size)
        edges = [num_images * index // num_pieces for index in range(num_pieces + 1)]
        return [slice(low, high) for low, high in itertools.pairwise(edges)]

    def run(self, num_images: int, compute: Callable[[list[slice]], T]) -> T:
        """Return `compute(pieces)` for the pieces of a batch; it starts over with smaller pieces if memory runs out.

        Raises:
            InfeasibleTrialError: one image at a time does not fit.
        """
        while True:
            try:
                return compute(self.pieces(num_images))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler the error is gone, and with it the frames that held the failed batch's tensors.
            relieved = self.relieve()
            free_memory()
            if relieved:
                continue
            tried = min(self.size, num_images)
            if tried == 1:
                hint = "use a smaller architecture, smaller images or a larger GPU"
                raise InfeasibleTrialError("out of memory with a micro-batch of one image", hint=hint)
            self.size = fitting_sizes[self.key] = tried // 2
            sizes = {"micro_batch": tried, "next": self.size}
            message = "out of memory with a micro-batch of %(micro_batch)d images; continuing with %(next)d"
            logger.warning(message, sizes)
