"""Evaluate a model file, and optionally a baseline, on a split of a cache, and write the results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csi_job.cache.dataset import Cache, SplitName
from csi_job.errors import ConfigurationError
from csi_job.evaluation.compare import Comparison, compare_evaluations
from csi_job.evaluation.evaluate import Evaluation, evaluate_model
from csi_job.evaluation.model_file import LoadedModel, load_model
from csi_job.evaluation.page import write_comparison, write_evaluation
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.work_folder import WorkFolder

OTHER_CACHE = (
    "{name} was trained on another cache than the one it is evaluated on; unless the data is different on purpose, "
    "patients of this {split} set may have been among its training patients"
)


@dataclass(frozen=True)
class EvaluationRun:
    """What was measured, and the files written."""

    evaluation: Evaluation
    comparison: Comparison | None
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
    """Evaluate a model on a split and write numbers and figures to `models/evaluation/`.

    Args:
        work: the work folder.
        cache: its image size and normalisation apply to a bare `.pth` file.
        model_path: the model.
        settings: bootstrap and batch size.
        device: where to compute.
        baseline_path: another model, to evaluate on the same images and compare with.
        architecture: name of the network, for models whose file has no card.
        split: which split.

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
    files: tuple[Path, ...] = write_evaluation(evaluation, folder, model_path.stem)
    if baseline_path is None:
        return EvaluationRun(evaluation, None, files)
    baseline = _evaluate(load_model(baseline_path, device, **form), cache, settings, split)
    same_stem = baseline_path.stem == model_path.stem and baseline_path.resolve() != model_path.resolve()
    files += write_evaluation(
        baseline, folder, f"{baseline_path.stem}_as_baseline" if same_stem else baseline_path.stem
    )
    comparison = compare_evaluations(evaluation, baseline)
    return EvaluationRun(evaluation, comparison, files + write_comparison(comparison, folder))


def _evaluate(loaded: LoadedModel, cache: Cache, settings: EvaluationSettings, split: SplitName) -> Evaluation:
    info = cache.info
    if loaded.image_size_px != info.image_size_px:
        what = f"{loaded.name} is for images of {loaded.image_size_px} px, the cache holds {info.image_size_px} px"
        raise ConfigurationError(what, hint=f"use --image-size {loaded.image_size_px}")
    data = loaded.card.get("data")
    trained_on = data.get("cache") if isinstance(data, dict) else None
    warnings = [OTHER_CACHE.format(name=loaded.name, split=split)] if trained_on not in (None, info.key) else []
    return evaluate_model(loaded, cache.split(split), settings, split=split, cache=info.key, warnings=warnings)
