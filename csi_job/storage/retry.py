"""Retry while the database is unreachable or busy; reject wrong settings on first contact."""

from __future__ import annotations

import enum
import errno
import json
import logging
import os
import random
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import sqlalchemy.exc
from optuna.exceptions import StorageInternalError

from csi_job.errors import ConfigurationError, CsiJobError, StorageRejectedError, StorageUnavailableError, advice

if TYPE_CHECKING:
    import psycopg2  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

FIRST_DELAY_S: Final = 0.05
MAX_DELAY_S: Final = 10.0
MAX_BUSY_DELAY_S: Final = 0.5  # another worker releases its lock soon
BUSY_LIMIT_S: Final = 120.0  # at least this long for a lock, even where the caller does not wait for outages
CHECK_EVERY_S: Final = 0.5
WRITABLE_HINT: Final = (
    "SQLite writes beside the file even to read it: make its folder writable, or copy the work folder"
)
FILE_RIGHTS_HINT: Final = "make the file and its folder writable for this user, or copy the work folder"
CREDENTIALS_HINT: Final = "check CSI_JOB_STORAGE__PASSWORD or storage.password_file"
REFUSED_HINT: Final = "correct storage.url, or the server's databases, roles, certificates or pg_hba.conf"
REJECTED_LIMIT_S: Final = 30.0  # a password may just be changing; waiting longer without it only holds a GPU
CHANGED_HINT: Final = (
    "it worked before, so a password or a right was changed: correct it (on Kubernetes, the database's Secret) and run "
    "the same command again (pods restart by themselves); no reported result is lost"
)
READ_ONLY_HINT: Final = "name the primary in storage.url instead of a standby, or a user who may write to its tables"
TABLES_HINT: Final = (
    "csi-job needs PostgreSQL or SQLite with the tables as it made them: restore them from a backup, or name another "
    "database in storage.url"
)
LOG_AFTER_S: Final = 1.0  # shorter outages are not worth a line

# SQLSTATE classes and codes, https://www.postgresql.org/docs/current/errcodes-appendix.html
UNREACHABLE: Final = (
    *("08", "53", "57", "58"),  # connection, resources (slots, disk), operator intervention, system
    *("25006", "25P03", "25P04"),  # a standby after a fail-over; transactions that the server timed out
)
BUSY_CODES: Final = ("40001", "40P01", "55P03", "55006")  # serialization, deadlock, lock timeout, object in use
UNTRANSLATABLE: Final = "22P05"
DISK_ERRNOS: Final = {  # by the code of SQLite or PostgreSQL
    **dict.fromkeys((sqlite3.SQLITE_FULL, "53100"), errno.ENOSPC),
    **dict.fromkeys((sqlite3.SQLITE_IOERR, "58030"), errno.EIO),
}
CHANGED_TABLES: Final = (
    *("42P01", "42703", "42804", "42883"),  # no such table or column, a column of another type
    *("0A", "55000", "P0001"),  # what a rule, a view or a trigger refuses
)
REJECTED: Final = ("28", "3D", "3F", "42501")  # authorization, no such database, no schema, no privilege
READ_ONLY: Final = ("42501", "25006")  # no privilege; a standby, or `default_transaction_read_only`
# While connecting, libpq gives no code, only words. Unknown ones count as an outage.
REJECTED_WORDS: Final = (
    "authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist", "permission denied",
    "does not support ssl", "certificate verify failed", "invalid sslmode", "invalid connection option",
    "is not permitted to log in", "sslrootcert", "root certificate", "unknown ca", "alert certificate",
    "alert bad certificate", "certificate required", "handshake failure", "protocol version", "unsupported protocol",
    "invalid port number", "invalid value", "invalid integer value", "invalid dsn", "private key", "certificate file",
    "definition of service", "service file", "unrecognized configuration parameter",
)  # fmt: skip
SQLITE_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_SCHEMA)
SQLITE_UNREACHABLE: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM)
SQLITE_DAMAGED: Final = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
SQLITE_REJECTED: Final = (*SQLITE_DAMAGED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)


class ErrorKind(enum.Enum):
    """What an error means for the caller."""

    BUSY = "busy"
    """Another worker holds a lock: retry soon."""
    UNREACHABLE = "unreachable"
    """No connection, or the server cannot work at the moment: retry later."""
    REJECTED = "rejected"
    """It rejects our credentials or configuration."""
    NOT_DATABASE = "not_database"
    """The error does not come from the database."""


SQLITE_KINDS: Final = {
    **dict.fromkeys(SQLITE_BUSY, ErrorKind.BUSY),
    **dict.fromkeys(SQLITE_UNREACHABLE, ErrorKind.UNREACHABLE),
    **dict.fromkeys(SQLITE_REJECTED, ErrorKind.REJECTED),
}


