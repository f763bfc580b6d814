"""The claim: one transaction that hands out a trial without ever exceeding the study's target."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Row

from csi_job.errors import ConfigurationError, CsiJobError, StudyFailedError
from csi_job.logs import get_logger
from csi_job.storage.attributes import CANCELLED, REASON, TARGET
from csi_job.storage.engine import lock_study, now_s, upsert
from csi_job.storage.lease import GIVEN_BACK_S, Lease, is_orphan, running_trials
from csi_job.storage.storage import StudyStorage
from csi_job.storage.tables import LEASES, STUDY_ATTRIBUTES, TRIALS, USER_ATTRIBUTES
from csi_job.storage.trial_rows import TrialWrite, insert_trial, set_state, write_trial

logger = get_logger(__name__)


@dataclass(frozen=True)
class Claim:
    """A trial to run."""

    lease: Lease
    taken_over: bool
    checkpoint: str | None
    """The promoted checkpoint, relative to the work folder."""


@dataclass(frozen=True)
class NothingToClaim:
    """Why there is no trial to run: the target is reached, or covered by the trials of others."""

    num_finished: int
    target: int
    running: dict[int, float]
    """Other workers' trials by id, with the time their lease was renewed."""


@dataclass(frozen=True)
class Counts:
    """Trials of a study by what they mean for the target."""

    num_finished: int
    num_running: int
    num_waiting: int
    num_failed: int
    """Without the cancelled ones."""
    num_all: int
    target: int

    @property
    def num_free(self) -> int:
        """Return how many more trials the target allows; below 0, so many are too many."""
        return self.target - self.num_finished - self.num_running - self.num_waiting


def claim_trial(
    storage: StudyStorage, study_id: int, *, token: str, owner: str, max_attempts: int, max_failed: int
) -> Claim | NothingToClaim:
    """Take over an orphan, else start a waiting trial, else a new one, if the target allows.

    Args:
        storage: the storage.
        study_id: the study.
        token: a token that no other claim has; it settles a COMMIT whose answer was lost.
        owner: who claims, as `owner_name` says.
        max_attempts: attempts that may end without a finished epoch before a trial is told FAIL.
        max_failed: failed trials past which nothing is handed out.

    Raises:
        CsiJobError: more trials failed than `max_failed`.
        ConfigurationError: the study was deleted.

    """
    claimant = _Claimant(study_id, token, owner, storage.lease_s, max_attempts, max_failed)
    outcome = storage.write(claimant.claim)
    if isinstance(outcome, CsiJobError):
        raise outcome
    return outcome


