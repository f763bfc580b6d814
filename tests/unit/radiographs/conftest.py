"""Image files of every kind, made by the libraries that make real ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def film_HW() -> np.ndarray:  # noqa: N802 - a tensor carries its axes
    """A film no symmetry leaves unchanged: bright bottom right, a dark bar on the top, noise; uint8 [120, 90]."""
    rows, columns = np.mgrid[0:120, 0:90]
    film = 30 + rows + columns // 2
    film[:12] = 10
    film += np.random.default_rng(0).integers(0, 12, film.shape)
    return film.astype(np.uint8)


@pytest.fixture(scope="session")
def square_HW(film_HW: np.ndarray) -> np.ndarray:  # noqa: N802
    """What every lossless 8-bit file of the film is to be read as, uint8 [32, 32]."""
    return np.asarray(Image.fromarray(film_HW).resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=3.0))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def put(folder: Path, content: bytes, name: str = "Jane-Doe") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def correlation(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    return float(np.corrcoef(a_HW.ravel().astype(float), b_HW.ravel().astype(float))[0, 1])
