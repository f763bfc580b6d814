"""DICOM radiographs: modality and VOI tables applied as a viewer would, then 8-bit grey."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_windowing
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from csi_job.errors import DataError
from csi_job.radiographs.dicom_bombs import check_compressed, check_deflated
from csi_job.radiographs.grey import apply_lut, check_size, to_square, to_uint8

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR_CHANNELS = 3


def read_dicom(content: bytes, side_px: int, max_image_side_px: int) -> np.ndarray:
    """Return a DICOM radiograph as grey uint8 `[side_px, side_px]`, bright where the film is bright.

    Modality LUT or rescale and the first VOI LUT or window are applied (DICOM PS3.3 C.11); where there is none, or
    it leaves nothing to see, grey levels are scaled by percentile. MONOCHROME1 is inverted, padding becomes black.

    Raises:
        DataError: no pixels, several frames, too small or too large, or blank.
        Exception: anything pydicom and its decoders raise for damaged content.

    """
    check_deflated(content)
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DataError("the DICOM file has no pixels, or is cut off")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise DataError("the DICOM file has several frames", got=int(dataset.NumberOfFrames), allowed="one radiograph")
    check_size(int(dataset.Columns), int(dataset.Rows), max_image_side_px)
    if "TransferSyntaxUID" not in dataset.file_meta:  # a bare data set; it can only be uncompressed
        is_implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    check_compressed(dataset, max_image_side_px)
    pixels = dataset.pixel_array
    return to_square(_grey(dataset, pixels.astype(pixels.dtype.newbyteorder("="), copy=False)), side_px)


def _grey(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        return _luma(apply_color_lut(pixels, dataset))
    if photometric not in _GREY:
        return _luma(pixels)
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:  # noqa: PLR2004 - bytes of a table's index
        grey_HW = to_uint8(apply_modality_lut(pixels, dataset))
        return 255 - grey_HW if photometric == "MONOCHROME1" else grey_HW
    return _through_tables(dataset, pixels, inverted=photometric == "MONOCHROME1")


def _luma(pixels_HWC: np.ndarray) -> np.ndarray:
    """Return the luma of colours that pydicom has turned into RGB."""
    from PIL import Image

    if pixels_HWC.ndim != _COLOUR_CHANNELS or pixels_HWC.shape[-1] != _COLOUR_CHANNELS:
        raise DataError("the DICOM file is neither grey nor RGB")
    deep = pixels_HWC.dtype != np.uint8
    rgb_HWC = (pixels_HWC >> 8 * (pixels_HWC.dtype.itemsize - 1)).astype(np.uint8) if deep else pixels_HWC
    return np.array(Image.fromarray(rgb_HWC).convert("L"))


def _through_tables(dataset: Dataset, pixels_HW: np.ndarray, *, inverted: bool) -> np.ndarray:
    """Apply the file's tables to every possible pixel value once, then look the pixels up: fast and exact."""
    num_levels = 1 << (8 * pixels_HW.dtype.itemsize)
    stored = np.arange(num_levels, dtype=np.int64).astype(f"u{pixels_HW.dtype.itemsize}").view(pixels_HW.dtype)
    values = apply_modality_lut(stored, dataset)
    for voi in (_voi_table, _window):
        grey_HW = _try_table(voi, dataset, values, pixels_HW)
        if grey_HW is not None:
            break
    else:
        modality_is_linear = "ModalityLUTSequence" not in dataset and float(dataset.get("RescaleSlope") or 1) > 0
        grey_HW = to_uint8(pixels_HW if modality_is_linear else apply_lut(pixels_HW, values.astype(np.float32)))
    if inverted:
        grey_HW = 255 - grey_HW
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        first, last = sorted((int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))))
        grey_HW = np.where((pixels_HW >= first) & (pixels_HW <= last), np.uint8(0), grey_HW)
    return grey_HW


def _try_table(
    voi: Callable[[Dataset, np.ndarray], np.ndarray | None], dataset: Dataset, values: np.ndarray, pixels_HW: np.ndarray
) -> np.ndarray | None:
    """Return the pixels through a VOI table, or None where the file has none, a damaged one, or one that hides all."""
    try:
        shares = voi(dataset, values)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return None
    if shares is None:
        return None
    grey_HW = apply_lut(pixels_HW, np.rint(255 * np.clip(np.nan_to_num(shares), 0, 1)).astype(np.uint8))
    return None if grey_HW.min() == grey_HW.max() else grey_HW


def _voi_table(dataset: Dataset, values: np.ndarray) -> np.ndarray | None:
    """Return the share 0-1 that the first VOI LUT gives each value (PS3.3 C.11.2.1.1)."""
    if not dataset.get("VOILUTSequence"):
        return None
    item = dataset.VOILUTSequence[0]
    num_entries, first_value, _ = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    entries = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    entries = entries[: num_entries or 1 << 16].astype(np.float64)
    places = np.clip(np.rint(values).astype(np.int64) - first_value, 0, len(entries) - 1)
    shares: np.ndarray = (entries[places] - entries.min()) / (entries.max() - entries.min())
    return shares


def _window(dataset: Dataset, values: np.ndarray) -> np.ndarray | None:
    """Return the share 0-1 that the first window gives each value (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    with np.errstate(over="ignore"):  # of a sigmoid
        below, above = apply_windowing(np.array([-1e30, 1e30]), dataset)  # the range that pydicom scales to
    shares: np.ndarray = (apply_windowing(values, dataset) - below) / (above - below)
    return shares
