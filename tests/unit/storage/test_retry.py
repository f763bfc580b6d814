"""What is waited for, what is refused, and what is no error of the database."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from csi_job.errors import ConfigurationError, StopRequestedError, StorageUnavailableError
from csi_job.signals import Stop
from csi_job.storage.retry import Patience, Verdict, at_start, judge, reason


def locked_error(folder: Path) -> Exception:
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


def connect_error(url: str) -> Exception:
    try:
        sa.create_engine(url, connect_args={"connect_timeout": 2}).connect()
    except DBAPIError as error:
        return error
    raise AssertionError


def test_a_locked_file_is_busy(tmp_path: Path) -> None:
    assert judge(locked_error(tmp_path)) is Verdict.BUSY


def test_a_port_where_nobody_listens_is_waited_for() -> None:
    error = connect_error("postgresql+psycopg2://127.0.0.1:1/csi")
    assert judge(error) is Verdict.AWAY
    assert "refused" in reason(error)


def test_a_host_without_a_name_is_waited_for() -> None:
    assert judge(connect_error("postgresql+psycopg2://no-such-host.invalid/csi")) is Verdict.AWAY


def test_a_connection_option_that_libpq_does_not_know_is_refused() -> None:
    assert judge(connect_error("postgresql+psycopg2://127.0.0.1:1/csi?sslmode=nonsense")) is Verdict.REFUSED
    assert judge(connect_error("postgresql+psycopg2://127.0.0.1:1/csi?nonsense=1")) is Verdict.REFUSED


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ('FATAL:  password authentication failed for user "anna"', Verdict.REFUSED),
        ('FATAL:  database "csi" does not exist', Verdict.REFUSED),
        ("fe_sendauth: no password supplied", Verdict.REFUSED),
        ("SSL error: certificate verify failed", Verdict.REFUSED),
        ("SSL error: tlsv1 alert unknown ca", Verdict.REFUSED),
        ("SSL error: tlsv13 alert certificate required", Verdict.REFUSED),
        ("SSL error: unexpected eof while reading", Verdict.AWAY),
        ("SSL error: decryption failed or bad record mac", Verdict.AWAY),
        ('FATAL:  database "csi" is not currently accepting connections', Verdict.AWAY),
        ("FATAL:  the database system is starting up", Verdict.AWAY),
        ("FATAL:  sorry, too many clients already", Verdict.AWAY),
        ("FATAL:  remaining connection slots are reserved", Verdict.AWAY),
        ("timeout expired", Verdict.AWAY),
        ("server closed the connection unexpectedly", Verdict.AWAY),
    ],
)
def test_the_words_of_a_failed_connection_tell(words: str, verdict: Verdict) -> None:
    assert judge(psycopg2.OperationalError(words)) is verdict


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("FileID;right_sup\n" * 100)
    with pytest.raises(DBAPIError) as caught, sa.create_engine(f"sqlite:///{tmp_path}/a.db").connect() as connection:
        connection.exec_driver_sql("SELECT * FROM sqlite_master")
    assert judge(caught.value) is Verdict.REFUSED


def test_a_mistake_in_a_statement_is_not_waited_for() -> None:
    engine = sa.create_engine("sqlite://")

    def mistake() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT nothing FROM nowhere")

    with pytest.raises(DBAPIError):
        Patience("the database", 60).ride(mistake)


def test_what_fails_a_few_times_is_tried_again() -> None:
    failures = iter([psycopg2.OperationalError("timeout expired")] * 3)

    def operation() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert Patience("the database", 60).ride(operation) == "done"


def test_after_its_limit_an_outage_is_one_line() -> None:
    def operation() -> None:
        raise psycopg2.OperationalError("connection refused\n\tIs the server running?")

    with pytest.raises(StorageUnavailableError, match=r"^the database db .*refused Is the server") as caught:
        Patience("the database db", 0.1).ride(operation)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_a_signal_ends_a_wait() -> None:
    stop = Stop()
    patience = Patience("the database", 3600)

    def operation() -> None:
        stop.request(15)
        raise psycopg2.OperationalError("timeout expired")

    with patience.interrupted_by(stop.check, stop.event), pytest.raises(StopRequestedError) as caught:
        patience.ride(operation)
    assert caught.value.exit_code == 143
    assert patience.check is not stop.check


def test_another_thread_is_not_ended_by_the_signal_of_the_worker() -> None:
    stop = Stop()
    stop.request(15)
    failures = [psycopg2.OperationalError("timeout expired")]
    patience = Patience("the database", 60)

    def operation() -> str:
        if failures:
            raise failures.pop()
        return threading.current_thread().name

    with patience.interrupted_by(stop.check, stop.event):
        assert patience.ride(operation, check=False)


def test_at_the_start_what_refuses_us_is_a_wrong_setting() -> None:
    def operation() -> None:
        raise psycopg2.OperationalError('FATAL:  password authentication failed for user "anna"')

    with pytest.raises(ConfigurationError, match="password authentication failed") as caught:
        at_start(operation, Patience("the database", 60))
    assert caught.value.exit_code == 2
    with pytest.raises(StorageUnavailableError):  # later the password may only be in change
        Patience("the database", 0.1).ride(operation)
