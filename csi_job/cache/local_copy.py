"""A copy of a cache's arrays on the node, for training that would read them from a remote volume in every epoch."""

import hashlib
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from csi_job.cache.manifest import CacheInfo, changed_file, images_file
from csi_job.errors import CsiJobError, DataError
from csi_job.files import is_file, locked, make_folder, replacing
from csi_job.logs import announced

COPIED: Final = tuple(map(images_file, ("train", "validation")))
_CHUNK_BYTES: Final = 8 << 20

logger = logging.getLogger(__name__)


def local_arrays(folder: Path, info: CacheInfo, limit_gib: float) -> Path:
    """Copy the arrays for training to the temporary folder, unless they are there, and return where they are.

    The processes of a node share one copy: one makes it, the others wait. Where it would exceed the limit or cannot be
    made, the cache's own folder is returned.

    Raises:
        DataError: an array differs from its digest.
    """
    place = Path(tempfile.gettempdir()) / f"csi-job-{os.getuid()}" / info.key
    try:
        _copy_arrays(folder, place, info, limit_gib)
    except DataError:
        raise
    except (OSError, CsiJobError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        logger.warning("training reads the cache in %s itself, which is not copied to this node: %s", folder, reason)
        return folder
    return place


def _copy_arrays(folder: Path, place: Path, info: CacheInfo, limit_gib: float) -> None:
    sizes = {name: (folder / name).stat().st_size for name in COPIED}
    gib = sum(sizes.values()) / 2**30
    if gib > limit_gib:
        raise CsiJobError("a copy is too large", got=f"{gib:.1f} GiB", allowed=f"cache.local_copy_gib, {limit_gib:g}")
    shared = make_folder(place.parent).lstat()
    if shared.st_uid != os.getuid() or not stat.S_ISDIR(shared.st_mode):  # others may write in the temporary folder
        raise CsiJobError("the folder belongs to another user, or is a link", got=str(place.parent))
    make_folder(place)
    with locked(place / "lock", "another process is copying the cache to this node; waiting for it"):
        # A file gets its name when it is complete.
        copied = {path.name: path.stat().st_size for path in place.iterdir() if is_file(path)}
        missing = [name for name, size in sizes.items() if copied.get(name) != size]
        if sum(sizes[name] for name in missing) > shutil.disk_usage(place).free:
            raise CsiJobError("too little space is left", got=str(place))
        with announced(f"copying {gib:.1f} GiB of the cache to {place}"):
            for name in missing:
                _copy(folder / name, place / name, info.files[name])


def _copy(source: Path, target: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with replacing(target) as temporary, source.open("rb") as read, temporary.open("wb") as written:
        while chunk := read.read(_CHUNK_BYTES):
            digest.update(chunk)
            written.write(chunk)
        if digest.hexdigest() != sha256:
            raise changed_file(source.parent, source.name)
