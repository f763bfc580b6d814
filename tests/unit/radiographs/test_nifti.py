"""NIfTI radiographs: upright by their affine, decompressed no further than their header says."""

from __future__ import annotations

import gzip
import itertools
import struct

import nibabel
import numpy as np
import pytest

from csi_job.errors import DataError
from csi_job.radiographs.nifti import read_nifti
from tests.unit.radiographs.conftest import correlation

MAX_SIDE_PX = 4000


def read(content: bytes, side_px: int = 32) -> np.ndarray:
    return read_nifti(content, side_px, MAX_SIDE_PX)


def nifti(data: np.ndarray, codes: str = "LPS") -> bytes:
    """A file whose axes point as `codes` say, e.g. L: towards the patient's left."""
    ornt = nibabel.orientations.axcodes2ornt(tuple(codes))
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (place, direction) in enumerate(ornt):
        affine[int(place), axis] = direction
    return nibabel.Nifti1Image(data, affine).to_bytes()


# The film as seen: columns run from the patient's right to left (L), rows downwards (I, or P where the plane has no I).
LAYOUTS = [
    (codes, axes)
    for down in "ISPA"
    for across in "LR"
    for axes in itertools.permutations(range(3))
    for codes in ["".join("".join((across, down, "P" if down in "IS" else "S"))[axis] for axis in axes)]
]


@pytest.mark.parametrize(("codes", "axes"), LAYOUTS)
def test_every_orientation_is_put_upright(
    film_HW: np.ndarray, square_HW: np.ndarray, codes: str, axes: tuple[int, int, int]
) -> None:
    volume = film_HW.T[:, :, None]  # across, down, front to back
    if "R" in codes:
        volume = volume[::-1]
    if "S" in codes and "P" in codes and "I" not in codes and codes[axes.index(1)] == "S":
        volume = volume[:, ::-1]
    if codes[axes.index(1)] == "A":
        volume = volume[:, ::-1]
    assert np.array_equal(read(nifti(volume.transpose(axes), codes)), square_HW)


def test_two_dimensional_files_are_read(film_HW: np.ndarray, square_HW: np.ndarray) -> None:
    assert np.array_equal(read(nifti(film_HW.T)), square_HW)


def test_gzipped_files_are_read_as_plain_ones(film_HW: np.ndarray) -> None:
    content = nifti(film_HW.T[:, :, None])
    assert np.array_equal(read(gzip.compress(content)), read(content))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_deep_types_are_scaled_by_percentile(film_HW: np.ndarray, square_HW: np.ndarray, dtype: str) -> None:
    pixels_HW = read(nifti((film_HW.T.astype(dtype) * 7 + 500).astype(dtype)))
    assert correlation(pixels_HW, square_HW) > 0.999
    assert pixels_HW.max() - pixels_HW.min() > 240


def test_pixels_that_are_not_finite_are_black(film_HW: np.ndarray) -> None:
    data = film_HW.T.astype(np.float32)
    data[:45, :60] = np.nan
    data[45:, :30] = np.inf
    pixels_HW = read(nifti(data))
    assert pixels_HW[:15, :15].max() == 0
    assert pixels_HW[:7, 17:].max() == 0
    assert pixels_HW[17:].max() > 250


def test_images_without_finite_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="no finite pixel"):
        read(nifti(np.full((64, 64), np.nan, np.float32)))


def test_colours_become_their_luma(film_HW: np.ndarray, square_HW: np.ndarray) -> None:
    rgb = np.zeros(film_HW.T.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name in "RGB":
        rgb[name] = film_HW.T
    assert np.abs(read(nifti(rgb[:, :, None])).astype(int) - square_HW).max() <= 1


@pytest.mark.parametrize("shape", [(20, 20, 20), (64,), (1, 64, 1), (64, 64, 1, 3)])
def test_anything_but_one_radiograph_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"not one radiograph|pixels"):
        read(nifti(np.ones(shape, np.uint8)))


def test_complex_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="are not grey levels"):
        read(nifti(np.ones((64, 64), np.complex64)))


def test_a_truncated_file_is_refused(film_HW: np.ndarray) -> None:
    with pytest.raises(DataError, match="cut off"):
        read(nifti(film_HW.T)[:-100])


def test_header_sizes_are_checked_before_anything_is_inflated() -> None:
    header = bytearray(nifti(np.ones((64, 64), np.uint8)))
    header[40:56] = struct.pack("<8h", 2, 30_000, 30_000, 1, 1, 1, 1, 1)
    bomb = gzip.compress(bytes(header) + bytes(100_000_000), compresslevel=1)
    with pytest.raises(DataError, match="30000x30000 pixels"):
        read(bomb)


def test_what_follows_the_pixels_is_never_inflated(
    film_HW: np.ndarray, square_HW: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    inflated = 0
    read_some = gzip.GzipFile.read

    def counted(file: gzip.GzipFile, size: int | None = -1) -> bytes:
        nonlocal inflated
        content = read_some(file, size)
        inflated += len(content)
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    content = nifti(film_HW.T)
    assert np.array_equal(read(gzip.compress(content + bytes(50_000_000), compresslevel=1)), square_HW)
    assert inflated == len(content)


def test_an_unreasonable_offset_is_refused() -> None:
    content = bytearray(nifti(np.ones((64, 64), np.uint8)))
    content[108:112] = struct.pack("<f", 2**31)
    with pytest.raises(DataError, match="has an invalid offset"):
        read(bytes(content))
