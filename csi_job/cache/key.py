"""Which cache belongs to which data.

A cache is named by its content key, a digest of everything that decides its pixels and labels: image files, label
table, split and settings. Where the data is not mounted, the key is the one last recorded for the same settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csi_job.cache.manifest import FORMAT_VERSION, MANIFEST, load_info
from csi_job.cache.problems import problems_listed
from csi_job.cache.settings import CacheSettings
from csi_job.errors import ConfigurationError, DataError, Problem
from csi_job.files import digest_file, digest_json, locked, read_json, write_atomic
from csi_job.logs import progress
from csi_job.radiographs.content import NUM_START_BYTES, reader_version
from csi_job.radiographs.identity import load_key, pseudonym
from csi_job.radiographs.read import find_images
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable, read_table
from csi_job.work_folder import WorkFolder

KEY_LENGTH = 16
_DIGESTS_FILE = "digests.json"
_KEYS_FILE = "requests.json"  # digest of settings → key of the cache last built for them
_UNREADABLE = "unreadable"
_BATCH = 256
_NUM_THREADS = 8  # reading waits for disks and networks, and hashing releases the interpreter's lock
_SETTLED_NS = 2_000_000_000  # a file changed just now may change again within one tick of its clock
_SAVE_EVERY_S = 30.0

Stat = tuple[int, int, int, int]  # bytes, time of change of content and of inode in ns, inode


@dataclass(frozen=True)
class ImageDigest:
    """The SHA-256 of an image file, the version of its reader, and its `stat`; None if it cannot be read."""

    sha256: str
    reader: int
    stat: Stat | None


@dataclass(frozen=True)
class Source:
    """The data of a cache: N rows ordered by FileID, so that the order of the table does not matter."""

    table: LabelTable
    paths: tuple[Path, ...]
    digests: tuple[ImageDigest, ...]
    key: str
    identity_key: bytes

    def problem(self, index: int, what: str) -> Problem:
        """Return a problem with the image of a row."""
        return Problem(what, row=self.table.rows[index], file_id=self.table.file_ids[index])

    def check_unchanged(self) -> None:
        """Raise `DataError` if an image changed since it was digested, as its pixels may not match the key."""
        changed = [
            self.problem(index, "changed while the cache was built")
            for index, (path, digest) in enumerate(zip(self.paths, self.digests, strict=True))
            if digest.stat is not None and _stat(path) != digest.stat
        ]
        if changed:
            raise DataError("images changed while the cache was built", problems=changed, hint="run it again")


def read_source(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> Source:
    """Read the table, find the images, and digest the new ones; the work folder's folder of caches must exist.

    Raises:
        ConfigurationError: table or images are not set.
        DataError: they cannot be used.

    """
    if radiographs.labels is None or radiographs.images is None:
        missing = "radiographs.labels" if radiographs.labels is None else "radiographs.images"
        raise ConfigurationError(f"{missing} is not set", hint="give --labels TABLE and --images FOLDER")
    table = read_table(radiographs.labels, radiographs).sorted_by_file()
    paths = find_images(radiographs.images, table.file_ids, table.rows)
    folder = WorkFolder(work)
    identity_key = load_key(folder.identity_key)
    digests = tuple(DigestIndex(folder.caches / _DIGESTS_FILE, identity_key).digest(paths))
    return Source(table, paths, digests, _content_key(table, digests, radiographs, cache), identity_key)


def find_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> Path | None:
    """Return the folder of the finished cache for these settings, or None; nothing is decoded.

    If the data is not mounted, as in pods that only train, it is the cache last built for the same settings. If no
    data is named, it is the only cache with this size, normalisation and split.

    Raises:
        DataError: the data cannot be used.
        ConfigurationError: only half of the data is named, or none and several caches match.

    """
    root = WorkFolder(work).caches
    if not root.is_dir():
        return None
    named = [path for path in (radiographs.labels, radiographs.images) if path is not None]
    if not named:
        return _sole_matching_cache(root, radiographs, cache)
    if len(named) == 1 or any(path.exists() for path in named):
        with problems_listed(work):
            key: str | None = read_source(radiographs, cache, work).key
    else:
        key = (read_json(root / _KEYS_FILE) or {}).get(_settings_digest(radiographs, cache))
    folder = WorkFolder(work).cache(key) if isinstance(key, str) and key else None
    return folder if folder is not None and folder.is_dir() else None


def record_key_for_settings(root: Path, radiographs: RadiographsSettings, cache: CacheSettings, key: str) -> None:
    """Record which cache was built for these settings; does nothing if the folder cannot be written."""
    settings, path = _settings_digest(radiographs, cache), root / _KEYS_FILE
    if (read_json(path) or {}).get(settings) != key:
        with suppress(OSError, ConfigurationError), locked(root / f".{_KEYS_FILE}.lock", ""):
            write_atomic(path, json.dumps({**(read_json(path) or {}), settings: key}, indent=1))


class DigestIndex:
    """Digests of image files by their `stat`, so that unchanged files are not read again.

    It is stored under pseudonyms of the paths; losing it costs only time.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        """Read the index if there is a valid one."""
        self._path, self._key = path, key
        self._has_changed = False
        self._known: dict[str, list[object]] = read_json(path) or {}

    def digest(self, paths: Sequence[Path]) -> list[ImageDigest]:
        """Return the digest of each file, reading only new and changed ones."""
        digests = {place: known for place, path in enumerate(paths) if (known := self._look_up(path))}
        missing = [place for place in range(len(paths)) if place not in digests]
        if missing:
            self._read(paths, missing, digests)
        return [digests[place] for place in range(len(paths))]

    def save(self) -> None:
        """Write the index if it has changed and can be written."""
        if self._has_changed:
            with suppress(OSError):  # it only saves time
                write_atomic(self._path, json.dumps(self._known))
            self._has_changed = False

    def _read(self, paths: Sequence[Path], missing: Sequence[int], digests: dict[int, ImageDigest]) -> None:
        saved = time.monotonic()
        with (
            progress("reading radiographs", len(missing), "images") as advance,
            ThreadPoolExecutor(_NUM_THREADS) as pool,
        ):
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                for place, digest in zip(
                    batch, pool.map(_digest_image, [paths[place] for place in batch]), strict=True
                ):
                    digests[place] = digest
                    self._remember(paths[place], digest)
                advance(len(batch))
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def _look_up(self, path: Path) -> ImageDigest | None:
        stat = _stat(path)
        known = self._known.get(pseudonym(str(path), self._key))
        if stat is None or not isinstance(known, list) or known[:-2] != list(stat):
            return None
        sha256, reader = known[-2:]
        return ImageDigest(str(sha256), int(str(reader)), stat)

    def _remember(self, path: Path, digest: ImageDigest) -> None:
        if digest.stat is not None and max(digest.stat[1:3]) < time.time_ns() - _SETTLED_NS:
            self._known[pseudonym(str(path), self._key)] = [*digest.stat, digest.sha256, digest.reader]
            self._has_changed = True


