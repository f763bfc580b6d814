"""Files: atomic writes, refusal to overwrite, JSON, CSV, SHA-256 digests, and locks between processes."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from csi_job.errors import ConfigurationError, explain_os_errors
from csi_job.logs import get_logger

STREAM: Final = Path("-")
"""Stands for standard input or output."""
_POLL_S = 0.2

_logger = get_logger(__name__)


@contextmanager
def replacing(path: Path, temporary_name: str = "") -> Iterator[Path]:
    """Yield a temporary path in the same folder; what is written there is flushed to disk and renamed to `path`.

    By default the temporary name is always the same, so that whatever a killed process left is overwritten instead of
    piling up; the caller must hold a lock.
    """
    temporary = path.with_name(temporary_name or f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Write a file so that readers, and a crash, see the old or the new content; text is UTF-8. Needs no lock."""
    with replacing(path, f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}") as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


def write_file(path: Path, content: str | bytes, *, hint: str = "free space, or choose another folder") -> Path:
    """Write a file atomically, creating its folder, or to standard output; return `path`.

    A link is followed: its target is replaced.

    Raises:
        CsiJobError: the folder cannot be written, or the disk is full; its last part is `hint`.

    """
    if path == STREAM:
        sys.stdout.buffer.write(content.encode() if isinstance(content, str) else content)
        sys.stdout.flush()
        return path
    with explain_os_errors(f"{path.name} cannot be written", path.parent, hint=hint):
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, content)
    return path


def read_file(path: Path) -> bytes:
    """Return the content of a file or of standard input; raise `ConfigurationError` if it cannot be read."""
    if path == STREAM:
        return sys.stdin.buffer.read()
    with explain_os_errors("the file cannot be read", path, kind=ConfigurationError):
        return path.read_bytes()


def check_free(*paths: Path, force: bool) -> None:
    """Refuse to overwrite a file without `force`, and a folder, device or pipe even with it; a link is followed.

    Raises:
        ConfigurationError: what is in the way.

    """
    for path in paths:
        if path == STREAM:
            continue
        if path.is_dir():
            raise ConfigurationError("a folder is in the way of the file", got=str(path), hint="choose another name")
        if (path.exists() and not path.is_file()) or _target(path).is_symlink():
            hint = "choose another name, or - for a stream"
            raise ConfigurationError("not a regular file", got=str(path), hint=hint)
        if path.exists() and not force:
            hint = "choose another name, or use --force"
            raise ConfigurationError("the file already exists", got=str(path), hint=hint)


def _target(path: Path) -> Path:
    """Resolve a link, so that its target is replaced and not the link; a link to itself stays as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV, separated by semicolons."""
    text = io.StringIO()
    csv.writer(text, delimiter=";", lineterminator="\n").writerows((header, *rows))
    return text.getvalue()


def json_text(content: Any, *, indent: int = 1) -> str:
    """Return the text of a JSON file; raise `ValueError` for NaN and infinity, which JSON does not have."""
    return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def digest(content: str | bytes) -> str:
    """Return the SHA-256 of bytes or text (as UTF-8), in hexadecimal."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()


def digest_json(content: Any) -> str:
    """Return the SHA-256 of JSON-able content, whatever the order of its keys."""
    return digest(json.dumps(content, sort_keys=True, allow_nan=False))


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(folder: Path) -> None:
    """Make created and renamed entries of a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse, and flush names at once
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting_message: str) -> Iterator[None]:
    """Hold the lock of a file, waiting for it if necessary; the death of a process frees its locks.

    Args:
        path: created if missing; its folder exists.
        waiting_message: logged once if another process holds the lock.

    """
    with path.open("a") as file:
        while not _try_lock(file.fileno()):
            if waiting_message:
                _logger.info(waiting_message)
                waiting_message = ""
            time.sleep(_POLL_S)
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock of a file unless another process does; yield whether it is held."""
    with path.open("a") as file:
        yield _try_lock(file.fileno())


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
