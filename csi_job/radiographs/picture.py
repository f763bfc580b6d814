"""PNG, JPEG, TIFF, WebP, BMP, GIF and JPEG 2000 of any mode and depth, decoded to grey."""

import io
import re
import sys
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from csi_job.errors import DataError
from csi_job.radiographs.content import refuse_cut_jpeg, stream_header
from csi_job.radiographs.fraction import decode_fraction
from csi_job.radiographs.grey import (
    MAX_NUM_PIXELS,
    check_size,
    deep_luma,
    films,
    films_to_square,
    percentile_scale,
    sampled,
    to_square,
    to_uint8,
)

_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000")
_MAYBE_PAGED = ("TIFF", "WEBP", "GIF", "PNG")
_IMAGEJ_PAGES = re.compile(r"ImageJ=.*^images=(\d+)", re.DOTALL | re.MULTILINE)  # after the only page that TIFF knows
_DEEP_LAYOUT = re.compile(r"(LA|RGB|RGBA|RGBX);16[BLN]")  # Pillow's name for 16 bits per channel in the file
_UNSIGNED_32_BIT = "I;32N"
_NATIVE_LAYOUTS = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_WHITE_IS_ZERO = 0
_PLANAR = 2
_SIGNED = 2
_MAX_SHALLOW_BITS = 8
_MAX_16_BIT = 65_535
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
_DRAFT_FACTOR = 2  # small JPEG is decoded at 1, 1/2, 1/4 or 1/8, at least this many times the square


def read_picture(content: bytes, side_px: int, max_image_side_px: int) -> np.ndarray:
    """Return a picture as upright grey uint8 `[side_px, side_px]`.

    Colours become their luma (ITU-R BT.601), transparent parts black; 8-bit levels are kept, deeper ones scaled by
    percentile, in which transparent parts do not count; EXIF rotation is applied. A JPEG much larger than the square
    is decoded at a fraction of its size, and only its luma.

    Raises:
        DataError: too small or too large by its header, of several pages, cut off, or blank.
        Exception: anything Pillow raises for damaged content.
    """
    refuse_cut_jpeg(content)
    image = _open(content)
    check_size(*image.size, max_image_side_px)
    if (num_pages := _num_pages(image)) > 1:
        raise DataError(f"the image has {num_pages} pages", allowed="one radiograph")
    square_HW = _square(image, content, side_px)
    turn = None if image.format == "TIFF" else _turn(image)  # Pillow turns TIFF itself
    return square_HW if turn is None else np.array(Image.fromarray(square_HW).transpose(turn))


def _square(image: ImageFile.ImageFile, content: bytes, side_px: int) -> np.ndarray:
    arguments = image.tile[0].args if image.tile else ""
    # Pillow's name of the layout of the file's pixels, such as `RGB;16B`; the image is not loaded yet.
    layout = str(arguments[0] if isinstance(arguments, tuple) else arguments)
    _refuse_rare_depth(image, content, layout)
    if _DEEP_LAYOUT.fullmatch(layout):
        return _scaled(*_deep_colours(content, layout), side_px)
    if image.mode in _DEEP_MODES:
        # libtiff returns numbers in the machine's order of bytes, yet Pillow swaps those of big-endian files
        is_native = layout in _NATIVE_LAYOUTS and image.tile[0].codec_name == "libtiff"
        levels_HW = _decoded(content, _NATIVE_LAYOUTS[layout]) if is_native else np.asarray(image)
        transparent = image.info.get("transparency")
        if layout == _UNSIGNED_32_BIT:
            levels_HW = levels_HW.view(np.uint32)
        hidden_HW = None if transparent is None else levels_HW == transparent
        is_tiff = image.format == "TIFF"
        inverted = is_tiff and image.getexif().get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO
        return _scaled(levels_HW, hidden_HW, side_px, inverted=inverted)
    is_scalable = image.format == "JPEG" or (image.format == "JPEG2000" and image.mode == "L")
    fraction = decode_fraction(content, side_px) if is_scalable else None
    if fraction is not None:
        return to_square(_grey(fraction.image), side_px, fraction.box)
    drafted = image.draft("L", (_DRAFT_FACTOR * side_px, _DRAFT_FACTOR * side_px))
    return to_square(_grey(image), side_px, drafted and drafted[1])


