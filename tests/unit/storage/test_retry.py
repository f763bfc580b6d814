import json
import sqlite3
import threading
from functools import partial
from itertools import repeat

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from csi_job.errors import (
    ConfigurationError,
    CsiJobError,
    StopRequestedError,
    StorageRejectedError,
    StorageUnavailableError,
)
from csi_job.signals import Stop
from csi_job.storage import retry
from csi_job.storage.retry import ErrorKind, RetryPolicy, call_at_start, classify, reason


def locked_error(folder):
    """The error of an SQLite file that another connection writes."""
    engine = sa.create_engine(f"sqlite:///{folder}/a.db", connect_args={"timeout": 0})
    other = sqlite3.connect(folder / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    except DBAPIError as error:
        return error
    finally:
        other.close()
    raise AssertionError


def connect_error(url):
    try:
        sa.create_engine(url, connect_args={"connect_timeout": 2}).connect()
    except DBAPIError as error:
        return error
    raise AssertionError


def test_a_locked_file_is_busy(tmp_path):
    assert classify(locked_error(tmp_path)) is ErrorKind.BUSY


@pytest.mark.parametrize(
    ("address", "kind", "words"),
    [
        ("127.0.0.1:1/csi", ErrorKind.UNREACHABLE, "refused"),
        ("no-such-host.invalid/csi", ErrorKind.UNREACHABLE, "no-such-host"),
        ("127.0.0.1:1/csi?sslmode=nonsense", ErrorKind.REJECTED, "sslmode"),
        ("127.0.0.1:1/csi?nonsense=1", ErrorKind.REJECTED, "nonsense"),
    ],
)
def test_a_server_that_is_not_there_is_retried_an_unknown_option_is_rejected(address, kind, words):
    error = connect_error(f"postgresql+psycopg2://{address}")
    assert classify(error) is kind
    assert words in reason(error)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ('FATAL:  password authentication failed for user "anna"', ErrorKind.REJECTED),
        ('FATAL:  database "csi" does not exist', ErrorKind.REJECTED),
        ("fe_sendauth: no password supplied", ErrorKind.REJECTED),
        ("SSL error: certificate verify failed", ErrorKind.REJECTED),
        ("SSL error: tlsv1 alert unknown ca", ErrorKind.REJECTED),
        ("SSL error: tlsv13 alert certificate required", ErrorKind.REJECTED),
        ('definition of service "none" not found', ErrorKind.REJECTED),
        ('service file "/etc/none" not found', ErrorKind.REJECTED),
        ('FATAL:  unrecognized configuration parameter "nonsense"', ErrorKind.REJECTED),
        ("SSL error: unexpected eof while reading", ErrorKind.UNREACHABLE),
        ("SSL error: decryption failed or bad record mac", ErrorKind.UNREACHABLE),
        ('FATAL:  database "csi" is not currently accepting connections', ErrorKind.UNREACHABLE),
        ("FATAL:  the database system is starting up", ErrorKind.UNREACHABLE),
        ("FATAL:  sorry, too many clients already", ErrorKind.UNREACHABLE),
        ("FATAL:  remaining connection slots are reserved", ErrorKind.UNREACHABLE),
        ("timeout expired", ErrorKind.UNREACHABLE),
        ("server closed the connection unexpectedly", ErrorKind.UNREACHABLE),
    ],
)
def test_a_failed_connection_is_classified_by_its_message(words, kind):
    assert classify(psycopg2.OperationalError(words)) is kind


@pytest.mark.parametrize(
    ("statement", "kind", "words"),
    [
        ("SELECT nothing FROM nowhere", DBAPIError, "syntax error"),  # `nothing` is a keyword
        ("SELECT x FROM nowhere", ConfigurationError, "^the database cannot be used: no such table: nowhere; csi-job"),
    ],
)
def test_an_invalid_statement_is_not_retried(statement, kind, words):
    engine = sa.create_engine("sqlite://")

    def mistake():
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    with pytest.raises(kind, match=words):
        RetryPolicy("the database", 60).call(mistake)


def test_an_operation_is_retried_until_it_succeeds():
    failures = iter([psycopg2.OperationalError("timeout expired")] * 3)

    def operation():
        for failure in failures:
            raise failure
        return "done"

    assert RetryPolicy("the database", 60).call(operation) == "done"


def test_an_outage_beyond_the_limit_is_one_line():
    def operation():
        raise psycopg2.OperationalError("A: refused\n\tIs the server running on that host?\nB: refused")

    with pytest.raises(StorageUnavailableError, match=r"^the database db .*: A: refused B: refused$"):
        RetryPolicy("the database db", 0.1).call(operation)


def test_a_signal_ends_the_wait():
    stop = Stop()
    policy = RetryPolicy("the database", 3600)

    def operation():
        stop.request(15)
        raise psycopg2.OperationalError("timeout expired")

    with policy.interrupted_by(stop.check, stop.wait), pytest.raises(StopRequestedError) as caught:
        policy.call(operation)
    assert caught.value.exit_code == 143
    assert policy.check is not stop.check


def test_a_signal_for_the_worker_does_not_interrupt_another_thread():
    stop = Stop()
    stop.request(15)
    failures = [psycopg2.OperationalError("timeout expired")]
    policy = RetryPolicy("the database", 60)

    def operation():
        if failures:
            raise failures.pop()
        return threading.current_thread().name

    with policy.interrupted_by(stop.check, stop.wait):
        assert policy.call(operation, check=False)


