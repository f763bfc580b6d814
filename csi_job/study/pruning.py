"""Pruners that compare trials at the same epoch, and read one row instead of the whole study."""

import json
import math
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal, cast

import sqlalchemy as sa
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Row

from csi_job.storage import attributes as stored
from csi_job.storage.engine import median_of
from csi_job.storage.optuna_private import PrunerStudy, hyperband_bracket, study_id_of, trial_id_of
from csi_job.storage.rungs import Rungs, standings
from csi_job.storage.storage import storage_of
from csi_job.storage.tables import STEPS, SYSTEM_ATTRIBUTES, TRIALS
from csi_job.study.settings import PAUSING, StudySettings

N_MIN_TRIALS: Final = 5  # complete trials that must have reached an epoch before any trial is pruned there
N_WARMUP_STEPS: Final = 1  # epochs without pruning: at first the learning rate only rises
HALVING_FACTOR: Final = 4  # of successive halving, which compares trials at epochs 1, 4, 16, … from 0


def make_pruner(settings: StudySettings) -> BasePruner:
    """Return the pruner for these settings; call it through `should_prune`."""
    if settings.pruner == "median":
        return MedianPruner()
    if settings.pruner == "successive_halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=HALVING_FACTOR)
    return NopPruner()


def should_prune(study: Study, trial: FrozenTrial, median_row: Row[Any] | None = None) -> bool:
    """Return whether a trial's last epoch is so much worse than others at the same epoch that it should end.

    Decides like Optuna's own pruners, which would read the whole study at every epoch, but leaves out infeasible
    trials.

    Args:
        study: with the pruner of `make_pruner`.
        trial: with the values of its epochs so far.
        median_row: the result of `median_query` for the last epoch, if it is known already.
    """
    step = trial.last_step
    if step is None or step < N_WARMUP_STEPS:
        return False
    if isinstance(study.pruner, MedianPruner):
        return study.pruner.prune(study, trial, median_row)
    return study.pruner.prune(cast("Study", _StudyShim(study, trial)), trial)


class MedianPruner(BasePruner):
    """Optuna's median pruner, with the median computed by the database."""

    def prune(self, study: Study, trial: FrozenTrial, median_row: Row[Any] | None = None) -> bool:
        """Return whether the trial's best value is below the median at its last epoch."""
        best = stored.best_of(trial.intermediate_values.values())
        if best is None:
            complete = (TRIALS.c.study_id == study_id_of(study), TRIALS.c.state == TrialState.COMPLETE)
            count = sa.select(sa.func.count()).select_from(TRIALS).where(*complete)
            return storage_of(study).read(lambda connection: connection.execute(count).scalar_one()) >= N_MIN_TRIALS
        if median_row is None:
            query = median_query(study, trial.last_step or 0)
            if query is None:
                return False
            median_row = storage_of(study).read(lambda connection: connection.execute(query).one())
        return median_row.num_rows >= N_MIN_TRIALS and median_row.median is not None and best < median_row.median


def rungs_of(study: Study, trial: FrozenTrial, settings: StudySettings) -> Rungs | None:
    """Return the rungs at which a trial may be paused, those of its phase; None where the pruner pauses none."""
    if settings.pruner not in PAUSING:
        return None
    given = {stored.MIN_RESOURCE: settings.min_resource, stored.REDUCTION_FACTOR: settings.reduction_factor}
    own = {name: stored.count_of(trial.user_attrs, name) or number for name, number in given.items()}
    return Rungs(**own, bracket=bracket_of(study, trial, settings))


def bracket_of(study: Study, trial: FrozenTrial, settings: StudySettings) -> int:
    """Return the bracket of a trial: as it is stored, else with Hyperband as Optuna chooses it, else 0."""
    known = stored.count_of(trial.user_attrs, stored.BRACKET)
    if known is not None or settings.pruner != "hyperband":
        return known or 0
    max_epochs = stored.count_of(trial.user_attrs, stored.MAX_EPOCHS) or settings.max_epochs
    resources = min(settings.min_resource, max_epochs), max_epochs
    return hyperband_bracket(HyperbandPruner(*resources, settings.reduction_factor), study, trial)


