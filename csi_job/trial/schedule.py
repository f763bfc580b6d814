"""When training stops and how its learning rate falls, from the epochs' results alone.

The learning rate rises over the first epoch, stays, and falls to 0.3 of itself whenever neither `val_f1` nor the
validation loss has got better for half the patience. Nothing depends on `max_epochs`: so a study's phases with more
epochs see the same curve, pruning compares like with like at each epoch, and a resumed trial replays its results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LEARNING_RATE_FALL = 0.3


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave."""

    epoch: int
    """Counted from 0."""
    train_loss: float
    val_loss: float
    val_f1: float
    learning_rate: float
    images_per_s: float
    """Training images a second, without validation."""
    seconds: float
    """Training and validation."""


class Schedule:
    """Early stopping and learning rate; feed it each epoch's result in order."""

    def __init__(self, learning_rate: float, patience: int, results: Iterable[EpochResult] = ()) -> None:
        self.learning_rate = learning_rate
        self.best_epoch = -1
        self.best_val_f1 = -math.inf
        self._patience = patience
        self._best_val_loss = math.inf
        self._progress_epoch = -1  # of the last better val_f1 or loss, or fall of the learning rate
        self._next_epoch = 0
        for result in results:
            self.update(result)

    @property
    def should_stop(self) -> bool:
        """Whether `patience` epochs have passed without a better `val_f1`."""
        return self._next_epoch - 1 - self.best_epoch >= self._patience

    def update(self, result: EpochResult) -> None:
        """Take in the result of the next epoch."""
        epoch = self._next_epoch = result.epoch
        self._next_epoch += 1
        if result.val_f1 > self.best_val_f1:
            self.best_epoch, self.best_val_f1, self._progress_epoch = epoch, result.val_f1, epoch
        if result.val_loss < self._best_val_loss:
            self._best_val_loss, self._progress_epoch = result.val_loss, epoch
        if epoch - self._progress_epoch >= max(2, self._patience // 2):
            self.learning_rate *= LEARNING_RATE_FALL
            self._progress_epoch = epoch

    def step_rate(self, epoch: int, step: int, num_steps: int) -> float:
        """Return the learning rate of a step: in the first epoch it rises evenly to its full value."""
        return self.learning_rate * (step + 1) / num_steps if epoch == 0 else self.learning_rate
