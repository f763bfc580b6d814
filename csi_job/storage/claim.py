"""Claims: one transaction picks the next trial to run and never exceeds the study's target."""

import json
import logging
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Row

from csi_job.errors import ConfigurationError, CsiJobError, StopRequestedError, StudyFailedError
from csi_job.storage.attributes import (
    CANCELLED,
    MAX_EPOCHS_TOTAL,
    REASON,
    REJECTED,
    SETTINGS,
    TARGET,
    max_epochs_total_of,
    target_of,
)
from csi_job.storage.engine import now_s, upsert
from csi_job.storage.lease import RELEASED_AT_S, Lease, is_in_future, is_orphan, running_trials
from csi_job.storage.rungs import Rungs, prune_paused, standings_of_paused
from csi_job.storage.storage import StudyStorage
from csi_job.storage.study_rows import store_target
from csi_job.storage.tables import LEASES, STUDY_ATTRIBUTES, TRIALS, USER_ATTRIBUTES
from csi_job.storage.trial_rows import TrialWrite, count_epochs, has_complete, insert_running, set_state, write_rows

logger = logging.getLogger(__name__)
RELEASE_S: Final = 10.0  # of waiting for the database, well within a pod's grace period (60 s in the chart)


@dataclass(frozen=True)
class Claim:
    """A trial to run."""

    lease: Lease
    checkpoint: str | None = None
    """The checkpoint stored with its last epoch, relative to the work folder."""
    from_pause: bool = False
    """Whether the trial was paused, and is now among the best of its rung."""
    pruned: tuple[int, ...] = ()
    """The numbers of paused trials that this claim has pruned."""

    @property
    def taken_over(self) -> bool:
        """Whether another worker began the trial."""
        return self.lease.attempt > 1


@dataclass(frozen=True)
class NothingToClaim:
    """Why there is no trial to run: the target is reached, or will be by trials of other workers."""

    num_finished: int
    target: int
    running: dict[int, float]
    """Other workers' trials by id, with the time of their lease's last renewal."""
    pruned: tuple[int, ...] = ()
    """As for `Claim`."""


@dataclass(frozen=True)
class ClaimRules:
    """What a worker may claim."""

    max_attempts: int
    """Attempts without a finished epoch since the last stored one after which a trial fails."""
    max_failed: int
    """Failed trials after which the study does."""
    may_add: bool = True
    """Whether to start new trials."""
    rungs: Rungs | None = None
    """Of paused trials that have none stored; None: none is promoted."""


@dataclass(frozen=True)
class Counts:
    """Trials of a study by what they mean for its target."""

    num_finished: int
    num_running: int
    num_waiting: int
    num_failed: int
    """Without the cancelled and rejected ones, which say nothing about the training."""
    num_all: int
    target: int
    max_epochs_total: int | None
    """Stored epochs of all trials from which on none is started or promoted."""

    @property
    def num_free(self) -> int:
        """How many more trials may start; negative when waiting trials exceed the target."""
        return self.target - self.num_finished - self.num_running - self.num_waiting


def claim_trial(
    storage: StudyStorage, study_id: int, rules: ClaimRules, *, token: str, worker_id: str
) -> Claim | NothingToClaim:
    """Claim an orphaned trial, else a promotable paused one, a waiting one, or a new one if the target allows it.

    Where all that is left are paused trials of no live worker, the best of each rung is promoted, even if it has fewer
    rivals than the reduction factor; then the others are pruned.

    `token` is unique to this claim, so that it is recognised if the reply to its COMMIT is lost; `worker_id` is from
    `lease.worker_id`.

    Raises:
        StudyFailedError: too many trials failed.
        NoStudyError: the study was deleted.
    """
    transaction = _ClaimTransaction(storage, study_id, rules, token, worker_id)
    try:
        outcome = storage.write(transaction.run)
    except StopRequestedError:
        if transaction.tried:  # only the reply to its COMMIT may have been lost
            _release(storage, study_id, token)
        raise
    if isinstance(outcome, CsiJobError):
        raise outcome
    return outcome


def _release(storage: StudyStorage, study_id: int, token: str) -> None:
    """Release what was claimed with a token, if anything was."""

    def transaction(connection: Connection) -> None:
        storage.lock(connection, study_id)  # after the claim, if the server is still at it
        connection.execute(sa.update(LEASES).where(LEASES.c.token == token).values(renewed_at_s=RELEASED_AT_S))

    try:
        storage.write(transaction, limit_s=RELEASE_S, check=False)
    except CsiJobError as error:
        logger.warning("a trial that was being claimed may be resumed only when its lease has expired: %s", error)