def decide_at_rung(study: Study, trial: FrozenTrial, rungs: Rungs) -> Literal["continue", "pause", "prune"]:
    """Return what becomes of a trial at its last epoch's rung; one that could never be promoted is not worth keeping.

    Read without the study's lock: a claim decides again.
    """
    study_id, step = study_id_of(study), trial.last_step
    assert step is not None
    ranked = storage_of(study).read(lambda connection: standings(connection, study_id, [step], rungs))
    own = next((standing for standing in ranked if standing.trial_id == trial_id_of(trial)), None)
    if own is None or own.is_beaten(stored.target_of(study.user_attrs) or 0):
        return "prune"
    return "continue" if own.is_promoted() else "pause"


def median_query(study: Study, step: int) -> sa.Select[Any] | None:
    """Return the query for the number of complete trials with a value at this epoch, and for their median.

    None where no median is needed: another pruner, two objectives, or the first epochs. As the database sorts, the
    result is one row however many trials there are.
    """
    is_median = isinstance(study.pruner, MedianPruner) and len(study.directions) == 1
    if not is_median or step < N_WARMUP_STEPS:
        return None
    at_step = (
        sa.select(STEPS.c.intermediate_value.label("value"))  # NULL: not a number, or infinite
        .join(TRIALS, TRIALS.c.trial_id == STEPS.c.trial_id)
        .where(TRIALS.c.study_id == study_id_of(study), TRIALS.c.state == TrialState.COMPLETE, STEPS.c.step == step)
    )
    return median_of(at_step.cte("at_step").c.value, sqlite=storage_of(study).address.is_sqlite)


def should_prune_at_cost(study: Study, curve: dict[int, float], gflops: float) -> bool:
    """Return the decision of `should_prune` for two objectives: compare F1 with the trials that cost no more.

    Pruning on F1 alone would cut off the cheap end of the Pareto front. A trial ends if its best F1 so far is below the
    median, at the same epoch, of the complete trials that cost at most as much.
    """
    step = max(curve, default=-1)
    if isinstance(study.pruner, NopPruner) or step < N_WARMUP_STEPS:
        return False
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))  # Optuna reads only what changed
    costs = ((stored.number_of(trial.user_attrs, stored.GFLOPS), stored.curve_of(trial)) for trial in complete)
    others = [(cost, of_other) for cost, of_other in costs if cost is not None and of_other]
    best = stored.best_of(curve.values())
    if best is None:
        return len(others) >= N_MIN_TRIALS
    values = [f1 for cost, of_other in others if cost <= gflops for epoch, f1 in of_other if epoch == step]
    numbers = [value for value in values if not math.isnan(value)]
    return len(values) >= N_MIN_TRIALS and bool(numbers) and best < median(numbers)


@dataclass(frozen=True)
class _TrialShim:
    """What successive halving reads of another trial."""

    system_attrs: dict[str, Any]


@dataclass(frozen=True)
class _StudyShim(PrunerStudy):
    """What successive halving sees of a study: the rungs of the other trials, read when it asks."""

    study: Study
    trial: FrozenTrial

    @property
    def direction(self) -> StudyDirection:
        return self.study.direction

    def get_trials(self, *, deepcopy: bool = False) -> list[_TrialShim]:
        """Return the rungs of the other feasible trials."""
        del deepcopy
        infeasible = sa.select(SYSTEM_ATTRIBUTES.c.trial_id).where(SYSTEM_ATTRIBUTES.c.key == stored.CONSTRAINT)
        query = (
            sa.select(SYSTEM_ATTRIBUTES.c.key, SYSTEM_ATTRIBUTES.c.value_json)
            .join(TRIALS, TRIALS.c.trial_id == SYSTEM_ATTRIBUTES.c.trial_id)
            .where(
                TRIALS.c.study_id == study_id_of(self.study),
                TRIALS.c.trial_id != trial_id_of(self.trial),
                SYSTEM_ATTRIBUTES.c.key.startswith(stored.RUNG_PREFIX, autoescape=True),
                TRIALS.c.trial_id.not_in(infeasible),
            )
        )
        rows = storage_of(self.study).read(lambda connection: connection.execute(query).all())
        found = (stored.readable_by_optuna({row.key: json.loads(row.value_json)}, {}) for row in rows)
        return [_TrialShim(rung) for rung in found]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store a rung, fenced."""
        storage_of(self.study).set_trial_system_attr(trial_id, key, value)
        self.trial.system_attrs[key] = value
