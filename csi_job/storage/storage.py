"""Optuna's storage, in which no write of a running trial goes through without its lease."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
import sqlalchemy.orm
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from csi_job.errors import ConfigurationError, CsiJobError, LeaseLostError, explain_os_errors
from csi_job.storage.engine import lock_study, make_engine, reading
from csi_job.storage.lease import Lease, fence, write_fenced
from csi_job.storage.optuna_private import backend_of, trial_id_of
from csi_job.storage.retry import Patience, at_start
from csi_job.storage.schema import check_schema, create_schema
from csi_job.storage.settings import StorageSettings
from csi_job.storage.tables import LEASES, TRIALS
from csi_job.storage.trial_rows import TrialWrite, insert_trial, read_trial, read_trials, remove_steps, write_trial
from csi_job.storage.url import Address, check_file_system, database_address

Result = TypeVar("Result")


def _read(method: Callable[..., Result]) -> Callable[..., Result]:
    """Let a reading method of the parent outlive outages and take no lock."""

    @functools.wraps(method)
    def read(self: StudyStorage, *args: Any, **kwargs: Any) -> Result:
        with reading():
            return self.patience.ride(lambda: method(self, *args, **kwargs))

    return read


def _write(method: Callable[..., Result]) -> Callable[..., Result]:
    """Let a writing method of the parent, which may run twice, outlive outages."""

    @functools.wraps(method)
    def write(self: StudyStorage, *args: Any, **kwargs: Any) -> Result:
        return self.patience.ride(lambda: method(self, *args, **kwargs))

    return write


class StudyStorage(RDBStorage):
    """Optuna's tables on SQLite or PostgreSQL, with leases (design §5).

    Everything that is written to a running trial needs a lease held by this object (`hold`), which is proven in the
    same transaction; else `LeaseLostError` is raised. Outages are waited for (`patience`).
    """

    def __init__(self, address: Address, *, lease_s: float = 60.0, outage_s: float = 900.0) -> None:
        """Open a database whose tables exist.

        The parent's constructor is not called: it formats braces in the URL, keeps the password in it, and talks to
        the database unasked.
        """
        self.address = address
        self.lease_s = lease_s
        self.url = str(address)
        self.engine_kwargs: dict[str, Any] = {}
        self.skip_compatibility_check = True
        self.heartbeat_interval = self.grace_period = None
        self.heartbeat_stale_trial_callback = self.failed_trial_callback = None
        self.patience = Patience(f"the database {address}", outage_s)
        self._held: dict[int, Lease] = {}
        self._draft: tuple[int, TrialWrite] | None = None
        self._snapshot: dict[int, FrozenTrial] | None = None
        self._connect()

    def _connect(self) -> None:
        self.engine = make_engine(self.address)
        # One statement, one round trip: nothing is begun and ended around it. SQLite has its own way (`reading`).
        self._at_once = self.engine
        if not self.address.is_sqlite:
            self._at_once = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.scoped_session = sa.orm.scoped_session(sa.orm.sessionmaker(bind=self.engine))

    def __getstate__(self) -> dict[str, Any]:
        """Leave connections, leases and secrets out of a pickle."""
        return {"address": self.address, "lease_s": self.lease_s, "outage_s": self.patience.limit_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Connect anew, without leases."""
        StudyStorage.__init__(self, state["address"], lease_s=state["lease_s"], outage_s=state["outage_s"])

    def close(self) -> None:
        """Close all connections."""
        self.scoped_session.remove()
        self.engine.dispose()

    # Transactions

    def write(self, operation: Callable[[Connection], Result], **patience: Any) -> Result:
        """Run an operation that bears being run twice in one transaction; outages are waited for."""

        def transaction() -> Result:
            with self.engine.begin() as connection:
                return operation(connection)

        return self.patience.ride(transaction, **patience)

    def read(self, operation: Callable[[Connection], Result]) -> Result:
        """Run an operation that only reads; outages are waited for."""

        def look() -> Result:
            with self._at_once.connect() as connection:
                return operation(connection)

        with reading():
            return self.patience.ride(look)

    # Leases

    def hold(self, lease: Lease) -> None:
        """Write to this trial under this lease from now on."""
        self._held[lease.trial_id] = lease

    def drop(self, lease: Lease) -> None:
        """Write no more to this trial."""
        self._held.pop(lease.trial_id, None)

    def lease_of(self, trial_id: int) -> Lease:
        """Return the lease held for a trial; raise `LeaseLostError` if there is none."""
        if trial_id not in self._held:
            message = "this process holds no lease of that trial, so it writes nothing to it"
            raise LeaseLostError(message)
        return self._held[trial_id]

    def renew(self, lease: Lease) -> None:
        """Renew a lease, without waiting for a database that is away; raise `LeaseLostError` if another has it."""
        # A renewal that comes after the trial was given back would hold it for a worker that is gone.
        self.write(lambda connection: fence(connection, lease, only_held=True), limit_s=0, check=False)

    def write_trial(
        self,
        lease: Lease,
        write: TrialWrite,
        question: sa.Select[Any] | None = None,
        *,
        limit_s: float | None = None,
        check: bool = True,
        **changes: Any,
    ) -> sa.Row[Any] | None:
        """Write to a running trial, fenced; on PostgreSQL in one statement and one round trip.

        Args:
            lease: of the trial.
            write: what is written.
            question: a query of one row that is asked with it.
            limit_s: seconds for which an outage is waited for, `outage_s` by default.
            check: let a signal end the wait.
            changes: columns of the lease to set.

        Returns:
            the answer to the question.

        """
        attempts = 0

        def operation() -> sa.Row[Any] | None:
            nonlocal attempts
            attempts += 1
            try:
                with self._at_once.begin() as connection:
                    return write_fenced(connection, lease, write, changes, question)
            except LeaseLostError:
                # The answer to an earlier COMMIT may have been lost: what was to be written is then there.
                if attempts == 1 or write.state is None or not self._is_told(lease, write.state):
                    raise
                lease.lost = False
                return None

        return self.patience.ride(operation, limit_s=limit_s, check=check)

    def _is_told(self, lease: Lease, state: TrialState) -> bool:
        """Return whether the trial is finished as this very lease would have it."""
        mine = sa.and_(LEASES.c.trial_id == lease.trial_id, LEASES.c.token == lease.token, TRIALS.c.state == state)
        query = sa.select(TRIALS.c.trial_id).join(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id).where(mine)
        with reading(), self._at_once.connect() as connection:
            return connection.execute(query).first() is not None

    def rewrite_steps(self, lease: Lease, num_kept: int, write: TrialWrite, checkpoint: str | None) -> None:
        """Keep a trial's first intermediate values only, write others, and change its promoted checkpoint."""

        def transaction(connection: Connection) -> None:
            fence(connection, lease, checkpoint=checkpoint)
            remove_steps(connection, lease.trial_id, num_kept)
            write_trial(connection, lease.trial_id, write)

        self.write(transaction)

    @contextmanager
    def asking(self, lease: Lease) -> Iterator[TrialWrite]:
        """Draw the parameters of a trial: the study is read once, and all that was drawn is written at the end.

        Yields:
            what will be written in one fenced transaction; the caller may add to it.

        """
        draft = TrialWrite()
        self._draft = (lease.trial_id, draft)
        try:
            yield draft
        finally:
            self._draft = self._snapshot = None
        self.write_trial(lease, draft)

    # Optuna's interface: writing a trial

    def _write_or_draft(self, trial_id: int, write: TrialWrite) -> None:
        if self._draft is None or self._draft[0] != trial_id:
            self.write_trial(self.lease_of(trial_id), write)
            return
        draft = self._draft[1]
        draft.params |= write.params
        draft.user_attrs |= write.user_attrs
        draft.system_attrs |= write.system_attrs

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        if previous_distribution is not None:
            check_distribution_compatibility(previous_distribution, distribution)
        self._write_or_draft(trial_id, TrialWrite(params={param_name: (param_value_internal, distribution)}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As the parent's, fenced."""
        self._write_or_draft(trial_id, TrialWrite(user_attrs={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As the parent's, fenced."""
        self._write_or_draft(trial_id, TrialWrite(system_attrs={key: value}))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As the parent's, fenced."""
        self.write_trial(self.lease_of(trial_id), TrialWrite(steps={step: intermediate_value}))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Finish a trial, fenced; trials are started by claims only."""
        if not state.is_finished():
            raise _claims_only()
        self.write_trial(self.lease_of(trial_id), TrialWrite(values=values or (), state=state))
        return True

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Add a waiting or finished trial under the study's lock; running ones come from claims only."""
        if template_trial is None or template_trial.state is TrialState.RUNNING:
            raise _claims_only()
        return self.add(study_id, template_trial)

    def add(self, study_id: int, template: FrozenTrial) -> FrozenTrial:
        """Add a waiting or finished trial."""
        inserted = -1

        def transaction(connection: Connection) -> int:
            nonlocal inserted
            lock_study(connection, study_id)
            there = connection.execute(sa.select(TRIALS.c.trial_id).where(TRIALS.c.trial_id == inserted)).first()
            if there is None:  # else it was the answer to the COMMIT that was lost
                inserted = add_trial(connection, study_id, template)
            return inserted

        return self.get_trial(self.write(transaction))

    # Optuna's interface: reading

    def _get_trials(
        self,
        study_id: int,
        states: Any,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        if self._snapshot is not None:
            return []  # the cache above has them all, and one draw sees one history
        trials = self.read(
            lambda connection: read_trials(connection, study_id, after=trial_id_greater_than, also=included_trial_ids)
        )
        if self._draft is not None:
            self._snapshot = {trial_id_of(trial): trial for trial in trials}
        return [trial for trial in trials if states is None or trial.state in states]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As the parent's, with fewer statements."""
        if self._snapshot is not None and trial_id in self._snapshot:
            return copy.deepcopy(self._snapshot[trial_id])
        trial = self.read(lambda connection: read_trial(connection, trial_id))
        if trial is None:
            raise KeyError(trial_id)
        return trial

    get_study_id_from_name = _read(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _read(RDBStorage.get_study_name_from_id)
    get_study_directions = _read(RDBStorage.get_study_directions)
    get_study_user_attrs = _read(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _read(RDBStorage.get_study_system_attrs)
    get_all_studies = _read(RDBStorage.get_all_studies)
    get_trial_user_attrs = _read(RDBStorage.get_trial_user_attrs)
    get_trial_system_attrs = _read(RDBStorage.get_trial_system_attrs)
    get_trial_id_from_study_id_trial_number = _read(RDBStorage.get_trial_id_from_study_id_trial_number)
    get_trial_param = _read(RDBStorage.get_trial_param)
    _get_best_trial_id = _read(RDBStorage._get_best_trial_id)  # noqa: SLF001
    create_new_study = _write(RDBStorage.create_new_study)
    delete_study = _write(RDBStorage.delete_study)
    set_study_user_attr = _write(RDBStorage.set_study_user_attr)
    set_study_system_attr = _write(RDBStorage.set_study_system_attr)


def open_storage(settings: StorageSettings, work: Path, *, create: bool) -> StudyStorage:
    """Open the storage that the settings name.

    Args:
        settings: the storage section.
        work: the work folder, where the default database lies.
        create: make file and tables where they are missing and the settings allow it; else nothing is ever made.

    Raises:
        ConfigurationError: a URL, password, file or schema that cannot be used.
        StorageUnavailableError: the database could not be reached within `connect_s`.

    """
    address = database_address(settings, work)
    create = create and settings.create_tables
    if address.is_sqlite:
        _check_file(address, create=create)
    storage = StudyStorage(address, lease_s=settings.lease_s, outage_s=settings.outage_s)
    first = Patience(f"the database {address}", settings.connect_s)
    ride = functools.partial(at_start, patience=first) if settings.create_tables else first.ride
    try:
        if create:
            ride(lambda: create_schema(storage.engine))
        ride(lambda: check_schema(storage.engine, address))
    except BaseException:
        storage.close()
        raise
    return storage


def add_trial(connection: Connection, study_id: int, template: FrozenTrial) -> int:
    """Insert a trial with all its parts and return its id; the caller holds the study's lock."""
    count = sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
    number = connection.execute(count).scalar_one()
    trial_id = insert_trial(connection, study_id, number, template.state)
    distributions = template.distributions
    params = {
        name: (distributions[name].to_internal_repr(value), distributions[name])
        for name, value in template.params.items()
    }
    write = TrialWrite(params, template.user_attrs, template.system_attrs, template.intermediate_values)
    write.values = template.values or ()
    write_trial(connection, trial_id, write)
    return trial_id


def storage_of(study: optuna.Study) -> StudyStorage:
    """Return the storage below a study; raise `ConfigurationError` if it is another's."""
    storage = backend_of(study)
    if not isinstance(storage, StudyStorage):
        message = "this study was not opened by csi-job"
        raise ConfigurationError(message, got=type(storage).__name__, hint="open it with define_study or load_study")
    return storage


def _claims_only() -> CsiJobError:
    message = "running trials of this study come from its claims only, or its total would not be exact"
    return CsiJobError(message, hint="run `csi-job hyperopt`, or optimize_hyperparameters in Python")


def _check_file(address: Address, *, create: bool) -> None:
    path = address.path
    check_file_system(path)
    if path.is_file():
        return
    if not create:
        message = "there is no study yet: the database file does not exist"
        raise ConfigurationError(message, got=str(path), hint="`csi-job hyperopt` makes it")
    with explain_os_errors("the folder of the database cannot be created", path.parent, kind=ConfigurationError):
        path.parent.mkdir(parents=True, exist_ok=True)
