"""DICOM radiographs: modality and VOI tables applied as a viewer would, then 8-bit grey."""

from __future__ import annotations

import io
from collections.abc import Callable, MutableSequence

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    RLELossless,
)

from csi_job.errors import DataError
from csi_job.radiographs.dicom_bombs import check_compressed, read_bounded
from csi_job.radiographs.dicom_tables import modality_values, palette_colours, voi_shares
from csi_job.radiographs.grey import apply_lut, check_size, deep_luma, sampled, to_square, to_uint8

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR_CHANNELS = 3


def read_dicom(content: bytes, side_px: int, max_image_side_px: int) -> np.ndarray:
    """Return a DICOM radiograph as grey uint8 `[side_px, side_px]`, bright where the film is bright.

    Modality LUT or rescale and the first VOI LUT or window are applied (DICOM PS3.3 C.11); where there is none, or
    it leaves nothing to see, grey levels are scaled by percentile. MONOCHROME1 is inverted. Padding becomes black, and
    counts in no percentile.

    Raises:
        DataError: no pixels, several frames, too small or too large, or blank.
        Exception: anything pydicom and its decoders raise for damaged content.

    """
    dataset = read_bounded(content)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DataError("the DICOM file has no pixels, or is cut off")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise DataError("the DICOM file has several frames", got=int(dataset.NumberOfFrames), allowed="one radiograph")
    check_size(int(dataset.Columns), int(dataset.Rows), max_image_side_px)
    if "TransferSyntaxUID" not in dataset.file_meta:  # a bare data set; it can only be uncompressed
        is_implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    check_compressed(dataset, max_image_side_px)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == JPEGExtended12Bit and int(dataset.BitsStored) > 8:  # noqa: PLR2004 - bits of a byte
        dataset.file_meta.TransferSyntaxUID = JPEGLossless  # pydicom refuses 12 bits; GDCM goes by the JPEG header
    if syntax == JPEGBaseline8Bit and dataset.PhotometricInterpretation == "RGB" and _is_ycbcr(dataset):
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    is_grey = str(dataset.PhotometricInterpretation) in _GREY
    dataset.pixel_array_options(correct_unused_bits=not is_grey)  # padding may have bits outside of those stored
    pixels = dataset.pixel_array
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return to_square(_grey(dataset, pixels) if is_grey else _luma(dataset, pixels), side_px)


def _is_ycbcr(dataset: Dataset) -> bool:
    """Tell by the JPEG itself, as some encoders write RGB beside YCbCr: JFIF is YCbCr, and so is subsampled colour."""
    image = Image.open(io.BytesIO(get_frame(dataset.PixelData, 0, number_of_frames=1)), formats=("JPEG",))
    samplings = {layer[1:3] for layer in getattr(image, "layer", ())}
    return "jfif" in image.info or len(samplings) > 1


