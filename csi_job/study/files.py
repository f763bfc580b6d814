"""Files of studies: each whole or not there, and none overwritten unasked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from csi_job.cache.files import write_whole
from csi_job.errors import ConfigurationError, CsiJobError

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
