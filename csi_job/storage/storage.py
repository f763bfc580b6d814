"""Optuna's storage, in which a running trial is written only under its lease."""

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from csi_job.errors import CsiJobError, LeaseLostError
from csi_job.storage.database import Database, read_only
from csi_job.storage.lease import RELEASED_AT_S, Lease, fence, is_finished_under, write_fenced
from csi_job.storage.optuna_private import OptunaStorage, backend_of, trial_id_of
from csi_job.storage.retry import call_at_start
from csi_job.storage.schema import check_schema, create_schema
from csi_job.storage.settings import StorageSettings
from csi_job.storage.tables import TRIALS
from csi_job.storage.trial_rows import (
    TrialWrite,
    add_trial,
    read_trial,
    read_trials,
    remove_steps,
    stored_distribution,
    write_rows,
)
from csi_job.storage.url import Address, check_sqlite_file, database_address


@dataclass
class _AskBuffer:
    """What `buffered_ask` has read and will write, on one thread."""

    trial_id: int
    write: TrialWrite = field(default_factory=TrialWrite)
    history: dict[int, FrozenTrial] = field(default_factory=dict)
    """The trials by id, as the first read found them; empty before it."""
    thread: int = field(default_factory=threading.get_ident)


class StudyStorage(Database):
    """Optuna's tables on SQLite or PostgreSQL, with leases (docs/faults.md).

    It keeps the contract of `RDBStorage`, with these differences:

    - a running trial is written only under a lease that this object holds (`hold`) and that the same transaction
      checks; otherwise `LeaseLostError` is raised;
    - a trial starts running only by `claim_trial`; creating a running one, or setting one to running, is a
      `CsiJobError`;
    - an outage is waited out (`retry`).

    Optuna calls some methods by private names (`optuna_private.OptunaStorage`).
    """

    def __init__(self, address: Address, *, lease_s: float, outage_s: float) -> None:
        """Open a database whose tables exist."""
        super().__init__(address, outage_s=outage_s)
        self.lease_s = lease_s
        self._held: dict[int, Lease] = {}
        self._buffer: _AskBuffer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave connections, leases and secrets out of a pickle; the copy connects again."""
        return functools.partial(type(self), lease_s=self.lease_s, outage_s=self.retry.limit_s), (self.address,)

    # Leases

    def hold(self, lease: Lease) -> None:
        """Write to this trial under this lease from now on."""
        self._held[lease.trial_id] = lease

    def drop(self, lease: Lease) -> None:
        """Stop writing to this trial."""
        self._held.pop(lease.trial_id, None)

    def _lease_of(self, trial_id: int) -> Lease:
        if (lease := self._held.get(trial_id)) is not None:
            return lease
        self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        raise LeaseLostError("this process holds no lease of that trial, so it may not write to it")

    def renew(self, lease: Lease) -> None:
        """Renew a lease without retrying; raise `LeaseLostError` if another worker has it."""
        # Renewing a lease that was released meanwhile would hold the trial for a worker that is gone.
        with _marking_loss(lease):
            self.write(lambda connection: fence(connection, lease, unless_released=True), limit_s=0, check=False)

    def release(self, lease: Lease, write: TrialWrite, *, limit_s: float | None = None) -> None:
        """Write to a trial and free it for the next worker; the attempt does not count as lost.

        Retries for `limit_s` whatever signals come, or without it as `write_trial` does.
        """
        self.write_trial(lease, write, limit_s=limit_s, check=limit_s is None, renewed_at_s=RELEASED_AT_S)

    def write_trial(
        self,
        lease: Lease,
        write: TrialWrite,
        query: sa.Select[Any] | None = None,
        *,
        limit_s: float | None = None,
        check: bool = True,
        **changes: Any,
    ) -> sa.Row[Any] | None:
        """Write to a running trial, and `changes` to its lease; on PostgreSQL in one statement and one round trip.

        Retries for `limit_s`, by default `outage_s`; with `check`, a signal ends the wait.

        Returns:
            the row of `query`, a query of one row that runs along with it.

        Raises:
            LeaseLostError: another worker has the trial, or it is finished or deleted; nothing was written.
        """

        def transaction() -> sa.Row[Any] | None:
            try:
                with self.autocommit_engine.begin() as connection:
                    return write_fenced(connection, lease, write, changes, query)
            except LeaseLostError:
                with self.read_engine.connect() as connection:
                    if not is_finished_under(connection, lease, write.state):
                        raise
                return None  # an earlier try committed, and only the reply was lost

        with _marking_loss(lease):
            return self.retry.call(transaction, limit_s=limit_s, check=check, writes=True)

    def rewrite_steps(self, lease: Lease, num_kept: int, write: TrialWrite, checkpoint: str | None) -> None:
        """Keep only a trial's first intermediate values, write others, and change the checkpoint stored with it."""

        def transaction(connection: Connection) -> None:
            fence(connection, lease, checkpoint=checkpoint)
            remove_steps(connection, lease.trial_id, num_kept)
            write_rows(connection, lease.trial_id, write)

        with _marking_loss(lease):
            self.write(transaction)

    @contextmanager
    def buffered_ask(self, lease: Lease) -> Iterator[TrialWrite]:
        """Let this thread sample a trial's parameters from one read of the study, and write them in one transaction.

        Yields what will be written at the end; the caller may add to it. Other threads read and write as usual
        meanwhile.
        """
        self._buffer = _AskBuffer(lease.trial_id)
        try:
            yield self._buffer.write
            write = self._buffer.write
        finally:
            self._buffer = None
        self.write_trial(lease, write)

    def _own_buffer(self) -> _AskBuffer | None:
        buffer = self._buffer
        return buffer if buffer is not None and buffer.thread == threading.get_ident() else None

    # Optuna's interface: writing a trial

    def _write_or_buffer(self, trial_id: int, write: TrialWrite) -> None:
        buffer = self._own_buffer()
        if buffer is None or buffer.trial_id != trial_id:
            self.write_trial(self._lease_of(trial_id), write)
            return
        buffer.write.params |= write.params
        buffer.write.user_attrs |= write.user_attrs
        buffer.write.system_attrs |= write.system_attrs

    def write_param(
        self,
        trial_id: int,
        name: str,
        internal_value: float,
        distribution: BaseDistribution,
        known: BaseDistribution | None,
    ) -> None:
        """Store a parameter under the trial's lease."""
        if self._own_buffer() is None:
            self._lease_of(trial_id)
            known = self.read(lambda connection: stored_distribution(connection, trial_id, name))
        if known is not None:
            check_distribution_compatibility(known, distribution)
        self._write_or_buffer(trial_id, TrialWrite(params={name: (internal_value, distribution)}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute under the trial's lease."""
        self._write_or_buffer(trial_id, TrialWrite(user_attrs={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute under the trial's lease."""
        self._write_or_buffer(trial_id, TrialWrite(system_attrs={key: value}))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Store an intermediate value under the trial's lease."""
        self.write_trial(self._lease_of(trial_id), TrialWrite(steps={step: intermediate_value}))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Finish a trial under its lease, which is over then."""
        if not state.is_finished():
            current = self.get_trial(trial_id).state
            self.check_trial_is_updatable(trial_id, current)
            if state is current is TrialState.RUNNING:
                return False  # as `RDBStorage`: another worker started it
            raise _only_by_claims()
        lease = self._lease_of(trial_id)
        self.write_trial(lease, TrialWrite(values=values or (), state=state))
        self.drop(lease)
        return True

    def create_trial(
        self,
        study_id: int,
        template_trial: FrozenTrial | None = None,
        *,
        check: Callable[[Connection], object] = lambda _: None,
    ) -> FrozenTrial:
        """Add a waiting or finished trial under the study's lock, unless `check` raises there."""
        if template_trial is None or template_trial.state is TrialState.RUNNING:
            raise _only_by_claims()
        inserted = -1

        def transaction(connection: Connection) -> int:
            nonlocal inserted
            self.lock(connection, study_id)
            query = sa.select(TRIALS.c.trial_id).where(TRIALS.c.trial_id == inserted)
            # SQLite loses no reply to a COMMIT, but gives the id of a trial that was not stored to the next one.
            if not self.address.is_sqlite and connection.execute(query).first() is not None:
                return inserted  # an earlier try committed, and only the reply was lost
            check(connection)
            inserted = add_trial(connection, study_id, template_trial)
            return inserted

        return self.get_trial(self.write(transaction))

    # Optuna's interface: reading

    def list_trials(
        self, study_id: int, states: Any, included_trial_ids: set[int], trial_id_greater_than: int
    ) -> list[FrozenTrial]:
        """Return a study's trials that have one of these ids or a greater one, in one statement."""
        also, after = included_trial_ids, trial_id_greater_than
        buffer = self._own_buffer()
        if buffer is not None and buffer.history:
            return []  # Optuna's cache has them all
        trials = self.read(lambda connection: read_trials(connection, study_id, after=after, also=also))
        if buffer is not None:
            buffer.history = {trial_id_of(trial): trial for trial in trials}
        if not trials and after < 0:
            self.get_study_name_from_id(study_id)  # KeyError if there is no such study
        return [trial for trial in trials if states is None or trial.state in states]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial, read in one statement; raise `KeyError` if none has this id."""
        buffer = self._own_buffer()
        if buffer is not None and trial_id in buffer.history:
            return copy.deepcopy(buffer.history[trial_id])
        trial = self.read(lambda connection: read_trial(connection, trial_id))
        if trial is None:
            raise KeyError(trial_id)
        return trial

    get_trial_user_attrs = read_only(OptunaStorage.get_trial_user_attrs)
    get_trial_system_attrs = read_only(OptunaStorage.get_trial_system_attrs)
    get_trial_id_from_study_id_trial_number = read_only(OptunaStorage.get_trial_id_from_study_id_trial_number)
    get_trial_param = read_only(OptunaStorage.get_trial_param)
    best_trial_id = read_only(OptunaStorage.best_trial_id)


@contextmanager
def _marking_loss(lease: Lease) -> Iterator[None]:
    """Mark the lease as lost when the block finds it so, for the threads that look at the mark."""
    try:
        yield
    except LeaseLostError:
        lease.lost = True
        raise


def open_storage(settings: StorageSettings, work: Path, *, create: bool) -> StudyStorage:
    """Open the storage that the settings name; with `create` its missing file and tables are created if they allow it.

    Raises:
        ConfigurationError: an unusable URL, password, file or schema.
        StorageUnavailableError: the database could not be reached within `connect_s`.
    """
    address = database_address(settings, work)
    create = create and settings.create_tables
    file = address.path if address.is_sqlite else None
    if file is not None:
        check_sqlite_file(file, create=create)
    storage = StudyStorage(address, lease_s=settings.lease_s, outage_s=settings.outage_s)
    storage.retry.has_written = not settings.create_tables  # workers that join a study know that it can be written
    policy = replace(storage.retry, limit_s=settings.connect_s)
    call = functools.partial(call_at_start, policy=policy, file=file) if settings.create_tables else policy.call
    try:
        if create:
            call(lambda: create_schema(storage.engine))
        call(lambda: check_schema(storage.engine, address))
    except BaseException:
        storage.close()
        raise
    return storage


def storage_of(study: optuna.Study) -> StudyStorage:
    """Return the storage beneath a study that this package opened."""
    storage = backend_of(study)
    assert isinstance(storage, StudyStorage)
    return storage


def _only_by_claims() -> CsiJobError:
    message = "trials of this study are started by claims only, so that its total stays exact"
    return CsiJobError(message, hint="run `csi-job hyperopt`, or optimize_hyperparameters in Python")
