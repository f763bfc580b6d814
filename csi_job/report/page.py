"""One page about a study: the answer first, the evidence after it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from csi_job.report import background_sections, headline, model_sections, study_sections
from csi_job.report.blocks import Figure, Section
from csi_job.report.choice import chosen_trial
from csi_job.report.files import write_text
from csi_job.report.render import render_page
from csi_job.report.results import load_results
from csi_job.report.view import view_study

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

    from csi_job.report.choice import Choice
    from csi_job.report.results import Results
    from csi_job.report.view import StudyView


def write_report(study: Study, work: Path) -> Path:
    """Write `models/hyperopt/<study>_report.html`: one file that opens with no network.

    Args:
        study: the study, finished or not.
        work: the work folder; what later stages left there is shown if it is of this study.

    Returns:
        the file.

    Raises:
        CsiJobError: the folder cannot be written.

    """
    view = view_study(study)
    choice = chosen_trial(study, view)
    results = load_results(view, work)
    sections = _sections(view, choice, results)
    page = render_page(
        "report.html.j2",
        title=f"{view.name}, report of a hyperparameter search",
        study_name=view.name,
        state=headline.state(view),
        answer=headline.answer(view, choice, results),
        key_figures=headline.key_figures(view, choice, results),
        sections=sections,
        has_plots=any(isinstance(block, Figure) and block.plot.figure for part in sections for block in part.blocks),
        footer=f"Made by csi-job, {datetime.now(UTC):%d %B %Y, %H:%M} UTC. For research, not for clinical use.",
    )
    return write_text(work / "models" / "hyperopt" / f"{view.name}_report.html", page)


def _sections(view: StudyView, choice: Choice, results: Results) -> list[Section]:
    sections = [
        model_sections.settings_found(view, choice, results),
        model_sections.candidates(results),
        model_sections.test_result(results),
        study_sections.best_trials(view, choice),
        study_sections.progress(view, choice),
        study_sections.trade(view, choice),
        study_sections.parameters(view, choice),
        study_sections.cost(view),
        study_sections.failures(view),
        background_sections.data(results.cache),
        model_sections.models(results),
        background_sections.reproduce(view, results.cache),
        background_sections.glossary(),
    ]
    return [section for section in sections if section is not None]
