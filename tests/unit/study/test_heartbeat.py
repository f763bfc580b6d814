"""The thread that renews a lease; all but one test run it in their own thread, by a clock that only renewals move."""

import threading
from types import SimpleNamespace

import pytest

from csi_job.errors import LeaseLostError, StorageRejectedError, StorageUnavailableError
from csi_job.storage.lease import Lease, new_token
from csi_job.study.heartbeat import REJECTED_LIMIT_S, Heartbeat

LEASE = Lease(trial_id=1, number=0, token=new_token(), attempt=1)
REJECTED = StorageRejectedError("wrong password")


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now_s=1000.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr("csi_job.study.heartbeat.time", clock)
    return clock


def run(clock, answers, step_s=1.0, *, stall_s=1e9, beats=True):
    """Run until these answers were given or the training stalled; return how many are left, too."""
    left = [*answers]

    def renew(lease):
        assert lease is LEASE
        clock.now_s += step_s
        if beats:
            heartbeat.beat()
        answer = left.pop(0)
        if not left:
            heartbeat.over.set()
        if answer is not None:
            raise answer

    heartbeat = Heartbeat(renew, 0.001, stall_s=stall_s, on_stall=lambda: stalls.append(clock.now_s))
    stalls = []
    heartbeat.watch(LEASE)
    heartbeat.run()
    assert stalls == [clock.now_s] * heartbeat.stalled
    return heartbeat, len(left)


def test_a_lease_is_renewed_several_times_before_it_expires():
    intervals = []
    heartbeat = Heartbeat(lambda _: None, 60, stall_s=1e9, on_stall=lambda: None)
    heartbeat.over.wait = lambda interval_s: intervals.append(interval_s) or True
    heartbeat.run()
    assert intervals == [15]


def test_a_thread_renews_until_it_is_stopped():
    renewed = []
    third = threading.Event()
    heartbeat = Heartbeat(
        lambda lease: renewed.append(lease) or (third.set() if len(renewed) > 2 else None),
        0.08,
        stall_s=1e9,
        on_stall=lambda: None,
    )
    heartbeat.watch(LEASE)
    heartbeat.start()
    assert third.wait(60)
    heartbeat.watch(None)
    heartbeat.end()
    assert {*map(id, renewed)} == {id(LEASE)}
    assert not heartbeat.is_alive()


def test_outages_lost_leases_and_unexpected_errors_are_survived(clock, caplog):
    errors = [StorageUnavailableError("away"), LeaseLostError("lost"), ValueError("unexpected"), None]
    assert run(clock, errors)[1] == 0
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == "the lease of trial 0 could not be renewed: unexpected"


@pytest.mark.parametrize(
    ("answers", "ends"),
    [
        ([REJECTED] * 4, True),
        ([REJECTED] * 3, False),
        ([REJECTED, StorageUnavailableError("starting up")] * 5, False),
        ([REJECTED, None] * 5, False),
    ],
)
def test_only_a_steady_rejection_ends_the_training(clock, answers, *, ends):
    heartbeat, _ = run(clock, answers, REJECTED_LIMIT_S / 3)
    assert heartbeat.rejection is (REJECTED if ends else None)


@pytest.mark.parametrize(("beats", "num_left"), [(False, 7), (True, 0)])
def test_a_training_without_a_beat_stalls_and_is_renewed_no_more(clock, num_left, *, beats):
    heartbeat, left = run(clock, [None] * 10, stall_s=3.0, beats=beats)
    assert (heartbeat.stalled, left) == (not beats, num_left)


def test_a_training_begins_to_stall_only_when_it_starts(clock):
    heartbeat = Heartbeat(lambda _: heartbeat.over.set(), 0.001, stall_s=3.0, on_stall=lambda: None)
    clock.now_s += 4.0  # of waiting for a trial
    heartbeat.watch(LEASE)
    heartbeat.run()
    assert not heartbeat.stalled
