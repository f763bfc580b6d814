import numpy as np
import pytest

from csi_job.radiographs.grey import doubt_about, films, percentiles


def framed(film_HW: np.ndarray, level: int) -> np.ndarray:
    """Fill two thirds with padding, or with the white of an inverted one."""
    return np.where(np.arange(film_HW.shape[1]) < 60, np.uint8(level), film_HW)


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        (lambda film_HW: film_HW, ""),
        (lambda film_HW: 255 - film_HW, ""),
        (lambda film_HW: film_HW // 3 + 20, ""),
        (lambda film_HW: framed(film_HW, 0), ""),
        (lambda film_HW: framed(film_HW, 255), ""),
        (lambda film_HW: film_HW // 10 + 100, "nearly flat"),
        (lambda film_HW: framed(film_HW // 10 + 100, 0), "nearly flat"),
        (lambda film_HW: framed(film_HW // 10 + 100, 255), "nearly flat"),
        (lambda film_HW: film_HW // 16, "nearly all black"),
        (lambda film_HW: 255 - film_HW // 16, "nearly all white"),
        (lambda film_HW: (film_HW > 90) * np.uint8(255), "nearly only black and white"),
    ],
)
def test_only_what_hardly_shows_a_radiograph_is_doubtful(film_HW, change, doubt):
    marked_HW = change(film_HW).copy()
    marked_HW[100:105, 80:88] = 255  # a side mark changes nothing
    assert doubt_about(marked_HW) == doubt


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<i2", ">i2", "<i4", "<f4"])
def test_percentiles_are_numpys_bit_by_bit(dtype):
    draws = np.random.default_rng(1)
    for size in (1, 2, 3, 200, 201, 5000):
        for width in (1, 7, 100):  # of 1: all levels are equal
            sample_N = draws.integers(-128, 127, size).clip(-width, width - 1).astype(np.int64)
            if np.dtype(dtype).kind == "u":
                sample_N += width
            if np.dtype(dtype).itemsize > 1:
                sample_N *= 250
            sample_N = sample_N.astype(dtype)
            for percents in ((0.5, 99.5), (0, 50, 100)):
                expected = np.percentile(sample_N.astype(np.float64), percents)
                assert percentiles(sample_N, *percents).tolist() == pytest.approx(expected, abs=0)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">i2", "<i4", "<f4"])
@pytest.mark.parametrize("lowest", [0, -3000])
@pytest.mark.parametrize("highest", [4095, 5461, 5462, 32767, 65535])  # 12 pixels of 5461 fit 16 bits
@pytest.mark.parametrize("order", "CF")
def test_the_averages_of_a_large_film_are_exact(dtype, lowest, highest, order):
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "ui" else np.finfo(dtype)
    lowest, highest = max(lowest, limits.min), min(highest, limits.max)
    levels_HW = np.random.default_rng(0).integers(lowest, highest, (1201, 1004), endpoint=True).astype(dtype, order)
    levels_HW[:4, :3] = highest
    averaged, _ = films(levels_HW, 100)
    assert averaged.levels_HW.shape == (301, 335)
    boxes = levels_HW[:1200, :1002].astype(float).reshape(300, 4, 334, 3)
    expected_HW = boxes.mean(axis=(1, 3))
    if np.dtype(dtype).kind != "f":
        expected_HW = np.rint(expected_HW)
    assert np.allclose(averaged.levels_HW[:300, :334], expected_HW, rtol=1e-7, atol=0)
