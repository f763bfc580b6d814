"""What a trial's state and attributes say of it in one word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from optuna.trial import TrialState

from csi_job.study.attributes import CANCELLED, INFEASIBLE

Outcome = Literal["complete", "pruned", "infeasible", "failed", "cancelled", "running", "waiting"]
OUTCOMES: Final[tuple[Outcome, ...]] = (
    "complete",
    "pruned",
    "infeasible",
    "failed",
    "cancelled",
    "running",
    "waiting",
)
_OF_STATE: Final[dict[TrialState, Outcome]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def outcome_of(state: TrialState, user_attrs: Mapping[str, Any]) -> Outcome:
    """Return the outcome of a trial; `infeasible` is a kind of pruned, `cancelled` one of failed."""
    if state is TrialState.PRUNED and user_attrs.get(INFEASIBLE):
        return "infeasible"
    if state is TrialState.FAIL and user_attrs.get(CANCELLED):
        return "cancelled"
    return _OF_STATE[state]
