"""Optuna's storage over a database that may go away: transactions that are retried, and studies known by their uid."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from optuna.study import StudyDirection
from sqlalchemy.engine import Connection

from csi_job.errors import NoStudyError
from csi_job.storage.attributes import UID
from csi_job.storage.engine import make_engine
from csi_job.storage.optuna_private import OptunaStorage
from csi_job.storage.retry import RetryPolicy
from csi_job.storage.study_rows import (
    delete_rows,
    find_identity,
    find_study,
    lock_study,
    set_attribute,
    stored_attributes,
)
from csi_job.storage.tables import DIRECTIONS, STUDY_ATTRIBUTES, STUDY_SYSTEM_ATTRIBUTES
from csi_job.storage.url import Address

Result = TypeVar("Result")


def retried(method: Callable[..., Result], *, readonly: bool = False) -> Callable[..., Result]:
    """Retry one of Optuna's methods through outages; a read-only one takes no write lock."""

    @functools.wraps(method)
    def call(self: "Database", *args: Any, **kwargs: Any) -> Result:
        return self.retry.call(lambda: method(self._reader if readonly else self, *args, **kwargs), writes=not readonly)

    return call


read_only: Final = functools.partial(retried, readonly=True)


class Database(OptunaStorage):
    """Optuna's tables on SQLite or PostgreSQL; an outage is waited out (`retry`)."""

    def __init__(self, address: Address, *, outage_s: float) -> None:
        """Open a database whose tables exist."""
        engine = make_engine(address)
        super().__init__(str(address), engine)
        self.address = address
        self.retry = RetryPolicy(f"the database {address}", outage_s)
        # On PostgreSQL a single statement needs no transaction around it, which saves two round trips.
        options = {} if address.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self.autocommit_engine = engine.execution_options(**options)
        self.read_engine = self.autocommit_engine.execution_options(sqlite_readonly=True)
        self._reader = OptunaStorage(self.url, self.read_engine)
        self._uids: dict[int, str | None] = {}

    def close(self) -> None:
        """Close all connections."""
        self.scoped_session.remove()
        self._reader.scoped_session.remove()
        self.engine.dispose()

    def migration_url(self) -> str:
        """Return the URL with its secrets."""
        return self.address.with_secrets()

    # Transactions

    def write(
        self, operation: Callable[[Connection], Result], *, limit_s: float | None = None, check: bool = True
    ) -> Result:
        """Run an operation in one transaction; it is retried through outages, so it must be idempotent."""

        def transaction() -> Result:
            with self.engine.begin() as connection:
                return operation(connection)

        return self.retry.call(transaction, limit_s=limit_s, check=check, writes=True)

    def read(self, operation: Callable[[Connection], Result]) -> Result:
        """Run an operation that only reads, retrying through outages."""

        def transaction() -> Result:
            with self.read_engine.connect() as connection:
                return operation(connection)

        return self.retry.call(transaction)

    # Studies

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return a study's id, and remember its uid: from now on, writes to this id are meant for that study."""
        found = self.read(lambda connection: find_identity(connection, study_name))
        if found is None:
            raise KeyError(study_name)
        self._uids[found.study_id] = found.uid
        return int(found.study_id)

    def stored_uid_of(self, study_id: int) -> str | None:
        """Return the uid of a study that this object has opened by name, as stored."""
        return self._uids.get(study_id)

    def lock(self, connection: Connection, study_id: int) -> None:
        """Lock a study until the transaction ends.

        Raises:
            NoStudyError: the study that was opened under this id was deleted.
            KeyError: there is none, and none was opened, or this object deleted it.
        """
        if lock_study(connection, study_id, self.stored_uid_of(study_id)):
            return
        if not self.stored_uid_of(study_id):
            raise KeyError(study_id)
        raise study_deleted()

    def delete_study(self, study_id: int, *, beside: str | None = None) -> None:
        """Delete a study with its trials and their leases, and the study of the name `beside`, if there is one."""
        deleted = False

        def transaction(connection: Connection) -> None:
            nonlocal deleted
            if deleted and not lock_study(connection, study_id, self.stored_uid_of(study_id)):
                return  # an earlier try committed, and only the reply was lost
            self.lock(connection, study_id)
            other = None if beside is None else find_study(connection, beside)
            if other is not None and lock_study(connection, other):
                delete_rows(connection, other)
            delete_rows(connection, study_id)
            deleted = True

        self.write(transaction)
        self._uids[study_id] = ""  # of no study, so that nothing more is written to one that gets this id

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return a study's directions, without Optuna's models, whose set-up takes longer than most commands."""
        query = sa.select(DIRECTIONS.c.direction).where(DIRECTIONS.c.study_id == study_id)
        ordered = query.order_by(DIRECTIONS.c.objective)
        directions = [*self.read(lambda connection: connection.execute(ordered).scalars().all())]
        if not directions:
            raise KeyError(study_id)
        return directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study; raise as `lock` does if it was deleted."""
        attributes = self.read(lambda connection: stored_attributes(connection, study_id))
        uid = self.stored_uid_of(study_id)
        if uid and json.dumps(attributes.get(UID)) != uid:
            raise study_deleted()
        if not attributes:
            self.get_study_name_from_id(study_id)  # KeyError if there is no such study
        return attributes

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a study."""
        self.set_study_user_attrs(study_id, {key: value})

    def set_study_user_attrs(self, study_id: int, attributes: Mapping[str, Any]) -> None:
        """Set user attributes of a study, all or none."""
        self._set_study_attributes(STUDY_ATTRIBUTES, study_id, attributes)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a study."""
        self._set_study_attributes(STUDY_SYSTEM_ATTRIBUTES, study_id, {key: value})

    def _set_study_attributes(self, table: sa.Table, study_id: int, attributes: Mapping[str, Any]) -> None:
        def transaction(connection: Connection) -> None:
            self.lock(connection, study_id)
            for key, value in attributes.items():
                set_attribute(connection, table, study_id, key, value)

        self.write(transaction)

    get_study_name_from_id = read_only(OptunaStorage.get_study_name_from_id)
    get_study_system_attrs = read_only(OptunaStorage.get_study_system_attrs)
    get_all_studies = read_only(OptunaStorage.get_all_studies)
    create_new_study = retried(OptunaStorage.create_new_study)


def study_deleted() -> NoStudyError:
    """Return the error of a worker whose study was deleted."""
    return NoStudyError("the study was deleted", hint="run the same command again to create a new one")
