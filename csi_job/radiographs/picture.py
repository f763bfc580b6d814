"""PNG and JPEG of any mode and depth, decoded to grey."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from csi_job.errors import DataError
from csi_job.radiographs.grey import MAX_NUM_PIXELS, check_size, to_square, to_uint8

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DRAFT_FACTOR = 2  # JPEG is decoded at the scale of 1, 1/2, 1/4, 1/8 that leaves at least this many times the target


def read_picture(content: bytes, side_px: int, max_image_side_px: int) -> np.ndarray:
    """Return a PNG or JPEG as upright grey uint8 `[side_px, side_px]`.

    Colours become their luma (ITU-R BT.601), transparent parts black; 8-bit grey levels are kept, deeper ones scaled
    by percentile; EXIF rotation is applied. A JPEG much larger than the square is decoded at a
    fraction of its size, and only its luma.

    Raises:
        DataError: too small or too large by its header, or blank.
        Exception: anything Pillow raises for damaged content.

    """
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError:
        raise DataError("the image has more pixels than any radiograph", allowed=MAX_NUM_PIXELS) from None
    except UnidentifiedImageError:
        raise DataError("the header of the image is damaged") from None
    check_size(*image.size, max_image_side_px)
    image.draft("L", (_DRAFT_FACTOR * side_px, _DRAFT_FACTOR * side_px))
    turn = _turn(image)
    square_HW = to_square(_grey(image), side_px)
    return square_HW if turn is None else np.array(Image.fromarray(square_HW).transpose(turn))


def _grey(image: Image.Image) -> Image.Image | np.ndarray:
    if image.mode in _DEEP_MODES:
        return to_uint8(np.asarray(image))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        coloured = image.convert("RGBA")
        black = Image.new("RGBA", coloured.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, coloured).convert("L")
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the rotation that EXIF asks for; damaged EXIF is ignored. The small square is turned, not the image."""
    with suppress(Exception):
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None
