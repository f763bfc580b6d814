"""Early stopping and the learning rate, as functions of the epochs' results alone.

The learning rate warms up over the first epoch, stays constant, and drops to 0.3 of its value whenever neither
`val_f1` nor the validation loss has improved for half the patience, or two epochs if that is more. Nothing depends on
`max_epochs`: a later phase of the study with more epochs follows the same curve, pruning compares like with like at
each epoch, and a resumed trial gets its schedule by replaying its results.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

LR_DECAY_FACTOR = 0.3


@dataclass(frozen=True)
class EpochResult:
    """The result of one epoch."""

    epoch: int
    """Counted from 0."""
    train_loss: float
    val_loss: float
    val_f1: float
    learning_rate: float
    images_per_s: float
    """Training images per second, without validation."""
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
        self._progress_epoch = -1  # of the last improvement or drop of the learning rate
        self._last_epoch = -1
        for result in results:
            self.update(result)

    @property
    def should_stop(self) -> bool:
        """Whether `val_f1` has not improved for `patience` epochs."""
        return self._last_epoch - self.best_epoch >= self._patience

    def update(self, result: EpochResult) -> None:
        """Add the result of the next epoch."""
        epoch = self._last_epoch = result.epoch
        if result.val_f1 > self.best_val_f1:
            self.best_epoch, self.best_val_f1, self._progress_epoch = epoch, result.val_f1, epoch
        if result.val_loss < self._best_val_loss:
            self._best_val_loss, self._progress_epoch = result.val_loss, epoch
        if epoch - self._progress_epoch >= max(2, self._patience // 2):
            self.learning_rate *= LR_DECAY_FACTOR
            self._progress_epoch = epoch

    def step_rate(self, epoch: int, step: int, num_steps: int) -> float:
        """Return the learning rate of a step; in the first epoch it rises linearly to its full value."""
        return self.learning_rate * (step + 1) / num_steps if epoch == 0 else self.learning_rate
