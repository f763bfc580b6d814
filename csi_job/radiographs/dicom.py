"""DICOM radiographs: modality and VOI tables applied as a viewer would, then 8-bit grey."""

import io
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import RLELossless

from csi_job.radiographs.dicom_file import LOSSY_JPEG, orientation, read_file
from csi_job.radiographs.dicom_frame import decoded_levels, frame_of, reduced_film
from csi_job.radiographs.dicom_tables import modality_values, palette_colours, voi_shares
from csi_job.radiographs.grey import (
    Film,
    GreyScale,
    deep_luma,
    films,
    percentile_scale,
    sampled,
    tabulated,
    to_square,
    to_uint8,
)

_GREY = ("MONOCHROME1", "MONOCHROME2")
_UPRIGHT, _LYING = ("LF", "LH", "RF", "RH"), ("FL", "HL", "FR", "HR")  # directions of rows and columns
_WORD_BITS = 16
_OVERLAY_GROUPS, _OVERLAY_BIT = range(0x6000, 0x6020, 2), 0x0102
# What a damaged table raises.
_DAMAGED = (ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)
Voi = Callable[[np.ndarray, np.ndarray], np.ndarray]  # values, and those that occur in the film -> shares 0-1


def read_dicom(content: bytes, side_px: int, max_image_side_px: int) -> np.ndarray:
    """Return a DICOM radiograph as grey uint8 `[side_px, side_px]`, bright where the film is bright.

    Modality LUT or rescale and the first VOI LUT or window are applied (DICOM PS3.3 C.11); where there is none, or all
    are damaged or leave nothing to see, grey levels are scaled by percentile. MONOCHROME1 is inverted. Padding becomes
    black, and counts in no percentile. The patient's right goes to the left, by the PatientOrientation if it is known.

    Raises:
        DataError: no pixels, several frames, too small or too large, lateral, of another modality, cut off, or blank.
        Exception: anything pydicom and its decoders raise for damaged content.
    """
    dataset = read_file(content, max_image_side_px)
    if str(dataset.PhotometricInterpretation) in _GREY:
        squares = (_square(dataset, film, padding_HW, side_px) for film, padding_HW in _films(dataset, side_px))
        square_HW = next(square for square in squares if square is not None)  # the film with all its pixels gives one
    else:
        is_lossy_jpeg = dataset.file_meta.TransferSyntaxUID in LOSSY_JPEG
        if is_lossy_jpeg and dataset.SamplesPerPixel > 1 and _is_ycbcr(dataset):
            dataset.PhotometricInterpretation = "YBR_FULL_422"
        pixels = dataset.pixel_array
        luma_HW = _luma(dataset, pixels.astype(pixels.dtype.newbyteorder("="), copy=False))
        square_HW = to_square(luma_HW, side_px)
    return _upright(square_HW, orientation(dataset))


def _upright(square_HW: np.ndarray, directions: str) -> np.ndarray:
    """Turn the square so that its rows point to the patient's left, and its columns to the feet."""
    if directions in _LYING:
        square_HW, directions = square_HW.T, directions[::-1]
    if directions in _UPRIGHT:
        square_HW = square_HW[:: -1 if directions[1] == "H" else 1, :: -1 if directions[0] == "R" else 1]
    return np.ascontiguousarray(square_HW)


def _is_ycbcr(dataset: Dataset) -> bool:
    """Return whether a JPEG is YCbCr, even if labelled RGB, as some encoders do: JFIF and subsampled colours are."""
    image = Image.open(io.BytesIO(frame_of(dataset)), formats=("JPEG",))
    samplings = {layer[1:3] for layer in getattr(image, "layer", ())}
    return dataset.PhotometricInterpretation.startswith("YBR") or "jfif" in image.info or len(samplings) > 1