@dataclass
class _ClaimTransaction:
    """One claim, which may be tried several times under the same token."""

    storage: StudyStorage
    study_id: int
    rules: ClaimRules
    token: str
    worker_id: str
    tried: bool = False

    def run(self, connection: Connection) -> Claim | NothingToClaim | CsiJobError:
        """Return a trial, or why there is none; errors are returned, so that what was decided is committed."""
        self.storage.lock(connection, self.study_id)
        if self.tried:  # whose reply was lost; under the study's lock, what it committed is there or never will be
            query = sa.select(LEASES, TRIALS.c.number).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
            is_running = sa.and_(TRIALS.c.study_id == self.study_id, TRIALS.c.state == TrialState.RUNNING)
            row = connection.execute(query.where(LEASES.c.token == self.token, is_running)).first()
            if row is not None:
                return self._claim(row, row.attempt)
        self.tried = True
        return self._claim_next(connection)

    def _claim_next(self, connection: Connection) -> Claim | NothingToClaim | CsiJobError:
        """Prefer the trial of a worker that died, then a paused one worth promoting, one that waits, and a new one."""
        counts, running = _counts_and_running(connection, self.study_id)
        if ids := [row.trial_id for row in running if is_in_future(row)]:  # they expire from now on
            now = now_s(connection)
            is_future = sa.and_(LEASES.c.trial_id.in_(ids), LEASES.c.renewed_at_s > now)
            connection.execute(sa.update(LEASES).where(is_future).values(renewed_at_s=now))
            counts, running = _counts_and_running(connection, self.study_id)
        orphans = [row for row in running if is_orphan(row)]
        resumable = [row for row in orphans if not self._failed_after_max_attempts(connection, row)]
        if len(resumable) < len(orphans):
            counts = count_trials(connection, self.study_id)
        if counts.num_failed > self.rules.max_failed:
            return _too_many_failures(connection, self.study_id, counts.num_failed)
        limit = counts.max_epochs_total
        is_exhausted = limit is not None and count_epochs(connection, self.study_id) >= limit
        if is_exhausted:
            counts = _end_at_present_total(connection, self.study_id, counts, self.token)
        counts = cancel_excess(connection, self.study_id, counts)
        for row in resumable:
            if (claim := self._resume(connection, row)) is not None:
                return claim
        paused = {row.trial_id: row for row in running if row.paused}
        live = {row.trial_id: row.renewed_at_s for row in running if not row.paused}
        # Nothing else will finish that could still change which paused trials are the best.
        is_last = not live and counts.num_waiting == 0 and counts.num_free <= 0
        promoted, pruned = self._sort_paused(connection, paused, counts, is_last=is_last, is_exhausted=is_exhausted)
        if promoted is not None and (claim := self._resume(connection, promoted)) is not None:
            return replace(claim, from_pause=True, pruned=pruned)
        if counts.num_waiting:
            row = connection.execute(_waiting(self.study_id).order_by(TRIALS.c.trial_id).limit(1)).one()
            set_state(connection, row.trial_id, TrialState.RUNNING)
            return replace(self._start(connection, row.trial_id, row.number), pruned=pruned)
        if counts.num_free > 0 and self.rules.may_add:
            trial_id = insert_running(connection, self.study_id, counts.num_all)
            return replace(self._start(connection, trial_id, counts.num_all), pruned=pruned)
        return NothingToClaim(counts.num_finished + len(pruned), counts.target, live, pruned)

    def _sort_paused(
        self, connection: Connection, paused: dict[int, Row[Any]], counts: Counts, *, is_last: bool, is_exhausted: bool
    ) -> tuple[Row[Any] | None, tuple[int, ...]]:
        """Return the paused trial to promote, if any; prune those that cannot be promoted, and return their numbers."""
        rungs = self.rules.rungs
        if not paused or (rungs is None and not is_last):
            return None, ()
        ranked = standings_of_paused(connection, self.study_id, [*paused], rungs or Rungs(1, 2))
        if rungs is None or is_exhausted:  # at least one trial is completed, or the study would be for nothing
            promotable = ranked[:1] if is_last and not has_complete(connection, self.study_id) else []
        else:
            promotable = [standing for standing in ranked if standing.is_promoted(at_least=int(is_last))]
        is_end = is_last and not promotable
        pruned = [s for s in ranked if is_end or (rungs is not None and s.is_beaten(counts.target))]
        prune_paused(connection, pruned)
        row = paused[promotable[0].trial_id] if promotable else None
        return row, tuple(sorted(paused[standing.trial_id].number for standing in pruned))

    def _resume(self, connection: Connection, row: Row[Any]) -> Claim | None:
        attempt = (row.attempt or 1) + 1
        return self._claim(row, attempt) if self._take_lease(connection, row, attempt=attempt) else None

    def _claim(self, row: Row[Any], attempt: int) -> Claim:
        return Claim(self._lease(row.trial_id, row.number, attempt), row.checkpoint)

    def _lease(self, trial_id: int, number: int, attempt: int) -> Lease:
        return Lease(trial_id, number, self.token, attempt, self.storage.stored_uid_of(self.study_id))

    def _start(self, connection: Connection, trial_id: int, number: int) -> Claim:
        self._create_lease(connection, trial_id, attempt=1)
        return Claim(self._lease(trial_id, number, attempt=1))

    def _failed_after_max_attempts(self, connection: Connection, row: Row[Any]) -> bool:
        num_lost = _num_lost(row)
        if num_lost < self.rules.max_attempts:
            return False
        if self._take_lease(connection, row, attempt=row.attempt):
            reason = f"no epoch finished in {num_lost} attempts in a row; the workers died or stalled"
            write_rows(connection, row.trial_id, TrialWrite(user_attrs={REASON: reason}, state=TrialState.FAIL))
            logger.warning("trial %(trial)d failed: %(reason)s", {"trial": row.number, "reason": reason})
        return True

    def _take_lease(self, connection: Connection, row: Row[Any], *, attempt: int) -> bool:
        """Take over the lease, unless its worker renewed it after it was read."""
        if row.token is None:
            self._create_lease(connection, row.trial_id, attempt=attempt)
            return True
        unchanged = (LEASES.c.trial_id == row.trial_id, LEASES.c.token == row.token)
        changes = self._columns(connection, attempt) | {"num_lost": _num_lost(row)}
        take = sa.update(LEASES).where(*unchanged, LEASES.c.renewed_at_s == row.renewed_at_s).values(**changes)
        return bool(connection.execute(take).rowcount)

    def _create_lease(self, connection: Connection, trial_id: int, *, attempt: int) -> None:
        row = self._columns(connection, attempt) | {"trial_id": trial_id, "num_lost": 0, "checkpoint": None}
        upsert(connection, LEASES, [row], ("trial_id",))

    def _columns(self, connection: Connection, attempt: int) -> dict[str, Any]:
        return {
            "token": self.token,
            "owner": self.worker_id,
            "attempt": attempt,
            "renewed_at_s": now_s(connection),
            "lease_s": self.storage.lease_s,
            "num_epochs": 0,
        }


