"""What all image formats share: check the size before decoding, scale grey levels, resize to a square."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from csi_job.errors import DataError
from csi_job.radiographs.content import LARGE

if TYPE_CHECKING:
    from PIL import Image

MIN_SIDE_PX = 16  # smaller images show no zones
MAX_NUM_PIXELS = 150_000_000  # three times the largest digitised film; limits the memory of one decoder
LUMA_BT601 = (0.299, 0.587, 0.114)  # weights of red, green and blue
DARKEST_PERCENT, BRIGHTEST_PERCENT = 0.5, 99.5
# Far from any radiograph: of 127 real ones, at most 41 % was black and white, and the flattest had 95 levels.
_BLACK_UP_TO, _WHITE_FROM, _NEARLY_ALL = 16, 239, 0.9
_PURE_BLACK = 8  # with its counterpart of white: collimation, padding and markers, which do not count as levels
_FLAT_BELOW = 32  # grey levels between the 5th and the 95th percentile
_MAX_SAMPLED_SIDE = 256  # percentiles of larger images use about this many evenly spaced rows and columns
_REDUCING_GAP = 3.0  # images are averaged over boxes, down to this many times the target, before they are filtered
_NUM_CHECKED = 64  # rows and columns of boxes that show whether a film may be averaged first
_TOLERANCE = 0.4  # of 255 grey levels, on average
_TABULATED = (np.uint16, np.int16, np.uint8, np.int8)  # so few levels that one pass over all of them costs little

Box = tuple[float, float, float, float]  # left, top, right, bottom
GreyScale = Callable[[np.ndarray], np.ndarray]  # levels of any shape -> uint8


def check_size(width_px: int, height_px: int, max_image_side_px: int) -> None:
    """Refuse an image by the size in its header, before any pixel is decoded.

    Raises:
        DataError: smaller than 16 pixels per side, or as large as a decompression bomb.
    """
    size = f"{width_px}x{height_px} pixels"
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise DataError(f"the image is {size}", allowed=f"at least {MIN_SIDE_PX} per side")
    if max(width_px, height_px) > max_image_side_px or width_px * height_px > MAX_NUM_PIXELS:
        allowed = f"up to {max_image_side_px} per side (radiographs.max_image_side_px) and {MAX_NUM_PIXELS} in all"
        raise DataError(f"the image is {size}", allowed=allowed)


@dataclass(frozen=True)
class Film:
    """Levels of all pixels, or averages of them.

    `sample_N` are levels that occur, if they are known; `box` is the part of averages that the film covers;
    `averaged_NK` are K pixels each of some of the averages.
    """

    levels_HW: np.ndarray  # noqa: N815 - a tensor carries its axes
    sample_N: np.ndarray | None  # noqa: N815
    box: Box | None = None
    averaged_NK: np.ndarray | None = None  # noqa: N815

    def allows(self, scale: GreyScale) -> bool:
        """Return whether scaling averages equals averaging scaled pixels; not where noise is wide for the window."""
        if self.averaged_NK is None:
            return True
        averages_N = _rounded(self.averaged_NK.mean(axis=1), self.levels_HW.dtype)
        errors_N = scale(self.averaged_NK).mean(axis=1) - scale(averages_N)
        return bool(np.abs(errors_N).mean() <= _TOLERANCE)


def films(levels_HW: np.ndarray, side_px: int) -> tuple[Film, ...]:
    """Return a large film averaged over boxes, as Pillow shrinks images; then the film itself."""
    whole = Film(levels_HW, sampled(levels_HW))
    down, across = (max(1, int(length / side_px / _REDUCING_GAP)) for length in levels_HW.shape)
    if levels_HW.size < LARGE or down * across == 1 or levels_HW.dtype.itemsize == 1:
        return (whole,)
    height, width = levels_HW.shape
    averages_HW = _box_averages(levels_HW, down, across)
    if not np.isfinite(averages_HW).all():
        return (whole,)
    rows, columns = (
        np.linspace(0, n // f - 1, _NUM_CHECKED).astype(int) * f for n, f in ((height, down), (width, across))
    )
    parts = [levels_HW[np.ix_(rows + y, columns + x)].ravel() for y in range(down) for x in range(across)]
    box = (0.0, 0.0, width / across, height / down)
    return Film(_rounded(averages_HW, levels_HW.dtype), whole.sample_N, box, np.stack(parts, axis=1)), whole


def _box_averages(levels_HW: np.ndarray, down: int, across: int) -> np.ndarray:
    """Return the average of each box, as floats; the last boxes of rows and columns may be smaller."""
    if abs(levels_HW.strides[0]) < abs(levels_HW.strides[1]):  # by columns in memory, as NIfTI is
        return _box_averages(levels_HW.T, across, down).T
    wide = {"uint16": np.uint32, "int16": np.int32}.get(levels_HW.dtype.name, np.float64)
    sums_HW: Any = levels_HW[::down].astype(wide)
    for row in range(1, down):
        part = levels_HW[row::down]
        sums_HW[: len(part)] += part
    totals_HW: Any = sums_HW[:, ::across].copy()
    for column in range(1, across):
        part = sums_HW[:, column::across]
        totals_HW[:, : part.shape[1]] += part
    sides = zip(levels_HW.shape, (down, across), strict=True)
    averages_HW: np.ndarray = totals_HW / np.outer(*(np.minimum(f, n - np.arange(0, n, f)) for n, f in sides))
    return averages_HW


def _rounded(averages: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (averages if dtype.kind == "f" else np.rint(averages)).astype(dtype)


def to_uint8(values_HW: np.ndarray, left_out_HW: np.ndarray | None = None) -> np.ndarray:
    """Scale grey levels of any number type by percentile; pixels in the mask `left_out_HW` do not count.

    Raises:
        DataError: all pixels are equal, or none is finite.
    """
    return percentile_scale(sampled(values_HW, left_out_HW), values_HW.dtype)(values_HW)


def percentile_scale(sample_N: np.ndarray, dtype: np.dtype) -> GreyScale:
    """Return the scale from the 0.5th to the 99.5th percentile of a sample; non-finite levels become black.

    Deep images seldom use their full range (12 of 16 bits are usual), and often only burnt-in markers do, so scaling by
    the full range would leave many radiographs nearly black.

    Raises:
        DataError: all pixels are equal, or none is finite.
    """
    sample = sample_N
    if sample.dtype.newbyteorder("=") not in _TABULATED:
        sample = sample.astype(np.float64)
        sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        raise DataError("the image has no finite pixel")
    darkest, brightest = percentiles(sample, DARKEST_PERCENT, BRIGHTEST_PERCENT)
    if darkest == brightest:  # nearly all pixels are equal, as in a mask
        darkest, brightest = float(sample.min()), float(sample.max())
    if darkest == brightest:
        raise DataError("all pixels of the image are equal")
    return tabulated(lambda values: _scaled(values.astype(np.float64), darkest, brightest), dtype)


def percentiles(sample_N: np.ndarray, *percents: float) -> np.ndarray:
    """Return what `np.percentile` does, bit by bit; levels of up to 16 bits are counted instead of sorted."""
    if sample_N.dtype.newbyteorder("=") not in _TABULATED:
        found: np.ndarray = np.percentile(sample_N, percents)
        return found
    lowest = int(sample_N.min())
    num_up_to = np.bincount(sample_N.astype(np.int64) - lowest).cumsum()
    places = np.array(percents) / 100 * (sample_N.size - 1)
    below, above = (np.searchsorted(num_up_to, np.floor(places) + k, side="right") + lowest for k in (0, 1))
    parts, gaps = places - np.floor(places), above - below
    return np.where(parts < 0.5, below + gaps * parts, above - gaps * (1 - parts))  # noqa: PLR2004 - as numpy rounds


def tabulated(function: GreyScale, dtype: np.dtype) -> GreyScale:
    """Return the function, for 8- and 16-bit levels as a lookup table that is computed once."""
    if dtype.newbyteorder("=") not in _TABULATED:
        return function
    unsigned = np.dtype(f"u{dtype.itemsize}")
    found = function(np.arange(1 << (8 * dtype.itemsize)).astype(unsigned).view(dtype.newbyteorder("=")))
    return lambda levels: found[levels.astype(dtype.newbyteorder("="), copy=False).view(unsigned)]


def sampled(values_HW: np.ndarray, left_out_HW: np.ndarray | None = None) -> np.ndarray:
    """Return pixels from evenly spaced rows and columns, without those in the mask `left_out_HW`."""
    rows, columns = (max(1, length // _MAX_SAMPLED_SIDE) for length in values_HW.shape)
    sample_HW = values_HW[::rows, ::columns]
    if left_out_HW is None:
        return sample_HW.ravel()
    kept: np.ndarray = sample_HW[~left_out_HW[::rows, ::columns]]
    return kept if kept.size else values_HW[~left_out_HW]


def deep_luma(colours_HWC: np.ndarray) -> np.ndarray:
    """Return the luma (ITU-R BT.601) `[H, W]` of RGB colours of more than 8 bits, in their own type."""
    luma_HW = colours_HWC[..., :3].astype(np.float32) @ np.array(LUMA_BT601, np.float32)
    rounded_HW: np.ndarray = np.rint(luma_HW).astype(colours_HWC.dtype)
    return rounded_HW


def to_square(grey_HW: np.ndarray | Image.Image, side_px: int, box: Box | None = None) -> np.ndarray:
    """Resize a grey image, or the part in a box, to `[side_px, side_px]` uint8 by area averaging, in any aspect ratio.

    Raises:
        DataError: all pixels are equal.
    """
    from PIL import Image

    image = grey_HW if isinstance(grey_HW, Image.Image) else Image.fromarray(np.ascontiguousarray(grey_HW))
    small = image.resize((side_px, side_px), Image.Resampling.BILINEAR, box=box, reducing_gap=_REDUCING_GAP)
    pixels_HW = np.array(small, dtype=np.uint8)
    if pixels_HW.min() == pixels_HW.max():
        raise DataError("all pixels of the image are equal")
    return pixels_HW


def films_to_square(tries: Iterable[Film], scale: GreyScale, side_px: int) -> np.ndarray:
    """Return the square of the first film that allows the scale; the last always does."""
    film = next(film for film in tries if film.allows(scale))
    return to_square(scale(film.levels_HW), side_px, film.box)


def doubt_about(pixels_HW: np.ndarray) -> str:
    """Return why a uint8 image hardly shows a radiograph and someone should look at it, or ""."""
    counts = np.bincount(pixels_HW.ravel(), minlength=256) / pixels_HW.size
    black, white = counts[: _BLACK_UP_TO + 1].sum(), counts[_WHITE_FROM:].sum()
    if max(black, white) >= _NEARLY_ALL:
        return f"nearly all {'black' if black > white else 'white'}"
    if black + white >= _NEARLY_ALL:
        return "nearly only black and white"
    between = counts[_PURE_BLACK + 1 : 255 - _PURE_BLACK].cumsum()
    darkest, brightest = np.searchsorted(between, between[-1] * np.array([0.05, 0.95]))
    return "nearly flat" if brightest - darkest < _FLAT_BELOW else ""


def _scaled(values: np.ndarray, darkest: float, brightest: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        shares = np.nan_to_num((values - darkest) / (brightest - darkest), nan=0.0, posinf=0.0, neginf=0.0)
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)
