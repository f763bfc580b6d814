"""Score new radiographs with a model; needs no study, and does not import Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from csi_job.config import Settings
from csi_job.errors import Problem
from csi_job.evaluation.model_file import load_model
from csi_job.evaluation.predict import expand_folders, predict_images
from csi_job.evaluation.predictions_file import PredictionFormat, write_predictions
from csi_job.logs import progress
from csi_job.trial.memory import choose_device
from csi_job.work_folder import model_file


def run_predict(
    settings: Settings,
    paths: Sequence[Path],
    model_path: Path | None,
    stream: TextIO,
    file_format: PredictionFormat,
    **form: Any,
) -> list[Problem]:
    """Predict image files, or the images in folders, as they are read; return the files that could not be read.

    `form` is what `load_model` takes for a file without a card: `architecture`, `image_size_px`, `normalisation`.
    """
    model = load_model(model_file(settings.folder, model_path), choose_device(settings.trial), **form)
    files = list(expand_folders(paths))
    with progress("predicting", len(files), "images") as advance:
        results = predict_images(model, files, settings.evaluation, settings.radiographs, advance)
        return write_predictions(results, stream, file_format)
