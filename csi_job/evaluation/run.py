"""Evaluate a model file, and optionally a baseline, on the test set, and write the numbers and figures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csi_job.cache.dataset import Cache
from csi_job.errors import ConfigurationError, explain_os_errors
from csi_job.evaluation.decision import Decision, decide
from csi_job.evaluation.evaluate import Comparison, Evaluation, compare_evaluations, evaluate_model
from csi_job.evaluation.model_file import LoadedModel, load_model
from csi_job.evaluation.page import comparison_page, evaluation_page
from csi_job.evaluation.predictions_file import split_predictions_csv
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.files import json_text, make_folder, real_path, write_atomic
from csi_job.html.links import Link, page_links
from csi_job.html.render import share_plotly
from csi_job.trial.memory import choose_device
from csi_job.trial.settings import TrialSettings
from csi_job.work_folder import ModelFolder

OTHER_CACHE = (
    "{name} was trained on a different cache from the one it is evaluated on; unless the data is different on purpose, "
    "patients of this test set may have been among its training patients"
)
OTHER_DATA = "the hyperparameters were searched on a different cache from the one trained on"  # a card's warning
SEARCHED_ELSEWHERE = (
    "the hyperparameters of {name} were searched on a different cache; patients of this test set may have been among "
    "those they were chosen on"
)
NO_CACHE = (
    "{name} has no card that names the cache it was trained on; patients of this test set may have been among its "
    "training patients"
)


@dataclass(frozen=True)
class EvaluationRun:
    """What was measured, and the files written."""

    evaluation: Evaluation
    comparison: Comparison | None
    decision: Decision
    files: tuple[Path, ...]


def run_evaluation(
    folder: ModelFolder,
    cache: Cache,
    model_path: Path,
    settings: EvaluationSettings,
    trial: TrialSettings,
    *,
    baseline_path: Path | None = None,
    architecture: str | None = None,
) -> EvaluationRun:
    """Evaluate a model on the test set and write numbers, predictions and figures to the folder of models.

    A baseline is evaluated on the same images and compared. `trial` has the device and the precision. `architecture`
    names the network of a bare `.pth` file, and the cache's image size and normalisation apply to it.

    Raises:
        ModelFileError: a model file cannot be used.
        ConfigurationError: a model's image size is not the cache's.
        DataError: the cache is damaged.
        CsiJobError: the results cannot be written.
    """
    form: dict[str, Any] = {name: getattr(cache.info, name) for name in ("image_size_px", "normalisation")}
    form |= {"architecture": architecture, "precision": trial.precision}
    device = choose_device(trial)
    loaded = load_model(model_path, device, **form)
    evaluation = _evaluate(loaded, cache, settings)
    writer = _Writer(folder, str(loaded.card.get("study") or ""), [model_path.stem])
    if baseline_path is None:
        loaded.warn_of_others(architecture=architecture)
        decision = decide(evaluation.to_json())
        return EvaluationRun(evaluation, None, decision, writer.write_evaluation(evaluation, decision, model_path.stem))
    baseline = _evaluate(load_model(baseline_path, device, **form), cache, settings)
    same_stem = baseline_path.stem == model_path.stem and real_path(baseline_path) != real_path(model_path)
    stem = f"{baseline_path.stem}_as_baseline" if same_stem else baseline_path.stem
    writer.stems += [stem, "comparison"]
    comparison = compare_evaluations(evaluation, baseline)
    compared = comparison.to_json()
    decision = decide(evaluation.to_json(), compared, baseline.to_json(), sum(cache.num_patients.values()))
    compared["outcome"] = f"{decision.action}. {decision.evidence}"
    files = (
        *writer.write_evaluation(evaluation, decision, model_path.stem),
        *writer.write_evaluation(baseline, decision, stem),
        *writer.write("comparison", compared, comparison_page(comparison, decision, writer.links("comparison"))),
    )
    return EvaluationRun(evaluation, comparison, decision, files)


@dataclass
class _Writer:
    """Writes the files of a run, whose pages link to each other and to the study's."""

    models: ModelFolder
    study: str
    stems: list[str]
    """Of the pages that this run writes."""

    def links(self, stem: str) -> list[Link]:
        soon = [self.models.evaluation_page(name) for name in self.stems]
        return page_links(self.models, self.study, self.models.evaluation_page(stem), soon=soon)

    def write_evaluation(self, evaluation: Evaluation, decision: Decision, stem: str) -> tuple[Path, ...]:
        page = evaluation_page(evaluation, decision, self.links(stem))
        return self.write(stem, evaluation.to_json(), page, split_predictions_csv(evaluation.predictions))

    def write(self, stem: str, content: dict[str, Any], page: str, predictions: str = "") -> tuple[Path, ...]:
        """Write `<stem>.json`, `<stem>_plots.html` and, if there are any, `<stem>_predictions.csv`."""
        folder = self.models.evaluations
        files = {
            self.models.evaluation_page(stem): page,
            folder / f"{stem}_predictions.csv": predictions,
            folder / f"{stem}.json": json_text(content),
        }
        with explain_os_errors("the evaluation cannot be written", folder, hint="choose another --work"):
            share_plotly(make_folder(folder))
            for path, text in files.items():
                if text:
                    write_atomic(path, text)
        return tuple(path for path, text in reversed(files.items()) if text)


def _evaluate(loaded: LoadedModel, cache: Cache, settings: EvaluationSettings) -> Evaluation:
    info = cache.info
    if loaded.image_size_px != info.image_size_px:
        what = f"{loaded.name} is for images of {loaded.image_size_px} px, the cache holds {info.image_size_px} px"
        raise ConfigurationError(what, hint=f"use --image-size {loaded.image_size_px}")
    data = loaded.card.get("data")
    data = data if isinstance(data, dict) else {}
    warning = ""
    if data.get("cache") != info.key:
        warning = OTHER_CACHE if data.get("cache") else NO_CACHE
    elif OTHER_DATA in str(data.get("warnings")):
        warning = SEARCHED_ELSEWHERE
    evaluation = evaluate_model(
        loaded,
        cache.split("test"),
        settings,
        split="test",
        cache=info.key,
        train_zones_NZ=cache.train.zones_NZ,
        warnings=[*([warning.format(name=loaded.name)] if warning else []), *info.split_warnings],
    )
    return replace(evaluation, is_unseen=not warning and not info.split_warnings)