def _luma(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    """Return the luma of colours that pydicom has turned into RGB, deeper ones scaled by percentile like grey."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = palette_colours(dataset, pixels)
    if pixels.dtype == np.uint8:
        return np.array(Image.fromarray(pixels).convert("L"))
    return to_uint8(deep_luma(pixels))


def _square(dataset: Dataset, film: Film, padding_HW: np.ndarray | None, side_px: int) -> np.ndarray | None:
    """Return the square of a film; None if this needs all pixels and the film has only averages."""
    grey_HW = _through_tables(dataset, film, padding_HW)
    if grey_HW is None:
        return None
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey_HW = 255 - grey_HW
    if padding_HW is not None:
        grey_HW = np.where(padding_HW, np.uint8(0), grey_HW)
    return to_square(grey_HW, side_px, film.box)


def _films(dataset: Dataset, side_px: int) -> Iterator[tuple[Film, np.ndarray | None]]:
    """Yield the film with the mask of its padding: first as it decodes fastest, finally with all its pixels."""
    reduced = reduced_film(dataset, side_px)
    if reduced is not None:
        yield reduced, None
    words_HW = decoded_levels(dataset)
    pixels_HW = _stored_bits(dataset, words_HW)
    padding_HW = _padding(dataset, words_HW, pixels_HW)
    if padding_HW is not None:
        yield Film(pixels_HW, sampled(pixels_HW, padding_HW)), padding_HW
    else:
        yield from ((film, None) for film in films(pixels_HW, side_px))


def _stored_bits(dataset: Dataset, pixels_HW: np.ndarray) -> np.ndarray:
    """Clear the bits outside those stored, which overlays and padding may use, and extend the sign.

    Compressed pixels without overlays have no others, whatever the header says, and may overshoot.
    """
    if pixels_HW.dtype.kind == "f":
        return pixels_HW
    num_bits, num_stored = 8 * pixels_HW.dtype.itemsize, int(dataset.BitsStored)
    is_raw = not dataset.file_meta.TransferSyntaxUID.is_compressed or dataset.file_meta.TransferSyntaxUID == RLELossless
    has_overlay = any((group, _OVERLAY_BIT) in dataset for group in _OVERLAY_GROUPS)
    if not (is_raw or has_overlay) and pixels_HW.dtype.kind == "u":
        return pixels_HW
    end = int(dataset.get("HighBit", num_stored - 1)) + 1 if is_raw else num_stored
    is_low = pixels_HW.dtype.kind == "u" and pixels_HW.max() >> num_stored == 0  # whatever the header says
    if is_low or num_stored == num_bits or not 0 < num_stored <= end <= num_bits:
        return pixels_HW
    return pixels_HW << (num_bits - end) >> (num_bits - num_stored)


def _padding(dataset: Dataset, words_HW: np.ndarray, pixels_HW: np.ndarray) -> np.ndarray | None:
    """Return the mask of pixels that fill the frame around the film (PS3.3 C.7.5.1.1.2); None if none or all do.

    Padding is looked for in the words, as it may use bits outside those stored, and in the pixels made of these. Of two
    ways to read its numbers the one that hides less is right: the other takes the film for padding.
    """
    names = {4: "FloatPixelPadding", 8: "DoubleFloatPixelPadding"} if words_HW.dtype.kind == "f" else {}
    name = names.get(words_HW.dtype.itemsize, "PixelPadding")
    value, limit = (_number(dataset, f"{name}{end}") for end in ("Value", "RangeLimit"))
    if value is None:
        return None
    lengths = (_WORD_BITS, int(dataset.BitsStored)) if words_HW.dtype.kind == "i" else (_WORD_BITS,)
    ranges = {
        tuple(_as_stored(bound, words_HW.dtype, num_bits) for bound in (value, limit) if bound is not None)
        for num_bits in lengths
    }
    masks = [_is_between(words_HW, bounds) | _is_between(pixels_HW, bounds) for bounds in ranges]
    return min((mask for mask in masks if mask.any() and not mask.all()), key=np.count_nonzero, default=None)


def _is_between(levels_HW: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    is_between_HW: np.ndarray = (levels_HW >= min(bounds)) & (levels_HW <= max(bounds))
    return is_between_HW


def _number(dataset: Dataset, name: str) -> float | None:
    """Return a number whatever its value representation, raw bytes included; the first of several."""
    value = dataset.get(name)
    if isinstance(value, bytes) and value:
        return int.from_bytes(value[:2], "big" if dataset.original_encoding[1] is False else "little")
    if isinstance(value, MutableSequence) and value:
        value = value[0]
    return value if isinstance(value, (int, float)) else None


def _as_stored(number: float, dtype: np.dtype, num_bits: int) -> float:
    """Return a number with the pixels' signedness: devices write -2000 as 63536, or 2096 of 12 bits, and vice versa."""
    if dtype.kind == "f":
        return number
    word = int(number) % (1 << _WORD_BITS)
    is_negative = dtype.kind == "i" and word.bit_length() in (num_bits, _WORD_BITS)
    return word - (1 << word.bit_length()) if is_negative else word


def _through_tables(dataset: Dataset, film: Film, padding_HW: np.ndarray | None) -> np.ndarray | None:
    """Apply the file's tables; None if they need all pixels and the film has only averages."""
    levels_HW = film.levels_HW
    occurring_N = levels_HW.ravel() if film.sample_N is None else film.sample_N
    vois: list[Voi] = [partial(voi_shares, item) for item in dataset.get("VOILUTSequence") or ()]
    vois += [partial(_window, dataset)] * (dataset.WindowWidth is not None)
    for voi in vois:
        with suppress(*_DAMAGED):
            scale = tabulated(partial(_voi_grey, voi, dataset, occurring_N), levels_HW.dtype)
            if not film.allows(scale):
                return None
            grey_HW = scale(levels_HW)
            shown = grey_HW if padding_HW is None else grey_HW[~padding_HW]
            if shown.min() != shown.max():
                return grey_HW
    if film.sample_N is None:
        return None
    scale = _percentile_scale(dataset, film.sample_N, levels_HW.dtype)
    return scale(levels_HW) if film.allows(scale) else None


def _voi_grey(voi: Voi, dataset: Dataset, occurring_N: np.ndarray, levels: np.ndarray) -> np.ndarray:
    values, occurring = (modality_values(dataset, some, occurring_N) for some in (levels, occurring_N))
    shares = voi(values, occurring)
    grey: np.ndarray = np.rint(255 * np.clip(np.nan_to_num(shares), 0, 1)).astype(np.uint8)
    return grey


def _percentile_scale(dataset: Dataset, sample_N: np.ndarray, dtype: np.dtype) -> GreyScale:
    if "ModalityLUTSequence" not in dataset and float(dataset.get("RescaleSlope") or 1) > 0:
        return percentile_scale(sample_N, dtype)

    def modality(levels: np.ndarray) -> np.ndarray:
        values: np.ndarray = modality_values(dataset, levels, sample_N).astype(np.float32)
        return values

    scale = percentile_scale(modality(sample_N), np.dtype(np.float32))
    return tabulated(lambda levels: scale(modality(levels)), dtype)


def _window(dataset: Dataset, values: np.ndarray, _film: np.ndarray) -> np.ndarray:
    """Return the share 0-1 that the window gives each value (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    with np.errstate(over="ignore"):  # of a sigmoid
        below, above = apply_windowing(np.array([-1e30, 1e30]), dataset)  # the range that pydicom scales to
    shares: np.ndarray = (apply_windowing(values, dataset) - below) / (above - below)
    return shares