def _luma(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    """Return the luma of colours that pydicom has turned into RGB, deeper ones scaled by percentile like grey."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = palette_colours(dataset, pixels)
    if pixels.ndim != _COLOUR_CHANNELS or pixels.shape[-1] != _COLOUR_CHANNELS:
        raise DataError("the DICOM file is neither grey nor RGB")
    if pixels.dtype == np.uint8:
        return np.array(Image.fromarray(pixels).convert("L"))
    return to_uint8(deep_luma(pixels))


def _grey(dataset: Dataset, pixels_HW: np.ndarray) -> np.ndarray:
    padding_HW = _padding(dataset, pixels_HW)
    pixels_HW = _stored_bits(dataset, pixels_HW)
    grey_HW = _through_tables(dataset, pixels_HW, padding_HW)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey_HW = 255 - grey_HW
    return grey_HW if padding_HW is None else np.where(padding_HW, np.uint8(0), grey_HW)


def _stored_bits(dataset: Dataset, pixels_HW: np.ndarray) -> np.ndarray:
    """Clear the bits outside of those stored, which overlays and padding may use, and extend the sign."""
    if pixels_HW.dtype.kind == "f":
        return pixels_HW
    num_bits, num_stored = 8 * pixels_HW.dtype.itemsize, int(dataset.BitsStored)
    is_raw = not dataset.file_meta.TransferSyntaxUID.is_compressed or dataset.file_meta.TransferSyntaxUID == RLELossless
    end = int(dataset.get("HighBit", num_stored - 1)) + 1 if is_raw else num_stored
    if num_stored == num_bits or not 0 < num_stored <= end <= num_bits:
        return pixels_HW
    return pixels_HW << (num_bits - end) >> (num_bits - num_stored)


def _padding(dataset: Dataset, pixels_HW: np.ndarray) -> np.ndarray | None:
    """Tell which pixels fill the frame around the film (PS3.3 C.7.5.1.1.2), or None if none do, or all."""
    names = {4: "FloatPixelPadding", 8: "DoubleFloatPixelPadding"} if pixels_HW.dtype.kind == "f" else {}
    name = names.get(pixels_HW.dtype.itemsize, "PixelPadding")
    value, limit = (_number(dataset, f"{name}{end}") for end in ("Value", "RangeLimit"))
    if value is None:
        return None
    numbers = [_as_stored(bound, pixels_HW.dtype) for bound in (value, limit) if bound is not None]
    padding_HW: np.ndarray = (pixels_HW >= min(numbers)) & (pixels_HW <= max(numbers))
    return padding_HW if padding_HW.any() and not padding_HW.all() else None


def _number(dataset: Dataset, name: str) -> float | None:
    """Return a number whatever its value representation, raw bytes included; the first of several."""
    value = dataset.get(name)
    if isinstance(value, bytes) and value:
        return int.from_bytes(value[:2], "big" if dataset.original_encoding[1] is False else "little")
    if isinstance(value, MutableSequence) and value:
        value = value[0]
    return value if isinstance(value, (int, float)) else None


def _as_stored(number: float, dtype: np.dtype) -> float:
    """Return the 16 bits of a number with the sign of the pixels: devices write -2000 as 63536, and the reverse."""
    if dtype.kind == "f":
        return number
    word = np.array(int(number) % (1 << 16), np.uint16)
    return int(word.view(f"{dtype.kind}2").astype(dtype))


def _through_tables(dataset: Dataset, pixels_HW: np.ndarray, padding_HW: np.ndarray | None) -> np.ndarray:
    """Apply the file's tables: of 8 and 16 bits, to every possible value once, fast and exact."""
    levels, look_up = _all_levels(pixels_HW)
    film = sampled(pixels_HW, padding_HW)
    values = modality_values(dataset, levels, film)
    for voi in (voi_shares, _window):
        try:
            shares = voi(dataset, values, modality_values(dataset, film, film))
        except (ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
            continue  # a damaged table
        if shares is None:
            continue
        grey_HW = look_up(np.rint(255 * np.clip(np.nan_to_num(shares), 0, 1)).astype(np.uint8))
        shown = grey_HW if padding_HW is None else grey_HW[~padding_HW]
        if shown.min() != shown.max():
            return grey_HW
    modality_is_linear = "ModalityLUTSequence" not in dataset and float(dataset.get("RescaleSlope") or 1) > 0
    return to_uint8(pixels_HW if modality_is_linear else look_up(values.astype(np.float32)), padding_HW)


def _all_levels(pixels_HW: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return the values to apply tables to, and how to get the pixels from the result."""
    if pixels_HW.dtype.kind == "f" or pixels_HW.dtype.itemsize > 2:  # noqa: PLR2004 - bytes of a table's index
        return pixels_HW, lambda applied: applied
    unsigned = f"u{pixels_HW.dtype.itemsize}"
    levels = np.arange(1 << (8 * pixels_HW.dtype.itemsize), dtype=np.int64).astype(unsigned).view(pixels_HW.dtype)
    return levels, lambda applied: apply_lut(pixels_HW, applied)


def _window(dataset: Dataset, values: np.ndarray, _film: np.ndarray) -> np.ndarray | None:
    """Return the share 0-1 that the first window gives each value (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    if not dataset.get("VOILUTFunction"):  # missing, or empty
        dataset.VOILUTFunction = "LINEAR"
    with np.errstate(over="ignore"):  # of a sigmoid
        below, above = apply_windowing(np.array([-1e30, 1e30]), dataset)  # the range that pydicom scales to
    shares: np.ndarray = (apply_windowing(values, dataset) - below) / (above - below)
    return shares
