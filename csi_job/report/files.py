"""The files of the report: each whole or not there, and never a traceback for a full disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from csi_job.cache.files import write_whole
from csi_job.errors import CsiJobError

if TYPE_CHECKING:
    from pathlib import Path


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
