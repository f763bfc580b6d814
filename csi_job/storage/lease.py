"""Leases: whose a running trial is, and who keeps it."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Row

from csi_job.errors import LeaseLostError
from csi_job.logs import get_logger
from csi_job.storage.engine import now_s, server_start_s, upserted
from csi_job.storage.tables import LEASES, TRIALS
from csi_job.storage.trial_rows import TrialWrite, child_rows, state_changes, write_trial

logger = get_logger(__name__)
GIVEN_BACK_S: Final = 0.0  # as `renewed_at_s`: free for anyone, and the attempt is not held against the trial


@dataclass
class Lease:
    """The right to write to one running trial."""

    trial_id: int
    number: int
    token: str
    attempt: int
    num_epochs: int = 0
    lost: bool = field(default=False, repr=False)


def new_token() -> str:
    """Return a token that no other claim has."""
    return uuid.uuid4().hex


def owner_name() -> str:
    """Return who this process is: host, boot, process namespace, process, and when it began."""
    return "|".join((socket.gethostname(), *_process_space(), str(os.getpid()), _start_of(os.getpid()) or ""))


def is_dead(owner: str) -> bool:
    """Return whether the owner was a process of this very machine that is gone, so that nobody need wait for it."""
    _, *space, process, began = owner.split("|") if owner.count("|") == 4 else ("", "", "", "", "")  # noqa: PLR2004
    if not process or not all(space) or tuple(space) != _process_space():
        return False
    now = _start_of(int(process))
    return now != began if now is not None else not _is_there(int(process))


def _process_space() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "", ""


def _start_of(process: int) -> str | None:
    """Return when a process began, in clock ticks since boot; `` if it only waits to be collected, None if not seen."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def _is_there(process: int) -> bool:
    """Return whether a process lives that `/proc` may hide from us."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def running_trials(connection: Connection, study_id: int) -> sa.Select[Any]:
    """Return the query of a study's running trials with their leases and the database's time.

    Columns: `trial_id`, `number`, those of `LEASES` (None where there is no lease), `now_s`, `server_start_s`.
    """
    clock = (now_s(connection).label("now_s"), server_start_s(connection).label("server_start_s"))
    leases = [column for column in LEASES.c if column is not LEASES.c.trial_id]
    return (
        sa.select(TRIALS.c.trial_id, TRIALS.c.number, *leases, *clock)
        .outerjoin(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING)
    )


def is_orphan(row: Row[Any]) -> bool:
    """Return whether a trial of `running_trials` is free to be taken over."""
    if row.token is None or row.renewed_at_s == GIVEN_BACK_S:
        return True
    # While the server was down nobody could renew, so a lease counts from its start at the earliest.
    age_s = row.now_s - max(row.renewed_at_s, row.server_start_s)
    return bool(age_s > row.lease_s or is_dead(row.owner))


def fence(connection: Connection, lease: Lease, *, only_held: bool = False, **changes: Any) -> None:
    """Renew the lease in this transaction, which holds its row until it ends.

    Args:
        connection: inside the transaction that writes to the trial.
        lease: the caller's lease.
        only_held: leave one that was given back as it is.
        changes: other columns of the lease to set.

    Raises:
        LeaseLostError: the trial is another's by now, given back, finished, or deleted.

    """
    renewal = _renewal(connection, lease, changes)
    if only_held:
        renewal = renewal.where(LEASES.c.renewed_at_s != GIVEN_BACK_S)
    if connection.execute(renewal).rowcount != 1:
        raise _lost(lease)


def write_fenced(
    connection: Connection,
    lease: Lease,
    write: TrialWrite,
    changes: dict[str, Any],
    question: sa.Select[Any] | None = None,
) -> Row[Any] | None:
    """Write to a running trial under its lease; on PostgreSQL this is one statement.

    Args:
        connection: inside a transaction, or on PostgreSQL in autocommit mode.
        lease: the caller's lease.
        write: what is written.
        changes: other columns of the lease to set.
        question: a query of one row to ask beside, of nothing that is written here.

    Returns:
        the answer to the question, whose columns are known by name.

    Raises:
        LeaseLostError: the trial is another's by now, finished, or deleted; nothing was written.

    """
    if connection.dialect.name == "sqlite":
        fence(connection, lease, **changes)
        write_trial(connection, lease.trial_id, write)
        return None if question is None else connection.execute(question).one()
    row = connection.execute(_statement(connection, lease, write, changes, question)).one()
    if row[0] != 1:
        raise _lost(lease)
    return None if question is None else row


def _statement(
    connection: Connection,
    lease: Lease,
    write: TrialWrite,
    changes: dict[str, Any],
    question: sa.Select[Any] | None,
) -> sa.Select[Any]:
    """Return the statement whose every part depends on the row of the lease that its first part renews."""
    held = _renewal(connection, lease, changes).returning(LEASES.c.trial_id).cte("held")
    parts: list[sa.CTE] = []
    for table, rows, keys in child_rows(lease.trial_id, write):
        parts.append(_inserted(held, table, rows, keys).cte(f"new_{table.name}"))
    if write.state is not None:
        mine = TRIALS.c.trial_id == held.c.trial_id
        parts.append(sa.update(TRIALS).where(mine).values(**state_changes(connection, write.state)).cte("told"))
    columns: list[Any] = [sa.select(sa.func.count()).select_from(held).scalar_subquery()]
    if question is not None:
        columns += question.subquery().c
    return sa.select(*columns).add_cte(*parts)


def _inserted(
    held: sa.CTE, table: sa.Table, rows: Sequence[dict[str, Any]], keys: tuple[str, ...]
) -> postgresql.Insert:
    """Return the insert of rows that are given as one array a column, so that it is the same for any number of them."""
    columns = [table.c[name] for name in rows[0] if name != "trial_id"]
    arrays = [_array(column, [row[column.name] for row in rows]) for column in columns]
    given = sa.func.unnest(*arrays).table_valued(*(column.name for column in columns), name="given").render_derived()
    values = [sa.cast(given.c[column.name], column.type) for column in columns]
    selected = sa.select(held.c.trial_id, *values).select_from(held.join(given, sa.true()))
    insert = postgresql.insert(table).from_select(["trial_id", *(column.name for column in columns)], selected)
    return upserted(insert, [column.name for column in columns if column.name not in keys], keys)


def _array(column: sa.Column[Any], values: list[Any]) -> sa.ColumnElement[Any]:
    if isinstance(column.type, sa.Enum):
        return sa.cast([value.name for value in values], postgresql.ARRAY(sa.String))
    return sa.cast(values, postgresql.ARRAY(column.type))


def _renewal(connection: Connection, lease: Lease, changes: dict[str, Any]) -> sa.Update:
    mine = sa.and_(LEASES.c.trial_id == lease.trial_id, LEASES.c.token == lease.token)
    is_running = sa.and_(TRIALS.c.trial_id == lease.trial_id, TRIALS.c.state == TrialState.RUNNING)
    running = sa.select(TRIALS.c.trial_id).where(is_running).exists()
    return sa.update(LEASES).where(mine, running).values(**({"renewed_at_s": now_s(connection)} | changes))


def _lost(lease: Lease) -> LeaseLostError:
    lease.lost = True
    return LeaseLostError(f"the lease of trial {lease.number} is lost, another worker goes on with it")
