"""DICOM radiographs: tables, windows, inversion, padding, compression; and what is refused."""

import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from csi_job.errors import DataError
from csi_job.radiographs.dicom import read_dicom
from csi_job.radiographs.read import read_radiograph
from tests.support.dicom import compressed, dataset_of, encoded, table
from tests.unit.radiographs.conftest import encode, put, square, stretched

MAX_SIDE_PX = 4000
ALL_LEVELS = {"WindowCenter": 2048, "WindowWidth": 4096}
CURVE = (np.arange(4096) / 4095) ** 1.6  # no straight line, so that a table that is passed over shows


def read(content: bytes) -> np.ndarray:
    return read_dicom(content, 32, MAX_SIDE_PX)


WINDOWED: dict[str, Callable[[np.ndarray], Dataset]] = {
    "window": lambda x: dataset_of(x, **ALL_LEVELS),
    "exact window": lambda x: dataset_of(x, **ALL_LEVELS, VOILUTFunction="LINEAR_EXACT"),
    "unnamed function": lambda x: dataset_of(x, **ALL_LEVELS, VOILUTFunction=""),
    "inverted": lambda x: dataset_of(4095 - x, **ALL_LEVELS, PhotometricInterpretation="MONOCHROME1"),
    "rescaled, signed": lambda x: dataset_of(
        x.astype("i2") // 2 - 1000, RescaleSlope=2, RescaleIntercept=2000, WindowCenter=2040, WindowWidth=4080
    ),
    "rescaled, falling": lambda x: dataset_of(4095 - x, RescaleSlope=-1, RescaleIntercept=4095, **ALL_LEVELS),
    "overlay above": lambda x: dataset_of(x | 0x8000, **ALL_LEVELS),
    "shifted": lambda x: dataset_of(x << 4, HighBit=15, **ALL_LEVELS),
    "overlay below": lambda x: dataset_of((x << 4) | 3, HighBit=15, **ALL_LEVELS),
    "32 bits": lambda x: dataset_of(x.astype("u4") * 6250, 32, WindowCenter=128e5, WindowWidth=256e5),
    "big endian": lambda x: dataset_of(x, syntax=ExplicitVRBigEndian, **ALL_LEVELS),
    "deflated": lambda x: dataset_of(x, syntax=DeflatedExplicitVRLittleEndian, **ALL_LEVELS),
    "first valid window": lambda x: dataset_of(x, WindowCenter=[9, 2048], WindowWidth=[0, 4096]),
    "unknown function": lambda x: dataset_of(x, **ALL_LEVELS, VOILUTFunction="IDENTITY"),
    "blank rescale": lambda x: dataset_of(x, **ALL_LEVELS, RescaleSlope=None, RescaleIntercept=None),
    "slope alone": lambda x: dataset_of(x // 2, **ALL_LEVELS, RescaleSlope=2),
    "intercept alone": lambda x: dataset_of(x, WindowCenter=1048, WindowWidth=4096, RescaleIntercept=-1000),
    "floating point": lambda x: in_floats(x, "FloatPixel", **ALL_LEVELS),
    "shifted, it says": lambda x: dataset_of(x, HighBit=15, **ALL_LEVELS),
    "enhanced": lambda x: dataset_of(
        4095 - x,
        SharedFunctionalGroupsSequence=[
            items(PixelValueTransformationSequence=items(RescaleSlope=-1, RescaleIntercept=4095))
        ],
        PerFrameFunctionalGroupsSequence=[items(FrameVOILUTSequence=items(**ALL_LEVELS))],
    ),
    "table before window": lambda x: dataset_of(
        x, WindowCenter=1, WindowWidth=2, VOILUTSequence=[table(np.arange(4096) * 16)]
    ),
}


def items(**elements: object) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, [value] if isinstance(value, Dataset) else value)
    return dataset


def with_width(x: np.ndarray, text: str) -> Dataset:
    dataset = dataset_of(x, syntax=ImplicitVRLittleEndian, WindowCenter=2048)
    dataset.add(DataElement("WindowWidth", "LO", text))
    return dataset


def in_floats(values_HW: np.ndarray, name: str, **elements: object) -> Dataset:
    dataset = dataset_of(values_HW.astype("f4" if name == "FloatPixel" else "f8"), bits_stored=64, **elements)
    content = dataset.PixelData
    for unused in ("PixelData", "PixelRepresentation", "BitsStored", "HighBit"):
        delattr(dataset, unused)
    setattr(dataset, f"{name}Data", content)
    return dataset


