"""The files beside the study: interactive plots that open with no network, and the best parameters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from csi_job.files import write_json, write_text
from csi_job.html.render import render
from csi_job.report.figures.history import history_plot
from csi_job.report.figures.importances import importances_plot
from csi_job.report.figures.parameters import parallel_plot
from csi_job.report.figures.pareto import pareto_plot
from csi_job.report.study_view import chosen_trial, view_study
from csi_job.storage.attributes import FINGERPRINT
from csi_job.trial.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

    from csi_job.html.plot import Plot


def write_plots(study: Study, folder: Path) -> list[Path]:
    """Write the plots of a study, each a page of its own; one that has nothing to show says what it waits for.

    Args:
        study: the study, finished or not.
        folder: where the files go; it is made where it is missing.

    Returns:
        the files: `<study>_optimization_history.html`, `_param_importances.html`, `_parallel_coordinate.html`, and
        with two objectives `_pareto_front.html`.

    Raises:
        CsiJobError: the folder cannot be written.

    """
    view = view_study(study)
    choice = chosen_trial(study, view)
    plots = [history_plot(view, choice.trial), importances_plot(view), parallel_plot(view, choice.trial)]
    if view.has_cost:
        plots.append(pareto_plot(view, choice.trial, choice.rule))
    return [write_text(folder / f"{view.name}_{plot.key}.html", _page(plot, view.name)) for plot in plots]


def write_best_params(study: Study, folder: Path) -> Path | None:
    """Write the parameters of the best trial to `<study>_best_params.json`.

    With two objectives it is the trial that `study.choose` chooses.

    Returns:
        the file, or None where no trial is complete yet (an older file is left alone).

    Raises:
        CsiJobError: the folder cannot be written.

    """
    view = view_study(study)
    best = chosen_trial(study, view).trial
    if best is None:
        return None
    content = {
        "study": view.name,
        "trial": best.number,
        "value": best.f1,
        "params": Hyperparameters.from_params(best.params).to_params(),
        "max_epochs": best.phase.max_epochs if best.phase else None,
        "fingerprint": view.attributes.get(FINGERPRINT),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return write_json(folder / f"{view.name}_best_params.json", content)


def _page(plot: Plot, study_name: str) -> str:
    return render(
        "csi_job.report.page",
        "plot.html.j2",
        title=f"{plot.title}, {study_name}",
        study_name=study_name,
        plot=plot,
        has_plots=plot.figure is not None,
        footer=f"Made by csi-job, {datetime.now(UTC):%d %B %Y, %H:%M} UTC.",
    )