def classify(error: BaseException) -> ErrorKind:
    """Classify an error of SQLAlchemy, Optuna or a driver."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return classify(error.__cause__)
    original = _driver_error(error)
    if isinstance(original, sqlite3.Error):
        return SQLITE_KINDS.get(_sqlite_code(original), ErrorKind.NOT_DATABASE)
    driver = sys.modules.get("psycopg2")  # which the first connection to PostgreSQL imports
    if driver is not None and isinstance(original, driver.Error):
        return _classify_postgres(original)
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated:
        return ErrorKind.UNREACHABLE
    return ErrorKind.NOT_DATABASE


def _is_read_only(error: BaseException) -> bool:
    """Return whether the database may be used, but not for this statement."""
    original = _driver_error(error)
    return getattr(original, "pgcode", None) in READ_ONLY or _sqlite_code(original) == sqlite3.SQLITE_READONLY


def _driver_error(error: BaseException) -> BaseException:
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return _driver_error(error.__cause__)
    return getattr(error, "orig", None) or error


def _classify_postgres(error: psycopg2.Error) -> ErrorKind:
    import psycopg2

    code = error.pgcode
    if code is None:
        # libpq raises a ProgrammingError for a connection option that it does not know.
        is_rejected = any(words in str(error).lower() for words in REJECTED_WORDS)
        if is_rejected or isinstance(error, psycopg2.ProgrammingError):
            return ErrorKind.REJECTED
        is_connection = isinstance(error, (psycopg2.InterfaceError, psycopg2.DatabaseError))
        return ErrorKind.UNREACHABLE if is_connection else ErrorKind.NOT_DATABASE
    if code in BUSY_CODES:
        return ErrorKind.BUSY
    if code.startswith(REJECTED):
        return ErrorKind.REJECTED
    return ErrorKind.UNREACHABLE if code.startswith(UNREACHABLE) else ErrorKind.NOT_DATABASE


def _sqlite_code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits only refine it


def _sqlite_hint(error: BaseException) -> str:
    """Return what to do about an SQLite file that rejects us, "" about any other database."""
    code = _sqlite_code(_driver_error(error))
    return TABLES_HINT if code in SQLITE_DAMAGED else FILE_RIGHTS_HINT if code else ""


def _how_to_go_on(error: BaseException, kind: ErrorKind) -> str:
    """Return what to do once the retries are over: a full disk, for one, does not come back by itself."""
    original = _driver_error(error)
    code = _sqlite_code(original) or getattr(original, "pgcode", None)
    if code in DISK_ERRNOS:
        return advice(OSError(DISK_ERRNOS[code], ""))
    return f"run the same command again {'later' if kind is ErrorKind.BUSY else 'once it is back'}"


def reason(error: BaseException) -> str:
    """Return the driver's message in one line, without statement and parameters."""
    original = _driver_error(error)
    words = re.split("\nLINE | with text ", str(original))[0]  # which begin an excerpt of statement or table
    words = re.sub(r"\n\s*Is the server running[^\n]*", "", words)  # libpq's question, which would need an answer
    return " ".join(words.split())[:300] or type(original).__name__


