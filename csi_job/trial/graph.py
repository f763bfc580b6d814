"""Functions on a GPU as CUDA graphs: recorded once for each shape of their inputs, then launched with a single call.

Python takes longer to launch a small network's kernels one by one than the GPU takes to run them. A graph launches the
same kernels in the same order, so it computes the same bits. On a CPU, functions are simply called.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

NUM_EAGER = 2  # calls before recording: the first creates the optimizer's state, and libraries load their kernels

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Graphs:
    """Calls functions of tensors, as graphs from their third call with the same shapes on.

    A function may work only with its inputs and with memory that stays where it is: weights, the optimizer's state,
    the data, and the random state of torch's default generator and of `generator`. It must not wait for the device.
    What it returns is valid until its next call.
    """

    def __init__(self, device: torch.device, generator: torch.Generator, *, enabled: bool = True) -> None:
        self.device, self.generator = device, generator
        self.enabled = enabled and device.type == "cuda"
        self.is_recording = False
        self._num_calls: Counter[object] = Counter()
        self._recorded: dict[object, _Recorded[object]] = {}

    def call(self, function: Callable[..., T], *inputs: Tensor) -> T:
        """Return `function(*inputs)`."""
        if not self.enabled:
            return function(*inputs)
        key = function.__name__, *(tensor.shape for tensor in inputs)
        self._num_calls[key] += 1
        if self._num_calls[key] > NUM_EAGER and key not in self._recorded:
            self._record(key, function, inputs)
        recorded = self._recorded.get(key)
        return function(*inputs) if recorded is None else recorded(*inputs)  # type: ignore[return-value] # of this function

    def release(self) -> bool:
        """Free the graphs' memory; they are recorded again when needed. Return whether there was any graph."""
        held = bool(self._recorded)
        self._recorded.clear()
        return held

    def _record(self, key: object, function: Callable[..., T], inputs: tuple[Tensor, ...]) -> None:
        """Record a function; if that fails, use no graphs from now on."""
        states = random_states(self.device, self.generator)
        pool = next((recorded.graph.pool() for recorded in self._recorded.values()), None)  # shared, as they take turns
        self.is_recording = True
        try:
            self._recorded[key] = _Recorded(function, inputs, self.generator, pool)
        except RuntimeError as error:
            self.enabled = False
            self._recorded.clear()
            for generator, state in states:
                generator.graphsafe_set_state(state)  # a failed recording leaves them unusable
            reason = str(error.__context__ or error).partition("\n")[0]
            logger.warning("training without CUDA graphs, since recording one failed: %s", reason)
        finally:
            self.is_recording = False


class _Recorded(Generic[T]):
    """A recorded function, the inputs it reads and the outputs it overwrites."""

    def __init__(
        self, function: Callable[..., T], inputs: tuple[Tensor, ...], generator: torch.Generator, pool: Any
    ) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(generator)
        with (
            torch.cuda.stream(torch.cuda.current_stream()),  # to return to, also if recording fails
            # Other threads, such as a writer of checkpoints, may use the device meanwhile.
            torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self.output = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> T:
        for kept, tensor in zip(self.inputs, inputs, strict=True):
            kept.copy_(tensor)
        self.graph.replay()
        return self.output


def random_states(device: torch.device, generator: torch.Generator) -> list[tuple[torch.Generator, torch.Generator]]:
    """Return the generators that a recording uses, each with a copy of its state."""
    return [(each, each.clone_state()) for each in (torch.cuda.default_generators[device.index], generator)]
