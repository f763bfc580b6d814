"""Any number of image files through a model, in order, with memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csi_job.cache.decode_pool import decode_images, num_cores
from csi_job.errors import Problem
from csi_job.evaluation.csi import FloatArray, predict_csi
from csi_job.evaluation.model_file import LoadedModel, predict_probabilities
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.radiographs.read import EXTENSIONS
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.zones import RISK_CLASSES, UNKNOWN, ZONES, risk_class


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Args:
        path: the file as it was named by the caller.
        scores: most probable class of each zone, 4 for unknown.
        probabilities_ZK: class probabilities of each zone.
        csi: mean expected score of the zones predicted graded; None where none is.
        risk: risk class of that CSI; None likewise.
        risk_probabilities: of low, medium and high risk; None likewise.

    """

    path: Path
    scores: tuple[int, ...]
    probabilities_ZK: FloatArray  # noqa: N815 - an array carries its axes
    csi: float | None
    risk: str | None
    risk_probabilities: tuple[float, ...] | None

    @property
    def file(self) -> str:
        """Name of the file, as text that any stream takes."""
        return as_text(self.path)

    @property
    def num_graded_zones(self) -> int:
        """Zones that the model could grade."""
        return sum(score != UNKNOWN for score in self.scores)

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""
        return {
            "file": self.file,
            "csi": self.csi,
            "risk": self.risk,
            "risk_probabilities": self._by_risk(),
            "num_graded_zones": self.num_graded_zones,
            "zones": {zone: self._zone(index) for index, zone in enumerate(ZONES)},
        }

    def _by_risk(self) -> dict[str, float] | None:
        probabilities = self.risk_probabilities
        return None if probabilities is None else dict(zip(RISK_CLASSES, probabilities, strict=True))

    def _zone(self, index: int) -> dict[str, Any]:
        score = self.scores[index]
        return {
            "score": "unknown" if score == UNKNOWN else score,
            "probabilities": [round(float(value), 6) for value in self.probabilities_ZK[index]],
        }


def predict_images(
    loaded: LoadedModel,
    paths: Iterable[Path],
    evaluation: EvaluationSettings,
    radiographs: RadiographsSettings,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Prediction | Problem]:
    """Predict image files.

    Args:
        loaded: the model.
        paths: the files; they are taken as decoders become free.
        evaluation: its `batch_size` images make a forward pass.
        radiographs: its `max_image_side_px` refuses decompression bombs.
        advance: called with the number of images done, for a progress bar.

    Yields:
        For each file, in order, a prediction, or a problem with the file's name in `file_id` if it cannot be read.

    Raises:
        ModelFileError: the model's output is not finite.

    """
    finished: dict[int, Prediction | Problem] = {}
    following = count()
    index = next(following)
    for results in _in_any_order(loaded, paths, evaluation.batch_size, radiographs.max_image_side_px):
        finished |= results
        advance(len(results))
        while index in finished:
            yield finished.pop(index)
            index = next(following)


def expand_folders(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are, and for a folder the images in it and below, by name."""
    for path in paths:
        if path.is_dir():
            inside = sorted(found for found in path.rglob("*") if found.name.casefold().endswith(EXTENSIONS))
            yield from (found for found in inside if not found.is_dir())
        else:
            yield path


def as_text(path: Path) -> str:
    """Return a path with bytes that are no Unicode (a name of an older system) written out as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _in_any_order(
    loaded: LoadedModel, paths: Iterable[Path], batch_size: int, max_image_side_px: int
) -> Iterator[dict[int, Prediction | Problem]]:
    """Yield results by index, a batch at a time, in the order in which images were decoded.

    Only predictions wait for their turn, never pixels: one slow image does not fill the memory.
    """
    named: dict[int, Path] = {}
    pixels: dict[int, np.ndarray] = {}
    decoded = decode_images(_noting(paths, named), loaded.image_size_px, max_image_side_px, num_cores())
    for index, answer in decoded:
        if isinstance(answer, str):
            path = named.pop(index)
            yield {index: Problem(answer, file_id=as_text(path))}
            continue
        pixels[index] = answer
        if len(pixels) == batch_size:
            yield _predict_batch(loaded, pixels, named)
            pixels = {}
    if pixels:
        yield _predict_batch(loaded, pixels, named)


def _noting(paths: Iterable[Path], named: dict[int, Path]) -> Iterator[tuple[int, Path]]:
    """Yield paths with their index, and keep each by its index until its result is made."""
    for index, path in enumerate(paths):
        named[index] = path
        yield index, path


def _predict_batch(
    loaded: LoadedModel, pixels: dict[int, np.ndarray], named: dict[int, Path]
) -> dict[int, Prediction | Problem]:
    images_NHW = torch.from_numpy(np.stack(list(pixels.values())))
    probabilities_NZK = predict_probabilities(loaded, images_NHW, len(pixels))
    predicted = predict_csi(probabilities_NZK)
    return {
        index: _prediction(
            named.pop(index),
            predicted.scores_NZ[row],
            probabilities_NZK[row],
            float(predicted.csi_N[row]),
            predicted.risk_NR[row],
        )
        for row, index in enumerate(pixels)
    }


def _prediction(
    path: Path, scores_Z: np.ndarray, probabilities_ZK: FloatArray, csi: float, risk_R: FloatArray
) -> Prediction:
    graded = bool((scores_Z != UNKNOWN).any())
    return Prediction(
        path=path,
        scores=tuple(int(score) for score in scores_Z),
        probabilities_ZK=probabilities_ZK,
        csi=csi if graded else None,
        risk=risk_class(csi) if graded else None,
        risk_probabilities=tuple(float(value) for value in risk_R) if graded else None,
    )
