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

from csi_job.cache.manifest import FORMAT_VERSION, MANIFEST, load_info
from csi_job.cache.settings import CacheSettings
from csi_job.errors import ConfigurationError, DataError, Problem
from csi_job.files import digest_file, digest_json, locked, read_json, write_atomic
from csi_job.logs import progress
from csi_job.radiographs.identity import load_key, pseudonym
from csi_job.radiographs.read import READER_VERSION, find_images
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable, read_table
from csi_job.work_folder import WorkFolder

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
        self._known: dict[str, list[object]] = read_json(path) or {}

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
                write_atomic(self._path, json.dumps(self._known))
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


_DIGESTS_FILE = "digests.json"


@dataclass(frozen=True)
class Source:
    """N rows in the order of their FileIDs, so that a table sorted anew gives the same cache."""

    table: LabelTable
    paths: tuple[Path, ...]
    digests: tuple[ImageDigest, ...]
    key: str
    identity_key: bytes

    def problem(self, index: int, what: str) -> Problem:
        """Return what is wrong with the image of a row."""
        return Problem(what, row=self.table.rows[index], file_id=self.table.file_ids[index])

    def check_unchanged(self) -> None:
        """Check that no image changed since it was digested.

        Raises:
            DataError: some did; the pixels may not be those that the key promises.

        """
        changed = [
            self.problem(index, "changed while the cache was built")
            for index, (path, digest) in enumerate(zip(self.paths, self.digests, strict=True))
            if digest.stat is not None and stat_of(path) != digest.stat
        ]
        if changed:
            raise DataError("images changed while the cache was built", problems=changed, hint="Run it again")


def read_source(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> Source:
    """Read the table, find the images, digest those that are new.

    Args:
        radiographs: where table and images are.
        cache: size and normalisation, which are part of the key.
        work: the work folder; the folder of its caches exists.

    Raises:
        ConfigurationError: table or images are not set.
        DataError: they cannot be used.

    """
    if radiographs.labels is None or radiographs.images is None:
        missing = "radiographs.labels" if radiographs.labels is None else "radiographs.images"
        raise ConfigurationError(f"{missing} is not set", hint="Give --labels TABLE and --images FOLDER")
    table = _sorted_by_file(read_table(radiographs.labels, radiographs))
    paths = find_images(radiographs.images, table.file_ids, table.rows)
    folder = WorkFolder(work)
    identity_key = load_key(folder.identity_key)
    digests = tuple(DigestIndex(folder.caches / _DIGESTS_FILE, identity_key).digest(paths))
    return Source(table, paths, digests, cache_key(table, digests, radiographs, cache), identity_key)


def _sorted_by_file(table: LabelTable) -> LabelTable:
    order = sorted(range(len(table)), key=lambda index: table.file_ids[index])
    return LabelTable(
        file_ids=tuple(table.file_ids[index] for index in order),
        patient_ids=tuple(table.patient_ids[index] for index in order),
        rows=tuple(table.rows[index] for index in order),
        zones_NZ=table.zones_NZ[order],
        has_patients=table.has_patients,
    )


_REQUESTS_FILE = "requests.json"  # settings (digested) → key of the cache last built for them


def remember_request(root: Path, radiographs: RadiographsSettings, cache: CacheSettings, key: str) -> None:
    """Note which cache these settings gave; a folder that cannot be written is left as it is."""
    request = _request(radiographs, cache)
    if _requests(root).get(request) != key:
        with suppress(OSError), locked(root / f".{_REQUESTS_FILE}.lock", ""):
            write_atomic(root / _REQUESTS_FILE, json.dumps({**_requests(root), request: key}, indent=1))


def remembered_key(root: Path, radiographs: RadiographsSettings, cache: CacheSettings) -> str | None:
    """Return the key of the cache last built for these settings."""
    return _requests(root).get(_request(radiographs, cache))


def only_cache(root: Path, radiographs: RadiographsSettings, cache: CacheSettings) -> Path | None:
    """Return the only cache of this size, normalisation and split, or None.

    Raises:
        ConfigurationError: several fit.

    """
    split = radiographs.split
    wanted = (cache.image_size_px, cache.normalisation, split.seed, (split.train, split.validation, split.test))
    fitting = []
    for manifest in sorted(root.glob(f"[!.]*/{MANIFEST}")):
        info = load_info(manifest.parent)
        if (info.image_size_px, info.normalisation, info.split_seed, info.split_shares) == wanted:
            fitting.append(manifest.parent)
    if len(fitting) > 1:
        names = ", ".join(folder.name for folder in fitting)
        raise ConfigurationError("several caches fit these settings", got=names, hint="Give --labels and --images")
    return fitting[0] if fitting else None


def _request(radiographs: RadiographsSettings, cache: CacheSettings) -> str:
    named = {
        "labels": str(radiographs.labels and radiographs.labels.absolute()),
        "images": str(radiographs.images and radiographs.images.absolute()),
        "radiographs": radiographs.model_dump(exclude={"labels", "images", "max_corrupt_fraction"}),
        "cache": cache.model_dump(exclude={"num_workers"}),
    }
    return digest_json(named)


def _requests(root: Path) -> dict[str, str]:
    return read_json(root / _REQUESTS_FILE) or {}
