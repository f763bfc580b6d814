"""Predict any number of image files in order, in memory that does not grow with their number."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from csi_job.cache.decode_pool import decode_images
from csi_job.errors import Problem
from csi_job.evaluation.csi import FloatArray, predict_csi
from csi_job.evaluation.model_file import LoadedModel, predict_probabilities
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.machine import num_cores
from csi_job.radiographs.grey import doubt_about
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.radiographs.zones import RISK_CLASSES, UNKNOWN, ZONES, risk_class


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image.

    Args:
        path: the file as the caller named it.
        scores: most probable class of each zone, 4 for unknown.
        probabilities_ZK: class probabilities of each zone.
        csi: mean expected score of the zones predicted graded; None if none is.
        risk: risk class of that CSI; None likewise.
        risk_probabilities: of low, medium and high risk; None likewise.
        doubt: why the image hardly shows a radiograph, or "".
    """

    path: Path
    scores: tuple[int, ...]
    probabilities_ZK: FloatArray  # noqa: N815 - an array carries its axes
    csi: float | None
    risk: str | None
    risk_probabilities: tuple[float, ...] | None
    doubt: str = ""

    @property
    def num_graded_zones(self) -> int:
        """Zones that the model could grade."""
        return sum(score != UNKNOWN for score in self.scores)

    @property
    def mean_score(self) -> float | None:
        """Mean of the most probable scores of the zones predicted graded; None if none is."""
        graded = [score for score in self.scores if score != UNKNOWN]
        return fmean(graded) if graded else None

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""
        risks = None
        if self.risk_probabilities is not None:
            risks = dict(zip(RISK_CLASSES, self.risk_probabilities, strict=True))
        return {
            "file": as_text(self.path),
            "csi": self.csi,
            "mean_score": self.mean_score,
            "risk": self.risk,
            "risk_probabilities": risks,
            "num_graded_zones": self.num_graded_zones,
            "doubt": self.doubt or None,
            "zones": {
                zone: {
                    "score": "unknown" if score == UNKNOWN else score,
                    "probabilities": [round(float(value), 6) for value in probabilities_K],
                }
                for zone, score, probabilities_K in zip(ZONES, self.scores, self.probabilities_ZK, strict=True)
            },
        }


def predict_images(
    loaded: LoadedModel,
    paths: Iterable[Path],
    evaluation: EvaluationSettings,
    radiographs: RadiographsSettings,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[Prediction | Problem]:
    """Predict image files, each read when a decoder becomes free; `advance` is called with numbers of images done.

    Yields:
        a prediction per file, in order, or a problem with the file's name in `file_id` if it cannot be read.

    Raises:
        ModelFileError: the model's output is not finite.
    """
    finished: dict[int, Prediction | Problem] = {}
    index = 0
    for results in _in_any_order(loaded, paths, evaluation.batch_size, radiographs.max_image_side_px):
        finished |= results
        advance(len(results))
        while index in finished:
            yield finished.pop(index)
            index += 1


def as_text(path: Path) -> str:
    """Return a path as text, with bytes that are not Unicode (names from older systems) as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _in_any_order(
    loaded: LoadedModel, paths: Iterable[Path], batch_size: int, max_image_side_px: int
) -> Iterator[dict[int, Prediction | Problem]]:
    """Yield results by index, batch by batch, in the order in which images were decoded.

    A thread computes one batch while the next is decoded. When that is full it waits, so the pixels of two batches are
    in memory; predictions may wait longer for their turn, so one slow image does not fill it.
    """
    pending: dict[int, Path] = {}
    pixels: dict[int, np.ndarray] = {}
    batches: deque[Future[dict[int, Prediction | Problem]]] = deque()

    def numbered() -> Iterator[tuple[int, Path]]:
        for index, path in enumerate(paths):
            pending[index] = path
            yield index, path

    with ThreadPoolExecutor(1) as network:
        for index, answer in decode_images(numbered(), loaded.image_size_px, max_image_side_px, num_cores()):
            if isinstance(answer, str):
                yield {index: Problem(answer, file_id=as_text(pending.pop(index)))}
                continue
            pixels[index] = answer
            if len(pixels) == batch_size:
                batches.append(network.submit(_predict_batch, loaded, pixels, pending))
                pixels = {}
            while batches and (len(batches) > 1 or batches[0].done()):
                yield batches.popleft().result()
        if pixels:
            batches.append(network.submit(_predict_batch, loaded, pixels, pending))
        yield from (batch.result() for batch in batches)


def _predict_batch(
    loaded: LoadedModel, pixels: dict[int, np.ndarray], pending: dict[int, Path]
) -> dict[int, Prediction | Problem]:
    images_NHW = torch.from_numpy(np.stack(list(pixels.values())))
    probabilities_NZK = predict_probabilities(loaded, images_NHW, len(pixels))
    predicted = predict_csi(probabilities_NZK)
    results: dict[int, Prediction | Problem] = {}
    for row, index in enumerate(pixels):
        csi, is_graded = float(predicted.csi_N[row]), predicted.num_graded_N[row] > 0
        results[index] = Prediction(
            path=pending.pop(index),
            scores=tuple(predicted.scores_NZ[row].tolist()),
            probabilities_ZK=probabilities_NZK[row],
            csi=csi if is_graded else None,
            risk=risk_class(csi) if is_graded else None,
            risk_probabilities=tuple(predicted.risk_NR[row].tolist()) if is_graded else None,
            doubt=doubt_about(pixels[index]),
        )
    return results
