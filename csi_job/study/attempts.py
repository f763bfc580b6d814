"""The folders of a trial's checkpoints, one per attempt, named by its study; and the checkpoint to resume from.

Two databases may have studies of the same name, whose checkpoints then lie in one work folder.
"""

import logging
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from optuna import Study

from csi_job.errors import ResourceError, explain_os_errors
from csi_job.files import is_file, listed
from csi_job.work_folder import WorkFolder

logger = logging.getLogger(__name__)
_ATTEMPT = re.compile(r"attempt-\d+(-|$)")


def attempt_name(attempt: int, uid: str) -> str:
    """Return the name of an attempt's folder, in which a worker of a deleted study of the same name never writes."""
    return f"attempt-{attempt}-{_part(uid)}" if _part(uid) else f"attempt-{attempt}"


def fresh_attempt_folder(folder: Path, attempt: int, uid: str) -> Path:
    """Return the folder of an attempt at a trial, cleared of what an equal one may have left there."""
    folder = folder / attempt_name(attempt, uid)
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def find_checkpoint(folder: Path, stored: Path | None, last_epoch: int, *, attempt: int, uid: str) -> Path | None:
    """Find the newest intact checkpoint that matches what is stored of a trial; None: it starts again.

    Only those of this study count, or those that name none, as in version 0.1. A checkpoint newer than the stored
    epochs counts only in the folder of the stored one or of the last attempt, from that one on, that wrote any, while
    the database was unreachable. One of any other attempt was written without the lease, or is of a study whose
    database was restored to an earlier state.

    Args:
        folder: of all attempts of the trial.
        stored: the checkpoint that the database names.
        last_epoch: the last epoch with a stored value, -1 if there is none.
        attempt: the attempt that resumes.
        uid: of the study.
    """
    from csi_job.trial.checkpoint import epoch_of, valid_checkpoints  # imports torch

    newest_first = sorted(_own_attempts(folder, uid), key=_number_of, reverse=True)
    intact = [path for place in newest_first for path in valid_checkpoints(place)]
    first = _number_of(stored.parent) if stored and _ATTEMPT.match(stored.parent.name) else 0
    last = max([first, *(number for path in intact if (number := _number_of(path.parent)) < attempt)])
    trusted = [path for path in intact if epoch_of(path) <= last_epoch or _number_of(path.parent) in (first, last)]
    return max(trusted, key=epoch_of, default=None)


def keep_newest_checkpoint(folder: Path, epoch: int) -> None:
    """Remove all checkpoints of a trial up to this attempt except that of its last epoch, if that one exists.

    Checkpoints of a later attempt belong to a worker that has taken the trial over.
    """
    newest = folder / f"epoch-{epoch:04d}.pt"
    if is_file(newest):
        with suppress(OSError, ResourceError):  # what cannot be listed or removed is left
            for path in (each for attempt in _own_attempts(folder.parent, _uid_of(folder)) for each in listed(attempt)):
                if path != newest and _number_of(path.parent) <= _number_of(folder):
                    path.unlink(missing_ok=True)


def remove_checkpoints(work: Path, study_name: str, number: int, uid: str) -> None:
    """Remove the checkpoints of a finished trial of the study with this uid."""
    _remove_attempts(WorkFolder(work).trial_checkpoints(study_name, number), uid)


def remove_leftover_checkpoints(work: Path, study: Study, uid: str) -> None:
    """Remove the checkpoints of trials whose worker was killed between finishing them and removing these."""
    folder = WorkFolder(work).checkpoints(study.study_name)
    if numbers := {path.name.removeprefix("trial-") for path in folder.glob("trial-*")}:  # else no trial is read
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished() and str(trial.number) in numbers:
                remove_checkpoints(work, study.study_name, trial.number, uid)


def remove_all_checkpoints(work: Path, study_name: str, uid: str) -> None:
    """Remove the checkpoints of all trials of the study with this uid."""
    folder = WorkFolder(work).checkpoints(study_name)
    for trial in folder.glob("trial-*"):
        _remove_attempts(trial, uid)
    _remove_if_empty(folder)


def remove_foreign_checkpoints(work: Path, study_name: str, uids: Collection[str]) -> None:
    """Remove the checkpoints of all studies of this name, and of their confirmations, but those with these uids."""
    kept, folder = {_part(uid) for uid in uids} | {""}, WorkFolder(work).checkpoints(study_name)
    foreign = [path for path in folder.rglob("attempt-*") if _ATTEMPT.match(path.name) and _uid_of(path) not in kept]
    for attempt in foreign:
        shutil.rmtree(attempt, ignore_errors=True)
        _remove_if_empty(attempt.parent)
    if foreign:
        logger.info("removed checkpoints of an earlier study named %s, which is gone", study_name)


def _remove_attempts(folder: Path, uid: str) -> None:
    with suppress(ResourceError):  # what cannot be listed is left
        for attempt in _own_attempts(folder, uid):
            shutil.rmtree(attempt, ignore_errors=True)
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty, or missing
        folder.rmdir()


def _own_attempts(folder: Path, uid: str) -> list[Path]:
    """Return the folders of a study's attempts at a trial, and those that name no study, as in version 0.1."""
    with explain_os_errors("the checkpoints of a trial cannot be listed", folder, kind=ResourceError):
        attempts = [path for path in listed(folder) if _ATTEMPT.match(path.name)]
    return [attempt for attempt in attempts if _uid_of(attempt) in (_part(uid), "")]


def _part(uid: str) -> str:
    """Return a uid as a part of a name; what another program stored in its place may lead to another folder."""
    return "".join(filter(str.isalnum, str(uid)))


def _number_of(attempt: Path) -> int:
    return int(attempt.name.split("-")[1])


def _uid_of(attempt: Path) -> str:
    return attempt.name.partition("-")[2].partition("-")[2]
