import itertools
import re
import struct
import time
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageOps

from csi_job.errors import DataError
from csi_job.radiographs.content import stream_header
from csi_job.radiographs.picture import read_picture
from tests.unit.radiographs.conftest import correlation, encode, square, stretched


def read(content: bytes) -> np.ndarray:
    return read_picture(content, 32, 20_000)


@pytest.mark.parametrize("num_bits", [8, 16])
def test_colours_become_their_luma(film_HW, num_bits):
    rgb_HWC = np.stack([film_HW, np.roll(film_HW, 7, axis=1), film_HW[::-1]], axis=-1)
    luma_HW = rgb_HWC @ np.array([0.299, 0.587, 0.114])
    if num_bits == 8:
        content, expected_HW = encode(Image.fromarray(rgb_HWC)), np.rint(luma_HW).astype(np.uint8)
    else:
        content, expected_HW = deep_png(rgb_HWC * np.uint16(3), 2), stretched(np.rint(luma_HW * 3))
    assert np.abs(read(content).astype(int) - square(expected_HW)).max() <= 1


def test_transparent_parts_are_black(film_HW):
    alpha_HW = np.full_like(film_HW, 255)
    alpha_HW[:, 45:] = 0
    pixels_HW = read(encode(Image.merge("LA", [Image.fromarray(film_HW), Image.fromarray(alpha_HW)])))
    assert np.abs(pixels_HW.astype(int) - square(np.minimum(film_HW, alpha_HW))).max() <= 1


def test_a_transparent_palette_colour_is_black():
    image = Image.new("P", (64, 64), 0)
    image.putpalette([200, 200, 200, 90, 90, 90])
    image.paste(1, (0, 0, 32, 64))
    pixels_HW = read(encode(image, transparency=0))
    assert pixels_HW[5, 5] == 90
    assert pixels_HW[5, 28] == 0


def test_1_bit_pngs_are_black_and_white():
    image = Image.new("1", (64, 64), 0)
    image.paste(1, (0, 0, 32, 64))
    pixels_HW = read(encode(image))
    assert (pixels_HW[:, :15] == 255).all()
    assert (pixels_HW[:, 17:] == 0).all()


LAYOUTS = {0: "grey", 2: "RGB", 4: "grey and alpha", 6: "RGBA"}  # by the colour type of PNG


@pytest.mark.parametrize("colour", LAYOUTS, ids=LAYOUTS.values())
@pytest.mark.parametrize("factor", [1, 16, 257])
@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize("sbit", [0, 12])
def test_16_bits_in_any_number_of_channels_are_scaled_alike(film_HW, colour, factor, *, opaque, sbit):
    levels_HW = film_HW.astype(np.uint16) * factor
    levels_HW[40, 40] = 65_534  # a burnt-in marker
    alpha_HW = np.full_like(levels_HW, 65_535)
    hidden_HW = np.zeros(film_HW.shape, bool)
    chunks = [(b"sBIT", bytes([sbit]) * {0: 1, 2: 3, 4: 2, 6: 4}[colour])] if sbit else []
    if not opaque:  # by alpha, or by the colour that tRNS names; brighter than the film
        hidden_HW[60:, :30] = True
        levels_HW[hidden_HW], alpha_HW[hidden_HW] = 65_535, 0
        if colour in (0, 2):
            chunks.append((b"tRNS", b"\xff\xff" * (3 if colour else 1)))
    channels = [levels_HW] * (3 if colour in (2, 6) else 1) + [alpha_HW] * (colour in (4, 6))
    pixels_HW = read(deep_png(np.stack(channels, axis=-1), colour, chunks))
    assert np.abs(pixels_HW.astype(int) - square(stretched(levels_HW, hidden_HW))).max() <= 1


def deep_png(levels_HWC: np.ndarray, colour: int, chunks: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """Encode 16 bits per channel, which Pillow cannot write."""
    height, width = levels_HWC.shape[:2]
    rows = levels_HWC.astype(">u2").reshape(height, -1).view(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())  # a filter of 0 before each row
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


LOSSLESS = {"PNG": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}, "BMP": {}, "JPEG2000": {}}
OTHERS = [("PNG", "LA"), ("PNG", "P"), *((kind, "RGBA") for kind in ("PNG", "TIFF", "WEBP")), ("GIF", "L")]