@pytest.mark.parametrize("make", WINDOWED.values(), ids=WINDOWED)
def test_what_shows_all_levels_shows_the_film(stored_HW, square_HW, make):
    assert np.abs(read(encoded(make(stored_HW))).astype(int) - square_HW).max() <= 1


def test_the_first_of_several_windows_is_applied(stored_HW):
    dataset = dataset_of(stored_HW, WindowCenter=[100 * 16, 0], WindowWidth=[100 * 16, 1])
    expected_HW = np.rint(255 * np.clip((stored_HW - 1599.5) / 1599 + 0.5, 0, 1)).astype(np.uint8)
    assert np.abs(read(encoded(dataset)).astype(int) - square(expected_HW)).max() <= 1


def test_a_sigmoid_window_is_applied(stored_HW):
    expected_HW = np.rint(255 / (1 + np.exp(-4 * (stored_HW - 2048.0) / 4096))).astype(np.uint8)
    dataset = dataset_of(stored_HW, **ALL_LEVELS, VOILUTFunction="SIGMOID")
    assert np.abs(read(encoded(dataset)).astype(int) - square(expected_HW)).max() <= 1


WINDOWLESS: dict[str, Callable[[np.ndarray], Dataset]] = {
    "no window": dataset_of,
    "no width": lambda x: dataset_of(x, WindowCenter=2048, WindowWidth=0),
    "decimal comma": lambda x: with_width(x, "4096,0"),
    "no number": lambda x: with_width(x, "wide"),
    "beyond all levels": lambda x: dataset_of(x, WindowCenter=9e5, WindowWidth=2),
    "8 bits": lambda x: dataset_of((x // 16).astype("u1")),
    "32 bits": lambda x: dataset_of(x.astype("u4") * 6250, bits_stored=32),
    "falling": lambda x: dataset_of(4095 - x, RescaleSlope=-1, RescaleIntercept=4095),
}


@pytest.mark.parametrize("make", WINDOWLESS.values(), ids=WINDOWLESS)
def test_without_a_window_that_shows_something_levels_are_scaled_by_percentile(stored_HW, make):
    assert np.abs(read(encoded(make(stored_HW))).astype(int) - square(stretched(stored_HW))).max() <= 1


PADDED = (slice(60, None), slice(None, 30))  # rows and columns of the frame around the film
TABLES = {
    "percentile": {},
    "window": ALL_LEVELS,
    "rescale": {"RescaleSlope": 2, "RescaleIntercept": -5000},
    "VOI LUT": {"VOILUTSequence": [table(np.rint(65535 * CURVE))]},
    "modality LUT": {"ModalityLUTSequence": [table(np.rint(65535 * CURVE))]},
}


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("dtype", "pads", "vr", "elements"),
    [
        ("u2", [65535], "US", {"PixelPaddingValue": 65535}),
        ("u2", [40000], "SS", {"PixelPaddingValue": 40000 - 65536}),
        ("u2", [0], "US", {"PixelPaddingValue": 0}),
        ("u2", [65535], "IS", {"PixelPaddingValue": "65535"}),
        ("u2", [40000], "OB", {"PixelPaddingValue": (40000).to_bytes(2, "little")}),
        ("u2", [65535], "US", {"PixelPaddingValue": [65535, 65535]}),
        ("i2", [-2000], "SS", {"PixelPaddingValue": -2000}),
        ("i2", [-2000], "US", {"PixelPaddingValue": 63536}),
        ("i2", [-32768, -2000, -9], "SS", {"PixelPaddingValue": -32768, "PixelPaddingRangeLimit": -9}),
        ("i2", [-32768, -2000, -9], "US", {"PixelPaddingValue": 65527, "PixelPaddingRangeLimit": 32768}),
        ("u2", [0, 65000], "US", {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 60000}),
    ],
)
def test_padding_is_black_and_hides_nothing_of_the_film(film_HW, tables, photometric, dtype, pads, vr, elements):
    stored_HW = film_HW.astype(dtype) * 16 + 1
    if photometric == "MONOCHROME1":
        stored_HW = 4095 - stored_HW
    is_padding = np.zeros(film_HW.shape, bool)
    is_padding[PADDED] = True
    if pads == [0, 65000]:  # below the range is film
        stored_HW[0, 0], pads = 0, [65000]
    padded_HW = stored_HW.copy()
    padded_HW[is_padding] = np.resize(np.array(pads).astype(dtype), is_padding.sum())
    dataset = dataset_of(padded_HW, bits_stored=16, PhotometricInterpretation=photometric, **TABLES[tables])
    for name, value in elements.items():
        dataset.add(DataElement(name, vr, value))
    levels = stored_HW.astype(float)
    if tables in ("percentile", "rescale"):
        expected_HW = stretched(levels, is_padding)
    elif tables == "modality LUT":
        expected_HW = stretched(np.rint(65535 * CURVE)[stored_HW], is_padding)
    else:
        shares = levels / 4095 if tables == "window" else CURVE[stored_HW]
        expected_HW = np.rint(255 * shares).astype(np.uint8)
    if photometric == "MONOCHROME1":
        expected_HW = 255 - expected_HW
    expected_HW[is_padding] = 0
    assert np.abs(read(encoded(dataset)).astype(int) - square(expected_HW)).max() <= 1


@pytest.mark.parametrize("elements", [{"PixelPaddingRangeLimit": 65535}, {"PixelPaddingValue": 4095}])
def test_padding_that_covers_nothing_or_all_is_ignored(stored_HW, elements):
    dataset = dataset_of(stored_HW, **{"PixelPaddingValue": 0, **elements})
    assert np.array_equal(read(encoded(dataset)), read(encoded(dataset_of(stored_HW))))


@pytest.mark.parametrize("name", ["FloatPixel", "DoubleFloatPixel"])
def test_padding_of_floating_point_pixels_is_black(film_HW, name):
    values_HW = film_HW.astype(float)
    values_HW[PADDED] = -1e6
    dataset = in_floats(values_HW, name, **{f"{name}PaddingValue": -1e6})
    expected_HW = stretched(film_HW, values_HW < 0)
    assert np.abs(read(encoded(dataset)).astype(int) - square(expected_HW)).max() <= 1


def test_padding_beyond_the_stored_bits_is_black(stored_HW):
    padded_HW = stored_HW.copy()
    padded_HW[PADDED] = 65535
    dataset = dataset_of(padded_HW, PixelPaddingValue=65535)
    expected_HW = stretched(stored_HW, padded_HW == 65535)
    assert np.abs(read(encoded(dataset)).astype(int) - square(expected_HW)).max() <= 1


@pytest.mark.parametrize(("photometric", "num_bits"), [("RGB", 8), ("RGB", 16), ("YBR_FULL", 8)])
@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("syntax", ["", "RLELossless", "JPEGLosslessProcess14_1", "JPEG2000Lossless"])
def test_colours_become_their_luma(tmp_path, film_HW, photometric, num_bits, planar, syntax):
    rgb_HWC = np.stack([film_HW, np.roll(film_HW, 7, axis=1), film_HW[::-1]], axis=-1)
    luma_HW = np.rint(rgb_HWC.astype(int) * (1 if num_bits == 8 else 16) @ np.array([0.299, 0.587, 0.114]))
    if photometric == "YBR_FULL":
        rgb_HWC = np.asarray(Image.fromarray(rgb_HWC).convert("YCbCr"))
    stored_HWC = rgb_HWC if num_bits == 8 else rgb_HWC.astype(np.uint16) * 16
    dataset = dataset_of(stored_HWC, PlanarConfiguration=planar, PhotometricInterpretation=photometric)
    if (planar, num_bits, syntax) == (0, 16, ""):
        del dataset.PlanarConfiguration  # some leave it out
    if planar:
        dataset.PixelData = np.moveaxis(stored_HWC, -1, 0).tobytes()
    expected_HW = square(luma_HW.astype(np.uint8) if num_bits == 8 else stretched(luma_HW))
    content = compressed(tmp_path, dataset, syntax) if syntax and photometric == "RGB" else encoded(dataset)
    assert np.abs(read(content).astype(int) - expected_HW).max() <= 1


def test_a_jpeg_that_is_ycbcr_by_its_own_header_is_read_so(tmp_path, film_HW, square_HW):
    dataset = dataset_of(np.stack([film_HW] * 3, axis=-1), PlanarConfiguration=0, PhotometricInterpretation="RGB")
    content = compressed(tmp_path, dataset, "JPEGBaselineProcess1")  # GDCM subsamples the chroma and states RGB
    assert b"RGB" in content
    assert np.abs(read(content).astype(int) - square_HW).max() <= 3


@pytest.mark.parametrize("disguise", ["none", "false group length", "padding before the transfer syntax"])
def test_a_deflate_bomb_is_refused_without_the_memory_it_asks_for(stored_HW, disguise, monkeypatch):
    dataset = dataset_of(stored_HW, syntax=DeflatedExplicitVRLittleEndian)
    if disguise.startswith("padding"):
        dataset.file_meta.FileMetaInformationVersion = bytes(100_000)
    content = encoded(dataset)
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    if disguise.startswith("false"):
        content = content[:140] + bytes(4) + content[144:]
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    zeros = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)  # can be repeated
    bomb = content[:meta_end] + 64 * zeros
    monkeypatch.setattr("csi_job.radiographs.dicom_file._MAX_INFLATED_BYTES", 1 << 20)
    tracemalloc.start()
    with pytest.raises(DataError, match="inflates to more than a radiograph"):
        read(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20  # of the 64 MiB that it inflates to
    tracemalloc.stop()


def test_a_deflated_file_that_is_cut_off_is_refused(stored_HW):
    dataset = dataset_of(stored_HW, syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(DataError, match="cut off"):
        read(encoded(dataset)[:-100])


@pytest.mark.parametrize(
    "syntax",
    [
        "RLELossless",
        "JPEGExtendedProcess2_4",
        "JPEGLosslessProcess14_1",
        "JPEGLSLossless",
        "JPEG2000Lossless",
        "JPEG2000",
    ],
)
def test_compressed_files_are_read(tmp_path, stored_HW, square_HW, syntax):
    content = compressed(tmp_path, dataset_of(stored_HW, **ALL_LEVELS), syntax)
    assert len(content) < 2 * stored_HW.size
    assert np.abs(read(content).astype(int) - square_HW).max() <= 2


SAMPLES, ROWS, STORED = b"\x28\0\x02\0", b"\x28\0\x10\0", b"\x28\0\x01\x01"  # tags of 16-bit numbers


def stating(content: bytes, tag: bytes, number: int) -> bytes:
    """Let the header of a file state another number."""
    place = content.index(tag + b"US\x02\0") + 8
    return content[:place] + number.to_bytes(2, "little") + content[place + 2 :]


LOSSLESS = ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"]


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_compressed_pixels_of_another_size_or_colour_than_declared_are_rejected(tmp_path, stored_HW, syntax):
    content = compressed(tmp_path, dataset_of(stored_HW), syntax)
    with pytest.raises(DataError, match="pixel data are 90x120, but the DICOM header says 90x64"):
        read(stating(content, ROWS, 64))
    rgb = dataset_of(np.stack([stored_HW] * 3, axis=-1), PlanarConfiguration=0, PhotometricInterpretation="RGB")
    lying = stating(compressed(tmp_path, rgb, syntax), SAMPLES, 1).replace(b"CS\x04\0RGB ", b"CS\x0c\0MONOCHROME2 ")
    with pytest.raises(DataError, match="pixel data have 3 channels, but the DICOM header says 1"):
        read(lying)


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("tables", [{}, {"WindowCenter": 32768, "WindowWidth": 65536}], ids=["percentile", "window"])
@pytest.mark.parametrize("overlay", [False, True])
def test_compressed_pixels_have_the_bits_that_they_say_and_no_fewer(tmp_path, film_HW, syntax, tables, overlay):
    """Unless an overlay is in the others."""
    levels_HW = film_HW.astype(np.uint16) * 257
    if overlay:
        levels_HW, tables = film_HW.astype(np.uint16) * 16 + 0x8000, ALL_LEVELS
    dataset = dataset_of(levels_HW, bits_stored=16, **tables)
    if overlay:
        dataset.add_new((0x6000, 0x0102), "US", 15)
    content = stating(compressed(tmp_path, dataset, syntax), STORED, 12)
    expected_HW = square(film_HW if tables else stretched(film_HW))
    assert np.abs(read(content).astype(int) - expected_HW).max() <= 1


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_compressed_pixels_of_more_bits_than_are_allocated_are_read(tmp_path, stored_HW, square_HW, syntax):
    content = compressed(tmp_path, dataset_of(stored_HW, **ALL_LEVELS), syntax)
    for tag in (b"\x28\0\x00\x01", STORED):
        content = stating(content, tag, 8)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


def wrapped(levels_HW: np.ndarray, syntax: UID, parts: list[bytes], offsets: bytes = b"", **elements: object) -> bytes:
    dataset = dataset_of(levels_HW, 16, syntax, **elements)
    items = b"".join(b"\xfe\xff\x00\xe0" + len(part).to_bytes(4, "little") + part for part in (offsets, *parts))
    dataset.PixelData, dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = items, "OB", True
    return encoded(dataset)


@pytest.mark.parametrize(
    "offsets", [b"", bytes(4), (1234).to_bytes(4, "little"), bytes(4) + (99).to_bytes(4, "little")]
)
@pytest.mark.parametrize("num_fragments", [1, 3])
def test_fragments_are_joined_whatever_the_table_of_their_offsets_says(stored_HW, square_HW, offsets, num_fragments):
    stream = encode(Image.fromarray(stored_HW), "JPEG2000", no_jp2=True)
    stream += bytes(-len(stream) % 6)
    length = len(stream) // num_fragments
    parts = [stream[start : start + length] for start in range(0, len(stream), length)]
    content = wrapped(stored_HW, JPEG2000Lossless, parts, offsets, **ALL_LEVELS)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


def test_a_stream_that_is_signed_is_read_so_whatever_the_header_says(stored_HW, square_HW):
    stream = bytearray(encode(Image.fromarray(stored_HW + np.uint16(32768 - 2048)), "JPEG2000", no_jp2=True))
    stream[42] |= 0x80  # the same numbers, less 32768
    content = wrapped(stored_HW, JPEG2000Lossless, [bytes(stream)], WindowCenter=0, WindowWidth=4096)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2K])
