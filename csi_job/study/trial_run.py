"""A trial that runs here: what an objective is handed."""

from __future__ import annotations

import enum
import math
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import optuna
from optuna.trial import TrialState
from sqlalchemy.engine import Row

from csi_job.errors import CsiJobError, LeaseLostError, StalledError, StorageUnavailableError
from csi_job.logs import get_logger
from csi_job.signals import Stop
from csi_job.storage.attributes import CONSTRAINT, CURVE, EPOCHS, INFEASIBLE, REASON
from csi_job.storage.lease import Lease
from csi_job.storage.optuna_private import frozen_trial_of
from csi_job.storage.storage import StudyStorage
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.heartbeat import Keeper
from csi_job.study.pruning import median_question, should_prune, should_prune_at_cost

if TYPE_CHECKING:
    from csi_job.trial.schedule import EpochResult


logger = get_logger(__name__)
Params = TypeVar("Params")


class EpochListener(Protocol):
    """Who is told of epochs, e.g. experiment tracking; it must not wait."""

    def epoch(self, number: int, epoch: int, metrics: dict[str, float]) -> None:
        """Take the metrics of an epoch of a trial."""


@dataclass
class RunningTrial(Generic[Params]):
    """A trial under a lease of this process, and the hooks of its training.

    An objective calls `epoch_done` (or `report` and `should_prune`) after each epoch and `batch_done` now and then;
    whatever they raise must end it.
    """

    trial: optuna.Trial
    params: Params
    lease: Lease
    max_epochs: int
    """Epochs at most, of the phase in which the trial began."""
    seed: int
    work: Path
    checkpoint_folder: Path
    """Where this attempt keeps its checkpoints, `epoch-<eeee>.pt`."""
    resume_from: Path | None
    """The checkpoint to go on from."""
    promoted: Path | None
    """The newest checkpoint of an epoch that is stored, or about to be; at first `resume_from`."""
    curve: dict[int, float]
    """Values of the finished epochs."""
    storage: StudyStorage
    keeper: Keeper
    stop: Stop
    listener: EpochListener | None = None
    gflops: float | None = None
    """Cost of one image, which pruning with two objectives needs."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """User attributes that are stored when the trial ends."""
    _unsent: TrialWrite = field(default_factory=TrialWrite)
    _is_unpromoted: bool = False
    _away_since: float | None = None
    _num_epochs: int = 0
    _median: Row[Any] | None = None
    """Of the others at the last epoch, as `median_question` asks."""

    @property
    def number(self) -> int:
        """Return the trial's number."""
        return self.lease.number

    @property
    def attempt(self) -> int:
        """Return which attempt at the trial this is, from 1."""
        return self.lease.attempt

    @property
    def has_two_objectives(self) -> bool:
        """Return whether the study has two objectives."""
        return len(self.trial.study.directions) > 1

    def batch_done(self) -> None:
        """Take note that training goes on.

        Raises:
            StopRequestedError: a signal came.
            LeaseLostError: another worker goes on with the trial.
            StalledError: no batch had ended for too long; the lease may be gone.

        """
        self.keeper.beat()
        self.check()

    def check(self) -> None:
        """Raise what `batch_done` raises, without taking note of anything."""
        self.stop.check()
        if self.lease.lost:
            message = f"the lease of trial {self.number} is lost, another worker goes on with it"
            raise LeaseLostError(message)
        if self.keeper.stalled:
            message = f"trial {self.number} stalled"
            raise StalledError(message)

    def epoch_done(self, result: EpochResult, checkpoint: Path | None) -> None:
        """Store an epoch and its checkpoint; raise `optuna.TrialPruned` if the trial is not worth going on."""
        metrics = {
            "val_f1": result.val_f1,
            "val_loss": result.val_loss,
            "train_loss": result.train_loss,
            "learning_rate": result.learning_rate,
            "images_per_s": result.images_per_s,
        }
        self.report(result.epoch, result.val_f1, checkpoint=checkpoint)
        if self.listener is not None:
            self.listener.epoch(self.number, result.epoch, metrics)
        if self.should_prune():
            message = f"below the others at epoch {result.epoch}"
            raise optuna.TrialPruned(message)

    def report(self, epoch: int, value: float, *, checkpoint: Path | None = None) -> None:
        """Store the value of an epoch and promote its checkpoint, in one fenced transaction.

        While the database is away the training goes on; what could not be stored is stored with the next epoch. A
        signal that came meanwhile is obeyed after that, so that no finished epoch is lost to it.

        Raises:
            StorageUnavailableError: the database has been away for `storage.outage_s`.
            LeaseLostError, StopRequestedError, StalledError: as `batch_done`.

        """
        self.keeper.beat()
        self.curve[epoch] = value
        self._num_epochs += 1
        if self.has_two_objectives:
            self._unsent.user_attrs[CURVE] = [[step, self.curve[step]] for step in sorted(self.curve)]
        else:
            self._unsent.steps[epoch] = value
            frozen_trial_of(self.trial).intermediate_values[epoch] = value  # what pruners look at
        if checkpoint is not None:
            self.promoted, self._is_unpromoted = checkpoint, True
        self._send()
        self.check()

    def should_prune(self) -> bool:
        """Tell whether the trial should end, compared with others at the same epoch."""
        if self._away_since is not None:
            return False
        if not self.has_two_objectives:
            return should_prune(self.trial.study, frozen_trial_of(self.trial), self._median)
        return self.gflops is not None and should_prune_at_cost(self.trial.study, self.curve, self.gflops)

    def _send(self) -> None:
        changes: dict[str, Any] = {"num_epochs": self._num_epochs}
        if self._is_unpromoted and self.promoted is not None:
            changes["checkpoint"] = self.promoted.relative_to(self.work).as_posix()
        question = median_question(self.trial.study, max(self.curve))
        try:
            self._median = self.storage.write_trial(self.lease, self._unsent, question, limit_s=0, **changes)
        except StorageUnavailableError as error:
            self._stay_patient(error)
            return
        if self._away_since is not None:
            logger.warning("the database is back after %.0f s", time.monotonic() - self._away_since)
        self._unsent, self._is_unpromoted, self._away_since = TrialWrite(), False, None

    def _stay_patient(self, error: StorageUnavailableError) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            logger.warning("%s; the training goes on meanwhile", error)
        if time.monotonic() - self._away_since >= self.storage.patience.limit_s:
            raise error

    def unsent(self) -> TrialWrite:
        """Return what is yet to be stored, for the last write of this attempt."""
        return self._unsent


