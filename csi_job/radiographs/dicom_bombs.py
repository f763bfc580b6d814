"""Reject DICOM files that would decode to far more than they declare, before the decoders trust them."""

from __future__ import annotations

import io
import zlib

from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import DeflatedExplicitVRLittleEndian

from csi_job.errors import DataError
from csi_job.radiographs.grey import MAX_NUM_PIXELS, check_size

_MAX_INFLATED_BYTES = 1 << 30
_META_LENGTH_END = 144  # preamble, magic, and the element that says how long the file's meta information is
_META_AT_MOST = 4096  # bytes in which the transfer syntax is named
_JPEG_START = b"\xff\xd8"
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and that of JPEG-LS


def check_deflated(content: bytes) -> None:
    """Refuse a deflated data set that inflates beyond any radiograph; pydicom itself inflates without a limit.

    Raises:
        DataError: it does.

    """
    if DeflatedExplicitVRLittleEndian.encode() not in content[:_META_AT_MOST]:
        return
    meta_length = int.from_bytes(content[_META_LENGTH_END - 4 : _META_LENGTH_END], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(content[_META_LENGTH_END + meta_length :], _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise DataError("the DICOM file inflates to more than a radiograph", allowed=f"{_MAX_INFLATED_BYTES} bytes")


def check_compressed(dataset: Dataset, max_image_side_px: int) -> None:
    """Refuse compressed pixels whose own header says another size than the file's; decoders believe the former.

    Raises:
        DataError: too large, or another size.

    """
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    size = _size_of(get_frame(dataset.PixelData, 0, number_of_frames=1))
    if size is not None:
        check_size(*size, max_image_side_px)
        stated = (int(dataset.Columns), int(dataset.Rows))
        if size != stated:
            raise DataError(f"pixel data are {size[0]}x{size[1]}, but the DICOM header says {stated[0]}x{stated[1]}")


def _size_of(codestream: bytes) -> tuple[int, int] | None:
    """Return width and height as a JPEG, JPEG-LS or JPEG 2000 header has them; run lengths have none."""
    if codestream.startswith(_JPEG_START):
        return _jpeg_size(codestream)
    try:
        return Image.open(io.BytesIO(codestream), formats=("JPEG2000",)).size
    except Image.DecompressionBombError:
        raise DataError("the image has more pixels than any radiograph", allowed=MAX_NUM_PIXELS) from None
    except UnidentifiedImageError:
        return None


def _jpeg_size(codestream: bytes) -> tuple[int, int] | None:
    """Walk the markers to the start of the frame; Pillow knows neither JPEG-LS nor lossless JPEG of 16 bits."""
    place = len(_JPEG_START)
    while codestream[place : place + 1] == b"\xff":
        length, height, width = (int.from_bytes(codestream[place + at : place + at + 2], "big") for at in (2, 5, 7))
        if codestream[place + 1] in _FRAME_MARKERS:
            return width, height
        place += 2 + length
    return None
