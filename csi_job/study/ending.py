"""The end of a trial: what is told of it."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any

from optuna.trial import TrialState

from csi_job.study.attributes import CONSTRAINT, EPOCHS, INFEASIBLE, REASON
from csi_job.study.rows import TrialWrite
from csi_job.study.running import RunningTrial


class Ending(enum.Enum):
    """How a trial ended on this worker."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    LEFT = "left"
    """For another worker, or for the next start."""


def completed(running: RunningTrial[Any], values: Sequence[float]) -> tuple[Ending, TrialWrite]:
    """Return what is told of a trial whose objective returned; values that are no numbers make it a failure."""
    num_objectives = len(running.trial.study.directions)
    numbers = [float(value) for value in values]
    if len(numbers) != num_objectives or any(math.isnan(number) for number in numbers):
        return failed(running, f"the objective returned {numbers}, {num_objectives} numbers are needed")
    return Ending.COMPLETE, _last(running, TrialState.COMPLETE, values=numbers)


def pruned(running: RunningTrial[Any] | None, reason: str) -> tuple[Ending, TrialWrite]:
    """Return what is told of a trial that is not worth going on; as Optuna has it, its last value is its value."""
    values: list[float] = []
    if running is not None and running.curve and not running.has_two_objectives:
        last = running.curve[max(running.curve)]
        values = [] if math.isnan(last) else [last]
    return Ending.PRUNED, _last(running, TrialState.PRUNED, values=values, attributes={REASON: reason})


def infeasible(running: RunningTrial[Any] | None, reason: str) -> tuple[Ending, TrialWrite]:
    """Return what is told of a trial that cannot be trained, so that the sampler learns to avoid its kind."""
    write = _last(running, TrialState.PRUNED, attributes={INFEASIBLE: True, REASON: reason})
    write.system_attrs[CONSTRAINT] = 1.0
    return Ending.INFEASIBLE, write


def failed(running: RunningTrial[Any] | None, reason: str) -> tuple[Ending, TrialWrite]:
    """Return what is told of a trial that failed, perhaps before it ran."""
    return Ending.FAILED, _last(running, TrialState.FAIL, attributes={REASON: reason})


def _last(
    running: RunningTrial[Any] | None,
    state: TrialState,
    *,
    values: Sequence[float] = (),
    attributes: dict[str, Any] | None = None,
) -> TrialWrite:
    """Return the last write of a trial, which may have ended before it ran."""
    write = TrialWrite()
    if running is not None:
        write = running.unsent()
        write.user_attrs |= {**running.attributes, EPOCHS: len(running.curve)}
    write.user_attrs |= attributes or {}
    write.values, write.state = values, state
    return write
