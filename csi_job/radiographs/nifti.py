"""NIfTI radiographs, decompressed no further than their header allows, put upright by their affine."""

import gzip
import io
from typing import Any

import numpy as np
from isal import isal_zlib

from csi_job.errors import DataError
from csi_job.radiographs.content import GZIP_MAGIC, explain_refusal, is_nifti
from csi_job.radiographs.grey import (
    LUMA_BT601,
    check_size,
    films,
    films_to_square,
    percentile_scale,
    sampled,
    to_square,
)

_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
_NUM_START_BYTES = 1 << 16  # of a gzip file, which hold its header
_MAX_EXTENSION_BYTES = 1 << 24  # header extensions, e.g. the DICOM tags a converter kept
_MAX_BYTES_PER_PIXEL = 8


def read_nifti(content: bytes, side_px: int, max_image_side_px: int) -> np.ndarray:
    """Return a NIfTI radiograph as upright grey uint8 `[side_px, side_px]`.

    The affine, which says where the axes point, is trusted: the patient's right goes to the left of the square, as on
    a film, and the head to the top. Where the image has no third axis and its plane is left-right by
    anterior-posterior, as converters write 2-D images, posterior is down (DICOM counts rows downwards).

    The file may be gzipped; the image is 2-D, or its further axes have length 1.

    Raises:
        DataError: not a 2-D image, too small or too large, cut off, or blank.
        Exception: anything nibabel raises for damaged content.
    """
    import nibabel
    from nibabel.volumeutils import apply_read_scaling

    start = _inflated(content[:_NUM_START_BYTES], _HEADER_BYTES)
    if not is_nifti(start):
        raise DataError("the gzip file is not a NIfTI image", hint=explain_refusal(content)[1])
    header_class = nibabel.Nifti2Header if start[4:6] == b"n+" else nibabel.Nifti1Header
    header: Any = header_class(start[: header_class.sizeof_hdr], check=False)  # type: ignore[no-untyped-call]
    num_bytes = _checked_size(header, max_image_side_px)
    plain = _inflated(content, num_bytes)
    if len(plain) < num_bytes:
        raise DataError("the image is cut off", got=f"{len(plain)} bytes", allowed=f"{num_bytes} by its header")
    header.check_fix()
    pixels = np.frombuffer(plain, header.get_data_dtype(), offset=int(header.get_data_offset()))
    slope, intercept = header.get_slope_inter()
    pixels = pixels.reshape(header.get_data_shape(), order="F")
    levels = apply_read_scaling(pixels, 1 if slope is None else slope, intercept or 0)
    levels_HW = _upright(levels, header.get_best_affine())
    if levels_HW.dtype.names:  # RGB24 and RGBA32
        channels = [levels_HW[name].astype(np.float32) for name in levels_HW.dtype.names[:3]]
        luma: Any = sum(weight * channel for weight, channel in zip(LUMA_BT601, channels, strict=True))
        return to_square(np.rint(luma).astype(np.uint8), side_px)
    if levels_HW.dtype == np.uint8:
        return to_square(levels_HW, side_px)
    tries = films(levels_HW, side_px)
    return films_to_square(tries, percentile_scale(sampled(levels_HW), levels_HW.dtype), side_px)


def _inflated(content: bytes, num_bytes: int) -> bytes:
    """Return the first bytes of a file that may be gzipped; its checksum is verified if there are no more.

    Raises:
        DataError: it is cut off.
        Exception: anything ISA-L raises for damaged content.
    """
    if not content.startswith(GZIP_MAGIC):
        return content[:num_bytes]
    inflater = isal_zlib.decompressobj(isal_zlib.MAX_WBITS + 16)  # twice as fast as zlib
    plain = inflater.decompress(content, num_bytes)
    inflater.decompress(inflater.unconsumed_tail, 1)  # up to the checksum
    if len(plain) < num_bytes and not inflater.eof:
        raise DataError("the gzip file is cut off")
    if len(plain) == num_bytes or not inflater.unused_data:
        return plain
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:  # several files in one, which takes longer
        return file.read(num_bytes)


def _checked_size(header: Any, max_image_side_px: int) -> int:
    """Return the bytes that the header announces, after checking shape, type and offset."""
    shape = tuple(int(length) for length in header.get_data_shape())
    sides = [length for length in shape if length != 1]
    if len(sides) != 2:  # noqa: PLR2004 - a radiograph has two sides
        raise DataError("the NIfTI image is not one radiograph", got=f"shape {shape}", allowed="two axes longer than 1")
    check_size(sides[0], sides[1], max_image_side_px)
    dtype = header.get_data_dtype()
    if dtype.itemsize > _MAX_BYTES_PER_PIXEL or dtype.kind == "c":
        raise DataError(f"NIfTI pixels of type {dtype} are not grey levels")
    offset = int(header.get_data_offset())
    if not header.single_vox_offset <= offset <= _MAX_EXTENSION_BYTES:
        raise DataError("the NIfTI header has an invalid offset", got=offset)
    return offset + sides[0] * sides[1] * int(dtype.itemsize)


def _upright(pixels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Drop the axes of length 1 and turn the other two as on a film: rows downwards, the patient's right first."""
    from nibabel.orientations import aff2axcodes

    codes = [code or "" for code in aff2axcodes(affine)]  # type: ignore[no-untyped-call]
    axes = [axis for axis, length in enumerate(pixels.shape) if length != 1]
    plane = pixels.reshape([pixels.shape[axis] for axis in axes])
    names = [codes[axis] if axis < len(codes) else "" for axis in axes]
    if names[0] in ("S", "I") or names[1] in ("R", "L") or (names[0] in ("A", "P") and names[1] not in ("S", "I")):
        upright_HW, (down, across) = plane, names
    else:
        upright_HW, (across, down) = plane.T, names
    if down in ("S", "A"):  # these point upwards
        upright_HW = upright_HW[::-1]
    if across in ("R", "P"):  # film: the patient's right, or front, on the left
        upright_HW = upright_HW[:, ::-1]
    return upright_HW
