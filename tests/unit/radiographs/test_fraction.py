import io

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from csi_job.radiographs import dicom
from csi_job.radiographs.dicom import read_dicom
from csi_job.radiographs.fraction import decode_fraction
from csi_job.radiographs.nifti import read_nifti
from csi_job.radiographs.picture import read_picture
from tests.support.dicom import compressed, dataset_of, encoded, table
from tests.unit.radiographs.conftest import encode, stretched
from tests.unit.radiographs.test_nifti import nifti
from tests.unit.radiographs.test_picture import deep_png

SIDE_PX = 64
MAX_SIDE_PX = 4000
CURVE = np.rint(4095 * (np.arange(4096) / 4095) ** 1.6)
SYNTAXES = ["", "RLELossless", "JPEGLosslessProcess14_1", "JPEGExtendedProcess2_4", "JPEG2000Lossless", "JPEG2000"]
TABLES = {
    "window": {"WindowCenter": 2048, "WindowWidth": 3000},
    "as narrow as noise": {"WindowCenter": 2000, "WindowWidth": 20},
    "VOI LUT": {"VOILUTSequence": [table(CURVE, bits=12)]},
    "percentile": {},
    "padding": {"WindowCenter": 2048, "WindowWidth": 4096, "PixelPaddingValue": 4095},
}


def fully(grey_HW: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(grey_HW).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)).astype(int)


def grey_by(tables: str, large_HW: np.ndarray) -> np.ndarray:
    if tables == "percentile":
        return stretched(large_HW)
    if tables == "VOI LUT":
        return np.rint(255 * CURVE[large_HW] / 4095).astype(np.uint8)
    center, width = TABLES[tables]["WindowCenter"], TABLES[tables]["WindowWidth"]
    grey_HW = np.rint(255 * np.clip((large_HW - (center - 0.5)) / (width - 1.0) + 0.5, 0, 1)).astype(np.uint8)
    return np.where(large_HW == 4095, np.uint8(0), grey_HW) if tables == "padding" else grey_HW


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_dicom_is_as_if_decoded_fully(tmp_path, large_HW, syntax, tables):
    film_HW = large_HW.copy()
    if tables == "padding":
        film_HW[:300, :200] = 4095
    dataset = dataset_of(film_HW, **TABLES[tables])
    content = compressed(tmp_path, dataset, syntax) if syntax else encoded(dataset)
    difference_HW = read_dicom(content, SIDE_PX, MAX_SIDE_PX) - fully(grey_by(tables, film_HW))
    assert np.abs(difference_HW).mean() < 1


@pytest.mark.parametrize("tables", [{}, {"WindowCenter": 128, "WindowWidth": 256}])
def test_lossy_dicom_of_8_bits_is_as_if_decoded_fully(large_HW, tables):
    grey_HW = (large_HW // 16).astype(np.uint8)
    dataset = dataset_of(grey_HW, bits_stored=8, syntax=JPEGBaseline8Bit, **tables)
    dataset.PixelData = encapsulate([encode(Image.fromarray(grey_HW), "JPEG", quality=92)])
    pixels_HW = read_dicom(encoded(dataset), SIDE_PX, MAX_SIDE_PX)
    assert np.abs(pixels_HW - fully(grey_HW if tables else stretched(grey_HW))).mean() < 1


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEG2000"])
@pytest.mark.parametrize(
    ("tables", "at_a_fraction"),
    [("window", True), ("VOI LUT", True), ("as narrow as noise", False), ("padding", False)],
)
def test_all_pixels_are_decoded_only_where_they_count(
    tmp_path, large_HW, syntax, tables, *, at_a_fraction, monkeypatch
):
    content = compressed(tmp_path, dataset_of(large_HW, **TABLES[tables]), syntax)
    decoded, decode = [], dicom.decoded_levels
    monkeypatch.setattr(dicom, "decoded_levels", lambda dataset: decoded.append(1) or decode(dataset))
    read_dicom(content, SIDE_PX, MAX_SIDE_PX)
    assert len(decoded) == (not at_a_fraction)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLosslessProcess14_1"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
def test_the_fast_decoders_give_the_very_pixels(tmp_path, film_HW, syntax, dtype):
    levels_HW = film_HW.astype(dtype) if dtype != "i2" else film_HW.astype("i2") * 16 - 2000
    dataset = dataset_of(levels_HW, bits_stored=16)
    pixels_HW = read_dicom(compressed(tmp_path, dataset, syntax), 32, MAX_SIDE_PX)
    assert np.array_equal(pixels_HW, read_dicom(encoded(dataset), 32, MAX_SIDE_PX))


@pytest.mark.parametrize("width", range(1101, 1109))
def test_a_fraction_of_jpeg_2000_lies_where_the_film_does(width):
    film_HW = np.tile(np.linspace(0, 65_000, width).astype(np.uint16), (1003, 1))
    content = encode(Image.fromarray(film_HW), "JPEG2000", no_jp2=True)
    fraction = decode_fraction(content, SIDE_PX)
    assert fraction.factor == 8
    small = Image.fromarray(np.asarray(fraction.image)).resize((SIDE_PX, SIDE_PX), 2, box=fraction.box)
    expected = Image.fromarray(film_HW).resize((SIDE_PX, SIDE_PX), 2)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).max() < 65_000 / 255 / 2


