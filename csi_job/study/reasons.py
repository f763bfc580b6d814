"""Why a trial failed, in one line that names no file and no patient."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Final

from csi_job.errors import CsiJobError

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
