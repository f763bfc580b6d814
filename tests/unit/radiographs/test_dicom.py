import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
)

from csi_job.radiographs.dicom import read_dicom
from tests.support.dicom import compressed, dataset_of, encoded, table
from tests.unit.radiographs.conftest import encode, square, stretched

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
    "rescale of several values": lambda x: dataset_of(
        x // 2, **ALL_LEVELS, RescaleSlope=[2, 1], RescaleIntercept=[0, 9]
    ),
    "empty modality table": lambda x: dataset_of(x, **ALL_LEVELS, ModalityLUTSequence=[Dataset()]),
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
    "first valid table": lambda x: dataset_of(x, VOILUTSequence=[table(np.zeros(4096)), table(np.arange(4096) * 16)]),
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


@pytest.mark.parametrize(("vr", "value"), [("SS", -2048), ("US", 0xF800), ("US", 0x0800)])
@pytest.mark.parametrize("limit", [None, -1990])
@pytest.mark.parametrize("is_limit_first", [True, False])
@pytest.mark.parametrize("is_extended", [True, False])
def test_the_sign_of_padding_is_that_of_the_stored_bits(stored_HW, vr, value, limit, is_limit_first, is_extended):
    signed_HW = np.maximum(stored_HW.astype(np.int16) - 2000, -1900)
    padded_HW = signed_HW.copy()
    padded_HW[PADDED] = np.int16(-2048)
    bounds = [value]
    if limit:
        padded_HW[PADDED][::2] = limit
        bounds = [value, limit if vr == "SS" else limit & (0xFFFF if value > 0x0FFF else 0x0FFF)]
    dataset = dataset_of(padded_HW if is_extended else padded_HW & 0x0FFF)
    for end, bound in zip(("Value", "RangeLimit"), bounds[::-1] if is_limit_first else bounds, strict=False):
        dataset.add(DataElement(f"PixelPadding{end}", vr, bound))
    expected_HW = square(stretched(signed_HW, padded_HW < -1900))
    assert np.abs(read(encoded(dataset)).astype(int) - expected_HW).max() <= 1