def _num_lost(row: Row[Any]) -> int:
    """Return how many attempts ended without releasing the lease since the last stored epoch."""
    if row.token is None or row.num_epochs:
        return 0
    return int(row.num_lost) + int(not row.released)


def count_trials(connection: Connection, study_id: int) -> Counts:
    """Count a study's trials; under its lock the counts are exact.

    Raises:
        ConfigurationError: the study has no target, so another program made it.
    """
    return _counts(connection.execute(_counting(study_id)).one())


def _counts_and_running(connection: Connection, study_id: int) -> tuple[Counts, list[Row[Any]]]:
    """Return the counts of a study's trials, and the rows of `running_trials`, in one statement."""
    counts, running = _counting(study_id).subquery("counts"), running_trials(connection, study_id).subquery("running")
    query = sa.select(*counts.c, *running.c).select_from(counts.outerjoin(running, sa.true()))
    rows = connection.execute(query.order_by(running.c.number)).all()
    return _counts(rows[0]), [row for row in rows if row.trial_id is not None]


def _counting(study_id: int) -> sa.Select[Any]:
    not_counted = sa.select(sa.func.count()).select_from(_failed_unblamed(study_id).subquery())
    return sa.select(
        _num_in(TrialState.COMPLETE, TrialState.PRUNED).label("num_finished"),
        _num_in(TrialState.RUNNING).label("num_running"),
        _num_in(TrialState.WAITING).label("num_waiting"),
        _num_in(TrialState.FAIL).label("num_failed"),
        sa.func.count().label("num_all"),
        not_counted.scalar_subquery().label("num_not_counted"),
        _attribute(study_id, TARGET).label("target"),
        _attribute(study_id, MAX_EPOCHS_TOTAL).label("limit"),
        sa.case((_attribute(study_id, MAX_EPOCHS_TOTAL).is_(None), _attribute(study_id, SETTINGS))).label("settings"),
    ).where(TRIALS.c.study_id == study_id)


