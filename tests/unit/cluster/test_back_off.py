"""Which pods have their back-off reset, in a namespace in memory; tests/e2e measures what comes of it."""

from typing import Any

import pytest

from csi_job.cluster.api import POD_VARIABLE
from csi_job.cluster.back_off import NO_FAILURES, STEADY_S, OwnBackOff, SearchBackOff
from csi_job.study.status import RunningStatus
from tests.unit.cluster.namespace import Namespace

FAILED = dict(zip(NO_FAILURES, ("1", "3"), strict=True))


def make_pod(name: str, annotations: dict[str, str], phase: str = "Running") -> dict[str, Any]:
    metadata = {"name": name, "uid": name, "annotations": dict(annotations)}
    return {"kind": "Pod", "metadata": metadata, "spec": {"hostname": f"host-{name}"}, "status": {"phase": phase}}


def trial(number: int, epoch: int | None, host: str = "host-a") -> RunningStatus:
    return RunningStatus(number, 1, epoch, 10, None, 1.0, is_orphan=False, host=host)


@pytest.mark.parametrize(
    ("trials", "is_reset"),
    [
        ([[trial(1, 4)], [trial(1, 4)]], False),
        ([[trial(1, 4)], [trial(1, 5)]], True),
        ([[trial(1, None)], [trial(1, 0)]], True),
        ([[trial(1, None)], [trial(2, None)]], True),  # trials of one epoch
        ([[], [trial(1, 4)], [trial(1, 4)]], False),
        ([[trial(1, 4)], [trial(1, 4), trial(2, 3)], [trial(1, 4), trial(2, 3)]], False),  # two workers in one pod
        ([[trial(1, 4)], [trial(1, 4), trial(2, 3)], [trial(1, 4), trial(2, 4)]], True),
        ([[trial(1, 4), trial(2, 0, "host-b")], [trial(1, 4), trial(2, 1, "host-b")]], False),
    ],
)
def test_only_an_epoch_finished_since_resets_the_back_off(trials, is_reset):
    namespace = Namespace(make_pod("a", FAILED))
    back_off = SearchBackOff(namespace)
    for running in trials:
        back_off.reset_after_progress(namespace.find("Pod"), running)
    assert namespace.objects["Pod", "a"]["metadata"]["annotations"] == (NO_FAILURES if is_reset else FAILED)


def test_a_role_without_the_right_to_patch_pods_is_no_error():
    pods = [make_pod("a", FAILED)]
    back_off = SearchBackOff(Namespace(*pods, forbidden={"Pod"}))
    for epoch in (1, 2):
        back_off.reset_after_progress(pods, [trial(1, epoch)])


def test_a_controller_resets_its_own_back_off_once_it_is_steady(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("csi_job.cluster.back_off.time.monotonic", lambda: now[0])
    monkeypatch.setenv(POD_VARIABLE, "a")
    namespace = Namespace(make_pod("a", FAILED))
    own = OwnBackOff(namespace)
    for seconds, expected in ((STEADY_S - 1, FAILED), (STEADY_S, NO_FAILURES)):
        now[0] = 100.0 + seconds
        own.reset_when_steady()
        assert namespace.objects["Pod", "a"]["metadata"]["annotations"] == expected
