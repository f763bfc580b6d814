"""The fingerprint of a cache's content: everything that decides its pixels and labels, images included."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csi_job.cache.files import write_whole
from csi_job.cache.settings import CacheSettings
from csi_job.cache.store import FORMAT_VERSION, digest_file
from csi_job.logs import progress
from csi_job.radiographs.identity import pseudonym
from csi_job.radiographs.read import READER_VERSION
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable

KEY_LENGTH = 16
_UNREADABLE = "unreadable"
_BATCH = 256
_NUM_THREADS = 8  # reading waits for disks and networks, hashing frees the interpreter
_SETTLED_NS = 2_000_000_000  # a file changed just now may change again within one tick of its clock
_SAVE_EVERY_S = 30.0

Stat = tuple[int, int, int, int]  # bytes, time of change of content and of inode in ns, inode


@dataclass(frozen=True)
class ImageDigest:
    """The sha256 of an image file, and what `stat` said when it was taken."""

    sha256: str
    stat: Stat | None


class DigestIndex:
    """Digests of image files by what `stat` says of them, so that unchanged files are not read again.

    It is kept under pseudonyms of the paths; losing it costs only time.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        """Read the index where there is a sound one."""
        self._path, self._key = path, key
        self._changed = False
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            self._known: dict[str, list[object]] = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            self._known = {}

    def digest(self, paths: Sequence[Path]) -> list[ImageDigest]:
        """Return the digest of each file, reading only those that are new or changed."""
        digests = [self._look_up(path) for path in paths]
        missing = [place for place, digest in enumerate(digests) if digest is None]
        if not missing:
            return [digest for digest in digests if digest is not None]
        saved = time.monotonic()
        with progress("reading radiographs", len(missing), "images") as advance:
            for batch in _batches(missing):
                for place, digest in zip(batch, _digest_batch([paths[place] for place in batch]), strict=True):
                    digests[place] = digest
                    self._remember(paths[place], digest)
                advance(len(batch))
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self.save()
                    saved = time.monotonic()
        self.save()
        return [digest for digest in digests if digest is not None]

    def save(self) -> None:
        """Write the index, where it can be written."""
        if self._changed:
            with suppress(OSError):  # it only saves time
                write_whole(self._path, json.dumps(self._known))
            self._changed = False

    def _look_up(self, path: Path) -> ImageDigest | None:
        stat = stat_of(path)
        known = self._known.get(pseudonym(str(path), self._key))
        if stat is None or not isinstance(known, list) or known[:-1] != list(stat):
            return None
        return ImageDigest(str(known[-1]), stat)

    def _remember(self, path: Path, digest: ImageDigest) -> None:
        if digest.stat is not None and max(digest.stat[1:3]) < time.time_ns() - _SETTLED_NS:
            self._known[pseudonym(str(path), self._key)] = [*digest.stat, digest.sha256]
            self._changed = True


def cache_key(
    table: LabelTable, digests: Sequence[ImageDigest], radiographs: RadiographsSettings, cache: CacheSettings
) -> str:
    """Return 16 hexadecimal digits of everything that decides a cache's content; the table's order does not."""
    settings = {
        "format": FORMAT_VERSION,
        "reader": READER_VERSION,
        "image_size_px": cache.image_size_px,
        "normalisation": cache.normalisation,
        "max_image_side_px": radiographs.max_image_side_px,
        "split": radiographs.split.model_dump(),
    }
    rows = sorted(
        zip(table.file_ids, table.patient_ids, table.zones_NZ.tolist(), digests, strict=True), key=lambda r: r[0]
    )
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file_id, patient_id, zones, digest in rows:
        key.update(json.dumps([file_id, patient_id, zones, digest.sha256]).encode())
    return key.hexdigest()[:KEY_LENGTH]


def stat_of(path: Path) -> Stat | None:
    """Return what changes when a file's content may have changed, or None where it cannot be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 - faster than Path.stat over many files
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _digest_batch(paths: Sequence[Path]) -> list[ImageDigest]:
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(threads.map(_digest_one, paths))


def _digest_one(path: Path) -> ImageDigest:
    stat = stat_of(path)
    try:
        digest = ImageDigest(digest_file(path), stat)
    except OSError:
        return ImageDigest(_UNREADABLE, None)
    return digest if stat_of(path) == stat else ImageDigest(digest.sha256, None)


def _batches(places: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), _BATCH):
        yield places[start : start + _BATCH]
