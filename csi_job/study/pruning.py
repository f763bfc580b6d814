"""Pruners that compare equal epochs, fed with one row instead of the whole study."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import sqlalchemy as sa
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Row

from csi_job.storage.attributes import CONSTRAINT, CURVE, GFLOPS
from csi_job.storage.engine import median_of
from csi_job.storage.optuna_private import PrunerStudy, study_id_of, trial_id_of
from csi_job.storage.storage import storage_of
from csi_job.storage.tables import STEPS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES
from csi_job.study.settings import StudySettings

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

NUM_COMPARED: Final = 5  # finished trials that must have reached an epoch before any trial is pruned there
NUM_UNJUDGED: Final = 1  # epochs at the start, in which the learning rate only rises
REDUCTION: Final = 4  # successive halving looks at epochs 1, 4, 16, … in every phase, whatever its max_epochs
RUNG: Final = "completed_rung_"


@dataclass(frozen=True)
class _Compared:
    """What successive halving looks at in another trial."""

    system_attrs: dict[str, Any]


@dataclass(frozen=True)
class _View(PrunerStudy):
    """The study as successive halving sees it: the rungs of the other trials, read when asked for."""

    study: Study
    trial: FrozenTrial

    @property
    def direction(self) -> StudyDirection:
        return self.study.direction

    def get_trials(self, *, deepcopy: bool = False) -> list[_Compared]:
        """Return what is known of all other trials' rungs."""
        del deepcopy
        study_id, mine = study_id_of(self.study), trial_id_of(self.trial)
        rungs = storage_of(self.study).read(lambda connection: _rungs(connection, study_id, mine))
        return [_Compared(rung) for rung in rungs]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write a rung of successive halving, fenced."""
        storage_of(self.study).set_trial_system_attr(trial_id, key, value)
        self.trial.system_attrs[key] = value


def make_pruner(settings: StudySettings) -> BasePruner:
    """Return the pruner that the settings name; ask it by `should_prune`."""
    if settings.pruner == "median":
        return MedianPruner(NUM_COMPARED, n_warmup_steps=NUM_UNJUDGED, n_min_trials=NUM_COMPARED)
    if settings.pruner == "successive_halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    return NopPruner()


def median_question(study: Study, step: int) -> sa.Select[Any] | None:
    """Return the query of how many complete trials have a value at this epoch, and of their median.

    None where no median is wanted: with another pruner, with two objectives, or at the first epochs. The database
    sorts, so that one row comes back however many trials there are.
    """
    is_median = isinstance(study.pruner, MedianPruner) and len(study.directions) == 1
    if not is_median or step < NUM_UNJUDGED:
        return None
    value = STEPS.c.intermediate_value
    at_step = (
        sa.select(value.label("value"))
        .join(TRIALS, TRIALS.c.trial_id == STEPS.c.trial_id)
        .where(TRIALS.c.study_id == study_id_of(study), TRIALS.c.state == TrialState.COMPLETE)
        .where(STEPS.c.step == step, value.is_not(None))  # None: not a number, or infinite
    )
    return median_of(at_step.subquery("at_step").c.value, sqlite=storage_of(study).address.is_sqlite)


def should_prune(study: Study, trial: FrozenTrial, answer: Row[Any] | None = None) -> bool:
    """Tell whether a trial's last epoch is so much worse than others at the same epoch that it should end.

    As Optuna's own pruners on the whole study, which they would read at every epoch. Infeasible trials are left out.

    Args:
        study: with the pruner of `make_pruner`.
        trial: with the values of its epochs so far.
        answer: to the `median_question` of the last epoch, where it was asked already.

    """
    step = trial.last_step
    if step is None or step < NUM_UNJUDGED:
        return False
    if answer is None:
        if (question := median_question(study, step)) is None:
            return study.pruner.prune(cast("Study", _View(study, trial)), trial)
        answer = storage_of(study).read(lambda connection: connection.execute(question).one())
    return _is_below(max(trial.intermediate_values.values()), answer.num_values, answer.median)


def _is_below(best: float, num_values: int, median: float | None) -> bool:
    """Return whether the best value of a trial so far is below the median of enough others, or no number at all."""
    return num_values >= NUM_COMPARED and (math.isnan(best) or best < cast("float", median))


def should_prune_at_cost(study: Study, curve: dict[int, float], gflops: float) -> bool:
    """As `should_prune` for two objectives, on F1 among the trials that cost no more.

    Pruning on F1 alone would cut the cheap end of the Pareto front. A trial ends when its best F1 so far is below the
    median, at the same epoch, of the finished trials that cost at most as much.
    """
    step, study_id = max(curve, default=-1), study_id_of(study)
    if isinstance(study.pruner, NopPruner) or step < NUM_UNJUDGED:
        return False
    others = storage_of(study).read(lambda connection: _curves(connection, study_id))
    values = [other[step] for cost, other in others if cost <= gflops and step in other]
    return _is_below(max(curve.values()), len(values), float(np.median(values)) if values else None)


def _rungs(connection: Connection, study_id: int, but: int) -> list[dict[str, Any]]:
    infeasible = sa.select(SYSTEM_ATTRIBUTES.c.trial_id).where(SYSTEM_ATTRIBUTES.c.key == CONSTRAINT)
    query = sa.select(SYSTEM_ATTRIBUTES.c.key, SYSTEM_ATTRIBUTES.c.value_json).join(
        TRIALS, TRIALS.c.trial_id == SYSTEM_ATTRIBUTES.c.trial_id
    )
    others = query.where(
        TRIALS.c.study_id == study_id,
        TRIALS.c.trial_id != but,
        SYSTEM_ATTRIBUTES.c.key.startswith(RUNG, autoescape=True),
        TRIALS.c.trial_id.not_in(infeasible),
    )
    return [{row.key: json.loads(row.value_json)} for row in connection.execute(others)]


def _curves(connection: Connection, study_id: int) -> list[tuple[float, dict[int, float]]]:
    """Return cost and F1 by epoch of each complete trial."""
    query = sa.select(USER_ATTRIBUTES).join(TRIALS, TRIALS.c.trial_id == USER_ATTRIBUTES.c.trial_id)
    wanted = USER_ATTRIBUTES.c.key.in_((CURVE, GFLOPS))
    complete = (TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
    trials: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for row in connection.execute(query.where(wanted, *complete)):
        trials[row.trial_id][row.key] = json.loads(row.value_json)
    known = [trial for trial in trials.values() if CURVE in trial and GFLOPS in trial]
    return [(trial[GFLOPS], {int(epoch): float(f1) for epoch, f1 in trial[CURVE]}) for trial in known]
