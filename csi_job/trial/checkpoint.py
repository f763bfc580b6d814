"""Checkpoints: written atomically beside the training, and verified when read.

A file is the weights-only content that `torch.save` writes, followed by its SHA-256 and a format marker, so that a
truncated write or a flipped byte never becomes a wrong resume.
"""

import errno
import hashlib
import io
import logging
import os
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any, Final

import torch

from csi_job.errors import CheckpointError, CheckpointWriteError, explain_os_errors
from csi_job.files import listed, make_folder, replacing
from csi_job.trial.memory import is_out_of_memory

logger = logging.getLogger(__name__)
MARKER: Final = b"csi-job checkpoint 1"
NUM_KEPT: Final = 2  # the newest, and the one before it in case the disk corrupts the newest
TRAILER_BYTES: Final = hashlib.sha256().digest_size + len(MARKER)
MAX_SHARE: Final = 0.02  # of the time since the last checkpoint, for which training may wait or a writer be busy
MAX_LOSS_S: Final = 60.0  # what a kill costs at most, or an epoch where that is longer
NAME: Final = re.compile(r"epoch-(\d{4,})\.pt")


class CheckpointWriter:
    """Writes the checkpoints of one training in a thread.

    Each epoch's state is kept until a newer one replaces it, but written only now and then: writing may take
    `MAX_SHARE` of the time, more only where a kill would cost more than `MAX_LOSS_S`. Training waits for a write no
    longer than the same share, so that long epochs are safe on the disk before their result is used.

    It keeps at most two states in memory: the one being written, and the newest.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None
        self._unwritten: tuple[int, dict[str, Any]] | None = None
        self._newest: Path | None = None
        self._cancelled = threading.Event()
        self._began_s, self._took_s = time.monotonic(), 0.0

    def epoch_done(self, epoch: int, state: dict[str, Any], epoch_s: float) -> Path | None:
        """Take the state after an epoch, which must not change any more.

        Returns:
            the newest checkpoint that is safe on the disk, None before the first. The next write, which removes the
            second newest, begins only in the next call.

        Raises:
            CheckpointWriteError: the last write failed.
        """
        self._unwritten = epoch, state
        since_s = time.monotonic() - self._began_s
        if self._writing is None and (self._newest is None or since_s >= interval_s(self._took_s, epoch_s)):
            self._begin()
        if self._writing is not None and not wait([self._writing], MAX_SHARE * since_s).not_done:
            self._end()
        return self._newest

    def flush(self) -> None:
        """Write the newest state unless that has been done; raise `CheckpointWriteError` if it fails."""
        if self._writing is not None:
            self._end()
        if self._unwritten is not None:
            self._begin()
            self._end()

    def close(self) -> None:
        """Abandon the write in progress, of which nothing remains."""
        self._cancelled.set()
        self._thread.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        assert self._unwritten is not None
        self._began_s = time.monotonic()
        self._writing = self._thread.submit(self._write, *self._unwritten)
        self._unwritten = None

    def _write(self, epoch: int, state: dict[str, Any]) -> Path:
        path = save_checkpoint(self._folder, epoch, state, self._cancelled)
        self._took_s = time.monotonic() - self._began_s
        return path

    def _end(self) -> None:
        assert self._writing is not None
        writing, self._writing = self._writing, None
        self._newest = writing.result()


def interval_s(write_s: float, epoch_s: float) -> float:
    """Return how long after the beginning of a checkpoint the next one begins, at the end of an epoch."""
    return min(write_s / MAX_SHARE, MAX_LOSS_S - write_s - epoch_s)


def save_checkpoint(folder: Path, epoch: int, state: dict[str, Any], cancelled: threading.Event | None = None) -> Path:
    """Write `epoch-0007.pt`, flushed to disk when this returns, and keep the newest two in the folder.

    The state consists of tensors, numbers, strings, and lists and dicts of them.

    Raises:
        CheckpointWriteError: full disk, read-only folder, `cancelled`; older checkpoints are unchanged.
    """
    path = folder / f"epoch-{epoch:04d}.pt"
    what = f"the checkpoint of epoch {epoch + 1} could not be written"
    with explain_os_errors(what, folder, kind=CheckpointWriteError, hint="choose another folder"):
        make_folder(folder)
        with replacing(path, f".{path.name}.{os.getpid()}.tmp") as temporary, temporary.open("wb") as file:
            _write_hashed(file, state, cancelled or threading.Event())
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
    except Exception as error:  # torch's reader raises nearly anything on what it did not write
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"the checkpoint {path.name} contains more than weights") from error
    return state


def checkpoint_results(path: Path) -> dict[int, dict[str, float]]:
    """Return the measurements of each epoch up to a checkpoint, by the names of `EpochResult`, `val_f1` at least.

    Raises:
        CheckpointError: as for `load_checkpoint`, or it has no results of epochs.
    """
    state = load_checkpoint(path)
    try:
        return {int(result["epoch"]): {**result, "val_f1": float(result["val_f1"])} for result in state["results"]}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {path.name} has no results of epochs") from error


def valid_checkpoints(folder: Path) -> list[Path]:
    """Return the folder's intact checkpoints, newest first; none if there is no such folder.

    What cannot be read, a file or the folder, is skipped like a torn checkpoint, with a warning.
    """
    intact = []
    try:
        newest_first = _in_order(folder)[::-1]
    except OSError as error:
        logger.warning("the checkpoints in %s cannot be read (%s)", folder, error.strerror)
        return []
    for path in newest_first:
        try:
            if _is_intact(path.read_bytes()):
                intact.append(path)
        except OSError as error:
            logger.warning("%s cannot be read (%s), an older one takes its place", path, error.strerror)
    return intact


def epoch_of(path: Path | None) -> int:
    """Return the epoch in a checkpoint's name, -1 for any other file or none."""
    match = NAME.fullmatch(path.name) if path else None
    return int(match[1]) if match else -1


class _HashingFile(io.RawIOBase, IO[bytes]):
    """Hashes what is written, so that a large state is never in memory twice; keeps the error of a failed write.

    It raises nothing: torch's archive writer would hide why, and the traceback, which refers to the state, would
    never be freed, since the garbage collector does not see that the writer refers to this file.
    """

    def __init__(self, file: IO[bytes], cancelled: threading.Event) -> None:
        self.file, self.digest, self.cancelled = file, hashlib.sha256(), cancelled
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        if self.cancelled.is_set():
            self.failure = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        if self.failure is None:
            try:
                self.digest.update(part)
                self.file.write(part)
            except OSError as error:
                self.failure = error.with_traceback(None)
        return len(part)


def _write_hashed(file: IO[bytes], state: dict[str, Any], cancelled: threading.Event) -> None:
    hashing = _HashingFile(file, cancelled)
    torch.save(state, hashing)
    if hashing.failure is not None:
        raise hashing.failure
    file.write(hashing.digest.digest() + MARKER)


def _is_intact(content: bytes) -> bool:
    if len(content) < TRAILER_BYTES or not content.endswith(MARKER):
        return False
    view = memoryview(content)
    return hashlib.sha256(view[:-TRAILER_BYTES]).digest() == bytes(view[-TRAILER_BYTES : -len(MARKER)])


def _in_order(folder: Path) -> list[Path]:
    return sorted((path for path in listed(folder) if epoch_of(path) >= 0), key=epoch_of)
