"""The engine: connections that notice a dead server, transactions that lock before they read, and SQL for both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from csi_job.errors import ConfigurationError
from csi_job.storage.url import Address

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

logger = logging.getLogger(__name__)
LOCK_CLASS: Final = 0x435349  # "CSI", the first key of our advisory locks, to avoid those of other programs
SCHEMA_LOCK: Final = 0
CONNECT_TIMEOUT_S: Final = 10
STATEMENT_TIMEOUT_S: Final = 60
TCP_USER_TIMEOUT_S: Final = 30  # without an acknowledgement; the kernel's default is over 15 minutes
BUSY_TIMEOUT_S: Final = 2.0  # inside SQLite, where signals have to wait; longer waits are left to `retry`

Insert = TypeVar("Insert", "postgresql.Insert", "sqlite.Insert")

# libpq's options against half-open connections; those in the URL take precedence.
GUARDS: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": TCP_USER_TIMEOUT_S * 1000,
    "application_name": "csi-job",
    "client_encoding": "utf8",  # of a database without an encoding (SQL_ASCII), psycopg2 would expect ASCII only
}


def make_engine(address: Address) -> Engine:
    """Return an engine that keeps one connection, and opens others while that is in use.

    A worker has two threads, hence at most two connections. The pool has no limit, because with one a thread may wait
    for a connection that was lost with the server and is never returned (seen with SQLAlchemy 2.1).

    A transaction with the execution option `sqlite_readonly=True` does not take SQLite's write lock.
    """
    arguments: dict[str, Any] = {"pool_size": 1, "max_overflow": -1, "hide_parameters": True}
    if address.is_sqlite:
        engine = sa.create_engine(address.url, **arguments, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    guards = {name: value for name, value in GUARDS.items() if name not in address.url.query}
    engine = sa.create_engine(address.url, **arguments, connect_args=guards)
    # psycopg2 would reset the session's default, and with it ours, after each statement that commits itself.
    engine.dialect.set_isolation_level = _set_autocommit  # type: ignore[assignment]

    @event.listens_for(engine, "do_connect")
    def give_secrets(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        parameters.update(address.secrets)

    event.listen(engine, "connect", _prepare_postgres)
    return engine


def _set_autocommit(connection: Any, level: str) -> None:
    """Set autocommit or not; a transaction that needs another isolation level sets it in its first statement."""
    connection.autocommit = level == "AUTOCOMMIT"


def _prepare_postgres(connection: Any, _record: Any) -> None:
    # Not by libpq's `options`, which poolers such as PgBouncer reject.
    with connection.cursor() as cursor:
        cursor.execute(
            f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'; SET idle_in_transaction_session_timeout = "
            f"'{STATEMENT_TIMEOUT_S}s'; SET lock_timeout = '{STATEMENT_TIMEOUT_S}s'; SET timezone = 'UTC'; "
            "SET default_transaction_isolation = 'read committed'; "
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'; "
            "SELECT current_setting('fsync'), pg_backend_pid()"
        )
        fsync, process = cursor.fetchone()
        if fsync == "off":
            _warn_of_fsync()
        if process != connection.info.backend_pid:
            _check_defaults_behind_pooler(cursor)
    connection.commit()


def _check_defaults_behind_pooler(cursor: Any) -> None:
    """Reject defaults that we would override: a pooler may run each transaction in another session, without our SET."""
    cursor.execute(
        "SELECT string_agg(name || ' = ' || reset_val, ', ' ORDER BY name) FROM pg_settings "
        "WHERE name = 'synchronous_commit' AND reset_val = 'off' "
        "OR name = 'default_transaction_isolation' AND reset_val != 'read committed'"
    )
    (unsafe,) = cursor.fetchone()
    if unsafe:
        message = "the database is behind a connection pooler, which may drop what a session sets, and its defaults are"
        hint = "change them by ALTER ROLE … SET and let the pooler reconnect, or name PostgreSQL itself in storage.url"
        allowed = "synchronous_commit = on, default_transaction_isolation = read committed"
        raise ConfigurationError(f"{message} unsafe", got=unsafe, allowed=allowed, hint=hint)


@cache
def _warn_of_fsync() -> None:
    logger.warning("the database runs with fsync = off: a crash of its machine may lose results or destroy the study")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin in `_begin_sqlite`, not in the driver
    # With WAL, anything less could lose committed results in a power cut.
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails at once if another one wrote in between.
    is_readonly = connection.get_execution_options().get("sqlite_readonly", False)
    connection.exec_driver_sql("BEGIN" if is_readonly else "BEGIN IMMEDIATE")


def lock_schema(connection: Connection) -> None:
    """Lock tables and study names until the transaction ends; SQLite has locked the file already."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(advisory_lock(SCHEMA_LOCK)))


