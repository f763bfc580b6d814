"""Owners, and the tokens of leases."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from csi_job.storage.lease import new_token, owner_process_is_gone, worker_id


def test_this_process_is_alive() -> None:
    assert not owner_process_is_gone(worker_id())


def test_a_process_that_ended_owner_process_is_gone_on_this_machine_only() -> None:
    code = "from csi_job.storage.lease import worker_id; print(worker_id())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    owner = result.stdout.strip()
    assert owner_process_is_gone(owner)
    host, boot, space, process, began = owner.split("|")
    assert not owner_process_is_gone(f"{host}|another boot|{space}|{process}|{began}")
    assert not owner_process_is_gone(f"{host}|{boot}|another container|{process}|{began}")


def test_a_process_that_took_over_the_number_of_a_dead_one_does_not_bring_it_back() -> None:
    host, boot, space, process, _ = worker_id().split("|")
    assert process == str(os.getpid())
    assert owner_process_is_gone(f"{host}|{boot}|{space}|{process}|1")


def test_a_process_that_proc_hides_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    host, boot, space, process, began = worker_id().split("|")
    monkeypatch.setattr("csi_job.storage.lease._start_of", lambda _process: None)
    assert not owner_process_is_gone(f"{host}|{boot}|{space}|{process}|{began}")
    assert owner_process_is_gone(f"{host}|{boot}|{space}|999999999|{began}")


def test_an_owner_that_tells_nothing_is_not_taken_for_dead() -> None:
    for owner in ("", "host", "host|||12|", "host|boot|space|12|x"):
        assert not owner_process_is_gone(owner)


def test_tokens_differ() -> None:
    assert len({new_token() for _ in range(1000)}) == 1000
