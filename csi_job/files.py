"""Files that are there whole or not at all, and locks between processes."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from csi_job.errors import ConfigurationError, CsiJobError
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


STREAM: Final = Path("-")
"""Stands for standard input or output."""


def check_free(*paths: Path, force: bool) -> None:
    """Refuse to overwrite a file, or to write in place of a folder, a device or a pipe; a link is followed.

    Raises:
        ConfigurationError: there is a file already, and `force` is not given, or what is there is no file.

    """
    for path in paths:
        if path == STREAM:
            continue
        if path.is_dir():
            raise ConfigurationError("a folder is in the way of the file", got=str(path), hint="choose another name")
        if (path.exists() and not path.is_file()) or _target(path).is_symlink():
            message = "what is there is no regular file"
            raise ConfigurationError(message, got=str(path), hint="choose another name, or - where a stream is taken")
        if path.exists() and not force:
            message = "the file exists already"
            raise ConfigurationError(message, got=str(path), hint="choose another name, or use --force")


def write_file(path: Path, content: bytes) -> None:
    """Write a file, whose folder is made where it is missing, or to standard output.

    Raises:
        CsiJobError: the folder cannot be written, or the disk is full.

    """
    if path == STREAM:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    try:
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, content)
    except OSError as error:
        message = f"{path.name} cannot be written ({error.strerror or error})"
        raise CsiJobError(message, got=str(path.parent), hint="free space, or choose another folder") from None


def _target(path: Path) -> Path:
    """Return what a link leads to, so that the file is replaced and not the link; a link in a circle is left."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def read_file(path: Path) -> bytes:
    """Return the content of a file or of standard input; raise `ConfigurationError` if it cannot be read."""
    if path == STREAM:
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"the file cannot be read ({error.strerror or error})"
        raise ConfigurationError(message, got=str(path)) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield another name in the same folder; what is written under it is flushed and takes the path's place.

    The name is always the same, so that what a killed process left is written over and does not pile up; the caller
    holds a lock.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a file so that a reader sees the old or the new content, never a part.

    Args:
        path: the file; its folder is made where it is missing.
        text: the whole content.

    Returns:
        `path`.

    Raises:
        CsiJobError: the folder cannot be written, or the disk is full.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        what = f"{path.name} cannot be written ({error.strerror or error})"
        hint = "free space or make the folder writable, then run `csi-job report`"
        raise CsiJobError(what, got=str(path.parent), hint=hint) from None
    return path


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write an object as readable JSON; arguments and errors as `write_text`."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file; None where there is no file, or no whole object in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
