"""Everything that a report consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi_job.logs import announced
from csi_job.report.figures.plots import write_best_params, write_plots
from csi_job.report.page.page import write_report
from csi_job.report.results import load_cache_info
from csi_job.report.settings_file import write_settings
from csi_job.report.study_view import view_study

if TYPE_CHECKING:
    from pathlib import Path

    import optuna

    from csi_job.work_folder import WorkFolder


def write_results(study: optuna.Study, folder: WorkFolder) -> list[Path]:
    """Write the best parameters, settings, plots and report to `models/hyperopt/`; return the files."""
    with announced("writing plots and report"):
        view = view_study(study)
        best = write_best_params(view, folder.best_params(view.name))
        settings = write_settings(view, load_cache_info(view, folder), folder.study_settings(view.name))
        files = [*filter(None, (best, settings)), *write_plots(view, folder.hyperopt)]
        return [*files, write_report(view, folder.root)]
