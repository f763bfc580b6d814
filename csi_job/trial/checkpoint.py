"""Checkpoints: written atomically, and verified when read.

A file is the weights-only content that `torch.save` writes, followed by its SHA-256 and a format marker, so that a
truncated write or a flipped byte never becomes a wrong resume.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from pathlib import Path
from typing import IO, Any, Final

import torch

from csi_job.errors import CheckpointError, CheckpointWriteError, explain_os_errors
from csi_job.files import make_folder, replacing

MARKER: Final = b"csi-job checkpoint 1"
NUM_KEPT: Final = 2  # the newest, and the one before it in case the disk corrupts the newest
TRAILER_BYTES: Final = hashlib.sha256().digest_size + len(MARKER)
NAME: Final = re.compile(r"epoch-(\d{4,})\.pt")


def save_checkpoint(folder: Path, epoch: int, state: dict[str, Any]) -> Path:
    """Write `epoch-0007.pt`, flushed to disk when this returns, and keep the newest two in the folder.

    The state consists of tensors, numbers, strings, and lists and dicts of them.

    Raises:
        CheckpointWriteError: full disk, read-only folder; older checkpoints are unchanged.

    """
    path = folder / f"epoch-{epoch:04d}.pt"
    hint = f"free up space in {folder}; the previous checkpoint is kept"
    with explain_os_errors(
        f"the checkpoint of epoch {epoch + 1} could not be written", kind=CheckpointWriteError, hint=hint
    ):
        make_folder(folder)
        with replacing(path, f".{path.name}.{os.getpid()}.tmp") as temporary, temporary.open("wb") as file:
            _write(file, state)
        for old in _in_order(folder)[:-NUM_KEPT]:
            old.unlink(missing_ok=True)
        for partial in folder.glob(".epoch-*.tmp"):  # left by a killed process: a folder has one writer
            partial.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state, with tensors on the CPU; raise `CheckpointError` if it is missing or corrupt."""
    with explain_os_errors(f"the checkpoint {path.name} could not be read", kind=CheckpointError):
        content = path.read_bytes()
    if not _is_intact(content):
        message = f"the checkpoint {path.name} is truncated, corrupt, or of another version"
        raise CheckpointError(message, hint="an older checkpoint or a fresh start takes its place")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content[:-TRAILER_BYTES]), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {path.name} contains more than weights") from error
    return state


def valid_checkpoints(folder: Path) -> list[Path]:
    """Return the folder's intact checkpoints, newest first; none if there is no such folder."""
    return [path for path in reversed(_in_order(folder)) if _is_intact(path.read_bytes())]


def epoch_of(path: Path) -> int:
    """Return the epoch in a checkpoint's name, -1 for any other file."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


class _HashingFile(io.RawIOBase, IO[bytes]):
    """Hashes what is written, so that a large state is never in memory twice; keeps the error of a failed write."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self.digest.update(part)
        try:
            return self.file.write(part)
        except OSError as error:
            self.failure = error
            raise


def _write(file: IO[bytes], state: dict[str, Any]) -> None:
    hashing = _HashingFile(file)
    try:
        torch.save(state, hashing)
    except RuntimeError:  # torch's archive writer hides why a write failed
        if hashing.failure is None:
            raise
        raise hashing.failure from None
    file.write(hashing.digest.digest() + MARKER)


def _is_intact(content: bytes) -> bool:
    if len(content) < TRAILER_BYTES or not content.endswith(MARKER):
        return False
    view = memoryview(content)
    return hashlib.sha256(view[:-TRAILER_BYTES]).digest() == bytes(view[-TRAILER_BYTES : -len(MARKER)])


def _in_order(folder: Path) -> list[Path]:
    numbered = [(int(match[1]), path) for path in folder.glob("epoch-*.pt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]