@pytest.mark.parametrize(("kind", "mode"), [*itertools.product(LOSSLESS, ["L", "RGB"]), *OTHERS])
def test_formats_of_8_bits_keep_their_grey_levels(film_HW, square_HW, kind, mode):
    content = encode(Image.fromarray(film_HW).convert(mode), kind, **LOSSLESS.get(kind, {}))
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("num_channels", [1, 3, 4])
@pytest.mark.parametrize("factor", [1, 16, 257])
@pytest.mark.parametrize("alpha", [0, 2])
def test_16_bit_tiffs_are_scaled_like_png(film_HW, order, num_channels, factor, alpha):
    levels_HW = film_HW.astype(np.uint16) * factor
    channels = [levels_HW] * min(num_channels, 3) + [np.full_like(levels_HW, 65_535)] * (num_channels == 4)
    content = deep_tiff(np.stack(channels, axis=-1), order, alpha=alpha)
    assert np.abs(read(content).astype(int) - square(stretched(levels_HW))).max() <= 1


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_tiffs_compressed_white_is_zero_or_turned_are_the_film(film_HW, compression):
    levels_HW = film_HW.astype(np.uint16) * 16
    expected_HW = square(stretched(levels_HW))
    compressed = encode(Image.fromarray(levels_HW), "TIFF", compression=compression)
    assert np.abs(read(compressed).astype(int) - expected_HW).max() <= 1
    assert np.abs(read(deep_tiff(4095 - levels_HW[..., None], "<", photometric=0)).astype(int) - expected_HW).max() <= 1
    turned = encode(
        Image.fromarray(np.ascontiguousarray(np.rot90(levels_HW))), "TIFF", tiffinfo={274: 6}, compression=compression
    )
    assert np.abs(read(turned).astype(int) - expected_HW).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflated", [False, True])
def test_tiffs_of_any_type_and_order_of_bytes_are_the_film(film_HW, dtype, order, *, deflated):
    levels_HW = (film_HW * 16.0 - 1024 * (dtype is not np.uint16)).astype(dtype)
    pixels_HW = read(deep_tiff(levels_HW[..., None], order, deflated=deflated))
    assert np.abs(pixels_HW.astype(int) - square(stretched(levels_HW))).max() <= 1


def test_several_pages_are_refused(film_HW):
    image = Image.fromarray(film_HW)
    other = Image.fromarray(film_HW[::-1].copy())
    contents = [encode(image, kind, save_all=True, append_images=[other]) for kind in ("TIFF", "GIF", "WEBP", "PNG")]
    contents.append(encode(image, "TIFF", description="ImageJ=1.53t\nimages=2\nslices=2\n"))
    contents.append(encode(image, "TIFF", save_all=True, append_images=[other], description="ImageJ=1.53t\nimages=1\n"))
    for content in contents:
        with pytest.raises(DataError, match="the image has 2 pages; allowed: one radiograph"):
            read(content)


def test_32_bits_without_sign_are_read_so(film_HW):
    content = deep_tiff(film_HW.astype(np.uint32)[..., None] << 24, "<")
    assert np.abs(read(content).astype(int) - square(stretched(film_HW))).max() <= 1


def test_layouts_that_pillow_mixes_up_are_refused(film_HW):
    levels_HWC = np.stack([film_HW.astype(np.uint16) * 16] * 4, axis=-1)
    boxes, codestream = encode(Image.fromarray(np.stack([film_HW] * 3, axis=-1)), "JPEG2000").split(b"\xff\x4f\xff\x51")
    wavelets = b"\xff\x4f\xff\x51" + codestream[:38] + b"\x0f" + codestream[39:]
    long_box = struct.pack(">L", 5000) + b"uuid" + bytes(4992)  # as a colour profile may be
    wrapped = boxes[:-8] + long_box + boxes[-8:] + wavelets
    for content in (deep_tiff(levels_HWC, "<", alpha=1), deep_tiff(levels_HWC, "<", planar=2), wavelets, wrapped):
        with pytest.raises(DataError, match="colours of 16 bits in a rare layout; convert the image to PNG"):
            read(content)
    with pytest.raises(DataError, match="signed grey levels of 8 bits; convert the image to PNG"):
        read(encode(Image.fromarray(film_HW), "TIFF", tiffinfo={339: 2}))


