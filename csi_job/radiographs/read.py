"""Images found by their FileID and decoded to upright grey squares."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from csi_job.errors import DataError, Problem, explain_os_errors
from csi_job.radiographs.folder import EXTENSIONS, ImageFolder

__all__ = ["EXTENSIONS", "MAX_FILE_BYTES", "READER_VERSION", "find_images", "read_radiograph"]

MAX_FILE_BYTES = 1 << 29
READER_VERSION = 1  # part of a cache's key: raise it when the same file gives other pixels
_BARE_DICOM = (b"\x02\x00", b"\x08\x00")  # the first group of elements of a file without preamble
_NOT_AN_IMAGE = "the file is not a PNG, JPEG, DICOM or NIfTI image"
_MAX_REASON_LENGTH = 120
_QUOTED = re.compile(r"""(['"]).*\1""")


def find_images(folder: Path, file_ids: Sequence[str], rows: Sequence[int]) -> tuple[Path, ...]:
    """Return the image file of each FileID: the name itself, or the name and a known extension of any case.

    Args:
        folder: where the images are; a FileID may name subfolders with `/`.
        file_ids: N identifiers as in the label table.
        rows: the N lines of the table they stand in, for messages.

    Raises:
        DataError: the folder cannot be read; or an image is missing, is there twice, or lies outside the folder.
            All such rows are in its `problems`.

    """
    with explain_os_errors("the folder of images cannot be read", folder, kind=DataError):
        images = ImageFolder(folder)
    found: dict[Path, int] = {}
    problems: list[Problem] = []
    for file_id, row in zip(file_ids, rows, strict=True):
        path = images.find(file_id)
        if not isinstance(path, str) and found.setdefault(path, row) != row:
            path = f"the image of row {found[path]} again"
        if isinstance(path, str):
            problems.append(Problem(path, row=row, column="FileID", file_id=file_id))
    if problems:
        raise DataError(f"{len(problems)} of {len(file_ids)} images cannot be used", problems=problems, got=str(folder))
    return tuple(found)


def read_radiograph(path: Path, side_px: int, *, max_image_side_px: int) -> np.ndarray:
    """Decode an image to a square; its kind is told by its content, not by its name.

    Args:
        path: a PNG, JPEG, DICOM or NIfTI file.
        side_px: side of the square; the aspect is given up.
        max_image_side_px: largest width or height that is decoded.

    Returns:
        uint8 `[side_px, side_px]`: upright as on the film (the patient's right on the left), bright where tissue is
        dense.

    Raises:
        DataError: the file is no image or a damaged one; the message names no file, as names may be identities.

    Damaged compressed DICOM can end the process inside gdcm (an uncaught C++ exception) or make it print: where that
    matters, `cache.decoders.decode_images` runs this in processes of their own.

    """
    content = _read_content(path)
    try:
        with _silence():
            return _decode(content, side_px, max_image_side_px)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged content makes decoders raise almost anything
        raise DataError(f"the image is damaged ({_reason(error)})") from None


def _decode(content: bytes, side_px: int, max_image_side_px: int) -> np.ndarray:
    """Import only what the content needs: pydicom and nibabel take longer to import than an image to decode."""
    from csi_job.radiographs.nifti import GZIP_MAGIC, is_nifti, read_nifti
    from csi_job.radiographs.picture import JPEG_MAGIC, PNG_MAGIC, read_picture

    if content.startswith((PNG_MAGIC, JPEG_MAGIC)):
        return read_picture(content, side_px, max_image_side_px)
    if content.startswith(GZIP_MAGIC) or is_nifti(content):
        return read_nifti(content, side_px, max_image_side_px)
    if content[128:132] == b"DICM" or content.startswith(_BARE_DICOM):
        from csi_job.radiographs.dicom import read_dicom

        return read_dicom(content, side_px, max_image_side_px)
    raise DataError(_NOT_AN_IMAGE)


def _read_content(path: Path) -> bytes:
    try:
        with explain_os_errors("the image cannot be read", kind=DataError):
            if not path.is_file():  # reading a pipe or device could block
                raise DataError("the image is not a file" if path.exists() else "the image does not exist")
            num_bytes = path.stat().st_size
            if num_bytes > MAX_FILE_BYTES:
                raise DataError(f"the image file has {num_bytes} bytes", allowed=f"up to {MAX_FILE_BYTES}")
            content = path.read_bytes()
    except ValueError:  # a null character in the path
        raise DataError("the image does not exist") from None
    if not content:
        raise DataError("the image file is empty")
    return content


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the decoders' warnings off the terminal: what matters is whether an image could be read."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global", "PIL")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _reason(error: Exception) -> str:
    """Return the first line of a decoder's complaint, without what it quotes: that may be a patient's name.

    Decoders get bytes, so it names no file.
    """
    text = str(error).strip().splitlines()
    told = text[0] if text and "object at 0x" not in text[0] else type(error).__name__
    return _QUOTED.sub("…", told)[:_MAX_REASON_LENGTH]