def test_high_throughput_jpeg_2000_is_decoded_as_jpeg_2000(stored_HW, square_HW, syntax):
    stream = encode(Image.fromarray(stored_HW), "JPEG2000", no_jp2=True)
    content = wrapped(stored_HW, syntax, [stream + bytes(len(stream) % 2)], **ALL_LEVELS)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 1


def test_an_8_bit_jpeg_may_have_16_bits_allocated(film_HW, square_HW):
    stream = encode(Image.fromarray(film_HW), "JPEG", quality=98)
    elements = {"BitsStored": 8, "HighBit": 7, "WindowCenter": 128, "WindowWidth": 256}
    content = wrapped(film_HW.astype(np.uint16), JPEGBaseline8Bit, [stream + bytes(len(stream) % 2)], **elements)
    assert np.abs(read(content).astype(int) - square_HW).max() <= 3


@pytest.mark.parametrize("preamble", [b"", bytes(128) + b"DICM", b"II*\0" + bytes(124) + b"DICM"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_meta_information_is_read(tmp_path, stored_HW, square_HW, preamble, syntax):
    if syntax == ExplicitVRBigEndian and not preamble:
        pytest.skip("nothing tells that it is DICOM")
    content = encoded(dataset_of(stored_HW, syntax=syntax, **ALL_LEVELS))
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    path = put(tmp_path, preamble + content[meta_end:])
    assert np.abs(read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX).astype(int) - square_HW).max() <= 1


def test_errors_about_damaged_files_do_not_name_the_patient(tmp_path, stored_HW):
    content = encoded(dataset_of(stored_HW, NumberOfFrames=10_000_001))
    assert b"10000001" in content
    path = put(tmp_path, content.replace(b"10000001", b"DOE^JANE"))
    with pytest.raises(DataError, match="the image is damaged") as caught:
        read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX)
    assert "JANE" not in str(caught.value)