@dataclass
class _Claimant:
    """One claim, which may be tried several times under the same token."""

    study_id: int
    token: str
    owner: str
    lease_s: float
    max_attempts: int
    max_failed: int
    tried: bool = False

    def claim(self, connection: Connection) -> Claim | NothingToClaim | CsiJobError:
        """Return a trial, or why there is none; an error is returned, so that what was decided is committed."""
        if not lock_study(connection, self.study_id):
            return ConfigurationError("the study was deleted", hint="start again to make it anew")
        settled = self._settled(connection) if self.tried else None
        self.tried = True
        return settled or self._decided(connection)

    def _decided(self, connection: Connection) -> Claim | NothingToClaim | CsiJobError:
        counts, running = _look(connection, self.study_id)
        orphans = [row for row in running if is_orphan(row)]
        left = [row for row in orphans if not self._failed_as_hopeless(connection, row)]
        if len(left) < len(orphans):
            counts = count_trials(connection, self.study_id)
        if counts.num_failed > self.max_failed:
            return _too_many_failures(connection, self.study_id, counts.num_failed)
        counts = cancel_excess(connection, self.study_id, counts)
        taken = next((claim for row in left if (claim := self._take_over(connection, row))), None)
        if taken is not None:
            return taken
        if counts.num_waiting:
            return self._start_waiting(connection)
        if counts.num_free > 0:
            return self._start_new(connection, counts.num_all)
        return NothingToClaim(
            counts.num_finished, counts.target, {row.trial_id: row.renewed_at_s or 0.0 for row in running}
        )

    def _settled(self, connection: Connection) -> Claim | None:
        """Return the claim whose COMMIT was answered to nobody; under the lock it is there or never will be."""
        query = sa.select(LEASES, TRIALS.c.number).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
        row = connection.execute(
            query.where(LEASES.c.token == self.token, TRIALS.c.state == TrialState.RUNNING)
        ).first()
        if row is None:
            return None
        lease = Lease(row.trial_id, row.number, self.token, row.attempt)
        return Claim(lease, taken_over=row.attempt > 1, checkpoint=row.checkpoint)

    def _failed_as_hopeless(self, connection: Connection, row: Row[Any]) -> bool:
        num_lost = _num_lost(row)
        if num_lost < self.max_attempts:
            return False
        if self._seize(connection, row, attempt=row.attempt):
            reason = f"no epoch was finished in {num_lost} attempts, whose workers died or stalled"
            write_trial(connection, row.trial_id, TrialWrite(user_attrs={REASON: reason}, state=TrialState.FAIL))
            logger.warning("trial %d failed: %s", row.number, reason)
        return True

    def _take_over(self, connection: Connection, row: Row[Any]) -> Claim | None:
        attempt = (row.attempt or 1) + 1
        if not self._seize(connection, row, attempt=attempt):
            return None
        return Claim(Lease(row.trial_id, row.number, self.token, attempt), taken_over=True, checkpoint=row.checkpoint)

    def _seize(self, connection: Connection, row: Row[Any], *, attempt: int) -> bool:
        """Make the lease ours, unless its owner came back since it was read."""
        if row.token is None:
            self._grant(connection, row.trial_id, attempt=attempt)
            return True
        unchanged = (LEASES.c.trial_id == row.trial_id, LEASES.c.token == row.token)
        changes = {
            "token": self.token,
            "owner": self.owner,
            "attempt": attempt,
            "renewed_at_s": now_s(connection),
            "lease_s": self.lease_s,
            "num_epochs": 0,
            "num_lost": _num_lost(row),
        }
        seize = sa.update(LEASES).where(*unchanged, LEASES.c.renewed_at_s == row.renewed_at_s).values(**changes)
        return bool(connection.execute(seize).rowcount)

    def _grant(self, connection: Connection, trial_id: int, *, attempt: int) -> None:
        row = {
            "trial_id": trial_id,
            "token": self.token,
            "owner": self.owner,
            "attempt": attempt,
            "renewed_at_s": now_s(connection),
            "lease_s": self.lease_s,
            "num_epochs": 0,
            "num_lost": 0,
            "checkpoint": None,
        }
        upsert(connection, LEASES, [row], ("trial_id",))

    def _start_waiting(self, connection: Connection) -> Claim:
        waiting = _waiting(self.study_id).order_by(TRIALS.c.trial_id).limit(1)
        row = connection.execute(waiting).one()
        set_state(connection, row.trial_id, TrialState.RUNNING)
        self._grant(connection, row.trial_id, attempt=1)
        return Claim(Lease(row.trial_id, row.number, self.token, attempt=1), taken_over=False, checkpoint=None)

    def _start_new(self, connection: Connection, number: int) -> Claim:
        trial_id = insert_trial(connection, self.study_id, number, TrialState.RUNNING)
        self._grant(connection, trial_id, attempt=1)
        return Claim(Lease(trial_id, number, self.token, attempt=1), taken_over=False, checkpoint=None)


def _num_lost(row: Row[Any]) -> int:
    """Return how many attempts of a trial ended without a finished epoch and were not given back."""
    if row.token is None:
        return 0
    lost = row.num_epochs == 0 and row.renewed_at_s != GIVEN_BACK_S
    return int(row.num_lost) + int(lost)


def count_trials(connection: Connection, study_id: int) -> Counts:
    """Count a study's trials; exact under its lock.

    Raises:
        ConfigurationError: the study has no target, so it is another program's.

    """
    return _counts(connection.execute(_counting(study_id)).one())


