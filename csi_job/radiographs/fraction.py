"""Decode JPEG and JPEG 2000 at a fraction of their size: fewer pixels, each of them an average."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from csi_job.radiographs.content import CODESTREAM, LARGE
from csi_job.radiographs.grey import BRIGHTEST_PERCENT, DARKEST_PERCENT, Box, Film, sampled

_MARKER, _CODING_STYLE = 0xFF, 0x52
_MIN_TIMES_SIDE = 4 / 3  # wavelets alias, so each side needs at least this many pixels per pixel of the square
_MEDIAN_OF_CURVATURE = 0.6745 * 6  # of normal noise of 1 (J. Immerkaer, Fast noise variance estimation, 1996)
_NUM_CHECKED, _NUM_DRAWN = 64, 16  # rows and columns of averages; pixels of each


@dataclass(frozen=True)
class Fraction:
    """An image at 1 / factor of the width and height; the film covers a box of it."""

    image: Image.Image
    factor: int
    box: Box

    def as_film(self, levels_HW: np.ndarray, num_bits: int) -> Film:
        """Return these levels as averages of pixels, whose noise is estimated from that of the averages.

        The averages do not stand for the pixels themselves if that noise would move the percentiles by a grey level.
        """
        curvature_HW = np.diff(np.diff(levels_HW.astype(np.float32), n=2, axis=0), n=2, axis=1)  # none of slopes
        noise = self.factor * np.median(np.abs(curvature_HW)) / _MEDIAN_OF_CURVATURE
        rows, columns = (np.linspace(0, length - 1, _NUM_CHECKED).astype(int) for length in levels_HW.shape)
        some_N1 = levels_HW[np.ix_(rows, columns)].reshape(-1, 1)
        drawn_NK = some_N1 + noise * np.random.default_rng(0).standard_normal((some_N1.size, _NUM_DRAWN))
        pixels_NK = np.rint(drawn_NK.clip(0, (1 << num_bits) - 1)).astype(levels_HW.dtype)
        ends, drawn = (np.percentile(some, (DARKEST_PERCENT, BRIGHTEST_PERCENT)) for some in (some_N1, pixels_NK))
        is_sample = np.abs(ends - drawn).max() <= np.ptp(ends) / 255
        return Film(levels_HW, sampled(levels_HW) if is_sample else None, self.box, pixels_NK)


def decode_fraction(content: bytes, side_px: int) -> Fraction | None:
    """Decode a large JPEG, or grey JPEG 2000, to a few times the side of the square; None if that cannot be done."""
    image = Image.open(io.BytesIO(content), formats=("JPEG", "JPEG2000"))
    width, height = image.size
    if width * height < LARGE:
        return None
    if image.format == "JPEG":
        drafted = image.draft("L", (side_px, side_px))
        factor = round(width / image.width)
        return Fraction(image, factor, drafted[1]) if drafted and factor > 1 else None
    codestream = memoryview(content)[content.find(CODESTREAM) :]
    num_levels, is_reversible = _coding_style(codestream)
    halvings = min(num_levels, int(min(image.size) / (_MIN_TIMES_SIDE * side_px)).bit_length() - 1)
    if is_reversible and image.mode == "L":  # each level rounds up by a quarter of a grey level each way
        halvings = min(halvings, 1)
    has_offset = any(codestream[16:24])
    if halvings < 1 or has_offset or image.mode not in ("L", "I;16"):
        return None
    factor = 1 << halvings
    image.reduce = halvings  # type: ignore[assignment]
    image._size = (-(-width // factor) * factor, -(-height // factor) * factor)  # noqa: SLF001 - Pillow rounds down
    try:
        image.load()
    except OSError:  # a tile has fewer levels
        return None
    shift = (1 - 1 / factor) / 2  # each pixel is centred where the first of those it stands for was
    padded_HW = np.pad(np.asarray(image), (0, 1), mode="edge")  # the last pixel may not reach the film's end
    return Fraction(Image.fromarray(padded_HW), factor, (shift, shift, width / factor + shift, height / factor + shift))


def _coding_style(codestream: memoryview) -> tuple[int, bool]:
    """Return from a JPEG 2000 header how often the size can be halved, and whether the compression is lossless."""
    place = 2
    while place + 13 < len(codestream) and codestream[place] == _MARKER:
        if codestream[place + 1] == _CODING_STYLE:
            return codestream[place + 9], codestream[place + 13] == 1
        place += 2 + int.from_bytes(codestream[place + 2 : place + 4], "big")
    return 0, True