def test_a_transfer_syntax_that_nothing_decodes_is_named(stored_HW):
    content = encoded(dataset_of(stored_HW)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0")
    with pytest.raises(DataError, match=r"of transfer syntax 1.2.840.113619.5.2 cannot be decoded; convert the file"):
        read(content)


def test_compressed_pixels_that_are_cut_off_are_refused_without_naming_decoders(tmp_path, stored_HW):
    stream = encode(Image.fromarray(stored_HW), "JPEG2000", no_jp2=True)
    path = put(tmp_path, wrapped(stored_HW, JPEG2000Lossless, [stream[: len(stream) // 4 * 2]]))
    with pytest.raises(DataError, match=r"the image is damaged \(its compressed pixels cannot be decoded\)"):
        read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX)


def test_files_without_one_radiograph_are_refused(stored_HW):
    report = dataset_of(stored_HW)
    del report.PixelData
    frames = dataset_of(stored_HW, NumberOfFrames=2)
    frames.PixelData *= 2
    unnamed = dataset_of(stored_HW, PhotometricInterpretation=None, SamplesPerPixel=None)
    for dataset, words in (
        (report, "no pixels"),
        (frames, "several frames, got 2"),
        (dataset_of(stored_HW, Rows=60_000), "90x60000 pixels"),
        (unnamed, "the DICOM file lacks SamplesPerPixel, PhotometricInterpretation"),
        (dataset_of(stored_HW, SamplesPerPixel=4), "neither grey nor RGB, got 'MONOCHROME2 with 4 samples per pixel'"),
        (dataset_of(stored_HW, PhotometricInterpretation="RGB"), "neither grey nor RGB"),
    ):
        with pytest.raises(DataError, match=words):
            read(encoded(dataset))
