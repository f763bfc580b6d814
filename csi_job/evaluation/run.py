"""Evaluate a model file, and optionally a baseline, on a split, and write the numbers and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csi_job.cache.dataset import Cache, SplitName
from csi_job.errors import ConfigurationError, explain_os_errors
from csi_job.evaluation.compare import Comparison, compare_evaluations
from csi_job.evaluation.decision import Decision, decide
from csi_job.evaluation.evaluate import Evaluation, evaluate_model
from csi_job.evaluation.model_file import LoadedModel, load_model
from csi_job.evaluation.page import comparison_page, evaluation_page
from csi_job.evaluation.predictions_file import split_predictions_csv
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.files import json_text, make_folder, write_atomic
from csi_job.work_folder import WorkFolder

OTHER_CACHE = (
    "{name} was trained on a different cache from the one it is evaluated on; unless the data is different on purpose, "
    "patients of this {split} set may have been among its training patients"
)


@dataclass(frozen=True)
class EvaluationRun:
    """What was measured, and the files written."""

    evaluation: Evaluation
    comparison: Comparison | None
    decision: Decision
    files: tuple[Path, ...]


def run_evaluation(
    work: Path,
    cache: Cache,
    model_path: Path,
    settings: EvaluationSettings,
    device: torch.device,
    *,
    baseline_path: Path | None = None,
    architecture: str | None = None,
    split: SplitName = "test",
) -> EvaluationRun:
    """Evaluate a model on a split and write numbers, predictions and figures to `models/evaluation/`.

    A baseline is evaluated on the same images and compared. `architecture` names the network of a bare `.pth` file,
    and the cache's image size and normalisation apply to it.

    Raises:
        ModelFileError: a model file cannot be used.
        ConfigurationError: a model's image size is not the cache's.
        DataError: the cache is damaged.
        CsiJobError: the results cannot be written.

    """
    info, folder = cache.info, WorkFolder(work).evaluations
    form: dict[str, Any] = {
        "architecture": architecture,
        "image_size_px": info.image_size_px,
        "normalisation": info.normalisation,
    }
    evaluation = _evaluate(load_model(model_path, device, **form), cache, settings, split)
    num_patients = sum(cache.num_patients.values())
    if baseline_path is None:
        decision = decide(evaluation.to_json())
        return EvaluationRun(
            evaluation, None, decision, _write_evaluation(evaluation, decision, folder, model_path.stem)
        )
    baseline = _evaluate(load_model(baseline_path, device, **form), cache, settings, split)
    same_stem = baseline_path.stem == model_path.stem and baseline_path.resolve() != model_path.resolve()
    stem = f"{baseline_path.stem}_as_baseline" if same_stem else baseline_path.stem
    comparison = compare_evaluations(evaluation, baseline)
    content = comparison.to_json()
    decision = decide(evaluation.to_json(), content, baseline.to_json(), num_patients)
    files = (
        *_write_evaluation(evaluation, decision, folder, model_path.stem),
        *_write_evaluation(baseline, decision, folder, stem),
        *_write(folder, "comparison", content, comparison_page(comparison, decision)),
    )
    return EvaluationRun(evaluation, comparison, decision, files)


def _write_evaluation(evaluation: Evaluation, decision: Decision, folder: Path, stem: str) -> tuple[Path, ...]:
    page, predictions = evaluation_page(evaluation, decision), split_predictions_csv(evaluation.predictions)
    return _write(folder, stem, evaluation.to_json(), page, predictions)


def _evaluate(loaded: LoadedModel, cache: Cache, settings: EvaluationSettings, split: SplitName) -> Evaluation:
    info = cache.info
    if loaded.image_size_px != info.image_size_px:
        what = f"{loaded.name} is for images of {loaded.image_size_px} px, the cache holds {info.image_size_px} px"
        raise ConfigurationError(what, hint=f"use --image-size {loaded.image_size_px}")
    data = loaded.card.get("data")
    trained_on = data.get("cache") if isinstance(data, dict) else None
    warnings = [OTHER_CACHE.format(name=loaded.name, split=split)] if trained_on not in (None, info.key) else []
    return evaluate_model(
        loaded,
        cache.split(split),
        settings,
        split=split,
        cache=info.key,
        train_zones_NZ=cache.train.zones_NZ,
        warnings=warnings,
    )


def _write(folder: Path, stem: str, content: dict[str, Any], page: str, predictions: str = "") -> tuple[Path, ...]:
    """Write `<stem>.json`, `<stem>_plots.html` and, if there are any, `<stem>_predictions.csv`."""
    files = {f"{stem}_plots.html": page, f"{stem}_predictions.csv": predictions, f"{stem}.json": json_text(content)}
    with explain_os_errors("the evaluation cannot be written", folder, hint="free space, or choose another --work"):
        make_folder(folder)
        for name, text in files.items():
            if text:
                write_atomic(folder / name, text)
    return tuple(folder / name for name, text in reversed(files.items()) if text)
