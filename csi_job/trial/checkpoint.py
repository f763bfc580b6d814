"""Checkpoints: written whole or not at all, and checked when read.

A file is the weights-only content that `torch.save` writes, then its SHA-256, then a mark of the format. A torn write
or a flipped byte therefore never becomes a wrong resume.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import re
from pathlib import Path
from typing import IO, Any, Final

import torch

from csi_job.errors import CheckpointError, CheckpointWriteError

MARK: Final = b"csi-job checkpoint 1"
NUM_KEPT: Final = 2  # the newest, and the one before it should the newest be torn by the disk
TRAILER_BYTES: Final = hashlib.sha256().digest_size + len(MARK)
NAME: Final = re.compile(r"epoch-(\d{4,})\.pt")


def save_checkpoint(folder: Path, epoch: int, state: dict[str, Any]) -> Path:
    """Write a checkpoint so that it is on the disk when this returns, and keep the newest two of the folder.

    Args:
        folder: made if missing.
        epoch: names the file, `epoch-0007.pt`.
        state: tensors, numbers, words, and lists and dicts of them.

    Raises:
        CheckpointWriteError: a full disk, a read-only folder; older checkpoints are as they were.

    """
    path = folder / f"epoch-{epoch:04d}.pt"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            _write(file, state)
        temporary.replace(path)
        _sync_folder(folder)
        _remove_old(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        message = f"the checkpoint of epoch {epoch} could not be written ({_reason(error)})"
        raise CheckpointWriteError(message, hint=f"make room in {folder}; the checkpoint before it is kept") from error
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state, tensors on the CPU.

    Raises:
        CheckpointError: it is missing, torn, changed, or of another version.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"the checkpoint {path.name} could not be read ({_reason(error)})"
        raise CheckpointError(message) from error
    if not _is_whole(content):
        message = f"the checkpoint {path.name} is torn, changed, or of another version"
        raise CheckpointError(message, hint="an older checkpoint or a new start takes its place")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content[:-TRAILER_BYTES]), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError) as error:
        message = f"the checkpoint {path.name} holds more than weights"
        raise CheckpointError(message) from error
    return state


def valid_checkpoints(folder: Path) -> list[Path]:
    """Return the folder's whole checkpoints, newest first; none if there is no such folder."""
    return [path for path in reversed(_in_order(folder)) if _is_whole(path.read_bytes())]


def epoch_of(path: Path) -> int:
    """Return the epoch in a checkpoint's name, -1 for any other file."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


class _HashingFile(io.RawIOBase, IO[bytes]):
    """Passes writes on and hashes them, so that a large state is never held twice; keeps the error of a failed one."""

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
    file.write(hashing.digest.digest() + MARK)
    file.flush()
    os.fsync(file.fileno())


def _is_whole(content: bytes) -> bool:
    if len(content) < TRAILER_BYTES or not content.endswith(MARK):
        return False
    view = memoryview(content)
    return hashlib.sha256(view[:-TRAILER_BYTES]).digest() == bytes(view[-TRAILER_BYTES : -len(MARK)])


def _in_order(folder: Path) -> list[Path]:
    numbered = [(int(match[1]), path) for path in folder.glob("epoch-*.pt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def _remove_old(folder: Path) -> None:
    for path in _in_order(folder)[:-NUM_KEPT]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".epoch-*.tmp"):  # of a process that was killed while it wrote; a folder has one writer
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
