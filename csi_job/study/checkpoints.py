"""Which checkpoint a trial goes on from: a folder an attempt, one of them promoted by the owner of the lease."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from optuna import Study

from csi_job.errors import CheckpointError
from csi_job.logs import get_logger

logger = get_logger(__name__)
_EPOCH: Final = re.compile(r"epoch-(\d+)\.pt")


@dataclass(frozen=True)
class CheckpointReader:
    """How checkpoints are looked at without a model."""

    valid: Callable[[Path], list[Path]]
    """The whole checkpoints of a folder, newest first."""
    values: Callable[[Path], Mapping[int, float]]
    """The values of the epochs that a checkpoint remembers, by epoch."""


@dataclass(frozen=True)
class Resumption:
    """Where a trial goes on: after the epoch of this checkpoint, or at epoch 0 if there is none."""

    path: Path | None
    epoch: int
    """The last epoch that need not be computed again; -1: none."""


def training_checkpoints() -> CheckpointReader:
    """Return the reader of the training's own checkpoints."""
    from csi_job.trial.checkpoint import load_checkpoint, valid_checkpoints

    def values(path: Path) -> dict[int, float]:
        return {int(result["epoch"]): float(result["val_f1"]) for result in load_checkpoint(path)["results"]}

    return CheckpointReader(valid_checkpoints, values)


def trial_folder(work: Path, study_name: str, number: int) -> Path:
    """Return the folder of all attempts of a trial."""
    return work / "checkpoints" / study_name / f"trial-{number}"


def fresh_attempt_folder(work: Path, study_name: str, number: int, attempt: int) -> Path:
    """Return the folder of an attempt, without what a deleted study of the same name may have left there."""
    folder = trial_folder(work, study_name, number) / f"attempt-{attempt}"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def find_resumption(
    trial: Path, promoted: Path | None, last_epoch: int, reader: CheckpointReader, *, attempt: int
) -> Resumption:
    """Return the newest whole checkpoint that fits what is stored of the trial.

    A checkpoint newer than the stored epochs counts only beside the promoted one, or in the attempt before this one:
    those wrote it while the database was away. Any other attempt's was made by an owner that had lost its lease.

    Args:
        trial: the folder of all attempts.
        promoted: the promoted checkpoint.
        last_epoch: the last epoch whose value is stored; -1: none.
        reader: how checkpoints are looked at.
        attempt: the attempt that goes on.

    """
    best = Resumption(None, -1)
    owners = {trial / f"attempt-{attempt - 1}", promoted.parent if promoted else None}
    for folder in sorted(trial.glob("attempt-*"), reverse=True):
        for path in _valid(folder, reader):
            epoch = epoch_of(path)
            if epoch > best.epoch and (epoch <= last_epoch or folder in owners):
                best = Resumption(path, epoch)
    return best


def epoch_of(path: Path) -> int:
    """Return the epoch that a checkpoint's name tells, -1 for any other file."""
    match = _EPOCH.fullmatch(path.name)
    return int(match[1]) if match else -1


def _valid(folder: Path, reader: CheckpointReader) -> list[Path]:
    try:
        return reader.valid(folder)
    except (OSError, CheckpointError) as error:
        logger.warning("checkpoints cannot be read: %s", error.strerror if isinstance(error, OSError) else error)
        return []


def remove_checkpoints(work: Path, study_name: str, number: int) -> None:
    """Remove the checkpoints of a finished trial."""
    shutil.rmtree(trial_folder(work, study_name, number), ignore_errors=True)


def remove_left_checkpoints(work: Path, study: Study) -> None:
    """Remove what a worker left that was killed between telling a trial's end and removing its checkpoints."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial_folder(work, study.study_name, trial.number).exists():
            remove_checkpoints(work, study.study_name, trial.number)
