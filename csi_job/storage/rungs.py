"""Rungs: the epochs at which a trial competes with all that reached them, and pauses unless it is among the best.

Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020). A rung is read
from the stored epochs, so that nothing else has to agree with them. A paused trial is a running one whose lease was
released by the attempt that its attribute `PAUSED` names.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Row

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
    """Return who stands where in these rungs, the highest rung first, and the best of each."""
    rung, so_far, bracket = STEPS.alias("rung"), STEPS.alias("so_far"), USER_ATTRIBUTES.alias("bracket")
    is_bracket = sa.and_(bracket.c.trial_id == TRIALS.c.trial_id, bracket.c.key == BRACKET)
    is_before = sa.and_(so_far.c.trial_id == rung.c.trial_id, so_far.c.step <= rung.c.step)
    is_violated = (SYSTEM_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, SYSTEM_ATTRIBUTES.c.key == CONSTRAINT)
    columns = (TRIALS.c.trial_id, rung.c.step, rung.c.intermediate_value.label("last"), bracket.c.value_json)
    best = sa.func.max(so_far.c.intermediate_value).label("best")
    query: sa.Select[Any] = (
        sa.select(*columns, best)
        .join(rung, rung.c.trial_id == TRIALS.c.trial_id)
        .join(so_far, is_before)
        .outerjoin(bracket, is_bracket)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state != TrialState.FAIL, rung.c.step.in_(steps))
        .where(~sa.select(sa.literal(1)).where(*is_violated).exists())
        .group_by(*columns)
    )
    rivals: defaultdict[tuple[int, int], list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(query):
        if row.last is not None:  # a number
            rivals[row.step, json.loads(row.value_json or "0")].append(row)
    ranked = (sorted(rows, key=lambda row: (-row.best, row.trial_id)) for _, rows in sorted(rivals.items())[::-1])
    return [
        Standing(row.trial_id, row.step, row.last, place, len(rows))
        for rows in ranked
        for place, row in enumerate(rows, start=1)
    ]


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
