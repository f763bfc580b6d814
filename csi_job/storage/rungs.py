"""Rungs: the epochs at which a trial competes with all that reached them, and pauses unless it is among the best.

Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020). A rung is read
from the stored epochs, so that nothing else has to agree with them. A paused trial is a running one whose lease was
released by the attempt that its attribute `PAUSED` names.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from csi_job.storage.attributes import BRACKET, CONSTRAINT, CURVE, REASON
from csi_job.storage.tables import STEPS, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES
from csi_job.storage.trial_rows import TrialWrite, write_trial


@dataclass(frozen=True)
class Standing:
    """How a trial compares with all feasible trials of its bracket that reached a rung."""

    trial_id: int
    step: int
    """The epoch, from 0."""
    last_value: float
    place: int
    """From 1, by the best value so far."""
    num_rivals: int
    """With this trial."""

    def is_promoted(self, reduction_factor: int, at_least: int = 0) -> bool:
        """Whether it is among the best of its rung."""
        return self.place <= max(self.num_rivals // reduction_factor, at_least)

    def is_beaten(self, reduction_factor: int, target: int) -> bool:
        """Whether it would not be promoted even if every other trial of the study's total were worse."""
        return self.place > max(target // reduction_factor, 1)


def standings(connection: Connection, study_id: int, steps: Collection[int] | sa.Select[tuple[int]]) -> list[Standing]:
    """Return the place of each running trial in these rungs, the highest rung first, and the best of each.

    The database ranks them among all trials that reached the rung, so that few rows are read.
    """
    rung, so_far, attribute = STEPS.alias("rung"), STEPS.alias("so_far"), USER_ATTRIBUTES.alias("bracket")
    is_bracket = sa.and_(attribute.c.trial_id == TRIALS.c.trial_id, attribute.c.key == BRACKET)
    is_before = sa.and_(so_far.c.trial_id == rung.c.trial_id, so_far.c.step <= rung.c.step)
    is_violated = (SYSTEM_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, SYSTEM_ATTRIBUTES.c.key == CONSTRAINT)
    bracket = sa.cast(sa.func.coalesce(attribute.c.value_json, "0"), sa.Integer)
    rivals, best_first = (rung.c.step, bracket), (sa.func.max(so_far.c.intermediate_value).desc(), TRIALS.c.trial_id)
    columns = (TRIALS.c.trial_id, TRIALS.c.state, rung.c.step, rung.c.intermediate_value)
    ranked = (
        sa.select(
            *columns,
            bracket.label("bracket"),
            sa.func.row_number().over(partition_by=rivals, order_by=best_first).label("place"),
            sa.func.count().over(partition_by=rivals).label("num_rivals"),
        )
        .join(rung, rung.c.trial_id == TRIALS.c.trial_id)
        .join(so_far, is_before)
        .outerjoin(attribute, is_bracket)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state != TrialState.FAIL, rung.c.step.in_(steps))
        .where(rung.c.intermediate_value.is_not(None))  # a number
        .where(~sa.select(sa.literal(1)).where(*is_violated).exists())
        .group_by(*columns, attribute.c.value_json)
        .subquery()
    )
    of_running = sa.select(ranked).where(ranked.c.state == TrialState.RUNNING)
    rows = connection.execute(of_running.order_by(ranked.c.step.desc(), ranked.c.bracket.desc(), ranked.c.place))
    return [Standing(row.trial_id, row.step, row.intermediate_value, row.place, row.num_rivals) for row in rows]


def standings_of_paused(connection: Connection, study_id: int, trial_ids: Collection[int]) -> list[Standing]:
    """Return the standing of each paused trial in the rung in which it waits, in the order of `standings`."""
    last = sa.select(sa.func.max(STEPS.c.step)).where(STEPS.c.trial_id.in_(trial_ids)).group_by(STEPS.c.trial_id)
    found: dict[int, Standing] = {}
    for standing in standings(connection, study_id, last):
        if standing.trial_id in trial_ids:
            found.setdefault(standing.trial_id, standing)  # its highest rung
    return [*found.values()]


def prune_paused(connection: Connection, pruned: Iterable[Standing]) -> None:
    """Finish paused trials; the caller holds the study's lock."""
    for standing in pruned:
        reason = f"paused after epoch {standing.step + 1}, where others were better"
        write = TrialWrite(user_attrs={REASON: reason}, values=[standing.last_value], state=TrialState.PRUNED)
        write_trial(connection, standing.trial_id, write)


def has_complete(connection: Connection, study_id: int) -> bool:
    """Return whether a trial of a study is complete."""
    is_complete = (TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
    return connection.execute(sa.select(TRIALS.c.trial_id).where(*is_complete).limit(1)).first() is not None


def count_epochs(connection: Connection, study_id: int) -> int:
    """Return the number of epochs stored over all trials of a study, whatever became of them."""
    is_here = TRIALS.c.study_id == study_id
    steps = sa.select(sa.func.count()).select_from(STEPS.join(TRIALS, TRIALS.c.trial_id == STEPS.c.trial_id))
    curves = sa.select(USER_ATTRIBUTES.c.value_json).join(TRIALS, TRIALS.c.trial_id == USER_ATTRIBUTES.c.trial_id)
    texts = connection.execute(curves.where(is_here, USER_ATTRIBUTES.c.key == CURVE)).scalars()
    return connection.execute(steps.where(is_here)).scalar_one() + sum(len(json.loads(text)) for text in texts)
