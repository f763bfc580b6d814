"""Owners, and the thread that keeps a lease."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from csi_job.errors import LeaseLostError, StorageUnavailableError
from csi_job.storage.lease import Lease, is_dead, new_token, owner_name
from csi_job.study.heartbeat import Keeper


def lease() -> Lease:
    return Lease(trial_id=1, number=0, token=new_token(), attempt=1)


def test_this_process_is_alive() -> None:
    assert not is_dead(owner_name())


def test_a_process_that_ended_is_dead_on_this_machine_only() -> None:
    code = "from csi_job.storage.lease import owner_name; print(owner_name())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    owner = result.stdout.strip()
    assert is_dead(owner)
    host, boot, space, process, began = owner.split("|")
    assert not is_dead(f"{host}|another boot|{space}|{process}|{began}")
    assert not is_dead(f"{host}|{boot}|another container|{process}|{began}")


def test_a_process_that_took_over_the_number_of_a_dead_one_does_not_bring_it_back() -> None:
    host, boot, space, process, _ = owner_name().split("|")
    assert process == str(os.getpid())
    assert is_dead(f"{host}|{boot}|{space}|{process}|1")


def test_a_process_that_proc_hides_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    host, boot, space, process, began = owner_name().split("|")
    monkeypatch.setattr("csi_job.storage.lease._start_of", lambda _process: None)
    assert not is_dead(f"{host}|{boot}|{space}|{process}|{began}")
    assert is_dead(f"{host}|{boot}|{space}|999999999|{began}")


def test_an_owner_that_tells_nothing_is_not_taken_for_dead() -> None:
    for owner in ("", "host", "host|||12|", "host|boot|space|12|x"):
        assert not is_dead(owner)


def test_tokens_differ() -> None:
    assert len({new_token() for _ in range(1000)}) == 1000


def test_a_keeper_renews_until_it_is_told_to_stop() -> None:
    renewed: list[Lease] = []
    keeper = Keeper(renewed.append, 0.08, stall_s=60, on_stall=lambda: None)
    kept = lease()
    keeper.watch(kept)
    keeper.start()
    while len(renewed) < 3:
        time.sleep(0.01)
    keeper.watch(None)
    keeper.end()
    assert set(map(id, renewed)) == {id(kept)}
    assert not keeper.is_alive()


def test_a_keeper_outlives_outages_and_lost_leases() -> None:
    errors = iter([StorageUnavailableError("away"), LeaseLostError("lost"), ValueError("foreign")])
    calls: list[int] = []

    def renew(_: Lease) -> None:
        calls.append(1)
        for error in errors:
            raise error

    keeper = Keeper(renew, 0.08, stall_s=60, on_stall=lambda: None)
    keeper.watch(lease())
    keeper.start()
    while len(calls) < 6:
        time.sleep(0.01)
    keeper.end()


def test_a_keeper_renews_nothing_after_a_stall_and_says_so_once() -> None:
    stalled = threading.Event()
    renewed: list[Lease] = []
    keeper = Keeper(renewed.append, 0.08, stall_s=0.2, on_stall=stalled.set)
    keeper.watch(lease())
    keeper.start()
    assert stalled.wait(10)
    keeper.join(10)
    assert keeper.stalled
    count = len(renewed)
    keeper.beat()
    time.sleep(0.1)
    assert len(renewed) == count


def test_beats_keep_a_slow_training_alive() -> None:
    keeper = Keeper(lambda _: None, 0.08, stall_s=0.5, on_stall=lambda: None)
    keeper.watch(lease())
    keeper.start()
    for _ in range(20):
        keeper.beat()
        time.sleep(0.05)
    keeper.end()
    assert not keeper.stalled
