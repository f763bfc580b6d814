"""Reject DICOM files that would decode to far more than they declare, before the decoders trust them."""

import io
import zlib

import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble  # as `dcmread` itself does
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from csi_job.errors import DataError
from csi_job.radiographs.content import JPEG_START, jpeg_size
from csi_job.radiographs.grey import MAX_NUM_PIXELS, check_size

_MAX_INFLATED_BYTES = 1 << 29  # the same limit as for files that are not deflated


def read_bounded(content: bytes) -> Dataset:
    """Read a DICOM file; a deflated one is inflated up to the limit of file sizes, since pydicom has none.

    Raises:
        DataError: it inflates to more, or is cut off.
        Exception: anything pydicom raises for damaged content.
    """
    file = io.BytesIO(content)
    read_preamble(file, force=True)
    meta = _read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return pydicom.dcmread(io.BytesIO(content), force=True)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(file.read(), _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise DataError("the DICOM file inflates to more than a radiograph", allowed=f"{_MAX_INFLATED_BYTES} bytes")
    if not inflater.eof:
        raise DataError("the DICOM file is cut off")
    dataset = read_dataset(io.BytesIO(inflated), is_implicit_VR=False, is_little_endian=True)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return dataset


def check_compressed(dataset: Dataset, max_image_side_px: int) -> None:
    """Refuse compressed pixels whose own header states another size than the file's; decoders trust the former.

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
    """Return width and height from a JPEG, JPEG-LS or JPEG 2000 header; None for run lengths, which have no header."""
    if codestream.startswith(JPEG_START):
        return jpeg_size(codestream)
    try:
        return Image.open(io.BytesIO(codestream), formats=("JPEG2000",)).size
    except Image.DecompressionBombError:
        raise DataError("the image has more pixels than any radiograph", allowed=MAX_NUM_PIXELS) from None
    except UnidentifiedImageError:
        return None
