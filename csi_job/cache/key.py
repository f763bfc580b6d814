"""Which cache belongs to which data.

A cache is named by its content key, a digest of everything that decides its pixels and labels: image files, label
table, split and settings. Where the data is not mounted, the key is the one last recorded for the same settings.
"""

import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import NamedTuple

from csi_job.cache.manifest import FORMAT_VERSION, finished_folders, load_info
from csi_job.cache.problems import problems_listed
from csi_job.cache.settings import NODE_ONLY, CacheSettings
from csi_job.errors import ConfigurationError, DataError, Problem
from csi_job.files import (
    digest_file,
    digest_json,
    lock_range,
    locked,
    open_private,
    read_json,
    unlock_ranges,
    write_atomic,
)
from csi_job.logs import progress
from csi_job.radiographs.identity import load_key
from csi_job.radiographs.read import EARLIER_READERS, READER_VERSION, find_images
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.table import LabelTable, read_table
from csi_job.work_folder import WorkFolder, no_cache

KEY_LENGTH = 16
_DIGESTS_FILE = "digests.bin"  # records of stamp, SHA-256 and `_INTACT`
_APPENDING = 1 << 62  # the byte of the lock file that stands for the index; the others stand for batches of images
_STAMP_BYTES = 16
_INTACT = b"\1"  # at the end of a record, since what was lost in a power failure reads as zeros
_RECORD_BYTES = _STAMP_BYTES + hashlib.sha256().digest_size + len(_INTACT)
_KEYS_FILE = "requests.json"  # digest of settings → key of the cache last built for them
_UNREADABLE = "unreadable"
_BATCH = 256
_NUM_THREADS = 8  # reading waits for disks and networks, and hashing releases the interpreter's lock
_SETTLED_NS = 2_000_000_000  # a file changed just now may change again within one tick of its clock

logger = logging.getLogger(__name__)
Stat = tuple[int, ...]  # bytes, time of change of content and of inode in ns, inode


class ImageDigest(NamedTuple):
    """The SHA-256 of an image file; its stamp, empty if it changed meanwhile."""

    sha256: str
    stamp: bytes


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
        stamps = _stamps(self.paths, self.identity_key)
        changed = [
            self.problem(index, "changed while the cache was built")
            for index, (stamp, digest) in enumerate(zip(stamps, self.digests, strict=True))
            if digest.stamp and stamp != digest.stamp
        ]
        if changed:
            raise DataError("images changed while the cache was built", problems=changed, hint="run it again")


def read_source(radiographs: RadiographsSettings, cache: CacheSettings, work: Path, study_key: str = "") -> Source:
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
    digests = tuple(DigestIndex(folder.caches, identity_key).digest(paths))
    key = _content_key(table, digests, radiographs, cache, READER_VERSION)
    earlier = (_content_key(table, digests, radiographs, cache, reader) for reader in EARLIER_READERS)
    if study_key not in ("", key) and folder.cache(study_key).is_dir() and study_key in earlier:
        logger.info("using the study's cache %s, which an earlier version of csi-job decoded", study_key)
        key = study_key
    return Source(table, paths, digests, key, identity_key)


