"""Devices and their memory: what is out of memory, how it is freed, and training in micro-batches.

Out of memory is knowledge, not a crash: a batch is computed in smaller pieces whose gradients add up to the same
step, and only a model that does not fit with one image at a time is infeasible.
"""

from __future__ import annotations

import gc
import itertools
import math
from typing import TYPE_CHECKING, TypeVar

import torch

from csi_job.errors import ConfigurationError, InfeasibleTrialError
from csi_job.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from csi_job.trial.settings import TrialSettings

# Libraries below torch report the same in their own words.
OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
)

T = TypeVar("T")

_log = get_logger(__name__)


def choose_device(settings: TrialSettings) -> torch.device:
    """Return the device to train on; raise `ConfigurationError` if a GPU is asked for and there is none."""
    has_gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not has_gpu:
        message = "trial.device is cuda, but torch sees no GPU"
        raise ConfigurationError(message, hint="use --device auto or cpu, or check the driver with nvidia-smi")
    if not has_gpu or settings.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # with its number, as tensors on it name theirs


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def is_compiler_failure(error: BaseException) -> bool:
    """Whether torch.compile, or the compiler it calls, failed."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def free_memory() -> None:
    """Give back what a finished trial or a failed batch still holds on the device."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where no GPU was used


class MicroBatches:
    """Computes batches in even pieces of at most `size` images; `size` is halved whenever memory runs out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def pieces(self, num_images: int) -> list[slice]:
        """Cut a batch into the fewest even pieces, since batch norm cannot take a last piece of one image."""
        num_pieces = math.ceil(num_images / self.size)
        edges = [num_images * index // num_pieces for index in range(num_pieces + 1)]
        return [slice(low, high) for low, high in itertools.pairwise(edges)]

    def run(self, num_images: int, attempt: Callable[[list[slice]], T]) -> T:
        """Return what `attempt` returns for the pieces of a batch, trying smaller pieces until they fit.

        Args:
            num_images: size of the batch.
            attempt: computes the whole batch from the start, in the given pieces; called again after a failure.

        Raises:
            InfeasibleTrialError: one image at a time does not fit.

        """
        while True:
            try:
                return attempt(self.pieces(num_images))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Out here the error is gone, and with it the frames that held the failed batch's tensors.
            self._halve(num_images)

    def _halve(self, num_images: int) -> None:
        free_memory()
        tried = min(self.size, num_images)
        if tried == 1:
            message = "out of memory with a micro-batch of one image"
            raise InfeasibleTrialError(message, hint="use a smaller architecture, smaller images or a larger GPU")
        self.size = tried // 2
        _log.warning("Out of memory with a micro-batch of %d images; going on with %d.", tried, self.size)
