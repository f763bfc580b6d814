"""Files: atomic writes, refusal to overwrite, JSON, CSV, SHA-256 digests, and locks between processes.

Nearly everything written comes from patients. So only the owner can read a file or folder created here, whatever the
umask; in a folder that passes on its group (set-group-ID, as Kubernetes makes a volume with `fsGroup`), that group can
read and write it too. What exists already keeps its permissions.
"""

import csv
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from csi_job.errors import ConfigurationError, explain_os_errors

STREAM: Final = Path("-")
"""Stands for standard output."""
STALE_S: Final = 3600.0
"""Age from which on no process is still writing a temporary file."""
_POLL_S = 0.2
_SIGN: Final = r"[=+\-@\uff1d\uff0b\uff0d\uff20]"  # of a formula, in full width too
_FORMULA: Final = re.compile(rf"\t|\s*{_SIGN}")
_NUMBER: Final = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_LATER_FORMULA: Final = {  # by separator: after another, at which a spreadsheet set up for it splits the line
    separator: re.compile(rf'((?!^\t)([{others}])["\s]*)(?={_SIGN})(?!{_NUMBER}(?:\2|$))')
    for separator, others in ((",", ";\t"), (";", ",\t"))
}
_NO_FLUSHING: Final = (errno.EACCES, errno.EPERM, errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

logger = logging.getLogger(__name__)


def listed(folder: Path) -> list[Path]:
    """Return what a folder contains, nothing if it is missing; since Python 3.13 `Path.glob` hides any other error."""
    try:
        return [*folder.iterdir()]
    except FileNotFoundError:
        return []


def exists(path: Path) -> bool:
    """Return whether something has this path; raise OSError where that is unknown, as `Path` did before Python 3.14."""
    return bool(_mode(path))


def is_file(path: Path) -> bool:
    """Return whether this is a regular file, or a link to one; raise like `exists`."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Return whether this is a folder, or a link to one; raise like `exists`."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """Return the mode of what has this path, 0 if nothing has."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a null character
        return 0
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return 0


def real_path(path: Path) -> Path:
    """Return the absolute path without links; unlike `Path.resolve` before Python 3.13, of a link to itself too."""
    return Path(os.path.realpath(path))


def make_folder(path: Path) -> Path:
    """Create a folder and its missing parents, each flushed in its parent, and return it."""
    if is_folder(path):
        return path
    if not exists(path.parent):
        make_folder(path.parent)
    mode = _mode_in(path.parent, 0o700)
    try:
        path.mkdir(mode)
    except FileExistsError:  # by another process just now, or not a folder
        if not is_folder(path):
            raise
    else:
        _set_mode(path, mode)
    flush_folder(path.parent)
    return path


def open_private(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open a file that others cannot read, creating it if missing, and return its descriptor."""
    mode = _mode_in(path.parent, 0o600)
    descriptor = os.open(path, flags, mode)
    _set_mode(path, mode)
    return descriptor


def _mode_in(folder: Path, mode: int) -> int:
    """Return the owner's permissions, and the same for the group in a folder that passes on its group."""
    return mode | mode >> 3 if folder.stat().st_mode & stat.S_ISGID else mode


def _set_mode(path: Path, mode: int) -> None:
    """Set permissions despite the umask, keeping set-group-ID; another user's file, and a device, stay as they are."""
    now = path.stat().st_mode
    if stat.S_IMODE(now) & ~stat.S_ISGID != mode and (stat.S_ISREG(now) or stat.S_ISDIR(now)):
        with suppress(OSError):  # some network file systems have no permissions
            path.chmod(mode | now & stat.S_ISGID)


@contextmanager
def replacing(path: Path, temporary_name: str = "") -> Iterator[Path]:
    """Yield a new, empty file in the same folder; what is written there is flushed to disk and renamed to `path`.

    By default the temporary name is always the same, so that whatever a killed process left is overwritten instead of
    piling up; the caller must hold a lock.
    """
    temporary = path.with_name(temporary_name or f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.close(open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_unlocked(path: Path) -> Iterator[Path]:
    """Like `replacing`, but without a lock, since each writer has its own temporary name.

    A killed process may leave its temporary file, which another process that writes the same file removes.
    """
    with replacing(path, f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}") as temporary:
        yield temporary
    _remove_leftovers(path)


@cache  # once per file and process, since it reads the whole folder
def _remove_leftovers(path: Path) -> None:
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9]+\.[0-9a-f]{{8}}")
    with suppress(OSError):  # the folder may not be readable, and another process may remove the same file
        for left in path.parent.iterdir():
            if ours.fullmatch(left.name) and left.stat().st_mtime < time.time() - STALE_S:
                left.unlink()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that readers, and a crash, see the old or the new content; text is UTF-8. Needs no lock."""
    with replacing_unlocked(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_file(path: Path, content: str | bytes) -> Path:
    """Write a file atomically, creating its folder, or to standard output; return `path`.

    A link is followed: its target is replaced. If the disk fails, there is no new file, so that the same command can be
    run again.

    Raises:
        CsiJobError: the folder cannot be written, or the disk is full.
    """
    if path == STREAM:
        sys.stdout.buffer.write(content.encode() if isinstance(content, str) else content)
        sys.stdout.flush()
        return path
    with explain_os_errors(f"{path.name} cannot be written", path.parent, hint="choose another folder"):
        target = _target(path)
        is_new = not exists(target)
        make_folder(target.parent)
        try:
            write_atomic(target, content)
        except OSError:
            if is_new:
                target.unlink(missing_ok=True)
            raise
    return path


def check_free(*paths: Path, force: bool) -> None:
    """Refuse to overwrite a file without `force`, and a folder, device or pipe even with it; a link is followed."""
    for path in paths:
        if path == STREAM:
            continue
        if is_folder(path):
            raise ConfigurationError("a folder is in the way of the file", got=str(path), hint="choose another name")
        if (exists(path) and not is_file(path)) or _target(path).is_symlink():
            raise ConfigurationError("not a regular file", got=str(path), hint="choose another name, or - for a stream")
        if exists(path) and not force:
            hint = "choose another name, or use --force"
            raise ConfigurationError("the file already exists", got=str(path), hint=hint)


def _target(path: Path) -> Path:
    """Resolve a link, so that its target is replaced and not the link; a link to itself stays as it is."""
    return real_path(path) if path.is_symlink() else path


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV, separated by semicolons."""
    text = io.StringIO()
    write_csv(text, header, rows, delimiter=";")
    return text.getvalue()


def write_csv(
    stream: TextIO,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    delimiter: Literal[",", ";"] = ",",
    end: str = "\n",
) -> None:
    """Write a table as CSV, each row as it comes; open the stream with `newline=""`.

    Text that a spreadsheet would evaluate gets an apostrophe; numbers stay numbers. Every cell is one line.
    """
    cells = ([_cell(value, delimiter) for value in row] for row in chain([header], rows))
    csv.writer(stream, delimiter=delimiter, lineterminator=end).writerows(cells)


def _cell(value: object, delimiter: str) -> object:
    if not isinstance(value, str):
        return value
    text = _LATER_FORMULA[delimiter].sub(r"\1'", " ".join(value.splitlines()))
    return f"'{text}" if _FORMULA.match(text) and not re.fullmatch(_NUMBER, text) else text


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
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSHING:  # some network file systems refuse, and flush names at once
            raise


@contextmanager
def locked(path: Path, waiting_message: str) -> Iterator[None]:
    """Hold the lock of a file, waiting for it if necessary; the death of a process frees its locks.

    On NFS the server keeps these locks for all its clients, unless it is mounted with `nolock` or `local_lock`.

    Args:
        path: created if missing; its folder exists.
        waiting_message: logged once if another process holds the lock.

    Raises:
        ConfigurationError: the file cannot be written, or its file system has no locks.
    """
    with _lock_file(path) as descriptor:
        _wait_until(lambda: _try_lock(descriptor, path), waiting_message)
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock of a file unless another process does; yield whether it is held. Raises the same as `locked`."""
    with _lock_file(path) as descriptor:
        yield _try_lock(descriptor, path)


def lock_range(descriptor: int, path: Path, start: int, length: int, waiting_message: str | None = None) -> bool:
    """Lock some bytes of an open file (0: all from `start`); return whether no other process holds any of them.

    With a message, wait until that is so, and log the message if it takes longer than a look. They are locked until
    `unlock_ranges`, or until this process closes any descriptor of the file. Raises the same as `locked`.
    """

    def try_lock() -> bool:
        with _explain_locks(path), suppress(BlockingIOError, PermissionError):  # POSIX allows either
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            return True
        return False

    if waiting_message is None:
        return try_lock()
    _wait_until(try_lock, waiting_message)
    return True


def unlock_ranges(descriptor: int) -> None:
    """Unlock everything that `lock_range` has locked of an open file."""
    fcntl.lockf(descriptor, fcntl.LOCK_UN)


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    with _explain_locks(path):
        descriptor = open_private(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, path: Path) -> bool:
    with _explain_locks(path), suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _wait_until(try_lock: Callable[[], bool], waiting_message: str) -> None:
    while not try_lock():
        if waiting_message:
            logger.info(waiting_message)
            waiting_message = ""
        time.sleep(_POLL_S)


def _explain_locks(path: Path) -> AbstractContextManager[None]:
    hint = "use a folder that can be written, on a file system with locks"
    return explain_os_errors("the lock file cannot be locked", path, kind=ConfigurationError, hint=hint)
