"""What all image formats share: check the size before decoding, scale grey levels, resize to a square."""

from __future__ import annotations

import numpy as np
from PIL import Image

from csi_job.errors import DataError

MIN_SIDE_PX = 16  # smaller images show no zones
MAX_NUM_PIXELS = 150_000_000  # three times the largest digitised film; limits the memory of one decoder
LUMA_BT601 = (0.299, 0.587, 0.114)  # weights of red, green and blue
DARKEST_PERCENT, BRIGHTEST_PERCENT = 0.5, 99.5
# What no radiograph comes near: of 127 real ones, at most 41 % were black and white, and the flattest had 95 levels.
_BLACK_UP_TO, _WHITE_FROM, _NEARLY_ALL = 16, 239, 0.9
_PURE_BLACK = 8  # with its counterpart of white: collimation, padding and markers, which do not count as levels
_FLAT_BELOW = 32  # grey levels between the 5th and the 95th percentile
_MAX_SAMPLED_SIDE = 256  # percentiles of larger images use about this many evenly spaced rows and columns
_REDUCING_GAP = 3.0  # Pillow shrinks by whole boxes down to this many times the target before it filters


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


def to_uint8(values_HW: np.ndarray, left_out_HW: np.ndarray | None = None) -> np.ndarray:
    """Scale grey levels of any number type to uint8 by their 0.5th and 99.5th percentile.

    Deep images seldom use their full range (12 of 16 bits are usual), and burnt-in markers do so alone; scaling by the
    full range would leave many radiographs nearly black. Non-finite values become black. Pixels in the mask
    `left_out_HW` count in no percentile.

    Raises:
        DataError: all pixels are equal, or none is finite.

    """
    sample = sampled(values_HW, left_out_HW).astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        raise DataError("the image has no finite pixel")
    darkest, brightest = np.percentile(sample, (DARKEST_PERCENT, BRIGHTEST_PERCENT))
    if darkest == brightest:  # nearly all pixels are equal, as in a mask
        darkest, brightest = sample.min(), sample.max()
    if darkest == brightest:
        raise DataError("all pixels of the image are equal")
    if values_HW.dtype in (np.uint16, np.int16, np.uint8, np.int8):
        levels = np.arange(1 << (8 * values_HW.dtype.itemsize), dtype=np.int64)
        levels = levels.astype(f"u{values_HW.dtype.itemsize}").view(values_HW.dtype)
        return apply_lut(values_HW, _scaled(levels.astype(np.float64), darkest, brightest))
    return _scaled(values_HW.astype(np.float64), darkest, brightest)


def sampled(values_HW: np.ndarray, left_out_HW: np.ndarray | None = None) -> np.ndarray:
    """Return pixels from evenly spaced rows and columns, without those in the mask `left_out_HW`."""
    rows, columns = (max(1, length // _MAX_SAMPLED_SIDE) for length in values_HW.shape)
    sample_HW = values_HW[::rows, ::columns]
    if left_out_HW is None:
        return sample_HW.ravel()
    kept: np.ndarray = sample_HW[~left_out_HW[::rows, ::columns]]
    return kept if kept.size else values_HW[~left_out_HW]


def deep_luma(colours_HWC: np.ndarray) -> np.ndarray:
    """Return the luma (ITU-R BT.601) of RGB colours of more than 8 bits, uint16 `[H, W]` where they are 16-bit."""
    luma_HW = colours_HWC[..., :3].astype(np.float32) @ np.array(LUMA_BT601, np.float32)
    rounded_HW: np.ndarray = np.rint(luma_HW).astype(colours_HWC.dtype)
    return rounded_HW


def apply_lut(values_HW: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Replace each 8- or 16-bit integer by its entry in a lookup table that is indexed by its bits."""
    found_HW: np.ndarray = levels[values_HW.view(f"u{values_HW.dtype.itemsize}")]
    return found_HW


def to_square(grey_HW: np.ndarray | Image.Image, side_px: int) -> np.ndarray:
    """Resize a grey image to `[side_px, side_px]` uint8 by area averaging, without keeping the aspect ratio.

    Raises:
        DataError: all pixels are equal.

    """
    image = grey_HW if isinstance(grey_HW, Image.Image) else Image.fromarray(np.ascontiguousarray(grey_HW))
    small = image.resize((side_px, side_px), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP)
    pixels_HW = np.array(small, dtype=np.uint8)
    if pixels_HW.min() == pixels_HW.max():
        raise DataError("all pixels of the image are equal")
    return pixels_HW


def doubt_about(pixels_HW: np.ndarray) -> str:
    """Say why a uint8 image hardly shows a radiograph, or return ""; whatever the reason, someone should look at it."""
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
