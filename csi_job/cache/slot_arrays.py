"""The arrays of an unfinished cache: one slot per image, filled in any order, resumed after a kill."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from csi_job.cache.manifest import images_file
from csi_job.files import open_private, replacing
from csi_job.radiographs.split import SPLITS

_FLUSH_EVERY_S = 2.0  # the most a kill can cost
_NO_RESERVING = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # file systems that cannot reserve space


class SlotArrays:
    """One uint8 `[N, side, side]` array file per split, and one done flag per slot.

    A flag is written only after its pixels were flushed to disk, so flags hold even after a power failure. Disk space
    is reserved first: a full disk shows before hours of decoding.
    """

    def __init__(self, folder: Path, done_flags: Path, split_N: np.ndarray, side_px: int) -> None:
        """Open or create the files; `done_flags` holds one byte per image, `split_N` the split of each, 0-2.

        Raises:
            OSError: the disk is full or cannot be written.

        """
        self._folder, self._side_px = folder, side_px
        self._split_N = split_N
        self._slot_N = _slots(split_N)
        self._num_bytes = side_px * side_px
        self._files: list[int] = []
        self._done_flags = open_private(done_flags)
        self._done_N = np.zeros(len(split_N), dtype=np.uint8)
        stored = np.frombuffer(os.pread(self._done_flags, len(split_N), 0), dtype=np.uint8)
        self._done_N[: len(stored)] = stored
        self._flushed = time.monotonic()
        try:
            for split, name in enumerate(SPLITS):
                self._files.append(self._open(split, folder / images_file(name)))
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        """Return the arrays."""
        return self

    def __exit__(self, *_: object) -> None:
        """Flush what is there and close the files."""
        try:
            self.flush()
        finally:
            self._close()

    @property
    def empty_slots(self) -> list[int]:
        """Indices of the images that have not been decoded yet."""
        return np.flatnonzero(self._done_N == 0).tolist()

    def write_slot(self, index: int, pixels_HW: np.ndarray) -> None:
        """Write the pixels of an image; they are safe after the next flush."""
        offset = len(_header(0, self._side_px)) + int(self._slot_N[index]) * self._num_bytes
        _write_at(self._files[self._split_N[index]], np.ascontiguousarray(pixels_HW).tobytes(), offset)
        self._done_N[index] = 1
        if time.monotonic() - self._flushed > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Flush the pixels to disk, then the flags."""
        for descriptor in self._files:
            os.fsync(descriptor)
        _write_at(self._done_flags, self._done_N.tobytes(), 0)
        os.fsync(self._done_flags)
        self._flushed = time.monotonic()

    def remove_slots(self, indices: Sequence[int]) -> None:
        """Remove images: the arrays concerned are copied without their slots, and replaced."""
        removed_N = np.zeros(len(self._split_N), dtype=bool)
        removed_N[list(indices)] = True
        for split in np.unique(self._split_N[removed_N]):
            kept = self._slot_N[(self._split_N == split) & ~removed_N]
            self._copy(self._folder / images_file(SPLITS[split]), self._files[split], np.sort(kept))

    def _close(self) -> None:
        for descriptor in (*self._files, self._done_flags):
            os.close(descriptor)

    def _open(self, split: int, path: Path) -> int:
        """Open an array with room for all its slots; one of another length has lost them and is filled again."""
        num_slots = int((self._split_N == split).sum())
        header = _header(num_slots, self._side_px)
        length = len(header) + num_slots * self._num_bytes
        if not path.exists() or path.stat().st_size != length:
            path.unlink(missing_ok=True)
            self._done_N[self._split_N == split] = 0
        descriptor = open_private(path)
        try:
            _reserve(descriptor, length)
            _write_at(descriptor, header, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _copy(self, path: Path, source: int, kept_slots: np.ndarray) -> None:
        header = _header(len(kept_slots), self._side_px)
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(header)
            for slot in kept_slots.tolist():
                file.write(os.pread(source, self._num_bytes, len(header) + slot * self._num_bytes))


def _slots(split_N: np.ndarray) -> np.ndarray:
    """Return the place of each image within its split."""
    slot_N = np.zeros(len(split_N), dtype=np.int64)
    for split in range(len(SPLITS)):
        members = np.flatnonzero(split_N == split)
        slot_N[members] = np.arange(len(members))
    return slot_N


def _header(num_images: int, side_px: int) -> bytes:
    """Return the header of a .npy file, which NumPy pads to the same length for any number of images."""
    header = io.BytesIO()
    shape = (num_images, side_px, side_px)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


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
