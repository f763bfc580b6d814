"""The arrays of an unfinished cache: one slot per image, filled in any order and by several processes at once."""

import errno
import io
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

from csi_job.cache.manifest import images_file
from csi_job.files import exists, lock_range, open_private, replacing, unlock_ranges
from csi_job.radiographs.grey import doubt_about
from csi_job.radiographs.split import SPLITS

_FLUSH_EVERY_S = 2.0  # of work at most is lost by a kill
_SHA256_BYTES = 32
_PART = 32  # slots that a process claims at once
_FILLED, _DOUBTFUL = 1, 2  # done flags
_NO_RESERVING = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # file systems that cannot reserve space


class SlotArrays:
    """One uint8 `[N, side, side]` array file per split, and one done flag per slot.

    A process locks the flags of the slots that it fills, so its death frees them for others. A flag is written only
    after its pixels were flushed to disk, so flags hold even after a power failure. Disk space is reserved first: a
    full disk shows before hours of decoding. After the flags, the same file has the SHA-256 of the content that each
    slot was decoded from, as an image may change before an interrupted build is resumed.
    """

    def __init__(self, folder: Path, done_flags: Path, split_N: np.ndarray, side_px: int) -> None:
        """Open or create the files; no other process may be doing so.

        Args:
            folder: of the arrays.
            done_flags: file of the flags and digests.
            split_N: the split of each image, 0-2.
            side_px: width and height of the images.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self._folder, self._side_px = folder, side_px
        self._split_N = split_N
        counts = np.bincount(split_N, minlength=len(SPLITS))
        self._slot_N = np.empty(len(split_N), dtype=np.int64)  # the place of each image within its split
        self._slot_N[np.argsort(split_N, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
        self._num_bytes = side_px * side_px
        self._files: list[int] = []
        self._flags_path, self._done_flags = done_flags, open_private(done_flags)
        self._done_N = np.zeros(len(split_N), dtype=np.uint8)
        self._sha256_NB = np.zeros((len(split_N), _SHA256_BYTES), dtype=np.uint8)
        self._changed_parts: set[int] = set()
        self._flushed = time.monotonic()
        try:
            os.utime(self._done_flags)  # not abandoned
            for split, name in enumerate(SPLITS):
                self._files.append(self._open(split, folder / images_file(name)))
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        """Return the arrays."""
        return self

    def __exit__(self, *_: object) -> None:
        """Flush what is there and close the files, which lets other processes fill what is left."""
        try:
            self.flush()
        finally:
            self._close()

    def claim_parts(self) -> Iterator[range]:
        """Claim the slots part by part, each when it is asked for; skip those that other processes have claimed."""
        for start in range(0, len(self._split_N), _PART):
            part = range(start, min(start + _PART, len(self._split_N)))
            if lock_range(self._done_flags, self._flags_path, start, len(part)):
                if not self._is_current():
                    return
                self._load_flags(part)
                yield part

    def claim_all(self) -> bool:
        """Claim all slots, waiting for other processes; return whether the files are still those that were opened."""
        waiting = "other processes are still decoding images of this cache; waiting for them"
        lock_range(self._done_flags, self._flags_path, 0, 0, waiting)
        self._load_flags(range(len(self._split_N)))
        return self._is_current()

    def release(self) -> None:
        """Flush, and let other processes claim the slots."""
        self.flush()
        unlock_ranges(self._done_flags)

    def empty_slots(self, part: range) -> list[int]:
        """Return which of the claimed images have not been decoded yet."""
        return [index for index in part if not self._done_N[index]]

    def write_slot(self, index: int, pixels_HW: np.ndarray, sha256: str) -> None:
        """Write the pixels of a claimed image, decoded from content with this digest; safe after the next flush."""
        _write_at(self._files[self._split_N[index]], np.ascontiguousarray(pixels_HW).tobytes(), self._offset(index))
        self._done_N[index] = _DOUBTFUL if doubt_about(pixels_HW) else _FILLED
        self._sha256_NB[index] = np.frombuffer(_as_bytes(sha256), np.uint8)
        self._changed_parts.add(index // _PART)
        if time.monotonic() - self._flushed > _FLUSH_EVERY_S:
            self.flush()

    def empty_changed(self, sha256s: Iterable[str]) -> bool:
        """Empty the claimed slots that were decoded from other content than that with these digests, if any."""
        expected_NB = np.frombuffer(b"".join(map(_as_bytes, sha256s)), np.uint8).reshape(-1, _SHA256_BYTES)
        changed = np.flatnonzero((self._done_N > 0) & (self._sha256_NB != expected_NB).any(axis=1))
        self._done_N[changed] = self._sha256_NB[changed] = 0
        self._changed_parts.update((changed // _PART).tolist())
        if self._changed_parts:
            self.flush()  # a kill must not leave other pixels under the old flags and digests
        return changed.size > 0

    def doubts(self) -> dict[int, str]:
        """Return which images hardly show a radiograph, and why."""
        doubts = {}
        for index in np.flatnonzero(self._done_N == _DOUBTFUL).tolist():
            pixels = os.pread(self._files[self._split_N[index]], self._num_bytes, self._offset(index))
            doubts[index] = doubt_about(np.frombuffer(pixels, np.uint8))
        return doubts

    def flush(self) -> None:
        """Flush the pixels to disk, then the flags."""
        for descriptor in self._files:
            os.fsync(descriptor)
        for part in self._changed_parts:
            start = part * _PART
            _write_at(self._done_flags, self._done_N[start : start + _PART].tobytes(), start)
            _write_at(self._done_flags, self._sha256_NB[start : start + _PART].tobytes(), self._digests_offset(start))
        self._changed_parts.clear()
        os.fsync(self._done_flags)
        self._flushed = time.monotonic()

    def without(self, indices: Iterable[int]) -> dict[str, Path]:
        """Return each split's array file without these images; where there were any, a copy beside the original."""
        removed_N = np.zeros(len(self._split_N), dtype=bool)
        removed_N[list(indices)] = True
        files = {}
        for split, name in enumerate(SPLITS):
            is_member_N = self._split_N == split
            files[name] = self._folder / images_file(name)
            if removed_N[is_member_N].any():
                files[name] = files[name].with_suffix(".kept")
                kept_slots = np.sort(self._slot_N[is_member_N & ~removed_N])
                header = _header(len(kept_slots), self._side_px)
                with replacing(files[name]) as temporary, temporary.open("wb") as file:
                    file.write(header)
                    for slot in kept_slots.tolist():
                        offset = len(header) + slot * self._num_bytes
                        file.write(os.pread(self._files[split], self._num_bytes, offset))
        return files

    def _offset(self, index: int) -> int:
        return len(_header(0, self._side_px)) + int(self._slot_N[index]) * self._num_bytes

    def _digests_offset(self, index: int) -> int:
        return len(self._split_N) + index * _SHA256_BYTES

    def _load_flags(self, part: range) -> None:
        """Read the flags and digests of slots that were just claimed; others may have filled them."""
        first = part.start
        for values_N, offset in ((self._done_N, first), (self._sha256_NB, self._digests_offset(first))):
            claimed = values_N[first : part.stop].reshape(-1)  # a view
            stored = np.frombuffer(os.pread(self._done_flags, claimed.size, offset), np.uint8)
            claimed[: len(stored)] = stored

    def _is_current(self) -> bool:
        """Return whether the arrays are still where they were opened: neither finished and moved nor replaced."""
        try:
            found = [(self._folder / images_file(name)).stat().st_ino for name in SPLITS]
        except OSError:
            return False
        return found == [os.fstat(descriptor).st_ino for descriptor in self._files]

    def _close(self) -> None:
        for descriptor in (*self._files, self._done_flags):
            os.close(descriptor)

    def _open(self, split: int, path: Path) -> int:
        """Open an array with room for all its slots; one of another length is damaged and is filled again."""
        num_slots = int((self._split_N == split).sum())
        header = _header(num_slots, self._side_px)
        length = len(header) + num_slots * self._num_bytes
        if not exists(path) or path.stat().st_size != length:
            self.claim_all()
            self._done_N[self._split_N == split] = 0
            _write_at(self._done_flags, self._done_N.tobytes(), 0)
            os.fsync(self._done_flags)
            path.unlink(missing_ok=True)
            unlock_ranges(self._done_flags)
        descriptor = open_private(path)
        try:
            _reserve(descriptor, length)
            _write_at(descriptor, header, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _header(num_images: int, side_px: int) -> bytes:
    """Return the header of a .npy file, which NumPy pads to the same length for any number of images."""
    header = io.BytesIO()
    shape = (num_images, side_px, side_px)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _as_bytes(sha256: str) -> bytes:
    """Return a digest as bytes; zeros for a file that cannot be read, which has none."""
    return bytes.fromhex(sha256) if len(sha256) == 2 * _SHA256_BYTES else bytes(_SHA256_BYTES)


def _reserve(descriptor: int, length: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, length)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_RESERVING:
            raise
        os.ftruncate(descriptor, length)


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
