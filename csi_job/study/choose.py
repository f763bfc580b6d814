"""Which trial is the study's result."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from csi_job.study.attributes import F1_STD


@dataclass(frozen=True)
class ChosenTrial:
    """The chosen trial and the rule that chose it, one sentence."""

    trial: FrozenTrial
    rule: str


def choose_trial(study: optuna.Study) -> ChosenTrial | None:
    """Return the trial with the best F1, or with two objectives the cheapest that is as good within the uncertainty.

    The one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984): of all trials whose
    `val_f1` is at most one standard error below the best, the one with the fewest GFLOPs.

    Returns:
        None while no trial is complete.

    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return None
    leader = max(complete, key=lambda trial: (trial.values[0], -trial.number))
    best_f1 = leader.values[0]
    if len(study.directions) == 1:
        return ChosenTrial(leader, f"the best val_f1, {best_f1:.4f}")
    error = float(leader.user_attrs.get(F1_STD) or 0.0)
    equals = [trial for trial in complete if trial.values[0] >= best_f1 - error]
    chosen = min(equals, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))
    rule = (
        f"the cheapest trial whose val_f1 is within one standard error ({error:.4f}, by patients) of the best, "
        f"{best_f1:.4f} of trial {leader.number}"
    )
    return ChosenTrial(chosen, rule)