def _num_pages(image: ImageFile.ImageFile) -> int:
    num_pages: int = getattr(image, "n_frames", 1) if image.format in _MAYBE_PAGED else 1
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        described = _IMAGEJ_PAGES.match(str(image.tag_v2.get(ExifTags.Base.ImageDescription)))
        return max(num_pages, int(described[1])) if described else num_pages
    return num_pages


def _refuse_rare_depth(image: ImageFile.ImageFile, content: bytes, layout: str) -> None:
    """Refuse deep colours of which Pillow would keep the high bytes alone, or mix the bytes up."""
    num_bits, is_planar = 0, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        num_bits = max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
        if image.mode == "L" and image.tag_v2.get(ExifTags.Base.SampleFormat, (1,))[0] == _SIGNED:
            raise DataError("signed grey levels of 8 bits", hint="convert the image to PNG")
        is_planar = image.tag_v2.get(ExifTags.Base.PlanarConfiguration) == _PLANAR
    elif image.format == "JPEG2000" and (header := stream_header(content)):
        num_bits = header.num_bits
    is_read = image.mode in _DEEP_MODES or (_DEEP_LAYOUT.fullmatch(layout) and not is_planar)
    if num_bits > _MAX_SHALLOW_BITS and not is_read:
        raise DataError(f"colours of {num_bits} bits in a rare layout", hint="convert the image to PNG")


def _open(content: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError:
        raise DataError("the image has more pixels than any radiograph", allowed=MAX_NUM_PIXELS) from None
    except UnidentifiedImageError:
        raise DataError("the header of the image is damaged, or of a rare kind", hint="convert it to PNG") from None


def _grey(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        coloured = image.convert("RGBA")
        black = Image.new("RGBA", coloured.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, coloured).convert("L")
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def _deep_colours(content: bytes, layout: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the luma of 16-bit channels, and what is transparent.

    Pillow keeps one byte of each channel, so they are decoded twice, under two names.
    """
    image = _open(content)
    if layout == "LA;16B":  # the same four bytes per pixel
        high_low_HWC = _decoded(content, "RGBA").astype(np.uint16)
        colours_HWC = (high_low_HWC[..., ::2] << 8) | high_low_HWC[..., 1::2]
        luma_HW, has_alpha = colours_HWC[..., 0], True
    else:
        low_HWC = _decoded(content, layout[:-1] + _OTHER_BYTE[layout[-1]])
        colours_HWC = (_decoded(content, layout).astype(np.uint16) << 8) | low_HWC
        luma_HW, has_alpha = deep_luma(colours_HWC), layout.startswith("RGBA")
    if has_alpha:
        alpha_HW = colours_HWC[..., -1]
        return luma_HW * (alpha_HW / np.float32(_MAX_16_BIT)), alpha_HW == 0
    transparent = image.info.get("transparency")
    return luma_HW, None if transparent is None else (colours_HWC == transparent).all(axis=-1)


def _decoded(content: bytes, layout: str) -> np.ndarray:
    image = _open(content)
    image.tile = [
        tile._replace(args=(layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout) for tile in image.tile
    ]
    return np.asarray(image)


def _scaled(levels_HW: np.ndarray, hidden_HW: np.ndarray | None, side_px: int, *, inverted: bool = False) -> np.ndarray:
    """Scale by percentile and resize; transparent pixels are black and do not count."""
    if hidden_HW is not None and hidden_HW.any() and not hidden_HW.all():
        return to_square(np.where(hidden_HW, np.uint8(0), to_uint8(levels_HW, hidden_HW)), side_px)
    scale = percentile_scale(sampled(levels_HW), levels_HW.dtype)
    return films_to_square(
        films(levels_HW, side_px), (lambda levels: 255 - scale(levels)) if inverted else scale, side_px
    )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the rotation that EXIF asks for, to be applied to the small square; damaged EXIF is ignored."""
    with suppress(Exception):
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None
