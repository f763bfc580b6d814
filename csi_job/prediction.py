"""Score new radiographs with a model; needs no study, and does not import Optuna."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from csi_job.config import Settings
from csi_job.errors import ModelFileError, Problem
from csi_job.evaluation.model_file import load_model
from csi_job.evaluation.predict import Prediction, predict_images
from csi_job.evaluation.predictions_file import PredictionFormat, write_predictions
from csi_job.logs import progress
from csi_job.radiographs.folder import expand_folders
from csi_job.radiographs.settings import RadiographsSettings
from csi_job.trial.memory import choose_device
from csi_job.work_folder import model_file

logger = logging.getLogger(__name__)


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

    Raises:
        DataError: a folder holds no image.
    """
    files = expand_folders(paths)
    path = model_file(settings.folder, model_path)
    model = load_model(path, choose_device(settings.trial), precision=settings.trial.precision, **form)
    model.warn_of_others(**form)
    radiographs, limit = settings.radiographs, model.card.get("max_image_side_px")
    if limit is not None and "max_image_side_px" not in radiographs.model_fields_set:
        try:
            radiographs = RadiographsSettings(max_image_side_px=limit)
        except ValueError:
            raise ModelFileError("the model card's max_image_side_px is not allowed", got=limit) from None
    doubts: Counter[str] = Counter()

    def counting_doubts(results: Iterable[Prediction | Problem]) -> Iterator[Prediction | Problem]:
        for result in results:
            if isinstance(result, Prediction) and result.doubt:
                doubts[result.doubt] += 1
            yield result

    with progress("predicting", len(files), "images") as advance:
        results = predict_images(model, files, settings.evaluation, radiographs, advance)
        problems = write_predictions(counting_doubts(results), stream, file_format)
    if doubts:
        reasons = ", ".join(f"{num} {doubt}" for doubt, num in doubts.items())
        values = {"doubtful": doubts.total(), "images": len(files), "reasons": reasons}
        logger.warning("%(doubtful)d of %(images)d images look doubtful (%(reasons)s); look at them", values)
    return problems
