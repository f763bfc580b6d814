"""Which trial the study's result is, as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from csi_job.study.choose import choose_trial

if TYPE_CHECKING:
    from optuna import Study

    from csi_job.report.view import StudyView, TrialView


@dataclass(frozen=True)
class Choice:
    """The chosen trial, None while none is complete, and the rule that chose it, a phrase."""

    trial: TrialView | None
    rule: str = ""


def chosen_trial(study: Study, view: StudyView) -> Choice:
    """Return the trial that `study.choose` chooses."""
    chosen = choose_trial(study)
    if chosen is None:
        return Choice(None)
    return Choice(view.trial(chosen.trial.number), chosen.rule)