def deep_tiff(
    levels_HWC: np.ndarray,
    order: str,
    photometric: int | None = None,
    alpha: int = 2,
    planar: int = 1,
    *,
    deflated: bool = False,
) -> bytes:
    """Encode one strip of 16 or 32 bits per channel."""
    height, width, num_channels = levels_HWC.shape
    num_bits, sample_format = 8 * levels_HWC.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[levels_HWC.dtype.kind]
    data = levels_HWC.astype(levels_HWC.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflated else data
    if photometric is None:
        photometric = 1 if num_channels == 1 else 2
    extra = [(284, [planar])] + [(338, [alpha])] * (num_channels == 4) + [(339, [sample_format])]
    compression = 8 if deflated else 1
    tags = [
        (256, [width]),
        (257, [height]),
        (258, [num_bits] * num_channels),
        (259, [compression]),
        (262, [photometric]),
    ]
    tags += [(273, [0]), (277, [num_channels]), (278, [height]), (279, [len(data)]), *extra]
    ends = 8 + 2 + 12 * len(tags) + 4
    arrays = b"".join(struct.pack(f"{order}{len(v)}H", *v) for _, v in tags if len(v) > 2)
    entries, place = b"", ends
    for tag, values in tags:
        number = ends + len(arrays) if tag == 273 else place if len(values) > 2 else values[0]
        entries += struct.pack(f"{order}HHII", tag, 3 if len(values) > 2 else 4, max(1, len(values)), number)
        place += 2 * len(values) * (len(values) > 2)
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries + bytes(4) + arrays + data


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_of_every_mode_are_the_film(film_HW, square_HW, mode):
    pixels_HW = read(encode(Image.fromarray(film_HW).convert(mode), "JPEG", quality=95))
    assert correlation(pixels_HW, square_HW) > 0.99
    assert np.abs(pixels_HW.astype(int) - square_HW).mean() < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(film_HW, kind, orientation):
    marked = Image.fromarray(film_HW)
    marked.getexif()[0x0112] = orientation
    expected_HW = square(np.asarray(ImageOps.exif_transpose(marked)))
    pixels_HW = read(encode(Image.fromarray(film_HW), kind, exif=marked.getexif()))
    assert np.abs(pixels_HW.astype(int) - expected_HW).max() <= (1 if kind == "PNG" else 12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_is_ignored(film_HW, square_HW):
    content = encode(Image.fromarray(film_HW), "PNG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff")
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


def test_a_truncated_picture_is_an_error_and_not_half_an_image(film_HW):
    png = encode(Image.fromarray(film_HW))
    with pytest.raises((OSError, SyntaxError)):
        read(png[: len(png) // 2])


JPEG_OPTIONS = [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"restart_marker_rows": 2}]


@pytest.mark.parametrize("options", JPEG_OPTIONS)
@pytest.mark.parametrize("has_preview", [False, True])
def test_a_jpeg_that_is_cut_off_anywhere_or_lacks_its_end_marker_is_refused(film_HW, options, has_preview):
    """Decoders fill up what is missing, and skip what fills it up to the next marker."""
    film = Image.fromarray(film_HW)
    preview = {"exif": b"Exif\0\0" + encode(film.resize((16, 16)), "JPEG")} if has_preview else {}
    jpeg = encode(film, "JPEG", **options, **preview)
    scan = jpeg.rindex(b"\xff\xc0" if "progressive" not in options else b"\xff\xc2")
    markers = [found.start() for found in re.finditer(rb"\xff[\xc4\xd0-\xda]", jpeg) if found.start() > scan]
    for kept in (*(round(share * len(jpeg)) for share in (0.6, 0.9, 0.98)), *markers, len(jpeg) - 1):
        for end in (b"", b"\xff", bytes(len(jpeg) - kept), bytes(10 * len(jpeg))):
            with pytest.raises(DataError, match="the image is cut off, or lacks its end marker; copy the file again"):
                read(jpeg[: max(kept, scan + 20)] + end)
    assert np.array_equal(read(jpeg + bytes(10_000)), read(jpeg))


def test_fill_bytes_and_zeros_cost_little(film_HW):
    jpeg = encode(Image.fromarray(film_HW), "JPEG")
    start = time.process_time()
    with pytest.raises(DataError, match="the image is cut off"):
        read(jpeg[:-2] + bytes(10_000_000) + b"\1")
    assert stream_header(jpeg[:2] + b"\xff" * 10_000_000 + jpeg[2:])[:4] == (90, 120, 1, 8)
    assert time.process_time() - start < 1


def test_sides_are_checked_against_the_setting(film_HW):
    with pytest.raises(DataError, match=r"up to 100 per side \(radiographs.max_image_side_px\)"):
        read_picture(encode(Image.fromarray(film_HW)), 32, 100)
