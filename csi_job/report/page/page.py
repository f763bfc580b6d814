"""One page about a study: the answer first, the evidence after it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from csi_job.files import write_text
from csi_job.html.render import render
from csi_job.report.page import answer, sections_background, sections_result, sections_search
from csi_job.report.page.blocks import Figure, Section
from csi_job.report.results import load_results
from csi_job.report.study_view import chosen_trial, view_study

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

    from csi_job.report.results import Results
    from csi_job.report.study_view import Choice, StudyView


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
    page = render(
        "csi_job.report.page",
        "report.html.j2",
        title=f"{view.name}, report of a hyperparameter search",
        study_name=view.name,
        state=answer.state(view),
        answer=answer.answer(view, choice, results),
        key_figures=answer.key_figures(view, choice, results),
        sections=sections,
        has_plots=any(isinstance(block, Figure) and block.plot.figure for part in sections for block in part.blocks),
        footer=f"Made by csi-job, {datetime.now(UTC):%d %B %Y, %H:%M} UTC. For research, not for clinical use.",
    )
    return write_text(work / "models" / "hyperopt" / f"{view.name}_report.html", page)


def _sections(view: StudyView, choice: Choice, results: Results) -> list[Section]:
    sections = [
        sections_result.settings_found(view, choice, results),
        sections_result.candidates(results),
        sections_result.test_result(results),
        sections_search.best_trials(view, choice),
        sections_search.progress(view, choice),
        sections_search.trade(view, choice),
        sections_search.parameters(view, choice),
        sections_search.cost(view),
        sections_search.failures(view),
        sections_background.data(results.cache),
        sections_result.models(results),
        sections_background.reproduce(view, results.cache),
        sections_background.glossary(),
    ]
    return [section for section in sections if section is not None]