def find_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path, study_key: str = "") -> Path | None:
    """Return the folder of the finished cache for these settings, or None; nothing is decoded.

    If the data is not mounted, as in pods that only train, it is the cache last built for the same settings. If no
    data is named, it is the only cache with this size, normalisation and split. For `study_key` see `read_source`.

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
            key: str | None = read_source(radiographs, cache, work, study_key).key
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
    """Digests of image files by their stamp, so that unchanged files are not read again.

    Processes that need the same digests share the reading: what one has read, it appends for all. Losing the index
    costs only time.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        """Read the index in a folder if there is one."""
        self._folder, self._path, self._key = folder, folder / _DIGESTS_FILE, key
        self._known: dict[bytes, bytes] = {}
        self._num_bytes_known = 0
        self._load()

    def digest(self, paths: Sequence[Path]) -> list[ImageDigest]:
        """Return the digest of each file, reading only new and changed ones."""
        stamps = _stamps(paths, self._key)
        digests = list(map(self._look_up, stamps))
        if None in digests:
            with self._lock_file() as locks:
                self._read(paths, stamps, digests, locks)
        return [digest for digest in digests if digest is not None]

    def _read(
        self, paths: Sequence[Path], stamps: Sequence[bytes], digests: list[ImageDigest | None], locks: int | None
    ) -> None:
        left = {place // _BATCH for place, digest in enumerate(digests) if digest is None}
        with (
            progress("reading radiographs", digests.count(None), "images") as advance,
            ThreadPoolExecutor(_NUM_THREADS) as pool,
        ):
            for waiting in (None, "another process is reading the other images; waiting for it"):
                for number in sorted(left):
                    if locks is None or lock_range(locks, self._path, number, 1, waiting):
                        left.remove(number)
                        self._load()
                        batch = slice(number * _BATCH, (number + 1) * _BATCH)
                        advance(digests[batch].count(None))
                        digests[batch] = self._read_batch(paths[batch], stamps[batch], pool, locks)

    def _read_batch(
        self, paths: Sequence[Path], stamps: Sequence[bytes], pool: ThreadPoolExecutor, locks: int | None
    ) -> list[ImageDigest | None]:
        """Read what is still unknown of a batch, and unlock it."""
        digests, records = list(map(self._look_up, stamps)), b""
        missing = [place for place, digest in enumerate(digests) if digest is None]
        for place, (sha256, stat) in zip(
            missing, pool.map(_digest_image, [paths[place] for place in missing]), strict=True
        ):
            digest = digests[place] = ImageDigest(sha256, _stamp(paths[place], stat, self._key))
            if stat is not None and max(stat[1:3]) < time.time_ns() - _SETTLED_NS:
                records += digest.stamp + bytes.fromhex(sha256) + _INTACT
        self._append(records, locks)
        return digests

    def _look_up(self, stamp: bytes) -> ImageDigest | None:
        known = self._known.get(stamp, b"")
        return ImageDigest(known[:-1].hex(), stamp) if known.endswith(_INTACT) else None

    def _load(self) -> None:
        with suppress(OSError), self._path.open("rb") as file:
            file.seek(self._num_bytes_known)
            content = file.read()
            for start in range(0, len(content) - _RECORD_BYTES + 1, _RECORD_BYTES):
                known = start + _STAMP_BYTES
                self._known[content[start:known]] = content[known : start + _RECORD_BYTES]
                self._num_bytes_known += _RECORD_BYTES

    def _append(self, records: bytes, locks: int | None) -> None:
        """Append records after the last intact one, where a killed process may have left part of one; and unlock."""
        if locks is None:
            return
        lock_range(locks, self._path, _APPENDING, 1, "")
        with suppress(OSError):  # it only saves time
            descriptor = open_private(self._path)
            try:
                end = os.fstat(descriptor).st_size
                os.pwrite(descriptor, records, end - end % _RECORD_BYTES)
            finally:
                os.close(descriptor)
        unlock_ranges(locks)

    @contextmanager
    def _lock_file(self) -> Iterator[int | None]:
        """Open the file whose bytes stand for batches; None in a folder that cannot be written."""
        try:
            descriptor = open_private(self._folder / f".{_DIGESTS_FILE}.lock")
        except OSError:
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _content_key(
    table: LabelTable,
    digests: Sequence[ImageDigest],
    radiographs: RadiographsSettings,
    cache: CacheSettings,
    reader: int,
) -> str:
    """Return 16 hexadecimal digits of everything that decides a cache's content; the table is sorted by FileID."""
    settings = {
        "format": FORMAT_VERSION,
        "reader": reader,
        "image_size_px": cache.image_size_px,
        "normalisation": cache.normalisation,
        "max_image_side_px": radiographs.max_image_side_px,
        "split": radiographs.split.model_dump(),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    rows = zip(table.file_ids, table.patient_ids, table.zones_NZ.tolist(), digests, strict=True)
    for file_id, patient_id, zones, digest in rows:  # as `json.dumps` writes a list, at a fifth of its cost
        names = f"{encode_basestring_ascii(file_id)}, {encode_basestring_ascii(patient_id)}"
        key.update(f'[{names}, {zones}, "{digest.sha256}"]'.encode())
    return key.hexdigest()[:KEY_LENGTH]


def _settings_digest(radiographs: RadiographsSettings, cache: CacheSettings) -> str:
    named = {
        "labels": str(radiographs.labels and radiographs.labels.absolute()),
        "images": str(radiographs.images and radiographs.images.absolute()),
        "radiographs": radiographs.model_dump(exclude={"labels", "images", "max_corrupt_fraction"}),
        "cache": cache.model_dump(exclude=NODE_ONLY),
    }
    return digest_json(named)


def _sole_matching_cache(root: Path, radiographs: RadiographsSettings, cache: CacheSettings) -> Path | None:
    split = radiographs.split
    wanted = (cache.image_size_px, cache.normalisation, split.seed, (split.train, split.validation, split.test))
    matching = []
    for folder in finished_folders(root):
        info = load_info(folder)
        if (info.image_size_px, info.normalisation, info.split_seed, info.split_shares) == wanted:
            matching.append(folder)
    if len(matching) > 1:
        names = ", ".join(folder.name for folder in matching)
        raise ConfigurationError("several caches match these settings", got=names, hint="give --labels and --images")
    return matching[0] if matching else None


def existing_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path, named_key: str = "") -> Path:
    """Return the folder of a finished cache; `named_key` names it if no other data, size or normalisation is named.

    Raises:
        ConfigurationError: there is none, or several match and none is named.
    """
    named = WorkFolder(work).cache(named_key) if named_key and radiographs.labels is None else None
    if named is not None and named.is_dir():
        info, given = load_info(named), cache.model_fields_set & {"image_size_px", "normalisation"}
        if all(getattr(info, name) == getattr(cache, name) for name in given):
            return named
    folder = find_cache(radiographs, cache, work, named_key)
    if folder is None:
        raise _no_matching_cache(radiographs, cache, work)
    return folder


def _no_matching_cache(radiographs: RadiographsSettings, cache: CacheSettings, work: Path) -> ConfigurationError:
    """Return the error that no cache has these settings, or not of this data, naming those that there are."""

    def described(image_size_px: int, normalisation: str, split_seed: int) -> str:
        return f"{image_size_px} px, {normalisation}, split seed {split_seed}"

    present = []
    for folder in finished_folders(WorkFolder(work).caches):
        with suppress(DataError):
            info = load_info(folder)
            present.append(described(info.image_size_px, info.normalisation, info.split_seed))
    if not present:
        return no_cache(WorkFolder(work))
    wanted = described(cache.image_size_px, cache.normalisation, radiographs.split.seed)
    if radiographs.labels is not None:
        what, allowed = "there is no cache of this data with these settings", None
        hint = "build it: csi-job cache build, with the same options"
    else:
        what, allowed = "there is no cache for these settings", "; or ".join(dict.fromkeys(present))
        hint = "give the --image-size or --config of one, or --labels and --images"
    return ConfigurationError(what, got=wanted, allowed=allowed, hint=hint)


def _stamps(paths: Sequence[Path], key: bytes) -> list[bytes]:
    """Return stamps that change with a file's path and its `stat`, as its content would; empty if unreadable."""
    return [_stamp(path, _stat(path), key) for path in paths]


def _stamp(path: Path, stat: Stat | None, key: bytes) -> bytes:
    text = f"{path}\0{stat}"
    return hmac.digest(key, text.encode("utf-8", "surrogateescape"), "sha256")[:_STAMP_BYTES] if stat else b""


def _stat(path: Path) -> Stat | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - faster than Path.stat over many files
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _digest_image(path: Path) -> tuple[str, Stat | None]:
    """Return the SHA-256 of a file, and its `stat` (None if it changed or is unreadable)."""
    stat = _stat(path)
    try:
        sha256 = digest_file(path)
    except OSError:
        return _UNREADABLE, None
    return sha256, stat if _stat(path) == stat else None