@pytest.mark.parametrize("width", range(513, 521))
def test_a_small_jpeg_lies_where_the_film_does(width):
    film_HW = np.tile(np.linspace(0, 250, width).astype(np.uint8), (513, 1))
    pixels_HW = read_picture(encode(Image.fromarray(film_HW), "JPEG", quality=98), SIDE_PX, MAX_SIDE_PX)
    expected_HW = np.asarray(Image.fromarray(film_HW).resize((SIDE_PX, SIDE_PX), 2))
    assert np.abs(pixels_HW.astype(int) - expected_HW).mean() < 0.1


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_as_if_decoded_fully(large_HW, mode):
    content = encode(Image.fromarray((large_HW // 16).astype(np.uint8)).convert(mode), "JPEG", quality=92)
    whole_HW = fully(np.asarray(Image.open(io.BytesIO(content)).convert("RGB").convert("L")))
    assert np.abs(read_picture(content, SIDE_PX, MAX_SIDE_PX) - whole_HW).mean() < 1


def test_grey_jpeg_2000_and_deep_png_are_as_if_decoded_fully(large_HW):
    grey_HW = (large_HW // 16).astype(np.uint8)
    for lossless in (True, False):
        content = encode(Image.fromarray(grey_HW), "JPEG2000", irreversible=not lossless)
        assert np.abs(read_picture(content, SIDE_PX, MAX_SIDE_PX) - fully(grey_HW)).mean() < 1
    for content in (encode(Image.fromarray(large_HW)), deep_png(np.stack([large_HW] * 3, axis=-1), 2)):
        assert np.abs(read_picture(content, SIDE_PX, MAX_SIDE_PX) - fully(stretched(large_HW))).mean() < 1


@pytest.mark.parametrize("dtype", ["i2", "u2", ">i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("codes", ["LIP", "LSP", "RIP", "ILP", "SLP"])
def test_nifti_in_any_order_is_as_if_decoded_fully(large_HW, dtype, codes):
    plane = large_HW.T if codes[0] in "LR" else large_HW
    across, down = ("R" in codes), ("S" in codes)
    expected_HW = fully(stretched(large_HW))
    first, second = (across, down) if codes[0] in "LR" else (down, across)
    stored = plane[:: -1 if first else 1, :: -1 if second else 1].astype(dtype)
    assert np.abs(read_nifti(nifti(stored[..., None], codes), SIDE_PX, MAX_SIDE_PX) - expected_HW).mean() < 1


def test_hot_pixels_are_not_averaged_into_their_neighbours(large_HW):
    hot_HW = large_HW.copy()
    hot_HW[np.random.default_rng(1).random(hot_HW.shape) < 0.004] = 65_535
    pixels_HW = read_picture(encode(Image.fromarray(hot_HW)), SIDE_PX, MAX_SIDE_PX)
    assert np.abs(pixels_HW - fully(stretched(hot_HW))).mean() < 1


def test_pixels_that_are_not_finite_stay_black_in_large_films(large_HW):
    values = large_HW.T.astype(np.float32)
    values[500:501] = np.nan
    expected_HW = stretched(large_HW)
    expected_HW[:, 500:501] = 0
    assert np.abs(read_nifti(nifti(values), SIDE_PX, MAX_SIDE_PX) - fully(expected_HW)).mean() < 1
