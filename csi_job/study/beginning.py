"""The beginning of a trial on this worker: its parameters, and where it goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from csi_job.logs import get_logger
from csi_job.study.attributes import ATTEMPT, CURVE, MAX_EPOCHS, PRUNER, SAMPLER
from csi_job.study.checkpoints import (
    CheckpointReader,
    Resumption,
    find_resumption,
    fresh_attempt_folder,
    trial_folder,
)
from csi_job.study.claim import Claim
from csi_job.study.lease import Lease
from csi_job.study.rows import TrialWrite
from csi_job.study.sampling import derived_seed, reseed
from csi_job.study.settings import StudySettings
from csi_job.study.storage import StudyStorage, storage_of

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
        study._thread_local.cached_all_trials = None  # noqa: SLF001 - as `Study.ask` does
        study._storage.get_all_trials(study._study_id, deepcopy=False)  # noqa: SLF001
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
    return dict(trial._cached_frozen_trial.intermediate_values)  # noqa: SLF001 - optuna.Trial shows all but these


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
    frozen = trial._cached_frozen_trial  # noqa: SLF001 - what pruners look at
    frozen.intermediate_values = copy.copy(fitted) if len(trial.study.directions) == 1 else {}
    return fitted
