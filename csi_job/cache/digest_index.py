"""SHA-256 digests of image files, kept by their stamps so that unchanged files are not read again."""

import hashlib
import hmac
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from csi_job.files import digest_file, lock_range, open_private, unlock_ranges
from csi_job.logs import progress

_DIGESTS_FILE = "digests.bin"  # records of stamp, SHA-256 and `_INTACT`
_APPENDING = 1 << 62  # the byte of the lock file that stands for the index; the others stand for batches of images
_STAMP_BYTES = 16
_INTACT = b"\1"  # at the end of a record, since what was lost in a power failure reads as zeros
_RECORD_BYTES = _STAMP_BYTES + hashlib.sha256().digest_size + len(_INTACT)
_UNREADABLE = "unreadable"
_BATCH = 256
_NUM_THREADS = 8  # reading waits for disks and networks, and hashing releases the interpreter's lock
_SETTLED_NS = 2_000_000_000  # a file changed just now may change again within one tick of its clock

Stat = tuple[int, ...]  # bytes, time of change of content and of inode in ns, inode


class ImageDigest(NamedTuple):
    """The SHA-256 of an image file; its stamp, empty if it changed meanwhile."""

    sha256: str
    stamp: bytes


class DigestIndex:
    """The digests of some image files, as far as they are known by the files' stamps.

    Processes that need the same digests share the reading: what one has read, it appends for all. Losing the index
    costs only time.
    """

    def __init__(self, folder: Path, key: bytes, paths: Sequence[str]) -> None:
        """Read the index in a folder if there is one, and look these files up."""
        self._folder, self._path, self._key, self._paths = folder, folder / _DIGESTS_FILE, key, paths
        self._known: dict[bytes, bytes] = {}
        self._num_bytes_known = 0
        self._records: list[bytes] = []
        self._opened_ns = time.time_ns()
        self._load()
        self._stamps = stamps_of(paths, key)
        self._digests = list(map(self._look_up, self._stamps))

    def __getitem__(self, place: int) -> ImageDigest | None:
        """Return the digest of a file if it is known."""
        return self._digests[place]

    def is_complete(self) -> bool:
        """Return whether all digests are known, perhaps by what other processes have read meanwhile."""
        if None in self._digests:
            self._load()
            self._digests = [
                digest or self._look_up(stamp) for digest, stamp in zip(self._digests, self._stamps, strict=True)
            ]
        return None not in self._digests

    def read_all(self) -> tuple[ImageDigest, ...]:
        """Return the digest of each file, reading those that are not known."""
        if None in self._digests:
            with self._lock_file() as locks:
                self._read(locks)
        return tuple(digest for digest in self._digests if digest is not None)

    def add(self, place: int, sha256: str) -> None:
        """Take the digest of what was read from a file since this index was opened."""
        digest = self._digests[place] = ImageDigest(sha256, self._stamps[place])
        if self._look_up(digest.stamp):  # recorded before
            return
        stat = _stat(self._paths[place])
        is_settled = stat is not None and max(stat[1:3]) < self._opened_ns - _SETTLED_NS
        if is_settled and digest.stamp == _stamp(self._paths[place], stat, self._key):
            self._records.append(_record(digest))
        if len(self._records) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Append what was added, for other processes and later ones."""
        if self._records:
            with self._lock_file() as locks:
                self._append(b"".join(self._records), locks)
            self._records.clear()

    def _read(self, locks: int | None) -> None:
        left = {place // _BATCH for place, digest in enumerate(self._digests) if digest is None}
        with (
            progress("reading radiographs", self._digests.count(None), "images") as advance,
            ThreadPoolExecutor(_NUM_THREADS) as pool,
        ):
            for waiting in (None, "another process is reading the other images; waiting for it"):
                for number in sorted(left):
                    if locks is None or lock_range(locks, self._path, number, 1, waiting):
                        left.remove(number)
                        self._load()
                        batch = range(len(self._paths))[number * _BATCH : (number + 1) * _BATCH]
                        advance(self._digests[batch.start : batch.stop].count(None))
                        self._read_batch(batch, pool, locks)

    def _read_batch(self, batch: range, pool: ThreadPoolExecutor, locks: int | None) -> None:
        """Read what is still unknown of a batch, and unlock it."""
        for place in batch:
            self._digests[place] = self._digests[place] or self._look_up(self._stamps[place])
        missing, records = [place for place in batch if self._digests[place] is None], b""
        read = pool.map(_digest_image, [self._paths[place] for place in missing])
        for place, (sha256, stat) in zip(missing, read, strict=True):
            digest = self._digests[place] = ImageDigest(sha256, _stamp(self._paths[place], stat, self._key))
            if stat is not None and max(stat[1:3]) < time.time_ns() - _SETTLED_NS:
                records += _record(digest)
        self._append(records, locks)

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


def stamps_of(paths: Sequence[str], key: bytes) -> list[bytes]:
    """Return stamps that change with a file's path and its `stat`, as its content would; empty if unreadable."""
    return [_stamp(path, _stat(path), key) for path in paths]


def _stamp(path: str, stat: Stat | None, key: bytes) -> bytes:
    text = f"{path}\0{stat}"
    return hmac.digest(key, text.encode("utf-8", "surrogateescape"), "sha256")[:_STAMP_BYTES] if stat else b""


def _stat(path: str) -> Stat | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - faster than Path.stat over many files
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _digest_image(path: str) -> tuple[str, Stat | None]:
    """Return the SHA-256 of a file, and its `stat` (None if it changed or is unreadable)."""
    stat = _stat(path)
    try:
        sha256 = digest_file(Path(path))
    except OSError:
        return _UNREADABLE, None
    return sha256, stat if _stat(path) == stat else None


def _record(digest: ImageDigest) -> bytes:
    return digest.stamp + bytes.fromhex(digest.sha256) + _INTACT
