import numpy as np
import pytest

from csi_job.radiographs.grey import doubt_about


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
