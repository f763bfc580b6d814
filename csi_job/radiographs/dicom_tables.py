"""Lookup tables of DICOM files in the forms that devices write (PS3.3 C.11.1.1 and C.11.2.1.1, PS3.5 6.2)."""

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

_WORDS = 1 << 16  # numbers of 16 bits
_SIGNED_FROM = 1 << 15  # a 16-bit number from here on may mean a negative one
_BITS_SHOWN = 8


def modality_values(dataset: Dataset, levels: np.ndarray, film: np.ndarray) -> np.ndarray:
    """Return what the modality LUT or rescale makes of stored levels; `film` are levels that occur in the film."""
    if dataset.get("ModalityLUTSequence"):
        item = dataset.ModalityLUTSequence[0]
        return _look_up(levels, item.LUTDescriptor, _entries(item, "LUTDescriptor", "LUTData"), film)
    if "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        return levels.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return levels


def voi_shares(item: Dataset, values: np.ndarray, film: np.ndarray) -> np.ndarray:
    """Return the share 0-1 that an item of the VOI LUT Sequence gives each value; `film` are values that occur.

    Entries are shares of the largest number with their bits. The largest entry shows how many bits these are, as in
    viewers, because devices state 16 for tables of 12.
    """
    entries = _entries(item, "LUTDescriptor", "LUTData")
    return _look_up(values, item.LUTDescriptor, entries / _largest(entries), film)


def palette_colours(dataset: Dataset, pixels_HW: np.ndarray) -> np.ndarray:
    """Return the colours of palette indices as uint8 `[H, W, 3]`."""
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        colours = apply_color_lut(pixels_HW, dataset)[..., :3]
        return _as_8_bit(colours, np.iinfo(colours.dtype).max)
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    tables = [_entries(dataset, f"{name}Descriptor", f"{name}Data") for name in names]
    largest = max(_largest(entries) for entries in tables)
    channels = [
        _look_up(pixels_HW, dataset[f"{name}Descriptor"].value, _as_8_bit(entries, largest), pixels_HW)
        for name, entries in zip(names, tables, strict=True)
    ]
    return np.stack(channels, axis=-1)


def _entries(item: Dataset, descriptor: str, data: str) -> np.ndarray:
    """Return the entries of a table.

    They are 16-bit numbers, or bytes packed in 16-bit words, the first in the low byte; raw words have the byte order
    of the file.
    """
    num_entries = int(item[descriptor].value[0]) % _WORDS or _WORDS
    element = item[data]
    if isinstance(element.value, bytes):
        content = element.value + bytes(len(element.value) % 2)
        if element.VR == "OB" and len(content) < 2 * num_entries:
            return _checked(np.frombuffer(content, np.uint8), num_entries)
        is_little_endian = item.original_encoding[1] is not False
        words = np.frombuffer(content, "<u2" if is_little_endian else ">u2")
    else:
        words = np.atleast_1d(np.asarray(element.value, dtype=np.int64)) % _WORDS
    if len(words) == (num_entries + 1) // 2:
        words = words.astype("<u2").view(np.uint8)
    return _checked(words, num_entries)


def _checked(entries: np.ndarray, num_entries: int) -> np.ndarray:
    if len(entries) == 0 or entries.max() == 0:
        raise ValueError("an empty lookup table")
    return entries[:num_entries].astype(np.uint16)


def _largest(entries: np.ndarray) -> int:
    """Return the largest number with as many bits as the entries have, at least 8."""
    return (1 << max(_BITS_SHOWN, int(entries.max()).bit_length())) - 1


def _as_8_bit(values: np.ndarray, largest: int) -> np.ndarray:
    return (values >> (int(largest).bit_length() - _BITS_SHOWN)).astype(np.uint8)


def _look_up(values: np.ndarray, descriptor: Sequence[int], entries: np.ndarray, film: np.ndarray) -> np.ndarray:
    """Return the entry of each value; values outside the table get its first or last entry."""
    first = int(descriptor[1]) % _WORDS
    if first >= _SIGNED_FROM:  # devices confuse the two: what the film shows decides
        signs = (first - _WORDS, first) if film.min(initial=0) < 0 else (first, first - _WORDS)
        first = max(signs, key=lambda sign: int(((film >= sign) & (film < sign + len(entries))).sum()))
    places = np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)
    found: np.ndarray = entries[places]
    return found