def advisory_lock(key: int) -> sa.ColumnElement[Any]:
    """Return PostgreSQL's lock of this key until the transaction ends, as an expression."""
    return sa.func.pg_advisory_xact_lock(sa.cast(LOCK_CLASS, sa.Integer), sa.cast(key, sa.Integer))


def upsert(connection: Connection, table: sa.Table, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """Insert rows, or update those that exist under the same `keys`, in one statement."""
    # SQLAlchemy has imported the dialect of this connection; the other one need not be.
    dialect = import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
    insert = dialect.insert(table).values(rows)
    connection.execute(on_conflict_update(insert, [name for name in rows[0] if name not in keys], keys))


def on_conflict_update(insert: Insert, names: Sequence[str], keys: tuple[str, ...]) -> Insert:
    """Let an insert update these columns where a row with the same `keys` exists."""
    changed = {name: insert.excluded[name] for name in names}
    return insert.on_conflict_do_update(index_elements=list(keys), set_=changed)


def now_s(connection: Connection) -> sa.ColumnElement[float]:
    """Return the database's clock as an expression, in seconds since 1970."""
    if connection.dialect.name == "sqlite":
        return (sa.func.julianday("now", type_=sa.Float) - 2440587.5) * 86400.0
    return sa.cast(sa.func.date_part("epoch", sa.func.clock_timestamp()), sa.Float(53))


def now_utc(connection: Connection) -> sa.ColumnElement[Any]:
    """Return the database's clock as an expression of the type in which Optuna stores times: naive, in UTC."""
    if connection.dialect.name == "sqlite":
        return sa.func.strftime("%Y-%m-%d %H:%M:%f", "now", type_=sa.String).concat("000")
    return sa.func.timezone("utc", sa.func.clock_timestamp())


def median_of(column: sa.ColumnElement[float], *, sqlite: bool) -> sa.Select[Any]:
    """Return a query of one row: the number of rows and the median of those that are not NULL, `num_rows`, `median`."""
    if not sqlite:
        median = sa.func.percentile_cont(0.5).within_group(column)
        return sa.select(sa.func.count().label("num_rows"), median.label("median")).select_from(column.table)
    place, num_values = sa.func.row_number().over(order_by=column), sa.func.count().over()
    parts = (column.label("value"), place.label("place"), num_values.label("num_values"))
    placed = sa.select(*parts).where(column.is_not(None)).subquery("placed")
    is_middle = placed.c.place.between((placed.c.num_values + 1) // 2, placed.c.num_values // 2 + 1)
    num_rows = sa.select(sa.func.count()).select_from(column.table).scalar_subquery()
    return sa.select(num_rows.label("num_rows"), sa.func.avg(placed.c.value).label("median")).where(is_middle)


def server_start_s(connection: Connection) -> sa.ColumnElement[float]:
    """Return the start of the server as an expression, in seconds since 1970; 0 for SQLite."""
    if connection.dialect.name == "sqlite":
        return sa.literal(0.0)
    return sa.cast(sa.func.date_part("epoch", sa.func.pg_postmaster_start_time()), sa.Float(53))
