"""The pixels of grey DICOM files, decoded faster than by pydicom alone where the transfer syntax allows it."""

import ctypes
import io
import struct
import sys

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_dtype
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from csi_job.radiographs.content import stream_header
from csi_job.radiographs.fraction import decode_fraction
from csi_job.radiographs.grey import Film

_BYTE = 8  # bits
_MAX_LOSSY_BITS = 12  # of JPEG; the header of the file may state any number
_ZERO_OF_GDCM = 1 << 15  # in streams of its own encoder, which state 16 bits
_OVERSHOOT = 0.01  # of all pixels, at most, wavelets take beyond the largest number
_RLE_HEADER = struct.Struct("<16L")  # number of segments, and where they begin


def reduced_film(dataset: Dataset, side_px: int) -> Film | None:
    """Decode large JPEG or JPEG 2000 at a fraction of its size; None where padding or signs need all pixels."""
    if dataset.file_meta.TransferSyntaxUID not in (JPEGBaseline8Bit, JPEG2000, JPEG2000Lossless):
        return None
    frame, num_bits = frame_of(dataset), int(dataset.BitsStored)
    is_plain = "PixelPaddingValue" not in dataset and not dataset.PixelRepresentation
    precision = _precision(frame, dataset) if is_plain else 0
    fraction = decode_fraction(frame, side_px) if precision else None
    if fraction is None or fraction.image.mode not in ("L", "I;16"):
        return None
    levels_HW = np.asarray(fraction.image)
    levels_HW = levels_HW >> (8 * levels_HW.itemsize - precision)  # Pillow fills the word
    if np.count_nonzero(levels_HW >> num_bits) > levels_HW.size * _OVERSHOOT:  # overlays, or a false number of bits
        return None
    return fraction.as_film(np.minimum(levels_HW, (1 << num_bits) - 1), num_bits)  # wavelets overshoot


def _precision(frame: bytes, dataset: Dataset) -> int:
    """Return the bits per pixel of unsigned JPEG or JPEG 2000, 0 for anything else."""
    header = stream_header(frame)
    if header is None or header.is_signed or header.num_bits > dataset.BitsAllocated:
        return 0
    is_jpeg = dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    return header.num_bits if not is_jpeg or dataset.BitsAllocated == dataset.BitsStored == _BYTE else 0


def decoded_levels(dataset: Dataset) -> np.ndarray:
    """Return all pixels, `[H, W]`; raise whatever pydicom and its decoders raise for damaged content."""
    syntax = dataset.file_meta.TransferSyntaxUID
    levels_HW: np.ndarray | None = None
    if syntax == RLELossless:
        levels_HW = _run_lengths(dataset)
    elif syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) and _num_bits(dataset) <= _BYTE:
        image = Image.open(io.BytesIO(frame_of(dataset)), formats=("JPEG",))
        levels_HW = np.asarray(image) if image.mode == "L" else None
    elif syntax in (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1):
        levels_HW = _by_gdcm(dataset)
    if levels_HW is None:
        dataset.pixel_array_options(correct_unused_bits=False)  # padding may use bits outside those stored
        levels_HW = dataset.pixel_array
    return levels_HW.astype(levels_HW.dtype.newbyteorder("="), copy=False)


def frame_of(dataset: Dataset) -> bytes:
    """Return the compressed pixels."""
    return get_frame(dataset.PixelData, 0, number_of_frames=1)


def _num_bits(dataset: Dataset) -> int:
    """Return the bits per pixel that a stream states; the file's header may differ."""
    header = stream_header(frame_of(dataset))
    return header.num_bits if header else int(dataset.BitsStored)


def _run_lengths(dataset: Dataset) -> np.ndarray | None:
    """Decode run lengths (PS3.5 annex G): planes of bytes, the highest first; None for anything irregular."""
    frame, dtype = frame_of(dataset), pixel_dtype(dataset)
    num_planes, *starts = _RLE_HEADER.unpack_from(frame)
    if num_planes != dtype.itemsize:
        return None
    ends = (*starts[1:num_planes], len(frame))
    levels_HW = np.empty((dataset.Rows, dataset.Columns), dtype.newbyteorder("="))
    planes_HWP = levels_HW.view(np.uint8).reshape(*levels_HW.shape, num_planes)
    size = (dataset.Columns, dataset.Rows)
    for place, (start, end) in enumerate(zip(starts, ends, strict=False)):
        try:
            plane_HW = np.asarray(Image.frombytes("L", size, frame[start:end], "packbits", "L"))
        except ValueError:  # damaged, or a run that crosses rows
            return None
        planes_HWP[..., place if sys.byteorder == "big" else -1 - place] = plane_HW
    return levels_HW


def _by_gdcm(dataset: Dataset) -> np.ndarray | None:
    """Decode lossless or 12-bit JPEG; pydicom refuses the latter, and converts gdcm's pixels slowly, through text."""
    import gdcm

    dtype = pixel_dtype(dataset)
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(frame_of(dataset))
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((dataset.Columns, dataset.Rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))  # gdcm reads the header
    is_lossless = dataset.file_meta.TransferSyntaxUID in (JPEGLossless, JPEGLosslessSV1)
    is_of_gdcm = not is_lossless and _num_bits(dataset) > _MAX_LOSSY_BITS
    bits = _BYTE * dtype.itemsize if is_lossless or is_of_gdcm else _MAX_LOSSY_BITS  # others would be cleared
    is_signed = False  # gdcm would extend the sign from the stream's bits, which may be fewer than those stored
    image.SetPixelFormat(gdcm.PixelFormat(1, _BYTE * dtype.itemsize, bits, bits - 1, int(is_signed)))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    change.SetInput(image)
    image.thisown = False  # `change` frees it
    num_bytes = int(dataset.Rows) * int(dataset.Columns) * dtype.itemsize
    if not change.Change() or change.GetOutput().GetBufferLength() != num_bytes:
        return None
    content = change.GetOutput().GetDataElement().GetByteValue()
    levels = np.frombuffer(ctypes.string_at(int(content.GetVoidPointer()), num_bytes), dtype)
    if is_of_gdcm:  # it may overshoot
        levels = (levels.view(np.uint16).astype(int) - _ZERO_OF_GDCM).clip(0, (1 << _MAX_LOSSY_BITS) - 1).astype(dtype)
    return levels.reshape(dataset.Rows, dataset.Columns)