def _content_key(
    table: LabelTable, digests: Sequence[ImageDigest], radiographs: RadiographsSettings, cache: CacheSettings
) -> str:
    """Return 16 hexadecimal digits of everything that decides a cache's content."""
    settings = {
        "format": FORMAT_VERSION,
        "reader": 1,
        "image_size_px": cache.image_size_px,
        "normalisation": cache.normalisation,
        "max_image_side_px": radiographs.max_image_side_px,
        "split": radiographs.split.model_dump(),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    rows = zip(table.file_ids, table.patient_ids, table.zones_NZ.tolist(), digests, strict=True)
    for file_id, patient_id, zones, digest in sorted(rows, key=lambda row: row[0]):
        newer_reader = [digest.reader] if digest.reader > 1 else []
        key.update(json.dumps([file_id, patient_id, zones, digest.sha256, *newer_reader]).encode())
    return key.hexdigest()[:KEY_LENGTH]


def _settings_digest(radiographs: RadiographsSettings, cache: CacheSettings) -> str:
    named = {
        "labels": str(radiographs.labels and radiographs.labels.absolute()),
        "images": str(radiographs.images and radiographs.images.absolute()),
        "radiographs": radiographs.model_dump(exclude={"labels", "images", "max_corrupt_fraction"}),
        "cache": cache.model_dump(exclude={"num_workers"}),
    }
    return digest_json(named)


def _sole_matching_cache(root: Path, radiographs: RadiographsSettings, cache: CacheSettings) -> Path | None:
    split = radiographs.split
    wanted = (cache.image_size_px, cache.normalisation, split.seed, (split.train, split.validation, split.test))
    matching = []
    for manifest in sorted(root.glob(f"[!.]*/{MANIFEST}")):
        info = load_info(manifest.parent)
        if (info.image_size_px, info.normalisation, info.split_seed, info.split_shares) == wanted:
            matching.append(manifest.parent)
    if len(matching) > 1:
        names = ", ".join(folder.name for folder in matching)
        raise ConfigurationError("several caches match these settings", got=names, hint="give --labels and --images")
    return matching[0] if matching else None


def _stat(path: Path) -> Stat | None:
    """Return what differs if a file's content may have changed, or None if it cannot be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 - faster than Path.stat over many files
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _digest_image(path: Path) -> ImageDigest:
    stat = _stat(path)
    try:
        sha256 = digest_file(path)
        with path.open("rb") as file:
            reader = reader_version(file.read(NUM_START_BYTES))
    except OSError:
        return ImageDigest(_UNREADABLE, 1, None)
    return ImageDigest(sha256, reader, stat if _stat(path) == stat else None)
