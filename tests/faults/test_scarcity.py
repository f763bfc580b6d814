"""Scarce resources: connections, disk space for the database, disk space for checkpoints."""

import subprocess
import time
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from tests.faults.harness.disks import small_disk
from tests.faults.harness.fleet import FaultyWorker, Fleet
from tests.faults.harness.invariants import Expected, check_study
from tests.faults.harness.training import phantom_cache, run_training
from tests.faults.harness.worker import Plan, run
from tests.support.postgres import embedded_server

SETTINGS = {"name": "scarce", "max_attempts": 100, "lease_s": 5.0, "sampler": "random", "outage_s": 300.0}
FULL_S = 3.0


@pytest.fixture
def narrow():
    """A server with 6 connections, of which a plain user may have 3."""
    with embedded_server(max_connections=6) as server:
        server.run("CREATE ROLE guest LOGIN")
        yield server


def test_workers_take_turns_where_the_server_has_too_few_connections(narrow, tmp_path):
    record = tmp_path / "record"
    with narrow.database() as url:
        guest = make_url(url).set(username="guest")
        narrow.run(f"ALTER DATABASE {guest.database} OWNER TO guest")
        settings = {**SETTINGS, "num_trials": 24, "max_epochs": 2, "connect_s": 300.0}

        def start(_):
            return FaultyWorker(guest.render_as_string(), tmp_path, run=run, plan=Plan(record), **settings)

        endings = Fleet(start, 8).finish()
        findings = check_study(url, "scarce", record, Expected(24, 2, endings))
    assert "too many clients" in log_of(narrow) or "connection slots" in log_of(narrow)
    assert (endings.others, endings.num_finished) == ([], 8)
    assert not findings.violations


def log_of(server):
    return (Path(str(server.data)) / "log").read_text(errors="replace")


def test_workers_wait_while_the_database_s_disk_is_full(tmp_path):
    record = tmp_path / "record"
    with small_disk(160) as disk, embedded_server(disk.folder) as server, server.database() as url:
        server.stop()
        server.start()  # which directs its log to a file
        settings = {**SETTINGS, "num_trials": 100, "max_epochs": 3}
        fleet = Fleet(lambda _: FaultyWorker(url, tmp_path, run=run, plan=Plan(record), **settings), 4)
        fleet.run_until_computed(record, 21)
        with closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
            disk.fill()
            cursor.execute("SELECT pg_switch_wal()")  # else the rest of a log file would hold a hundred trials
        fleet.run_until(lambda: "No space left on device" in log_of(server))
        time.sleep(FULL_S)
        disk.free()
        restart_if_dead(server)
        endings = fleet.finish()
        findings = check_study(url, "scarce", record, Expected(100, 3, endings))
    assert (endings.others, endings.num_finished) == ([], 4)
    assert not findings.violations


def restart_if_dead(server):
    """Start the server as its supervisor would: it exits when it cannot write its transaction log."""
    try:
        server.run("SELECT 1")
    except Exception:  # noqa: BLE001 - dead, or just starting
        try:
            server.start()
        except subprocess.CalledProcessError:
            server.run("SELECT 1")


def test_training_continues_without_checkpoints_on_a_full_disk(server, tmp_path):
    cache, record = phantom_cache(tmp_path), tmp_path / "record"
    with small_disk(8) as disk, server.database() as url:
        plan = Plan(record, cache=cache, work=disk.folder)
        settings = {**SETTINGS, "num_trials": 3, "max_epochs": 4, "pruner": "none"}
        fleet = Fleet(lambda _: FaultyWorker(url, tmp_path, run=run_training, plan=plan, **settings), 2)
        workers = list(fleet.workers)
        fleet.run_until_computed(record, 2)
        disk.fill()
        fleet.run_until(lambda: any("continues without checkpoints" in worker.log() for worker in workers))
        disk.free()
        endings = fleet.finish()
        findings = check_study(url, "scarce", record, Expected(3, 4, endings))
    assert (endings.others, endings.num_finished) == ([], 2)
    # Without checkpoints no epoch is kept.
    assert [line for line in findings.violations if "computed again" not in line] == []
