"""Find images by their FileID, and decode them to upright grey squares."""

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

import numpy as np

from csi_job.errors import DataError, Problem, explain_os_errors
from csi_job.files import exists, is_file
from csi_job.radiographs.content import GZIP_MAGIC, NUM_MAGIC_BYTES, explain_refusal, is_dicom, is_nifti, is_picture
from csi_job.radiographs.folder import MISSING, ImageFolder
from csi_job.radiographs.spreadsheet import is_scientific

READER_VERSION = 8  # part of every cache's content key: raise it when any image comes out with other pixels
EARLIER_READERS = (1,)  # of released versions: a study that has begun keeps the cache that one of them decoded
MAX_FILE_BYTES = 1 << 29
_MAX_REASON_LENGTH = 120
_NUM_CANDIDATES = 5
_QUOTED = re.compile(r"""(['"]).*\1""")


def find_images(folder: Path, file_ids: Sequence[str], rows: Sequence[int]) -> tuple[str, ...]:
    """Return the image file of each FileID: that name, or that name with a known extension in any case.

    A FileID may name subfolders with `/`; `rows` are the lines of the label table, for messages. The paths are text, as
    a million `Path` take 0.5 GB more.

    Raises:
        DataError: the folder cannot be read; or an image is missing, exists twice, or is outside the folder. All
            such rows are in its `problems`.
    """
    with explain_os_errors("the folder of images cannot be read", folder, kind=DataError):
        images = ImageFolder(folder)
    found: dict[str, int] = {}
    problems: list[Problem] = []
    for file_id, row in zip(file_ids, rows, strict=True):
        path = images.find(file_id)
        if isinstance(path, Path) and (first := found.setdefault(str(path), row)) != row:
            path = f"same image as row {first}"
        if isinstance(path, str):
            problems.append(_with_candidates(Problem(path, row=row, column="FileID", file_id=file_id), images))
    if problems:
        raise DataError(f"{len(problems)} of {len(file_ids)} images cannot be used", problems=problems, got=str(folder))
    return tuple(found)


def _with_candidates(problem: Problem, images: ImageFolder) -> Problem:
    """Add which images may be meant: a spreadsheet changes numbers, and people extensions, case and folders."""
    if not problem.what.startswith(MISSING):
        return problem
    candidates, why = images.could_be(problem.file_id), ""
    if candidates or is_scientific(problem.file_id):
        why = "; a spreadsheet dropped its zeros or digits: import the column as text"
    elif problem.what == MISSING:
        candidates = images.alike(problem.file_id)
        why = ", except with another extension, folder or spelling" if candidates else ""
    meant = f"{', '.join(candidates[:_NUM_CANDIDATES])}{', …' if len(candidates) > _NUM_CANDIDATES else ''}"
    return replace(problem, what=f"{problem.what}{why}", identifying=f"it may be {meant}" if candidates else "")


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
    return decode_radiograph(read_content(path), side_px, max_image_side_px=max_image_side_px)


def decode_radiograph(content: bytes, side_px: int, *, max_image_side_px: int) -> np.ndarray:
    """Decode the content of an image file, as `read_radiograph` does."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return _decode(content, side_px, max_image_side_px)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged content makes decoders raise almost anything
        lines = str(error).strip().splitlines()  # quoted text in it may be a patient's name
        reason = _QUOTED.sub("…", lines[0]) if lines else type(error).__name__
        if reason.endswith(":") or "object at 0x" in reason:  # and a list of decoders, or no format known
            reason = "its compressed pixels cannot be decoded"
        raise DataError(f"the image is damaged ({shorten(reason, _MAX_REASON_LENGTH, placeholder=' …')})") from None


def _decode(content: bytes, side_px: int, max_image_side_px: int) -> np.ndarray:
    """Import only what the content needs: pydicom and nibabel take longer to import than an image to decode."""
    if is_picture(content):
        from csi_job.radiographs.picture import read_picture

        return read_picture(content, side_px, max_image_side_px)
    if content.startswith(GZIP_MAGIC) or is_nifti(content):
        from csi_job.radiographs.nifti import read_nifti

        return read_nifti(content, side_px, max_image_side_px)
    if is_dicom(content):
        from csi_job.radiographs.dicom import read_dicom

        return read_dicom(content, side_px, max_image_side_px)
    what, hint = explain_refusal(content[:NUM_MAGIC_BYTES])
    raise DataError(what, hint=hint)


def read_content(path: Path) -> bytes:
    """Return the content of an image file; raise `DataError` if it is empty, too large, no file or unreadable."""
    try:
        with explain_os_errors("the image cannot be read", kind=DataError):
            if not is_file(path):  # reading a pipe or device could block
                missing = "the image is a broken link" if path.is_symlink() else "the image does not exist"
                raise DataError("the image is not a file" if exists(path) else missing)
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