def test_at_the_start_a_rejection_is_a_configuration_error():
    def operation():
        raise psycopg2.OperationalError('FATAL:  password authentication failed for user "anna"')

    with pytest.raises(ConfigurationError, match="password authentication failed") as caught:
        call_at_start(operation, RetryPolicy("the database", 60))
    assert "check CSI_JOB_STORAGE__PASSWORD or storage.password_file" in str(caught.value)
    with pytest.raises(StorageUnavailableError):  # later the password may only be in change
        RetryPolicy("the database", 0.1).call(operation)


def test_a_rejection_that_lasts_ends_the_wait_long_before_an_outage_would(monkeypatch):
    monkeypatch.setattr("csi_job.storage.retry.REJECTED_LIMIT_S", 0.5)
    starting, wrong = "FATAL:  the database system is starting up", "FATAL:  password authentication failed for user x"
    calls = 0

    def operation(words):
        nonlocal calls
        calls += 1
        for message in words:
            raise psycopg2.OperationalError(message)
        return calls

    policy = RetryPolicy("the database db", 3600)
    # A server that starts, a password that is wrong for a moment, and a restart with both: longer than the limit.
    seen = [starting, wrong, starting, starting, wrong, starting]
    assert policy.call(partial(operation, iter(seen))) == len(seen) + 1
    with pytest.raises(
        StorageRejectedError, match=r"^the database db rejects the connection: FATAL: password .* Secret"
    ):
        policy.call(partial(operation, repeat(wrong)))


def test_a_file_that_cannot_be_opened_is_a_wrong_setting_unless_its_permissions_allow_it(tmp_path):
    """SQLite says no more of a full disk, where it cannot create its files beside the database."""
    (tmp_path / "a.db").touch()
    missing = tmp_path / "none" / "a.db"
    calls = 0

    def operation():
        nonlocal calls
        calls += 1
        if calls < 3:
            sqlite3.connect(missing)

    call_at_start(operation, RetryPolicy("the database", 60), tmp_path / "a.db")
    assert calls == 3
    calls = 0
    with pytest.raises(
        ConfigurationError, match="unable to open database file; SQLite writes beside the file even to read it"
    ):
        call_at_start(operation, RetryPolicy("the database", 60), missing)
    assert calls == 1


def test_a_read_only_sqlite_file_is_explained_at_the_first_contact(tmp_path):
    with pytest.raises(ConfigurationError, match="readonly database; SQLite writes beside the file even to read it"):
        call_at_start(lambda: write_read_only(tmp_path / "a.db"), RetryPolicy("the database", 60))


@pytest.mark.parametrize(("has_written", "kind"), [(True, StorageRejectedError), (False, ConfigurationError)])
def test_a_sqlite_file_that_may_not_be_written_is_no_matter_of_passwords_or_standbys(tmp_path, has_written, kind):
    policy = RetryPolicy("the database", 0, has_written=has_written)
    with pytest.raises(kind, match="readonly database; make the file and its folder writable for this user"):
        policy.call(lambda: write_read_only(tmp_path / "a.db"), writes=True)


@pytest.mark.parametrize("call", [call_at_start, lambda operation, policy: policy.call(operation)])
def test_a_damaged_sqlite_file_is_to_be_restored(tmp_path, call):
    path = tmp_path / "a.db"
    path.write_bytes(b"no database" * 500)
    with pytest.raises(CsiJobError, match=r"not a database; .* restore them from a backup"):
        call(lambda: sqlite3.connect(path).execute("CREATE TABLE a (b)"), RetryPolicy("the database", 0))


@pytest.mark.parametrize("content", ["x'7b'", "x'ff'"])
@pytest.mark.parametrize("call", [call_at_start, lambda operation, policy: policy.call(operation)])
def test_a_damaged_value_is_to_be_restored_too(content, call):
    database = sqlite3.connect(":memory:")
    with pytest.raises(ConfigurationError, match=r"^the database cannot be used: [^{]+; .* restore them from a backup"):
        call(
            lambda: json.loads(database.execute(f"SELECT CAST({content} AS TEXT)").fetchone()[0]),
            RetryPolicy("the database", 0),
        )


def write_read_only(path):
    sqlite3.connect(path).close()
    sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("CREATE TABLE a (b)")


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (sqlite3.SQLITE_FULL, "free up some space and run the same command again"),
        (sqlite3.SQLITE_IOERR, "check the disk and run the same command again"),
        (sqlite3.SQLITE_CANTOPEN, "run the same command again once it is back"),
        ("53100", "free up some space and run the same command again"),
        ("58030", "check the disk and run the same command again"),
    ],
)
def test_what_to_do_depends_on_what_kept_the_database_from_working(code, hint, monkeypatch):
    monkeypatch.setattr(retry, "LOG_AFTER_S", 0)
    driver, name = (psycopg2, "pgcode") if isinstance(code, str) else (sqlite3, "sqlite_errorcode")
    error = type("Refusal", (driver.OperationalError,), {name: code})("no")

    def fail():
        raise error

    with pytest.raises(StorageUnavailableError, match=f"{hint}; no reported result is lost"):
        RetryPolicy("the database", 0).call(fail)
