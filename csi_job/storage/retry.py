"""A database that goes away is waited for; one that refuses us is an error in one line."""

from __future__ import annotations

import enum
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import psycopg2  # type: ignore[import-untyped]
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError

from csi_job.errors import ConfigurationError, CsiJobError, StorageUnavailableError
from csi_job.logs import get_logger

logger = get_logger(__name__)
Result = TypeVar("Result")

FIRST_DELAY_S: Final = 0.05
MAX_DELAY_S: Final = 10.0
MAX_BUSY_DELAY_S: Final = 0.5  # a lock that another worker holds is free again soon
BUSY_LIMIT_S: Final = 120.0  # a lock is waited for so long, however impatient the caller is with outages
CHECK_EVERY_S: Final = 0.5
SAID_AFTER_S: Final = 1.0  # a shorter outage is nothing to tell

# SQLSTATE classes and codes, https://www.postgresql.org/docs/current/errcodes-appendix.html
AWAY_CLASSES: Final = ("08", "53", "57", "58")  # connection, resources (slots, disk), operator intervention, system
AWAY_CODES: Final = ("25006", "25P03", "25P04")  # a standby after a fail-over; transactions ended for us
BUSY_CODES: Final = ("40001", "40P01", "55P03", "55006")  # serialization, deadlock, lock timeout, object in use
REFUSED_CLASSES: Final = ("28", "3D", "3F", "42501")  # authorization, no such database, no schema, no privilege
# While connecting libpq gives no code, only words. What is not known here is waited for.
REFUSED_WORDS: Final = (
    "authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist", "permission denied",
    "does not support ssl", "certificate verify failed", "invalid sslmode", "invalid connection option",
    "is not permitted to log in", "sslrootcert", "root certificate", "unknown ca", "alert certificate",
    "alert bad certificate", "certificate required", "handshake failure", "protocol version", "unsupported protocol",
    "invalid port number", "invalid value", "invalid integer value", "invalid dsn", "private key", "certificate file",
)  # fmt: skip
SQLITE_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_SCHEMA)
SQLITE_AWAY: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM)
SQLITE_REFUSED: Final = (
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
)


class Verdict(enum.Enum):
    """What an error says about the database."""

    BUSY = "busy"
    """Another worker holds a lock: again at once."""
    AWAY = "away"
    """It cannot be reached now: again later."""
    REFUSED = "refused"
    """It will not take us as we are."""
    FOREIGN = "foreign"
    """No error of the database."""


def judge(error: BaseException) -> Verdict:
    """Tell what an error of SQLAlchemy, Optuna or a driver says about the database."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return judge(error.__cause__)
    if isinstance(error, sqlalchemy.exc.TimeoutError):  # of the connection pool
        return Verdict.BUSY
    original = _original(error)
    if isinstance(original, psycopg2.Error):
        return _judge_postgres(original)
    if isinstance(original, sqlite3.Error):
        return _judge_sqlite(original)
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated:
        return Verdict.AWAY
    return Verdict.FOREIGN


def _original(error: BaseException) -> BaseException:
    """Return the driver's own error."""
    return getattr(error, "orig", None) or error


def _judge_postgres(error: psycopg2.Error) -> Verdict:
    code = error.pgcode
    if code is None:
        if isinstance(error, psycopg2.ProgrammingError):  # a connection option that libpq does not know
            return Verdict.REFUSED
        is_refused = any(words in str(error).lower() for words in REFUSED_WORDS)
        is_connection = isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.DatabaseError))
        return Verdict.REFUSED if is_refused else Verdict.AWAY if is_connection else Verdict.FOREIGN
    if code in BUSY_CODES:
        return Verdict.BUSY
    if code.startswith(REFUSED_CLASSES):
        return Verdict.REFUSED
    return Verdict.AWAY if code.startswith(AWAY_CLASSES) or code in AWAY_CODES else Verdict.FOREIGN