Objective = Callable[[RunningTrial[Any]], Sequence[float]]


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


MAX_CHARACTERS: Final = 200
DEVICE_LOST_WORDS: Final = ("CUDA error", "CUDNN_STATUS_EXECUTION_FAILED", "NCCL error", "device-side assert")
_PATH_LIKE: Final = re.compile(r"\S*[/\\]\S*|\S+\.(?:png|jpe?g|dcm|nii|gz|csv|npy|pt)\b", re.IGNORECASE)
_PACKAGE: Final = Path(__file__).parent.parent


def failure_reason(error: BaseException) -> str:
    """Return the reason of a failure.

    Our own errors are free of identities. Of others the type, the place in this package, and the words are kept, but
    for what looks like a path; a `KeyError` or a system error quotes what may be an identity: its words are left out.
    """
    if isinstance(error, CsiJobError):
        return str(error)
    words = ""
    if isinstance(error, OSError):
        words = error.strerror or ""
    elif not isinstance(error, LookupError):
        words = _PATH_LIKE.sub("…", " ".join(str(error).split()))
    place = _place(error)
    parts = [type(error).__name__ + (f" in {place}" if place else ""), words]
    return ": ".join(part for part in parts if part)[:MAX_CHARACTERS]


def check_device(error: BaseException) -> None:
    """Raise `CsiJobError` if the error has lost the GPU for this process: every later trial would fail by it."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in DEVICE_LOST_WORDS):
        message = f"the GPU is lost to this process: {failure_reason(error)}"
        hint = "start the same command again; the trial goes on from its last epoch"
        raise CsiJobError(message, hint=hint) from None


def _place(error: BaseException) -> str:
    """Return file and line of the innermost frame within this package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if _PACKAGE in path.parents:
            return f"{path.relative_to(_PACKAGE).as_posix()}:{frame.lineno}"
    return ""
