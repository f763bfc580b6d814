"""Pseudonyms: keyed hashes in place of the identifiers of patients and files, which never leave the work folder."""

import hmac
import os
import secrets
from pathlib import Path

from csi_job.errors import DataError, explain_os_errors
from csi_job.files import exists, flush_folder, write_atomic

PSEUDONYM_LENGTH = 12
_KEY_BYTES = 32


def pseudonym(identifier: str, key: bytes) -> str:
    """Return 12 hexadecimal digits for an identifier, which cannot be reversed without the key."""
    digest = hmac.digest(key, identifier.encode("utf-8", "surrogatepass"), "sha256")
    return digest.hex()[:PSEUDONYM_LENGTH]


def load_key(path: Path) -> bytes:
    """Return the key in a file; the first call creates it, readable only by its owner. The folder must exist.

    Raises:
        DataError: the file cannot be read or written, or does not hold a key.
    """
    with explain_os_errors("the pseudonym key cannot be stored", path, kind=DataError):
        if not exists(path):
            _write_once(path, secrets.token_bytes(_KEY_BYTES))
        key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise DataError("the pseudonym key is damaged", got=str(path), hint="delete it to create another")
    return key


def _write_once(path: Path, key: bytes) -> None:
    """Write the key under a temporary name and link it: of two processes one wins, and neither reads half a key."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        write_atomic(temporary, key)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links: the race is between two equally good keys
            temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
