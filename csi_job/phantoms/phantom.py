"""Chest phantoms: synthetic radiographs, free of any licence, with a label table, for tests, demo and benchmarks.

They show what the model is to learn: fluid in six lung zones that gets denser and larger with the score. They say
nothing about how well it reads real radiographs.
"""

from pathlib import Path

import numpy as np

import csi_job
from csi_job.errors import ConfigurationError, DataError, explain_os_errors
from csi_job.files import csv_text, exists, json_text, locked, read_json, write_atomic
from csi_job.logs import progress
from csi_job.phantoms.drawing import Body, draw_chest
from csi_job.phantoms.files import write_film
from csi_job.radiographs.table import FILE_COLUMN, PATIENT_COLUMN
from csi_job.radiographs.zones import NUM_ZONES, SCORES, UNKNOWN, ZONES

RECIPE = ".phantoms.json"  # with what the phantoms in a folder were drawn; locked meanwhile
SIDE_PX = (400, 700)  # range of the heights
UNKNOWN_SHARE = 0.08
_MIN_SIDE_PX = 64
_MAX_IMAGES_PER_PATIENT = 3
_WIDTH_TO_HEIGHT = (0.85, 1.1)
_ZONE_SHIFTS = (-0.45, -0.45, 0.0, 0.0, 0.4, 0.4)  # fluid sinks: lower zones are scored higher
_PATIENT_SEVERITY = (0.05, 3.0)
_MAX_NUM_IMAGES = 1_000_000  # their scores are drawn at once, in memory
_VISIT_SPREAD, _SIDE_SPREAD, _ZONE_SPREAD = 0.35, 0.35, 0.5  # of the scores around the patient's severity


def write_phantoms(folder: Path, num_images: int, seed: int, *, side_px: tuple[int, int] = SIDE_PX) -> None:
    """Write `labels.csv` and `images/`: the same files for the same arguments.

    There are one to three images per patient with similar scores, about 8 % unknown zones (something covers them),
    and, from four images up, every score in every zone. The formats are 8- and 16-bit PNG, JPEG, DICOM (MONOCHROME1
    and 2) and NIfTI; `side_px` is the smallest and the largest height. An edited table and other phantoms are replaced;
    of several processes one draws, and the others wait for it.

    Raises:
        ConfigurationError: no image, more than a million, impossible sizes, or a folder with another label table.
        DataError: the folder cannot be written.
    """
    if not 1 <= num_images <= _MAX_NUM_IMAGES:
        what = "too few phantoms" if num_images < 1 else "too many phantoms"
        raise ConfigurationError(what, got=num_images, allowed=f"1 to {_MAX_NUM_IMAGES}")
    if not _MIN_SIDE_PX <= side_px[0] <= side_px[1]:
        raise ConfigurationError("invalid side_px", got=side_px, allowed=f"{_MIN_SIDE_PX} <= smallest <= largest")
    recipe = {"version": csi_job.__version__, "num_images": num_images, "seed": seed, "side_px": list(side_px)}
    with explain_os_errors("the phantoms cannot be written", folder, kind=DataError, hint="choose another folder"):
        images = folder / "images"
        is_drawn = exists(folder / RECIPE) or any(images.glob("phantom-*"))  # earlier versions kept no recipe
        if exists(folder / "labels.csv") and not is_drawn:
            message = "the folder has a label table that is not of phantoms"
            raise ConfigurationError(message, got=str(folder), hint="choose another folder")
        images.mkdir(parents=True, exist_ok=True)
        with locked(folder / RECIPE, "another process draws these phantoms; waiting for it"):
            names = [f"phantom-{number:05d}" for number in range(num_images)]
            random = np.random.default_rng([seed, 0])
            images_per_patient = random.integers(1, _MAX_IMAGES_PER_PATIENT, size=num_images, endpoint=True)
            patients_N = np.repeat(np.arange(num_images), images_per_patient)[:num_images]  # numbered from 0
            zones_NZ = _draw_scores(patients_N, np.random.default_rng([seed, 1]))
            found = list(images.glob("phantom-*"))
            if read_json(folder / RECIPE) != recipe or len(found) != num_images:
                (folder / RECIPE).write_text("")
                for film in found:
                    film.unlink()
                _draw_films(images, names, patients_N, zones_NZ, seed, side_px)
                (folder / RECIPE).write_text(json_text(recipe))
            rows = (
                (name, f"P{patient:05d}", *("" if score == UNKNOWN else score for score in scores_Z))
                for name, patient, scores_Z in zip(names, patients_N.tolist(), zones_NZ.tolist(), strict=True)
            )
            write_atomic(folder / "labels.csv", csv_text((FILE_COLUMN, PATIENT_COLUMN, *ZONES), rows))


def _draw_films(
    images: Path, names: list[str], patients_N: np.ndarray, zones_NZ: np.ndarray, seed: int, side_px: tuple[int, int]
) -> None:
    with progress("drawing phantoms", len(names), "images") as advance:
        for index, name in enumerate(names):
            body = Body.sample(np.random.default_rng([seed, 2, patients_N[index]]))
            of_film = np.random.default_rng([seed, 3, index])
            height_px = int(of_film.integers(*side_px, endpoint=True))
            size_px = round(height_px * of_film.uniform(*_WIDTH_TO_HEIGHT)), height_px
            film_HW = draw_chest(body, zones_NZ[index].tolist(), size_px, of_film)
            write_film(film_HW, images / name, index)
            advance(1)


def _draw_scores(patients_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return scores that agree within patients, visits and lungs, `[N, 6]`; every zone has every score."""
    num_images = len(patients_N)
    patient_severity = random.uniform(*_PATIENT_SEVERITY, size=num_images)
    severity_N1 = (patient_severity[patients_N] + random.normal(0, _VISIT_SPREAD, num_images))[:, None]
    side_N2 = random.normal(0, _SIDE_SPREAD, (num_images, 2))
    zone_NZ = random.normal(_ZONE_SHIFTS, _ZONE_SPREAD, (num_images, NUM_ZONES))
    scores_NZ: np.ndarray = (
        np.rint(severity_N1 + np.tile(side_N2, NUM_ZONES // 2) + zone_NZ).clip(0, max(SCORES)).astype(np.int64)
    )
    scores_NZ[random.random(scores_NZ.shape) < UNKNOWN_SHARE] = UNKNOWN
    for scores_N in scores_NZ.T:  # each score that a zone lacks goes to the first image with its most frequent one
        for score in SCORES:
            counts = np.bincount(scores_N, minlength=UNKNOWN + 1)
            if counts[score] == 0 and counts.max() > 1:
                scores_N[np.flatnonzero(scores_N == counts.argmax())[0]] = score
    return scores_NZ
