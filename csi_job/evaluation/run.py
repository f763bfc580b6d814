"""Evaluate a model file, and optionally a baseline, on a split, and write the numbers and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csi_job.cache.dataset import Cache, SplitName
from csi_job.errors import ConfigurationError, explain_os_errors
from csi_job.evaluation.compare import Comparison, compare_evaluations
from csi_job.evaluation.evaluate import Evaluation, evaluate_model
from csi_job.evaluation.figures import confusion_plot, csi_plot, differences_plot, reliability_plot, roc_plot
from csi_job.evaluation.model_file import LoadedModel, load_model
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.files import json_text, make_folder, write_atomic
from csi_job.html.plot import Plot
from csi_job.html.render import render
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
    files: tuple[Path, ...] = _write_evaluation(evaluation, folder, model_path.stem)
    if baseline_path is None:
        return EvaluationRun(evaluation, None, files)
    baseline = _evaluate(load_model(baseline_path, device, **form), cache, settings, split)
    same_stem = baseline_path.stem == model_path.stem and baseline_path.resolve() != model_path.resolve()
    stem = f"{baseline_path.stem}_as_baseline" if same_stem else baseline_path.stem
    files += _write_evaluation(baseline, folder, stem)
    comparison = compare_evaluations(evaluation, baseline)
    return EvaluationRun(evaluation, comparison, files + _write_comparison(comparison, folder))


def _evaluate(loaded: LoadedModel, cache: Cache, settings: EvaluationSettings, split: SplitName) -> Evaluation:
    info = cache.info
    if loaded.image_size_px != info.image_size_px:
        what = f"{loaded.name} is for images of {loaded.image_size_px} px, the cache holds {info.image_size_px} px"
        raise ConfigurationError(what, hint=f"use --image-size {loaded.image_size_px}")
    data = loaded.card.get("data")
    trained_on = data.get("cache") if isinstance(data, dict) else None
    warnings = [OTHER_CACHE.format(name=loaded.name, split=split)] if trained_on not in (None, info.key) else []
    return evaluate_model(loaded, cache.split(split), settings, split=split, cache=info.key, warnings=warnings)


def _write_evaluation(evaluation: Evaluation, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write `<stem>.json` and `<stem>_plots.html`."""
    plots = [plot(evaluation) for plot in (confusion_plot, csi_plot, roc_plot, reliability_plot)]
    title = f"{evaluation.model} on the {evaluation.split} set"
    page = _page("Evaluation", title, evaluation, evaluation.warnings, plots)
    return _write(folder, stem, evaluation.to_json(), page)


def _write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    content = comparison.to_json()
    title = f"{comparison.model.model} compared with {comparison.baseline.model}"
    plots = [differences_plot(comparison)]
    page = _page("Comparison", title, comparison.model, content["warnings"], plots, comparison.summary)
    return _write(folder, "comparison", content, page)


def _page(
    kind: str, title: str, evaluation: Evaluation, warnings: Sequence[str], plots: Sequence[Plot], summary: str = ""
) -> str:
    predictions = evaluation.predictions
    return render(
        "csi_job.evaluation",
        "evaluation.html.j2",
        eyebrow=f"{kind} · Congestion Score Index",
        title=title,
        images=f"{len(predictions)} images of {predictions.num_patients} patients. {evaluation.architecture}.",
        summary=summary,
        warnings=[f"{warning}." for warning in warnings],
        plots=plots,
        has_plots=True,
    )


def _write(folder: Path, stem: str, content: dict[str, Any], page: str) -> tuple[Path, Path]:
    numbers, figures = folder / f"{stem}.json", folder / f"{stem}_plots.html"
    with explain_os_errors("the evaluation cannot be written", folder, hint="free space, or choose another --work"):
        make_folder(folder)
        write_atomic(figures, page)
        write_atomic(numbers, json_text(content))
    return numbers, figures
