"""The points at which a worker may be killed: between any two statements, around COMMITs, between file operations.

They are injected into the worker's process from outside: counting connections and cursors replace the database
driver's, and Python's audit events report file operations. Nothing here depends on the text of a statement.
"""

import os
import random
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psycopg2 import extensions
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

SELF_KILL: Final = "killed itself at "
MAX_TRANSACTION, MAX_STATEMENT = 2, 20  # later ones, of polls and retries, share a name
SOON: Final = 40  # points
FILE_EVENTS: Final = {"open": "open", "os.rename": "rename", "os.remove": "remove", "os.rmdir": "rmdir"}
RENEWAL_THREAD: Final = "lease"
NEW: Final = " of a new connection"


@dataclass(frozen=True)
class Death:
    """Where a worker kills itself: at a named point, or after that many points; SIGUSR2 requests it soon."""

    at: str | None = None
    after: int | None = None
    seed: int = 0


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal is delivered before this ends


class CrashPoints:
    """Counts and names the points that a worker passes."""

    def __init__(self, death: Death, record: Path | None = None) -> None:
        """Kill this process as requested; with `record`, write the name of each point passed to that file."""
        self._at, self._after, self._draws = death.at, death.after, random.Random(death.seed)
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if record else None
        self._seen: set[str] = set()
        self._count = 0
        self._phase = "start"
        self._mine = threading.local()

    def install(self) -> None:
        event.listen(Engine, "do_connect", self._give_factories)
        event.listen(Pool, "checkout", _mark_as_used)
        sys.addaudithook(self._on_audit_event)
        signal.signal(signal.SIGUSR2, self._die_soon)

    def enter(self, phase: str) -> None:
        """Begin a phase, e.g. `claim`; its transactions are counted from 1."""
        self._phase = phase
        self._mine.transaction, self._mine.statement = 1, 0

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Enter another phase for the block."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def next_statement(self, connection: "_CountingConnection") -> str:
        if connection.is_new:
            connection.num_statements += 1
            return f"statement {connection.num_statements}{NEW}"
        self._mine.statement = getattr(self._mine, "statement", 0) + 1
        return f"statement {min(self._mine.statement, MAX_STATEMENT)} of transaction {self.transaction()}"

    def transaction(self) -> int:
        return min(getattr(self._mine, "transaction", 1), MAX_TRANSACTION)

    def transaction_ended(self) -> None:
        """Start counting the statements of the next transaction; each renewal counts as the first."""
        number = 1 if _is_renewal() else self.transaction() + 1
        self._mine.transaction, self._mine.statement = number, 0

    def reach(self, what: str, last_act: Callable[[], Any] | None = None) -> None:
        """Pass a point, or die here after `last_act`, which sends what the server is still to receive."""
        phase = "connect" if what.endswith(NEW) else "renewal" if _is_renewal() else self._phase
        name = f"{phase}: {what}"
        self._count += 1
        if self._record is not None and name not in self._seen:
            self._seen.add(name)
            os.write(self._record, f"{name}\n".encode())
        if name == self._at or (self._after is not None and self._count >= self._after):
            if last_act is not None:
                last_act()
            os.write(2, f"{SELF_KILL}{name}\n".encode())
            die()

    def _die_soon(self, _number: int, _frame: Any) -> None:
        self._after = self._count + self._draws.randint(1, SOON)

    def _give_factories(self, _dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        points = self

        class Connection(_CountingConnection):
            crash_points = points

        parameters["connection_factory"], parameters["cursor_factory"] = Connection, _CountingCursor

    def _on_audit_event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name not in FILE_EVENTS:
            return
        path = Path(os.fsdecode(arguments[0])) if isinstance(arguments[0], (str, bytes, os.PathLike)) else Path()
        is_checkpoint = path.suffix in {".pt", ".tmp"} or path.name.startswith(("attempt-", "trial-"))
        if is_checkpoint and not (name == "open" and arguments[2] & os.O_ACCMODE == os.O_RDONLY):
            self.reach(f"before {FILE_EVENTS[name]} of {path.suffix or path.name.partition('-')[0]}")


def _is_renewal() -> bool:
    return threading.current_thread().name == RENEWAL_THREAD


def _mark_as_used(connection: Any, _record: Any, _proxy: Any) -> None:
    connection.is_new = False


class _CountingConnection(extensions.connection):
    """A connection of the driver whose COMMITs are points."""

    crash_points: CrashPoints
    is_new = True
    """Whether the engine is still setting it up."""
    num_statements = 0

    def commit(self) -> None:
        points = self.crash_points
        if self.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE:  # nothing is sent then
            super().commit()
            return
        which = NEW if self.is_new else f" {points.transaction()}"
        points.reach(f"before COMMIT{which}")
        points.reach(f"before the answer to COMMIT{which}", lambda: os.write(self.fileno(), _query(b"COMMIT")))
        super().commit()
        points.reach(f"after COMMIT{which}")
        if not self.is_new:
            points.transaction_ended()

    def rollback(self) -> None:
        if self.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE and not self.is_new:
            self.crash_points.transaction_ended()
        super().rollback()


class _CountingCursor(extensions.cursor):
    """A cursor of the driver whose statements are points; in autocommit mode each is three points."""

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - the driver's name
        points = self.connection.crash_points
        statement = points.next_statement(self.connection)
        points.reach(f"before {statement}")
        if not self.connection.autocommit:
            super().execute(query, vars)
            return
        points.reach(
            f"before the answer to the autocommit {statement}",
            lambda: os.write(self.connection.fileno(), _query(self.mogrify(query, vars))),
        )
        super().execute(query, vars)
        points.reach(f"after the autocommit {statement}")


def _query(text: bytes) -> bytes:
    """Return the simple query message of PostgreSQL's protocol."""
    return b"Q" + struct.pack(">I", len(text) + 5) + text + b"\0"
