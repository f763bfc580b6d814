"""The beginning of a trial on this worker: its parameters, and where it goes on."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna import Study

from csi_job.errors import CheckpointError
from csi_job.logs import get_logger
from csi_job.storage.attributes import ATTEMPT, CURVE, MAX_EPOCHS, PRUNER, SAMPLER
from csi_job.storage.claim import Claim
from csi_job.storage.lease import Lease
from csi_job.storage.optuna_private import frozen_trial_of, refresh_trials, reseed
from csi_job.storage.storage import StudyStorage, storage_of
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.sampling import derived_seed
from csi_job.study.settings import StudySettings

logger = get_logger(__name__)
Suggest = Callable[[optuna.Trial], Any]


@dataclass(frozen=True)
class Beginning:
    """A trial with its parameters, and where it goes on."""

    trial: optuna.Trial
    params: Any
    max_epochs: int
    checkpoint_folder: Path
    resume_from: Path | None
    curve: dict[int, float]


def begin_trial(
    study: optuna.Study,
    claim: Claim,
    suggest: Suggest,
    settings: StudySettings,
    seed: int,
    work: Path,
    reader: CheckpointReader,
) -> Beginning:
    """Draw the parameters of a claimed trial, or read those it has, and find the checkpoint it goes on from."""
    lease = claim.lease
    trial, params = draw(study, lease, suggest, settings, seed)
    curve = stored_curve(trial)
    attempt_folder = fresh_attempt_folder(work, study.study_name, lease.number, lease.attempt)
    resumption = Resumption(None, -1)
    if claim.taken_over:
        promoted = work / claim.checkpoint if claim.checkpoint else None
        folder = trial_folder(work, study.study_name, lease.number)
        last = max(curve, default=-1)
        resumption = find_resumption(folder, promoted, last, reader, attempt=lease.attempt)
        curve = _fitted(storage_of(study), trial, lease, curve, resumption, work, reader)
        where = f"goes on after epoch {resumption.epoch}" if resumption.path else "starts at epoch 0"
        logger.info("trial %d is taken over (attempt %d): it %s", lease.number, lease.attempt, where)
    max_epochs = int(trial.user_attrs.get(MAX_EPOCHS, settings.max_epochs))
    return Beginning(trial, params, max_epochs, attempt_folder, resumption.path, curve)


def draw(
    study: optuna.Study, lease: Lease, suggest: Suggest, settings: StudySettings, seed: int
) -> tuple[optuna.Trial, Any]:
    """Draw a trial's parameters from the history, the study's seed and the trial's number.

    Returns:
        the trial, and what `suggest` made of it.

    """
    reseed(study.sampler, derived_seed(seed, lease.number))
    with storage_of(study).asking(lease) as draft:
        refresh_trials(study)
        trial = optuna.Trial(study, lease.trial_id)
        params = suggest(trial)
        phase = {SAMPLER: settings.sampler, PRUNER: settings.pruner, MAX_EPOCHS: settings.max_epochs}
        draft.user_attrs |= {key: value for key, value in phase.items() if key not in trial.user_attrs}
        draft.user_attrs[ATTEMPT] = lease.attempt
    return trial, params


def stored_curve(trial: optuna.Trial) -> dict[int, float]:
    """Return the values of a trial's finished epochs."""
    pairs = trial.user_attrs.get(CURVE)
    if pairs is not None:
        return {int(epoch): float(value) for epoch, value in pairs}
    return dict(frozen_trial_of(trial).intermediate_values)


def _fitted(
    storage: StudyStorage,
    trial: optuna.Trial,
    lease: Lease,
    curve: dict[int, float],
    resumption: Resumption,
    work: Path,
    reader: CheckpointReader,
) -> dict[int, float]:
    """Make what is stored of a trial fit the checkpoint that it goes on from, and return its curve."""
    last = max(curve, default=-1)
    if resumption.epoch == last:
        return curve
    fitted = {epoch: value for epoch, value in curve.items() if epoch <= resumption.epoch}
    if resumption.path is not None and resumption.epoch > last:
        seen = reader.values(resumption.path)
        fitted |= {epoch: value for epoch, value in seen.items() if last < epoch <= resumption.epoch}
    else:
        logger.warning(
            "trial %d: no whole checkpoint of epoch %d is in %s; epochs %d to %d are computed again",
            lease.number,
            last,
            work / "checkpoints",
            resumption.epoch + 1,
            last,
        )
    checkpoint = resumption.path.relative_to(work).as_posix() if resumption.path else None
    write = TrialWrite(steps={epoch: value for epoch, value in fitted.items() if epoch > last})
    if len(trial.study.directions) > 1:
        write = TrialWrite(user_attrs={CURVE: [[epoch, fitted[epoch]] for epoch in sorted(fitted)]})
    storage.rewrite_steps(lease, resumption.epoch + 1, write, checkpoint)
    frozen = frozen_trial_of(trial)
    frozen.intermediate_values = copy.copy(fitted) if len(trial.study.directions) == 1 else {}
    return fitted


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
