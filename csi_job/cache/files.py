"""Files that are there whole or not at all, and locks between processes."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csi_job.logs import get_logger

_logger = get_logger(__name__)
_POLL_S = 0.2


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Write a file under another name, flush it to the disk, and rename it; text is UTF-8."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse, and flush names at once
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock of a file; where another process has it, say `waiting` once and wait. Its death frees it."""
    with path.open("a") as file:
        while not _try_lock(file.fileno()):
            if waiting:
                _logger.info(waiting)
                waiting = ""
            time.sleep(_POLL_S)
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock of a file if no other process has it; tell whether it is held."""
    with path.open("a") as file:
        yield _try_lock(file.fileno())


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