def _look(connection: Connection, study_id: int) -> tuple[Counts, list[Row[Any]]]:
    """Return the counts of a study's trials and its running ones, in one statement."""
    counts, running = _counting(study_id).subquery("counts"), running_trials(connection, study_id).subquery("running")
    query = sa.select(*counts.c, *running.c).select_from(counts.outerjoin(running, sa.true()))
    rows = connection.execute(query.order_by(running.c.number)).all()
    return _counts(rows[0]), [row for row in rows if row.trial_id is not None]


def _counting(study_id: int) -> sa.Select[Any]:
    """Return the query of `Counts`, one row."""
    of_study = TRIALS.c.study_id == study_id
    is_target = sa.and_(STUDY_ATTRIBUTES.c.study_id == study_id, STUDY_ATTRIBUTES.c.key == TARGET)
    cancelled = (
        sa.select(sa.func.count())
        .select_from(TRIALS.join(USER_ATTRIBUTES, USER_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id))
        .where(of_study, TRIALS.c.state == TrialState.FAIL, USER_ATTRIBUTES.c.key == CANCELLED)
    )
    return sa.select(
        _num_in(TrialState.COMPLETE, TrialState.PRUNED).label("num_finished"),
        _num_in(TrialState.RUNNING).label("num_running"),
        _num_in(TrialState.WAITING).label("num_waiting"),
        _num_in(TrialState.FAIL).label("num_failed"),
        sa.func.count().label("num_all"),
        cancelled.scalar_subquery().label("num_cancelled"),
        sa.select(STUDY_ATTRIBUTES.c.value_json).where(is_target).scalar_subquery().label("target"),
    ).where(of_study)


def _num_in(*states: TrialState) -> sa.ColumnElement[int]:
    return sa.func.count().filter(TRIALS.c.state.in_(states))


def _counts(row: Row[Any]) -> Counts:
    if row.target is None:
        message = "this study was not made by csi-job: it has no target"
        raise ConfigurationError(message, hint="choose another study name")
    return Counts(
        num_finished=row.num_finished,
        num_running=row.num_running,
        num_waiting=row.num_waiting,
        num_failed=row.num_failed - row.num_cancelled,
        num_all=row.num_all,
        target=int(json.loads(row.target)),
    )


def cancel_excess(connection: Connection, study_id: int, counts: Counts) -> Counts:
    """Cancel the waiting trials beyond the target, the last enqueued first, and say so."""
    excess = min(max(-counts.num_free, 0), counts.num_waiting)
    if not excess:
        return counts
    rows = connection.execute(_waiting(study_id).order_by(TRIALS.c.trial_id.desc()).limit(excess)).all()
    reason = f"cancelled while waiting: beyond the study's total of {counts.target}"
    for row in rows:
        write = TrialWrite(user_attrs={CANCELLED: True, REASON: reason}, state=TrialState.FAIL)
        write_trial(connection, row.trial_id, write)
    numbers = ", ".join(str(row.number) for row in reversed(rows))
    logger.warning("waiting trials beyond the study's total of %d are cancelled: %s", counts.target, numbers)
    return replace(counts, num_waiting=counts.num_waiting - excess)


def _waiting(study_id: int) -> sa.Select[tuple[int, int]]:
    is_waiting = sa.and_(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.WAITING)
    return sa.select(TRIALS.c.trial_id, TRIALS.c.number).where(is_waiting)


def _too_many_failures(connection: Connection, study_id: int, num_failed: int) -> StudyFailedError:
    is_reason = sa.and_(USER_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, USER_ATTRIBUTES.c.key == REASON)
    failed = sa.and_(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.FAIL)
    query = sa.select(USER_ATTRIBUTES.c.value_json).join(TRIALS, is_reason).where(failed)
    last = connection.execute(query.order_by(TRIALS.c.trial_id.desc()).limit(1)).scalar()
    message = (
        f"{num_failed} trials failed, the study stops; the last one: {json.loads(last) if last else 'no reason known'}"
    )
    return StudyFailedError(message, hint="mend the cause, then raise study.max_failed_trials to go on")
