import gzip
import itertools
import struct
import tracemalloc

import nibabel
import numpy as np
import pytest
from isal import isal_zlib

from csi_job.errors import DataError
from csi_job.radiographs.nifti import read_nifti
from tests.unit.radiographs.conftest import square, stretched

MAX_SIDE_PX = 4000


def read(content: bytes) -> np.ndarray:
    return read_nifti(content, 32, MAX_SIDE_PX)


def nifti(data: np.ndarray, codes: str = "LPS") -> bytes:
    """A file whose axes point as `codes` say, e.g. L: towards the patient's left."""
    ornt = nibabel.orientations.axcodes2ornt(tuple(codes))
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (place, direction) in enumerate(ornt):
        affine[int(place), axis] = direction
    return nibabel.Nifti1Image(data, affine).to_bytes()


@pytest.mark.parametrize("across", "LR")
@pytest.mark.parametrize("down", ["IP", "SP", "PS", "AS"])  # with the axis that has one slice
@pytest.mark.parametrize("axes", [*itertools.permutations(range(3))])
def test_every_orientation_is_put_upright(film_HW, square_HW, across, down, axes):
    volume = film_HW.T[:: 1 if across == "L" else -1, :: 1 if down[0] in "IP" else -1, None]
    codes = "".join((across + down)[axis] for axis in axes)
    assert np.array_equal(read(nifti(volume.transpose(axes), codes)), square_HW)


def extended_nifti(data: np.ndarray) -> bytes:
    """A file with a header extension, as AFNI and ITK write them."""
    image = nibabel.Nifti1Image(data, np.diag([-1, -1, 1, 1]))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"made by " * 500))
    image.update_header()
    return image.to_bytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_files_of_two_dimensions_with_header_extensions_or_gzipped_are_read(film_HW, square_HW, pack):
    for content in (nifti(film_HW.T), nifti(film_HW.T[:, :, None]), extended_nifti(film_HW.T)):
        assert np.array_equal(read(pack(content)), square_HW)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_deep_types_are_scaled_by_percentile(film_HW, dtype):
    pixels_HW = read(nifti((film_HW.T.astype(dtype) * 7 + 500).astype(dtype)))
    assert np.abs(pixels_HW.astype(int) - square(stretched(film_HW))).max() <= 1


def test_pixels_that_are_not_finite_are_black(film_HW):
    values_HW = film_HW.astype(np.float32)
    values_HW[:60, :45] = np.nan
    values_HW[:30, 45:] = np.inf
    expected_HW = square(stretched(film_HW, ~np.isfinite(values_HW)))
    assert np.abs(read(nifti(values_HW.T)).astype(int) - expected_HW).max() <= 1


def test_colours_become_their_luma(film_HW, square_HW):
    rgb = np.zeros(film_HW.T.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name in "RGB":
        rgb[name] = film_HW.T
    assert np.abs(read(nifti(rgb[:, :, None])).astype(int) - square_HW).max() <= 1


PLAIN = nifti(np.ones((64, 64), np.uint8))
LARGE = PLAIN[:40] + struct.pack("<8h", 2, 30_000, 30_000, 1, 1, 1, 1, 1) + PLAIN[56:]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nifti(np.ones((20, 20, 20), np.uint8)), "not one radiograph"),
        (nifti(np.ones(64, np.uint8)), "not one radiograph"),
        (nifti(np.ones((1, 64, 1), np.uint8)), "two axes longer than 1"),
        (nifti(np.ones((64, 64, 1, 3), np.uint8)), "not one radiograph"),
        (nifti(np.ones((64, 64), np.complex64)), "are not grey levels"),
        (nifti(np.full((64, 64), np.nan, np.float32)), "no finite pixel"),
        (PLAIN[:-100], "cut off"),
        (PLAIN[:108] + struct.pack("<f", 2**31) + PLAIN[112:], "has an invalid offset"),
        (PLAIN[:108] + struct.pack("<f", 0) + PLAIN[112:], "has an invalid offset"),
        (gzip.compress(LARGE + bytes(100_000_000), compresslevel=1), "30000x30000 pixels"),
    ],
    ids=["volume", "line", "slice", "colours", "complex", "NaN", "cut", "far offset", "no offset", "bomb"],
)
def test_anything_but_one_radiograph_is_refused(content, words):
    with pytest.raises(DataError, match=words):
        read(content)


@pytest.mark.parametrize("num_files", [1, 2])
@pytest.mark.parametrize("rest", [b"", bytes(50_000_000)])
def test_a_gzip_file_is_inflated_up_to_the_pixels_whatever_follows(film_HW, square_HW, num_files, rest):
    content = nifti(film_HW.T) + rest
    parts = [content[:400], content[400:]] if num_files == 2 else [content]
    packed = b"".join(gzip.compress(part, compresslevel=1) for part in parts)
    tracemalloc.start()
    assert np.array_equal(read(packed), square_HW)
    assert np.array_equal(read(packed + b"junk"), square_HW)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_gzip_file_whose_checksum_differs_is_an_error(film_HW):
    content = bytearray(gzip.compress(nifti(film_HW.T)))
    content[-8] ^= 1
    with pytest.raises(isal_zlib.error, match="Incorrect checksum"):
        read(bytes(content))
