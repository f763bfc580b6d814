"""What happens to a client's connections: it dies around a COMMIT, or the COMMIT fails or is never answered.

The driver's connections are replaced from outside, for SQLite and PostgreSQL alike.
"""

import random
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

import psycopg2
from psycopg2 import extensions
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.faults.harness.crash_points import die

FAULTS: Final = ("die before", "die after", "fail before", "fail after")


class CommitFaults:
    """Decides the fate of each COMMIT of this process."""

    def __init__(self, seed: int, chance: float, clock: Path | None = None) -> None:
        """Let each COMMIT go wrong with this chance; `clock` holds the seconds by which SQLite's clock is off."""
        self._draws, self._chance, self._clock = random.Random(seed), chance, clock

    def install(self) -> None:
        """Replace the connections that this process makes from now on."""
        event.listen(Engine, "do_connect", self._give_factories)
        if self._clock is not None:
            event.listen(Engine, "connect", self._set_clock)

    def draw(self) -> str:
        return self._draws.choice(FAULTS) if self._draws.random() < self._chance else ""

    def _give_factories(self, dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        faults_of_process = self
        if dialect.name == "sqlite":

            class File(_File):
                faults = faults_of_process

            parameters["factory"] = File
            return

        class Connection(_Connection):
            faults = faults_of_process

        parameters["connection_factory"], parameters["cursor_factory"] = Connection, _Cursor

    def _set_clock(self, connection: Any, _record: Any) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        clock = self._clock
        assert clock is not None
        connection.create_function(
            "julianday", 1, lambda _: (time.time() + float(clock.read_text())) / 86400 + 2440587.5
        )


class _File(sqlite3.Connection):
    """An SQLite file whose COMMITs may fail as on a full disk; then nothing was stored."""

    faults: CommitFaults

    def commit(self) -> None:
        fault = self.faults.draw() if self.in_transaction else ""
        if fault == "die before":
            die()
        if fault.startswith("fail"):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
            raise error
        super().commit()
        if fault == "die after":
            die()


class _Connection(extensions.connection):
    """A connection to PostgreSQL that may be lost before a COMMIT or instead of its answer."""

    faults: CommitFaults

    def commit(self) -> None:
        is_idle = self.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE
        self.end_transaction("" if is_idle else self.faults.draw(), super().commit)

    def end_transaction(self, fault: str, act: Any) -> None:
        """Do what ends a transaction, with a fault if there is one."""
        if fault == "die before":
            die()
        if fault != "fail before":
            act()
        if fault == "die after":
            die()
        if fault.startswith("fail"):
            self.close()
            message = "server closed the connection unexpectedly"
            raise psycopg2.OperationalError(message)


class _Cursor(extensions.cursor):
    """A cursor whose statements end a transaction each in autocommit mode."""

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - the driver's name
        if not self.connection.autocommit:
            super().execute(query, vars)
            return
        fault = self.connection.faults.draw()
        self.connection.end_transaction(fault, lambda: super(_Cursor, self).execute(query, vars))
