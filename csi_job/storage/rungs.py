"""Rungs: the epochs at which a trial competes with all that reached them, and pauses unless it is among the best.

Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020). A rung is read
from the stored epochs, so that nothing else has to agree with them. A paused trial is a running one whose lease was
released by the attempt that its attribute `PAUSED` names.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from csi_job.storage.attributes import BRACKET, CONSTRAINT, COUNTS, MIN_RESOURCE, REASON, REDUCTION_FACTOR
from csi_job.storage.tables import STEPS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES
from csi_job.storage.trial_rows import TrialWrite, write_rows


@dataclass(frozen=True)
class Rungs:
    """The rungs of a trial, in finished epochs: the first of its bracket, and then by the reduction factor."""

    min_resource: int
    reduction_factor: int
    bracket: int = 0

    def below(self, num_epochs: int) -> Iterator[int]:
        """Yield the rungs below a number of epochs, the lowest first."""
        rung: int = self.min_resource * self.reduction_factor**self.bracket
        while rung < num_epochs:
            yield rung
            rung *= self.reduction_factor

    def __contains__(self, num_epochs: int) -> bool:
        """Return whether there is a rung after this many epochs."""
        return num_epochs in self.below(num_epochs + 1)


@dataclass(frozen=True)
class Standing:
    """How a trial compares with all feasible trials of the same rungs that reached one of them."""

    trial_id: int
    step: int
    """The epoch, from 0."""
    last_value: float
    place: int
    """From 1, by the best value so far."""
    num_rivals: int
    """With this trial."""
    reduction_factor: int

    def is_promoted(self, at_least: int = 0) -> bool:
        """Whether it is among the best of its rung."""
        return self.place <= max(self.num_rivals // self.reduction_factor, at_least)

    def is_beaten(self, target: int) -> bool:
        """Whether it would not be promoted even if every other trial of the study's total were worse."""
        return self.place > max(target // self.reduction_factor, 1)


def standings(connection: Connection, study_id: int, steps: Collection[int], default: Rungs) -> list[Standing]:
    """Return the place of each running trial in these rungs, the highest rung first, and the best of each.

    The database ranks them among all trials of the same rungs that reached this one, so that few rows are read. Trials
    that have none stored, e.g. those that another pruner let pass, count as of the `default`.
    """
    rung, so_far = STEPS.alias("rung"), STEPS.alias("so_far")
    is_before = (so_far.c.trial_id == rung.c.trial_id, so_far.c.step <= rung.c.step)
    best = sa.select(sa.func.max(so_far.c.intermediate_value)).where(*is_before).scalar_subquery()
    is_violated = (SYSTEM_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, SYSTEM_ATTRIBUTES.c.key == CONSTRAINT)
    reached = (
        sa.select(
            *(TRIALS.c.trial_id, TRIALS.c.state, rung.c.step, rung.c.intermediate_value),
            best.label("best"),
            _attribute(BRACKET, 0),
            _attribute(MIN_RESOURCE, default.min_resource),
            _attribute(REDUCTION_FACTOR, default.reduction_factor),
        )
        .join(rung, rung.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state != TrialState.FAIL, rung.c.step.in_(steps))
        .where(rung.c.intermediate_value.is_not(None))  # a number
        .where(~sa.select(sa.literal(1)).where(*is_violated).exists())
        .subquery()
    )
    found = reached.c
    rivals = found.step, found.bracket, found.min_resource, found.reduction_factor
    place = sa.func.row_number().over(partition_by=rivals, order_by=(found.best.desc(), found.trial_id))
    num_rivals = sa.func.count().over(partition_by=rivals)
    ranked = sa.select(reached, place.label("place"), num_rivals.label("num_rivals")).subquery()
    of_running = sa.select(ranked).where(ranked.c.state == TrialState.RUNNING)
    order = ranked.c.step.desc(), ranked.c.bracket.desc(), ranked.c.place, ranked.c.trial_id
    return [
        Standing(row.trial_id, row.step, row.intermediate_value, row.place, row.num_rivals, row.reduction_factor)
        for row in connection.execute(of_running.order_by(*order))
    ]


def _attribute(key: str, default: int) -> sa.Label[int]:
    """Return a count among a trial's attributes as a column; the default also for what another program stored."""
    text = USER_ATTRIBUTES.c.value_json
    is_it = (USER_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, USER_ATTRIBUTES.c.key == key)
    stored = sa.select(text).where(*is_it, text.regexp_match(COUNTS[key])).scalar_subquery()
    return sa.cast(sa.func.coalesce(stored, str(default)), sa.Integer).label(key)


def standings_of_paused(
    connection: Connection, study_id: int, trial_ids: Collection[int], default: Rungs
) -> list[Standing]:
    """Return the standing of each paused trial in the rung in which it waits, in the order of `standings`."""
    last = sa.select(sa.func.max(STEPS.c.step)).where(STEPS.c.trial_id.in_(trial_ids)).group_by(STEPS.c.trial_id)
    # As values: with a subquery, SQLite compares each epoch of a trial with all later ones.
    steps = sorted({*connection.execute(last).scalars()})
    found: dict[int, Standing] = {}
    for standing in standings(connection, study_id, steps, default):
        if standing.trial_id in trial_ids:
            found.setdefault(standing.trial_id, standing)  # its highest rung
    return [*found.values()]


def prune_paused(connection: Connection, pruned: Iterable[Standing]) -> None:
    """Finish paused trials; the caller holds the study's lock."""
    for standing in pruned:
        reason = f"paused after epoch {standing.step + 1}, where others were better"
        write = TrialWrite(user_attrs={REASON: reason}, values=[standing.last_value], state=TrialState.PRUNED)
        write_rows(connection, standing.trial_id, write)