def _failed_unblamed(study_id: int) -> sa.Select[tuple[int]]:
    """Select the failed trials that were cancelled or rejected."""
    joined = sa.select(TRIALS.c.trial_id).join(USER_ATTRIBUTES, USER_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
    of_study = sa.and_(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.FAIL)
    return joined.where(of_study, USER_ATTRIBUTES.c.key.in_((CANCELLED, REJECTED)))


def _attribute(study_id: int, key: str) -> sa.ScalarSelect[str | None]:
    is_it = sa.and_(STUDY_ATTRIBUTES.c.study_id == study_id, STUDY_ATTRIBUTES.c.key == key)
    return sa.select(STUDY_ATTRIBUTES.c.value_json).where(is_it).scalar_subquery()


def _num_in(*states: TrialState) -> sa.ColumnElement[int]:
    return sa.func.count().filter(TRIALS.c.state.in_(states))


def _counts(row: Row[Any]) -> Counts:
    target = target_of({TARGET: json.loads(row.target or "null")})
    if target is None:
        message = "this study was not created by csi-job: it has no target"
        raise ConfigurationError(message, hint="choose another study name")
    limits = {MAX_EPOCHS_TOTAL: row.limit, SETTINGS: row.settings}
    known = {key: json.loads(text) for key, text in limits.items() if text is not None}
    return Counts(
        num_finished=row.num_finished,
        num_running=row.num_running,
        num_waiting=row.num_waiting,
        num_failed=row.num_failed - row.num_not_counted,
        num_all=row.num_all,
        target=target,
        max_epochs_total=max_epochs_total_of(known),
    )


def cancel_excess(connection: Connection, study_id: int, counts: Counts) -> Counts:
    """Cancel the waiting trials beyond the target, the last enqueued first, and log their numbers."""
    excess = min(max(-counts.num_free, 0), counts.num_waiting)
    if not excess:
        return counts
    rows = connection.execute(_waiting(study_id).order_by(TRIALS.c.trial_id.desc()).limit(excess)).all()
    reason = f"cancelled while waiting: beyond the study's total of {counts.target}"
    for row in rows:
        write = TrialWrite(user_attrs={CANCELLED: True, REASON: reason}, state=TrialState.FAIL)
        write_rows(connection, row.trial_id, write)
    values = {"target": counts.target, "trials": ", ".join(str(row.number) for row in reversed(rows))}
    logger.warning("cancelled waiting trials beyond the study's total of %(target)d: %(trials)s", values)
    return replace(counts, num_waiting=counts.num_waiting - excess)


def _end_at_present_total(connection: Connection, study_id: int, counts: Counts, token: str) -> Counts:
    """Lower a study's target to the trials that have started, since its epochs are used up."""
    total = counts.num_finished + counts.num_running
    if total >= counts.target:
        return counts
    store_target(connection, study_id, total, token=token)
    values = {"target": counts.target, "total": total}
    logger.warning("study.max_epochs_total is reached: the study's total is %(total)d trials, not %(target)d", values)
    return replace(counts, target=total)


def _waiting(study_id: int) -> sa.Select[tuple[int, int]]:
    is_waiting = sa.and_(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.WAITING)
    return sa.select(TRIALS.c.trial_id, TRIALS.c.number).where(is_waiting)


def _too_many_failures(connection: Connection, study_id: int, num_failed: int) -> StudyFailedError:
    is_reason = sa.and_(USER_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, USER_ATTRIBUTES.c.key == REASON)
    failed = sa.and_(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.FAIL)
    is_counted = TRIALS.c.trial_id.not_in(_failed_unblamed(study_id))
    query = sa.select(USER_ATTRIBUTES.c.value_json).join(TRIALS, is_reason).where(failed, is_counted)
    last = connection.execute(query.order_by(TRIALS.c.trial_id.desc()).limit(1)).scalar()
    failed_trials = "1 trial" if num_failed == 1 else f"{num_failed} trials"
    message = f"{failed_trials} failed, so the study stops; last reason: {json.loads(last) if last else 'unknown'}"
    return StudyFailedError(message, hint="fix the cause, then raise study.max_failed_trials to continue")
