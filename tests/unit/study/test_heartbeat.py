"""The thread that renews a lease."""

from __future__ import annotations

import threading
import time

import pytest

from csi_job.errors import LeaseLostError, StorageRejectedError, StorageUnavailableError
from csi_job.storage.lease import Lease, new_token
from csi_job.study.heartbeat import Heartbeat


def lease() -> Lease:
    return Lease(trial_id=1, number=0, token=new_token(), attempt=1)


def test_a_heartbeat_renews_until_it_is_stopped() -> None:
    renewed: list[Lease] = []
    heartbeat = Heartbeat(renewed.append, 0.08, stall_s=60, on_stall=lambda: None)
    kept = lease()
    heartbeat.watch(kept)
    heartbeat.start()
    while len(renewed) < 3:
        time.sleep(0.01)
    heartbeat.watch(None)
    heartbeat.end()
    assert set(map(id, renewed)) == {id(kept)}
    assert not heartbeat.is_alive()


def test_a_heartbeat_survives_outages_lost_leases_and_unexpected_errors(caplog: pytest.LogCaptureFixture) -> None:
    errors = [StorageUnavailableError("away"), LeaseLostError("lost"), ValueError("unexpected")]
    renewed = threading.Event()

    def renew(_: Lease) -> None:
        if errors:
            raise errors.pop(0)
        renewed.set()

    heartbeat = Heartbeat(renew, 0.08, stall_s=60, on_stall=lambda: None)
    heartbeat.watch(lease())
    heartbeat.start()
    assert renewed.wait(10)
    heartbeat.end()
    assert not heartbeat.stalled
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("the lease of trial 0 could not be renewed")
    assert "unexpected" in warning


@pytest.mark.parametrize(("between", "ends"), [(None, True), (StorageUnavailableError("starting up"), False)])
def test_only_a_steady_rejection_ends_the_training(
    monkeypatch: pytest.MonkeyPatch, between: StorageUnavailableError | None, *, ends: bool
) -> None:
    monkeypatch.setattr("csi_job.study.heartbeat.REJECTED_LIMIT_S", 0.1)
    num_renewals, enough = 0, threading.Event()

    def renew(_: Lease) -> None:
        nonlocal num_renewals
        num_renewals += 1
        if num_renewals > 30:
            enough.set()
        if between is not None and num_renewals % 2:
            raise between
        raise StorageRejectedError("wrong password")

    heartbeat = Heartbeat(renew, 0.08, stall_s=60, on_stall=lambda: None)
    heartbeat.watch(lease())
    heartbeat.start()
    assert enough.wait(30)
    heartbeat.end()
    assert (str(heartbeat.rejection) == "wrong password") is ends


def test_a_heartbeat_renews_nothing_after_a_stall() -> None:
    stalled = threading.Event()
    renewed: list[Lease] = []
    heartbeat = Heartbeat(renewed.append, 0.08, stall_s=0.2, on_stall=stalled.set)
    heartbeat.watch(lease())
    heartbeat.start()
    assert stalled.wait(10)
    heartbeat.join(10)
    assert heartbeat.stalled
    count = len(renewed)
    heartbeat.beat()
    time.sleep(0.1)
    assert len(renewed) == count


def test_beats_keep_a_slow_training_alive() -> None:
    heartbeat = Heartbeat(lambda _: None, 0.08, stall_s=0.5, on_stall=lambda: None)
    heartbeat.watch(lease())
    heartbeat.start()
    for _ in range(20):
        heartbeat.beat()
        time.sleep(0.05)
    heartbeat.end()
    assert not heartbeat.stalled
