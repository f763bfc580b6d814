"""Leases: which worker may write to a running trial, and writes that go through only under one."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection, Row

from csi_job.errors import LeaseLostError
from csi_job.storage.attributes import PAUSED
from csi_job.storage.engine import now_s, on_conflict_update, server_start_s
from csi_job.storage.study_rows import decoded_uid, has_uid
from csi_job.storage.tables import LEASES, TRIALS, USER_ATTRIBUTES
from csi_job.storage.trial_rows import TrialWrite, child_rows, state_changes, write_rows

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

# The value of `renewed_at_s` in a lease that its worker released. Read it by `running_trials`' column `released`. A
# separate column would be plainer, but workers of earlier versions, still alive during an upgrade, know only this.
RELEASED_AT_S: Final = 0.0


@dataclass
class Lease:
    """The right to write to one running trial."""

    trial_id: int
    number: int
    token: str
    attempt: int
    stored_uid: str | None = None
    """The study's uid, as JSON."""
    num_epochs: int = 0
    lost: bool = field(default=False, repr=False)
    """Whether a write or a renewal has found that another worker has the trial."""

    @property
    def uid(self) -> str:
        """The study's uid, empty if it has none."""
        return decoded_uid(self.stored_uid)

    def lost_error(self) -> LeaseLostError:
        """Return the error of a worker that has lost this lease."""
        reason = "another one has it, another program finished it, or it was deleted"
        message = f"trial {self.number} no longer belongs to this worker: {reason}"
        return LeaseLostError(message)


def new_token() -> str:
    """Return a token that no other claim has."""
    return uuid.uuid4().hex


# The worker's process. psutil computes start times from the wall clock, which may be set between two readings; it does
# not know PID namespaces either, and equal process ids in two containers are two processes.


def worker_id() -> str:
    """Identify this process: host, boot, PID namespace, process id, and start time."""
    return "|".join((socket.gethostname(), *_boot_and_pid_namespace(), str(os.getpid()), _start_of(os.getpid()) or ""))


def worker_name() -> str:
    """Return this process's host and process id, for people to read."""
    return f"{socket.gethostname()}:{os.getpid()}"


def owner_process_is_gone(owner: str) -> bool:
    """Return whether the lease's owner was a process of this machine and PID namespace that no longer exists."""
    _, *namespace, process, began = owner.split("|") if owner.count("|") == 4 else [""] * 5  # noqa: PLR2004
    if not process or not all(namespace) or tuple(namespace) != _boot_and_pid_namespace():
        return False
    now = _start_of(int(process))
    if now is not None:
        return now != began
    try:
        os.kill(int(process), 0)  # it may be one that `/proc` hides from us
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _boot_and_pid_namespace() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "", ""


def _start_of(process: int) -> str | None:
    """Return a process's start in clock ticks since boot; `""` for a zombie, None if `/proc` does not show it."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


# Leases of a study


def running_trials(connection: Connection, study_id: int) -> sa.Select[Any]:
    """Return the query of a study's running trials with their leases and the database's time.

    Columns: `trial_id`, `number`, those of `LEASES` and `released` (None where there is no lease), `paused` (see
    `rungs`), `now_s`, `server_start_s`.
    """
    leases = [column for column in LEASES.c if column is not LEASES.c.trial_id]
    is_released = LEASES.c.renewed_at_s == RELEASED_AT_S
    is_pause = (USER_ATTRIBUTES.c.key == PAUSED, USER_ATTRIBUTES.c.value_json == sa.cast(LEASES.c.attempt, sa.String))
    mark = sa.select(sa.literal(1)).where(USER_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id, *is_pause).exists()
    state = (is_released.label("released"), sa.and_(is_released, mark).label("paused"))
    clock = (now_s(connection).label("now_s"), server_start_s(connection).label("server_start_s"))
    return (
        sa.select(TRIALS.c.trial_id, TRIALS.c.number, *leases, *state, *clock)
        .outerjoin(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING)
    )


def is_orphan(row: Row[Any]) -> bool:
    """Return whether a trial of `running_trials` has lost its worker; a paused one needs none."""
    if row.token is None or row.released:
        return not row.paused
    # Nobody could renew a lease while the server was down, so its age counts from the server's start at the earliest.
    start_s = row.server_start_s if row.server_start_s <= row.now_s else 0.0  # the clock was set back since
    age_s = row.now_s - max(row.renewed_at_s, start_s)
    return bool(age_s > row.lease_s or owner_process_is_gone(row.owner))


def is_in_future(row: Row[Any]) -> bool:
    """Return whether a trial of `running_trials` has a lease from before the database's clock was set back."""
    return row.token is not None and row.renewed_at_s > row.now_s