@pytest.mark.parametrize("is_extended", [True, False])
@pytest.mark.parametrize("bounds", [(0x0800, 5), (5, 0x0800)])
def test_a_range_of_padding_spans_zero_by_the_stored_bits(stored_HW, bounds, is_extended):
    levels_HW = (stored_HW // 2 + 6).astype(np.int16)
    padded_HW = levels_HW.copy()
    padded_HW[PADDED] = 5
    padded_HW[PADDED][::2] = -2048
    dataset = dataset_of(padded_HW if is_extended else padded_HW & 0x0FFF)
    for end, bound in zip(("Value", "RangeLimit"), bounds, strict=True):
        dataset.add(DataElement(f"PixelPadding{end}", "US", bound))
    expected_HW = square(stretched(levels_HW, padded_HW <= 5))
    assert np.abs(read(encoded(dataset)).astype(int) - expected_HW).max() <= 1


@pytest.mark.parametrize(
    ("vr", "value", "limit"),
    [("SS", -32768, None), ("SS", -32768, -2000), ("US", 0x0FFF, None), ("US", 0x0FFF, 0x0F00), ("SS", 2046, 4095)],
)
def test_padding_beyond_the_stored_bits_of_signed_pixels_is_black(stored_HW, vr, value, limit):
    signed_HW = np.maximum(stored_HW.astype(np.int16) - 2000, -1900)
    padded_HW = signed_HW.copy()
    padded_HW[PADDED] = value
    if limit:
        padded_HW[PADDED][::2] = limit
    dataset = dataset_of(padded_HW)
    dataset.add(DataElement("PixelPaddingValue", vr, value))
    if limit:
        dataset.add(DataElement("PixelPaddingRangeLimit", vr, limit))
    is_padding = np.zeros(stored_HW.shape, bool)
    is_padding[PADDED] = True
    expected_HW = square(stretched(signed_HW, is_padding))
    assert np.abs(read(encoded(dataset)).astype(int) - expected_HW).max() <= 1


@pytest.mark.parametrize("rows", "LR")
@pytest.mark.parametrize("columns", "FH")
@pytest.mark.parametrize("is_lying", [True, False])
@pytest.mark.parametrize("is_colour", [True, False])
def test_the_patients_right_is_on_the_left_by_the_orientation(film_HW, square_HW, rows, columns, is_lying, is_colour):
    pixels = film_HW[:: -1 if columns == "H" else 1, :: -1 if rows == "R" else 1]
    orientation = [f"{rows}{columns}", f" {columns} "]  # the rows are slightly askew
    if is_lying:
        pixels, orientation = pixels.T, orientation[::-1]
    colours = {"PhotometricInterpretation": "RGB"} if is_colour else {"WindowCenter": 128, "WindowWidth": 256}
    dataset = dataset_of(np.stack([pixels] * 3, axis=-1) if is_colour else np.ascontiguousarray(pixels), 8, **colours)
    dataset.PatientOrientation = orientation
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 1


@pytest.mark.parametrize("orientation", ["", "L", ["L", ""], ["L", "L"], ["X", "Y"], ["L", "F", "H"], ["A", "F"]])
@pytest.mark.parametrize("view", ["PA", "AP AXIAL", "LLD", "LAT DECUB", "PA LAT"])
def test_a_frontal_film_of_unknown_orientation_is_not_turned(stored_HW, square_HW, orientation, view):
    dataset = dataset_of(stored_HW, ViewPosition=view, PatientOrientation=orientation, **ALL_LEVELS)
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 1


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


@pytest.mark.parametrize(
    "syntax",
    [
        *("RLELossless", "JPEGExtendedProcess2_4", "JPEGLosslessProcess14_1"),
        *("JPEGLSLossless", "JPEG2000Lossless", "JPEG2000"),
    ],
)
def test_compressed_files_are_read(tmp_path, stored_HW, square_HW, syntax):
    content = compressed(tmp_path, dataset_of(stored_HW, **ALL_LEVELS), syntax)
    assert len(content) < 2 * stored_HW.size
    assert np.abs(read(content).astype(int) - square_HW).max() <= 2


@pytest.mark.parametrize(
    "elements",
    [
        {"BitsStored": 10, "HighBit": 9},
        {"BitsStored": 16, "HighBit": 15},
        {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1},
        {"BitsAllocated": 32},
        {"BitsAllocated": 64, "BitsStored": 64, "HighBit": 63, "PixelRepresentation": 1},
    ],
)
@pytest.mark.parametrize(
    ("syntax", "stated"),
    [
        ("JPEGExtendedProcess2_4", JPEGExtended12Bit),
        ("JPEGExtendedProcess2_4", JPEGBaseline8Bit),
        ("JPEGLosslessProcess14_1", JPEGLosslessSV1),
    ],
)
def test_jpeg_of_12_bits_is_read_whatever_the_header_says(tmp_path, stored_HW, square_HW, elements, syntax, stated):
    dataset = dcmread(io.BytesIO(compressed(tmp_path, dataset_of(stored_HW, **ALL_LEVELS), syntax)))
    dataset.file_meta.TransferSyntaxUID = stated
    dataset.update(elements)
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 2


def test_lossy_jpeg_of_gdcm_that_overshoots_is_white_and_black_there(tmp_path):
    sharp_HW = np.tile(np.repeat(np.array([0, 4095], np.uint16), 5), (120, 9))
    content = compressed(tmp_path, dataset_of(sharp_HW, **ALL_LEVELS), "JPEGExtendedProcess2_4")
    expected_HW = square((sharp_HW // 16).astype(np.uint8))
    assert np.abs(read(content).astype(int) - expected_HW).max() <= 3


@pytest.mark.parametrize("num_allocated", [16, 32])
@pytest.mark.parametrize("syntax", ["JPEGExtendedProcess2_4", "JPEGLosslessProcess14_1"])
def test_the_sign_of_jpeg_is_that_of_the_stored_bits(tmp_path, stored_HW, square_HW, syntax, num_allocated):
    unsigned = dataset_of((stored_HW - 2048) & 0x0FFF, WindowCenter=0, WindowWidth=4096)
    dataset = dcmread(io.BytesIO(compressed(tmp_path, unsigned, syntax)))
    dataset.update({"PixelRepresentation": 1, "BitsAllocated": num_allocated})
    difference_HW = np.abs(read(encoded(dataset)).astype(int) - square_HW)
    assert np.median(difference_HW) <= 1, "lossy JPEG blurs where the sign changes"
    assert syntax == "JPEGExtendedProcess2_4" or difference_HW.max() <= 2


@pytest.mark.parametrize("num_allocated", [16, 32])
def test_lossless_jpeg_in_colour_is_read_in_words_of_any_length(tmp_path, film_HW, num_allocated):
    grey_HW = np.repeat(film_HW[..., None], 3, axis=2)
    plain = dataset_of(grey_HW, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    dataset = dcmread(io.BytesIO(compressed(tmp_path, plain, "JPEGLosslessProcess14_1")))
    dataset.BitsAllocated = num_allocated
    assert np.abs(read(encoded(dataset)).astype(int) - square(stretched(film_HW))).max() <= 1


@pytest.mark.parametrize("stated", [JPEGExtended12Bit, JPEGBaseline8Bit])
@pytest.mark.parametrize(("words", "bits_stored"), [("u1", 8), ("u2", 8), ("u2", 12)])
@pytest.mark.parametrize("is_signed", [0, 1])
def test_lossy_jpeg_of_8_bits_is_read_in_longer_words_and_whatever_sign_the_header_says(
    film_HW, square_HW, stated, words, bits_stored, is_signed
):
    window = {"WindowCenter": 128, "WindowWidth": 256}
    dataset = dataset_of(film_HW.astype(words), bits_stored, stated, **window, PixelRepresentation=is_signed)
    dataset.PixelData = encapsulate([encode(Image.fromarray(film_HW), "JPEG", quality=98)])
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 2


@pytest.mark.parametrize("stated", [JPEGExtended12Bit, JPEGBaseline8Bit])
@pytest.mark.parametrize(("words", "bits_stored"), [("u1", 8), ("u2", 8), ("u2", 12), ("u4", 32)])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT"])
def test_lossy_jpeg_in_colour_is_read_whatever_the_header_says(
    film_HW, square_HW, stated, words, bits_stored, photometric
):
    grey_HWC = np.repeat(film_HW[..., None], 3, axis=2)
    colours = {"PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    dataset = dataset_of(grey_HWC.astype(words), bits_stored, stated, **colours)
    dataset.PixelData = encapsulate([encode(Image.fromarray(grey_HWC), "JPEG", quality=98)])
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 2