@dataclass
class RetryPolicy:
    """How long to retry a database operation, and what may interrupt the wait.

    `check` is called before each wait and repeatedly during it; it and `sleep` may raise to end it, e.g. because a
    signal came.
    """

    where: str
    limit_s: float
    check: Callable[[], None] = lambda: None
    sleep: Callable[[float], None] = time.sleep
    has_written: bool = True
    """Whether a write has succeeded: until then a missing right is a wrong setting, later it may be temporary."""

    @contextmanager
    def interrupted_by(self, check: Callable[[], None], sleep: Callable[[float], None]) -> Iterator[None]:
        """Let `check` and `sleep` end waits within the block."""
        before = self.check, self.sleep
        self.check, self.sleep = check, sleep
        try:
            yield
        finally:
            self.check, self.sleep = before

    def call(
        self, operation: Callable[[], Result], *, limit_s: float | None = None, check: bool = True, writes: bool = False
    ) -> Result:
        """Run an operation, retrying it with exponential back-off while the database is unreachable or busy.

        Args:
            operation: what to run; it must be idempotent.
            limit_s: seconds to retry at most, by default this policy's limit.
            check: whether `self.check` may end the wait.
            writes: whether it writes to the database.

        Raises:
            ConfigurationError: our user may not do this, and nothing was written before.
            StorageUnavailableError: the database was still unreachable when the limit was reached.
            StorageRejectedError: it rejected us for `REJECTED_LIMIT_S`, or when the limit was reached.
        """
        limit = self.limit_s if limit_s is None else limit_s
        began, delay, logged, rejected_at_s = time.monotonic(), FIRST_DELAY_S, False, None
        while True:
            try:
                result = operation()
            except CsiJobError:
                raise
            except Exception as error:
                kind = classify(error)
                if kind is ErrorKind.NOT_DATABASE:
                    self._explain(error)
                    raise
                self._check_rights(error)
                elapsed_s = time.monotonic() - began
                left_s = (max(limit, BUSY_LIMIT_S) if kind is ErrorKind.BUSY else limit) - elapsed_s
                if kind is ErrorKind.REJECTED:
                    rejected_at_s = elapsed_s if rejected_at_s is None else rejected_at_s
                    left_s = min(left_s, rejected_at_s + REJECTED_LIMIT_S - elapsed_s)
                else:
                    rejected_at_s = None
                if left_s <= 0:
                    raise self._unavailable(error, kind, elapsed_s) from None
                if not logged and elapsed_s >= LOG_AFTER_S and kind is not ErrorKind.BUSY:
                    self._log_outage(error, kind, limit)
                    logged = True
                self._wait(min(delay * random.uniform(0.5, 1.5), left_s), check=check)
                delay = min(delay * 2, MAX_BUSY_DELAY_S if kind is ErrorKind.BUSY else MAX_DELAY_S)
            else:
                if logged:
                    values = {"where": self.where, "seconds": time.monotonic() - began}
                    logger.warning("%(where)s is back after %(seconds).0f s", values)
                self.has_written |= writes
                return result

    def _wait(self, seconds: float, *, check: bool) -> None:
        if not check:
            time.sleep(seconds)
            return
        until = time.monotonic() + seconds
        self.check()
        while (left_s := until - time.monotonic()) > 0:
            self.sleep(min(left_s, CHECK_EVERY_S))
            self.check()

    def _log_outage(self, error: Exception, kind: ErrorKind, limit_s: float) -> None:
        what = "rejected the connection" if kind is ErrorKind.REJECTED else "is unreachable"
        values = {"where": self.where, "what": what, "reason": reason(error), "limit_s": limit_s}
        logger.warning("%(where)s %(what)s (%(reason)s); retrying for up to %(limit_s).0f s", values)

    def _explain(self, error: Exception) -> None:
        """Raise `ConfigurationError` if the database is to blame for an error that no waiting ends."""
        original = _driver_error(error)
        code = getattr(original, "pgcode", None) or ""
        if code == UNTRANSLATABLE:  # which only a study's name can be
            message = f"the database's encoding lacks a character of the study's name: {reason(error)}"
            raise ConfigurationError(message, hint="choose another name, or a database with encoding UTF8") from None
        is_invalid = _sqlite_code(original) == sqlite3.SQLITE_ERROR and "syntax error" not in str(original)
        is_damaged = isinstance(original, (json.JSONDecodeError, UnicodeDecodeError))  # a value: pages have no digests
        is_damaged |= "Could not decode to UTF-8" in str(original)
        if is_damaged or is_invalid or code.startswith(CHANGED_TABLES):
            raise self.unusable(error, TABLES_HINT) from None

    def _check_rights(self, error: Exception) -> None:
        if not self.has_written and _is_read_only(error):
            raise self.unusable(error, _sqlite_hint(error) or READ_ONLY_HINT) from None

    def unusable(self, error: Exception, hint: str) -> ConfigurationError:
        """Return the error that the settings name a database which we cannot use."""
        return ConfigurationError(f"{self.where} cannot be used: {reason(error)}", hint=hint)

    def _unavailable(self, error: Exception, kind: ErrorKind, elapsed_s: float) -> StorageUnavailableError:
        if kind is ErrorKind.REJECTED:
            what = f"{self.where} rejects the connection: {reason(error)}"
            hint = _sqlite_hint(error)
            again = "; then run the same command again, no reported result is lost"
            return StorageRejectedError(what, hint=hint + again if hint else CHANGED_HINT)
        if elapsed_s < LOG_AFTER_S:
            return StorageUnavailableError(f"{self.where} is unreachable: {reason(error)}")
        return StorageUnavailableError(
            f"{self.where} could not be used for {elapsed_s:.0f} s: {reason(error)}",
            hint=f"{_how_to_go_on(error, kind)}; no reported result is lost",
        )


def call_at_start(operation: Callable[[], Result], policy: RetryPolicy, file: Path | None = None) -> Result:
    """Like `RetryPolicy.call`, for the first contact: a rejection is a wrong setting (exit code 2).

    So is an SQLite `file` that cannot be opened, unless its permissions allow it: then the disk may be full.
    """

    def first_contact() -> Result:
        try:
            return operation()
        except Exception as error:
            code = _sqlite_code(_driver_error(error))
            cannot_open = code == sqlite3.SQLITE_CANTOPEN
            may_write = (
                file is not None and os.access(file, os.R_OK | os.W_OK) and os.access(file.parent, os.W_OK | os.X_OK)
            )
            if classify(error) is ErrorKind.REJECTED or (cannot_open and not may_write):
                cannot_write = cannot_open or code == sqlite3.SQLITE_READONLY
                hint = CREDENTIALS_HINT if "password" in reason(error) else _sqlite_hint(error) or REFUSED_HINT
                raise policy.unusable(error, WRITABLE_HINT if cannot_write else hint) from None
            raise

    return policy.call(first_contact)
