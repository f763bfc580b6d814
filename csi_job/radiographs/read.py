"""Find images by their FileID, and decode them to upright grey squares."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from csi_job.errors import DataError, Problem, explain_os_errors
from csi_job.radiographs.folder import EXTENSIONS, ImageFolder

__all__ = ["EXTENSIONS", "MAX_FILE_BYTES", "find_images", "read_radiograph", "reader_version", "silence_decoders"]

MAX_FILE_BYTES = 1 << 29
NUM_START_BYTES = 1 << 20  # of a file, by which its reader is known
_BARE_DICOM = (b"\x02\x00", b"\x08\x00")  # the first group of elements of a file without preamble
_DICOM_PIXELS = b"\xe0\x7f\x10\x00"
_US = rb"(?:US\x02\x00|\x02\x00\x00\x00)"  # between the tag and the value of a number, explicit and implicit
_DICOM_OF_VERSION_2 = re.compile(
    rb"\x28\x00[\x20\x22\x23]\x01"  # padding
    rb"|\x28\x00[\x00\x10]\x30|PALETTE"  # lookup tables
    rb"|\x28\x00\x02\x00" + _US + rb"\x03.{1,400}?\x28\x00\x00\x01" + _US + rb"\x10"  # deep colours
    rb"|\x28\x00\x00\x01" + _US + rb"\x20"  # 32 bits
    rb"|4\.50.*\x28\x00\x04\x00.{4}RGB"  # JPEG that may be YCbCr all the same
    rb"|1\.2\.840\.10008\.1\.2\.(4\.51|2|1\.99)",  # 12-bit JPEG; big endian and deflated, not searched here
    re.DOTALL,
)
_STORED_AND_HIGH_BIT = re.compile(
    rb"\x28\x00\x01\x01" + _US + rb"(.)\x00\x28\x00\x02\x01" + _US + rb"(.)\x00", re.DOTALL
)
_NOT_AN_IMAGE = "the file is not a PNG, JPEG, DICOM or NIfTI image"
_MAX_REASON_LENGTH = 120
_QUOTED = re.compile(r"""(['"]).*\1""")


def find_images(folder: Path, file_ids: Sequence[str], rows: Sequence[int]) -> tuple[Path, ...]:
    """Return the image file of each FileID: that name, or that name with a known extension in any case.

    A FileID may name subfolders with `/`; `rows` are the lines of the label table, for messages.

    Raises:
        DataError: the folder cannot be read; or an image is missing, exists twice, or is outside the folder. All
            such rows are in its `problems`.

    """
    with explain_os_errors("the folder of images cannot be read", folder, kind=DataError):
        images = ImageFolder(folder)
    found: dict[Path, int] = {}
    problems: list[Problem] = []
    for file_id, row in zip(file_ids, rows, strict=True):
        path = images.find(file_id)
        if not isinstance(path, str) and found.setdefault(path, row) != row:
            path = f"same image as row {found[path]}"
        if isinstance(path, str):
            problems.append(Problem(path, row=row, column="FileID", file_id=file_id))
    if problems:
        raise DataError(f"{len(problems)} of {len(file_ids)} images cannot be used", problems=problems, got=str(folder))
    return tuple(found)


def read_radiograph(path: Path, side_px: int, *, max_image_side_px: int) -> np.ndarray:
    """Decode an image to a square; its format is detected from its content, not from its name.

    Returns:
        uint8 `[side_px, side_px]`: upright like the film (the patient's right on the left), bright where tissue is
        dense; the aspect ratio is not kept.

    Raises:
        DataError: the file is not an image or is damaged; the message names no file, as names may identify patients.

    Damaged compressed DICOM can crash the process inside gdcm (an uncaught C++ exception) or make it print; where that
    matters, `cache.decode_pool.decode_images` runs this in separate processes.

    """
    content = _read_content(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            return _decode(content, side_px, max_image_side_px)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged content makes decoders raise almost anything
        raise DataError(f"the image is damaged ({_reason(error)})") from None


def reader_version(start: bytes) -> int:
    """Return the version of the reader that changed the pixels of files like this one last, by the file's start.

    It is part of the content key of a cache: raise it, for the files concerned, when they give other pixels.
    """
    from csi_job.radiographs.picture import is_of_version_2

    if not is_dicom(start):
        return 2 if is_of_version_2(start) else 1
    header, pixels, _ = start.partition(_DICOM_PIXELS)
    bits = _STORED_AND_HIGH_BIT.search(header)
    is_shifted = bits is not None and bits[1][0] != bits[2][0] + 1
    return 2 if not pixels or is_shifted or _DICOM_OF_VERSION_2.search(header) else 1


def is_dicom(start: bytes) -> bool:
    """Tell by the preamble, or by the first group of elements of a file without."""
    return start[128:132] == b"DICM" or start.startswith(_BARE_DICOM)


def _decode(content: bytes, side_px: int, max_image_side_px: int) -> np.ndarray:
    """Import only what the content needs: pydicom and nibabel take longer to import than an image to decode."""
    from csi_job.radiographs.nifti import GZIP_MAGIC, is_nifti, read_nifti
    from csi_job.radiographs.picture import PICTURE_MAGIC, read_picture

    if PICTURE_MAGIC.match(content):
        return read_picture(content, side_px, max_image_side_px)
    if content.startswith(GZIP_MAGIC) or is_nifti(content):
        return read_nifti(content, side_px, max_image_side_px)
    if is_dicom(content):
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


def silence_decoders() -> None:
    """Disable the decoding libraries' loggers in this process; all that matters is whether an image can be read."""
    for name in ("pydicom", "nibabel.global", "PIL"):
        logging.getLogger(name).disabled = True


def _reason(error: Exception) -> str:
    """Return the first line of a decoder's message without quoted text, which may be a patient's name.

    Decoders get bytes, so it names no file.
    """
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines and "object at 0x" not in lines[0] else type(error).__name__
    return _QUOTED.sub("…", reason)[:_MAX_REASON_LENGTH]