def _judge_sqlite(error: sqlite3.Error) -> Verdict:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits only refine it
    if code in SQLITE_BUSY:
        return Verdict.BUSY
    if code in SQLITE_REFUSED:
        return Verdict.REFUSED
    return Verdict.AWAY if code in SQLITE_AWAY else Verdict.FOREIGN


def reason(error: BaseException) -> str:
    """Return the driver's words in one line, without statement and parameters."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return reason(error.__cause__)
    original = _original(error)
    return " ".join(str(original).split())[:300] or type(original).__name__


@dataclass
class Patience:
    """How long and how often a database is tried again.

    `check` is called before and, again and again, within each wait; it may raise to end it, e.g. because a signal came.
    """

    where: str
    limit_s: float
    check: Callable[[], None] = lambda: None
    wake: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def interrupted_by(self, check: Callable[[], None], wake: threading.Event) -> Iterator[None]:
        """Let `check` end waits while the block runs; `wake` is set when there is something to check."""
        before = self.check, self.wake
        self.check, self.wake = check, wake
        try:
            yield
        finally:
            self.check, self.wake = before

    def ride(self, operation: Callable[[], Result], *, limit_s: float | None = None, check: bool = True) -> Result:
        """Run an operation, again and again while the database is away or busy.

        Args:
            operation: what to do; it may run several times, so it must bear that.
            limit_s: seconds to wait at most, this object's own by default.
            check: let `self.check` end the wait.

        Raises:
            StorageUnavailableError: the database stayed away, or refused us, for so long.

        """
        limit = self.limit_s if limit_s is None else limit_s
        began, delay, told = time.monotonic(), FIRST_DELAY_S, False
        while True:
            try:
                result = operation()
            except CsiJobError:
                raise
            except Exception as error:
                verdict = judge(error)
                if verdict is Verdict.FOREIGN:
                    raise
                away_s = time.monotonic() - began
                if away_s >= (max(limit, BUSY_LIMIT_S) if verdict is Verdict.BUSY else limit):
                    raise self._given_up(error, away_s) from None
                if not told and away_s >= SAID_AFTER_S and verdict is not Verdict.BUSY:
                    logger.warning("%s is away (%s); waiting up to %.0f s", self.where, reason(error), limit)
                    told = True
                self._wait(delay * random.uniform(0.5, 1.5), check=check)
                delay = min(delay * 2, MAX_BUSY_DELAY_S if verdict is Verdict.BUSY else MAX_DELAY_S)
            else:
                if told:
                    logger.warning("%s is back after %.0f s", self.where, time.monotonic() - began)
                return result

    def _wait(self, seconds: float, *, check: bool) -> None:
        if not check:
            time.sleep(seconds)
            return
        until = time.monotonic() + seconds
        self.check()
        while (left_s := until - time.monotonic()) > 0:
            self.wake.wait(min(left_s, CHECK_EVERY_S))  # a signal sets it: nobody waits for a database before stopping
            self.check()

    def _given_up(self, error: Exception, away_s: float) -> StorageUnavailableError:
        if away_s < SAID_AFTER_S:
            return StorageUnavailableError(f"{self.where} is away: {reason(error)}")
        return StorageUnavailableError(
            f"{self.where} could not be used for {away_s:.0f} s: {reason(error)}",
            hint="start the same command again once it is back; nothing that was reported is lost",
        )


def at_start(operation: Callable[[], Result], patience: Patience) -> Result:
    """As `Patience.ride`, for the first contact: what refuses us is a setting that is wrong (exit code 2)."""

    def first_contact() -> Result:
        try:
            return operation()
        except Exception as error:
            unusable = getattr(_original(error), "sqlite_errorcode", 0) & 0xFF in SQLITE_AWAY
            if judge(error) is Verdict.REFUSED or unusable:
                message = f"{patience.where} cannot be used: {reason(error)}"
                raise ConfigurationError(message) from None
            raise

    return patience.ride(first_contact)
