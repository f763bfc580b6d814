"""The checkpoint that a trial resumes from."""

from pathlib import Path

from csi_job.study.attempts import attempt_name, own_attempts
from csi_job.trial.checkpoint import epoch_of, load_checkpoint, valid_checkpoints


def find_checkpoint(folder: Path, promoted: Path | None, last_epoch: int, *, attempt: int, uid: str) -> Path | None:
    """Find the newest intact checkpoint that matches what is stored of a trial; None: it starts again.

    Only those of this study count, or those that name none, as in version 0.1. A checkpoint newer than the stored
    epochs counts only in the folder of the promoted one or of the previous attempt, which wrote it while the database
    was unreachable. One of any other attempt was written without the lease.

    Args:
        folder: of all attempts of the trial.
        promoted: the promoted checkpoint.
        last_epoch: the last epoch with a stored value, -1 if there is none.
        attempt: the attempt that resumes.
        uid: of the study.
    """
    newest = None
    trusted = {folder / attempt_name(attempt - 1, of) for of in (uid, "")} | {promoted.parent if promoted else None}
    for place in sorted(own_attempts(folder, uid), reverse=True):
        for path in valid_checkpoints(place):
            epoch = epoch_of(path)
            if epoch > epoch_of(newest) and (epoch <= last_epoch or place in trusted):
                newest = path
    return newest


def checkpoint_values(path: Path) -> dict[int, float]:
    """Return the value of each epoch up to a checkpoint."""
    return {int(result["epoch"]): float(result["val_f1"]) for result in load_checkpoint(path)["results"]}
