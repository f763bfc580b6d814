"""DICOM radiographs: tables, windows, inversion, padding, compression; and what is refused."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import gdcm
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    generate_uid,
)

from csi_job.errors import DataError
from csi_job.radiographs.dicom import read_dicom
from csi_job.radiographs.read import read_radiograph
from tests.unit.radiographs.conftest import correlation, put

MAX_SIDE_PX = 4000


def read(content: bytes) -> np.ndarray:
    return read_dicom(content, 32, MAX_SIDE_PX)


def dataset_of(pixels: np.ndarray, bits_stored: int = 12, **elements: object) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim > 2 else 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = min(bits_stored, dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    return dataset


def encoded(dataset: Dataset, **options: object) -> bytes:
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True, **options)
    return content.getvalue()


@pytest.fixture
def stored_HW(film_HW: np.ndarray) -> np.ndarray:  # noqa: N802
    """The film as a detector stores it: 12 bits of 16."""
    return film_HW.astype(np.uint16) * 16


def test_a_window_over_all_levels_keeps_the_film(stored_HW: np.ndarray, square_HW: np.ndarray) -> None:
    pixels_HW = read(encoded(dataset_of(stored_HW, WindowCenter=2048, WindowWidth=4096)))
    assert np.abs(pixels_HW.astype(int) - square_HW).max() <= 1


def test_the_first_of_several_windows_is_applied(stored_HW: np.ndarray, square_HW: np.ndarray) -> None:
    dataset = dataset_of(stored_HW, WindowCenter=[100 * 16, 0], WindowWidth=[100 * 16, 1])
    expected_HW = np.clip((square_HW.astype(float) - 50) / 100, 0, 1) * 255
    assert np.abs(read(encoded(dataset)) - expected_HW)[2:].mean() < 4


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_the_other_window_functions_are_applied(stored_HW: np.ndarray, square_HW: np.ndarray, function: str) -> None:
    dataset = dataset_of(stored_HW, WindowCenter=2048, WindowWidth=4096, VOILUTFunction=function)
    assert correlation(read(encoded(dataset)), square_HW) > 0.99


def test_monochrome1_is_inverted(stored_HW: np.ndarray, square_HW: np.ndarray) -> None:
    dataset = dataset_of(4095 - stored_HW, WindowCenter=2048, WindowWidth=4096)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 1


@pytest.mark.parametrize(
    "window", [{}, {"WindowCenter": 2048, "WindowWidth": 0}, {"WindowCenter": 9e5, "WindowWidth": 2}]
)
def test_without_a_window_that_shows_something_levels_are_scaled_by_percentile(
    stored_HW: np.ndarray, square_HW: np.ndarray, window: dict[str, float]
) -> None:
    pixels_HW = read(encoded(dataset_of(stored_HW, **window)))
    assert correlation(pixels_HW, square_HW) > 0.999
    assert pixels_HW.max() - pixels_HW.min() > 240


def test_rescaled_and_signed_levels_meet_their_window(film_HW: np.ndarray, square_HW: np.ndarray) -> None:
    signed_HW = film_HW.astype(np.int16) * 8 - 1000
    dataset = dataset_of(signed_HW, RescaleSlope=2, RescaleIntercept=2000, WindowCenter=2040, WindowWidth=4080)
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 1


def test_a_falling_rescale_turns_the_film_as_it_says(stored_HW: np.ndarray, square_HW: np.ndarray) -> None:
    for window in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}):
        dataset = dataset_of(stored_HW, RescaleSlope=-1, RescaleIntercept=4095, **window)
        assert correlation(read(encoded(dataset)), square_HW) < -0.99


def voi_table(entries: np.ndarray, first_value: int = 0) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first_value, 16]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return Sequence([item])


def test_a_voi_table_is_preferred_to_a_window(stored_HW: np.ndarray, square_HW: np.ndarray) -> None:
    dataset = dataset_of(stored_HW, WindowCenter=1, WindowWidth=2)
    dataset.VOILUTSequence = voi_table(np.arange(4096) * 16)
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 1


def test_a_voi_table_may_fall_and_may_be_short(stored_HW: np.ndarray, square_HW: np.ndarray) -> None:
    dataset = dataset_of(stored_HW)
    dataset.VOILUTSequence = voi_table(np.arange(2000)[::-1], first_value=800)
    expected_HW = 255 - np.clip((square_HW.astype(float) * 16 - 800) / 2000, 0, 1) * 255
    assert np.abs(read(encoded(dataset)) - expected_HW)[2:].mean() < 4


def test_padding_is_black_on_inverted_films_too(stored_HW: np.ndarray) -> None:
    padded_HW = (4095 - stored_HW) // 2 + 1
    padded_HW[60:, :30] = 0
    dataset = dataset_of(padded_HW, PixelPaddingValue=0)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    pixels_HW = read(encoded(dataset))
    assert pixels_HW[18:, :9].max() == 0
    assert pixels_HW[18:, 12:].min() > 0


def test_8_bit_and_32_bit_levels_are_read(film_HW: np.ndarray, square_HW: np.ndarray) -> None:
    for pixels in (film_HW, film_HW.astype(np.uint32) * 100_000):
        assert correlation(read(encoded(dataset_of(pixels, bits_stored=32))), square_HW) > 0.999


def test_colours_become_their_luma(film_HW: np.ndarray, square_HW: np.ndarray) -> None:
    dataset = dataset_of(np.stack([film_HW] * 3, axis=-1), PlanarConfiguration=0)
    dataset.PhotometricInterpretation = "RGB"
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 1


def test_palettes_are_looked_up(film_HW: np.ndarray, square_HW: np.ndarray) -> None:
    dataset = dataset_of(film_HW)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        data = (np.arange(256) * 257).astype("<u2").tobytes()
        setattr(dataset, f"{colour}PaletteColorLookupTableData", data)
    assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 1


def test_big_endian_and_deflated_files_are_read(stored_HW: np.ndarray, square_HW: np.ndarray) -> None:
    big = dataset_of(stored_HW, WindowCenter=2048, WindowWidth=4096)
    big.PixelData = stored_HW.astype(">u2").tobytes()
    big["PixelData"].VR = "OW"
    big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    deflated = dataset_of(stored_HW, WindowCenter=2048, WindowWidth=4096)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    for dataset in (big, deflated):
        assert np.abs(read(encoded(dataset)).astype(int) - square_HW).max() <= 1


def test_a_deflate_bomb_is_refused(stored_HW: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csi_job.radiographs.dicom_bombs._MAX_INFLATED_BYTES", 1 << 20)
    dataset = dataset_of(stored_HW)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = encoded(dataset)
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = content[:meta_end] + deflater.compress(bytes(2 << 20)) + deflater.flush()
    with pytest.raises(DataError, match="inflates to more than a radiograph"):
        read(bomb)


@pytest.mark.parametrize(
    "syntax",
    ["RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "JPEG2000"],
)
def test_compressed_files_are_read(tmp_path: Path, stored_HW: np.ndarray, square_HW: np.ndarray, syntax: str) -> None:
    content = compressed(tmp_path, dataset_of(stored_HW, WindowCenter=2048, WindowWidth=4096), syntax)
    assert len(content) < 2 * stored_HW.size
    assert np.abs(read(content).astype(int) - square_HW).max() <= 2


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
def test_compressed_pixels_of_another_size_than_declared_are_rejected(
    tmp_path: Path, stored_HW: np.ndarray, syntax: str
) -> None:
    content = compressed(tmp_path, dataset_of(stored_HW), syntax)
    rows = stored_HW.shape[0].to_bytes(2, "little")
    lying = content.replace(b"\x28\x00\x10\x00US\x02\x00" + rows, b"\x28\x00\x10\x00US\x02\x00\x40\x00")
    assert lying != content
    with pytest.raises(DataError, match="pixel data are 90x120, but the DICOM header says 90x64"):
        read(lying)


def compressed(tmp_path: Path, dataset: Dataset, syntax: str) -> bytes:
    (tmp_path / "plain").write_bytes(encoded(dataset))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(tmp_path / "plain"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "packed"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (tmp_path / "packed").read_bytes()


def test_a_file_without_preamble_is_read(tmp_path: Path, stored_HW: np.ndarray, square_HW: np.ndarray) -> None:
    dataset = dataset_of(stored_HW, WindowCenter=2048, WindowWidth=4096)
    del dataset.file_meta
    content = io.BytesIO()
    dataset.save_as(content, implicit_vr=True, little_endian=True, enforce_file_format=False)
    path = put(tmp_path, content.getvalue())
    assert not content.getvalue().startswith(bytes(128))
    assert np.abs(read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX).astype(int) - square_HW).max() <= 1


def test_errors_about_damaged_files_do_not_name_the_patient(tmp_path: Path, stored_HW: np.ndarray) -> None:
    content = encoded(dataset_of(stored_HW, NumberOfFrames=10_000_001))
    assert b"10000001" in content
    path = put(tmp_path, content.replace(b"10000001", b"DOE^JANE"))
    with pytest.raises(DataError, match="the image is damaged") as caught:
        read_radiograph(path, 32, max_image_side_px=MAX_SIDE_PX)
    assert "JANE" not in str(caught.value)


def test_files_without_one_radiograph_are_refused(stored_HW: np.ndarray) -> None:
    report = dataset_of(stored_HW)
    del report.PixelData
    frames = dataset_of(np.stack([stored_HW] * 2)[0], NumberOfFrames=2)
    frames.PixelData = np.stack([stored_HW] * 2).tobytes()
    large = dataset_of(stored_HW, Rows=60_000)
    for dataset, words in ((report, "no pixels"), (frames, "several frames, got 2"), (large, "90x60000 pixels")):
        with pytest.raises(DataError, match=words):
            read(encoded(dataset))