# Fenced writes


def fence(connection: Connection, lease: Lease, *, unless_released: bool = False, **changes: Any) -> None:
    """Renew the lease, and set other columns of it, in the transaction that then writes to the trial.

    Its row stays locked until the end.

    Raises:
        LeaseLostError: another worker has the trial, or it is finished or deleted; with `unless_released`, or released.
    """
    renewal = _renewal(connection, lease, changes)
    if unless_released:
        renewal = renewal.where(LEASES.c.renewed_at_s != RELEASED_AT_S)
    if connection.execute(renewal).rowcount != 1:
        raise lease.lost_error()


def write_fenced(
    connection: Connection, lease: Lease, write: TrialWrite, changes: dict[str, Any], query: sa.Select[Any] | None
) -> Row[Any] | None:
    """Write to a running trial and its lease; on PostgreSQL this is one statement, for a connection in autocommit mode.

    Args:
        connection: on SQLite, inside a transaction.
        lease: must still be the caller's.
        write: to the trial.
        changes: columns of the lease to set.
        query: a query of one row to run along with it, which reads nothing that is written here.

    Returns:
        the query's row; its columns are known by name.

    Raises:
        LeaseLostError: another worker has the trial, or it is finished or deleted; nothing was written.
    """
    if connection.dialect.name == "sqlite":
        fence(connection, lease, **changes)
        write_rows(connection, lease.trial_id, write)
        return None if query is None else connection.execute(query).one()
    row = connection.execute(_fenced_statement(connection, lease, write, changes, query)).one()
    if row[0] != 1:
        raise lease.lost_error()
    return None if query is None else row


def is_finished_under(connection: Connection, lease: Lease, state: TrialState | None) -> bool:
    """Return whether a trial has this final state, written under this exact lease; no trial has None."""
    query = sa.select(TRIALS.c.trial_id).join(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
    mine = query.where(_mine(lease), TRIALS.c.state == state, has_uid(TRIALS.c.study_id, lease.stored_uid))
    return connection.execute(mine).first() is not None


def _fenced_statement(
    connection: Connection, lease: Lease, write: TrialWrite, changes: dict[str, Any], query: sa.Select[Any] | None
) -> sa.Select[Any]:
    """Return a statement in which every part depends on the lease row that its first part renews."""
    held = _renewal(connection, lease, changes).returning(LEASES.c.trial_id).cte("held")
    parts = [
        _fenced_insert(held, table, rows, keys).cte(f"new_{table.name}")
        for table, rows, keys in child_rows(lease.trial_id, write)
    ]
    if write.state is not None:
        update = sa.update(TRIALS).where(TRIALS.c.trial_id == held.c.trial_id)
        parts.append(update.values(**state_changes(connection, write.state)).cte("finished"))
    columns: list[Any] = [sa.select(sa.func.count()).select_from(held).scalar_subquery()]
    if query is not None:
        columns += query.subquery().c
    return sa.select(*columns).add_cte(*parts)


def _renewal(connection: Connection, lease: Lease, changes: dict[str, Any]) -> sa.Update:
    is_running = sa.and_(TRIALS.c.trial_id == lease.trial_id, TRIALS.c.state == TrialState.RUNNING)
    # A trial of a deleted study may have left its lease behind, and SQLite gives its id to another.
    running = sa.select(TRIALS.c.trial_id).where(is_running, has_uid(TRIALS.c.study_id, lease.stored_uid)).exists()
    return sa.update(LEASES).where(_mine(lease), running).values(**({"renewed_at_s": now_s(connection)} | changes))


def _mine(lease: Lease) -> sa.ColumnElement[bool]:
    return sa.and_(LEASES.c.trial_id == lease.trial_id, LEASES.c.token == lease.token)


def _fenced_insert(
    held: sa.CTE, table: sa.Table, rows: Sequence[dict[str, Any]], keys: tuple[str, ...]
) -> postgresql.Insert:
    """Return an upsert of rows given as one array per column, so that its text is the same for any number of rows."""
    from sqlalchemy.dialects import postgresql

    columns = [table.c[name] for name in rows[0] if name != "trial_id"]
    names = [column.name for column in columns]
    arrays = [sa.cast([row[column.name] for row in rows], postgresql.ARRAY(column.type)) for column in columns]
    given = sa.func.unnest(*arrays).table_valued(*names, name="given").render_derived()
    values = [sa.cast(given.c[column.name], column.type) for column in columns]
    selected = sa.select(held.c.trial_id, *values).select_from(held.join(given, sa.true()))
    insert = postgresql.insert(table).from_select(["trial_id", *names], selected)
    return on_conflict_update(insert, [name for name in names if name not in keys], keys)
