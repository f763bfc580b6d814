import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from csi_job.storage.lease import is_orphan, owner_process_is_gone, worker_id
from tests.support.processes import wait_until


def test_a_process_that_ended_is_gone_on_this_machine_only():
    code = "from csi_job.storage.lease import worker_id; print(worker_id())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    owner = result.stdout.strip()
    assert owner_process_is_gone(owner)
    host, boot, space, process, began = owner.split("|")
    assert not owner_process_is_gone(f"{host}|another boot|{space}|{process}|{began}")
    assert not owner_process_is_gone(f"{host}|{boot}|another container|{process}|{began}")


def test_a_process_that_reuses_the_id_of_a_dead_one_is_another_process():
    host, boot, space, process, began = worker_id().split("|")
    assert process == str(os.getpid())
    assert began == Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert not owner_process_is_gone(worker_id())
    assert owner_process_is_gone(f"{host}|{boot}|{space}|{process}|1")


def test_a_process_hidden_by_proc_is_not_gone(monkeypatch):
    host, boot, space, process, began = worker_id().split("|")
    monkeypatch.setattr("csi_job.storage.lease._start_of", lambda _process: None)
    assert worker_id() == f"{host}|{boot}|{space}|{process}|"
    assert not owner_process_is_gone(f"{host}|{boot}|{space}|{process}|{began}")
    assert owner_process_is_gone(f"{host}|{boot}|{space}|999999999|{began}")

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("os.kill", refuse)  # it is another user's
    assert not owner_process_is_gone(f"{host}|{boot}|{space}|{process}|{began}")


def test_a_process_that_ended_is_gone_before_its_parent_asks_for_it():
    host, boot, space, _, _ = worker_id().split("|")
    with subprocess.Popen([sys.executable, "-c", ""]) as child:

        def stat():
            return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()

        began = stat()[19]
        wait_until(lambda: stat()[0] == "Z")
        assert owner_process_is_gone(f"{host}|{boot}|{space}|{child.pid}|{began}")


def test_an_incomplete_worker_id_is_not_gone(monkeypatch):
    _, boot, space, _, _ = worker_id().split("|")
    for owner in ("", "host", "host|||12|", "host|boot|space|12|x", f"host|{boot}|{space}||1"):
        assert not owner_process_is_gone(owner)
    monkeypatch.setattr("csi_job.storage.lease._boot_and_pid_namespace", lambda: ("", ""))  # of a system without /proc
    assert not owner_process_is_gone("host|||999999999|1")


@pytest.mark.parametrize(
    ("renewed_at_s", "server_start_s", "is_expired"),
    [
        (940, 100, False),
        (939, 100, True),
        (939, 1000, False),  # nobody could renew it before the server's start
        (939, 1001, True),  # the clock was set back since the server's start
    ],
)
def test_a_lease_expires_by_the_clock_of_the_database(renewed_at_s, server_start_s, *, is_expired):
    lease = {"token": "t", "owner": "", "released": False, "paused": False, "lease_s": 60}
    clock = {"now_s": 1000, "renewed_at_s": renewed_at_s, "server_start_s": server_start_s}
    assert is_orphan(SimpleNamespace(**lease, **clock)) is is_expired
