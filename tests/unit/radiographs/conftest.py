"""Image files of every kind, made by the libraries that make real ones."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def film_HW():  # noqa: N802 - a tensor carries its axes
    """A film no symmetry leaves unchanged: bright bottom right, a dark bar on the top, noise; uint8 [120, 90]."""
    rows, columns = np.mgrid[0:120, 0:90]
    film = 30 + rows + columns // 2
    film[:12] = 10
    film += np.random.default_rng(0).integers(0, 12, film.shape)
    return film.astype(np.uint8)


@pytest.fixture(scope="session")
def square_HW(film_HW):  # noqa: N802
    """What every lossless 8-bit file of the film is to be read as, uint8 [32, 32]."""
    return square(film_HW)


@pytest.fixture(scope="session")
def stored_HW(film_HW):  # noqa: N802
    """The film as a detector stores it: 12 bits of 16."""
    return film_HW.astype(np.uint16) * 16


@pytest.fixture(scope="session")
def large_HW():  # noqa: N802
    """A film of 12 bits that is decoded at a fraction: smooth parts, edges and noise; uint16 [1203, 1101]."""
    rows, columns = np.mgrid[0:1203, 0:1101]
    film = 2000 + 900 * np.sin(rows / 90) + 600 * np.cos(columns / 70) + 500 * ((rows // 150 + columns // 130) % 2)
    return np.rint(film + np.random.default_rng(0).normal(0, 25, film.shape)).clip(0, 4095).astype(np.uint16)


def square(grey_HW: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(grey_HW).resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=3.0))


def stretched(values: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray:
    """Scale by percentile, with NumPy alone; hidden values are black and do not count."""
    shown = np.ones(values.shape, bool) if hidden is None else ~hidden
    darkest, brightest = np.percentile(values[shown], (0.5, 99.5))
    return np.rint(255 * np.clip((values.astype(float) - darkest) / (brightest - darkest), 0, 1) * shown).astype(
        np.uint8
    )


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
