from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from csi_job.cluster.api import UnreachableError
from csi_job.cluster.budget import GPU_SECONDS, METERED_AT, SECONDS, Budget, Usage, metered_usage
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stages import get_annotation
from tests.unit.cluster.namespace import Namespace, Watch, ended, pass_time, search, stage

HOUR_S = 3600
BOTH: dict[str, Any] = {"active": 2, "ready": 2}


class FlakyWatch(Watch):
    """A study whose database may be unreachable."""

    is_down = False

    def add_usage(self, usage_since: Callable[[float], Usage]) -> Usage | None:
        return None if self.is_down else super().add_usage(usage_since)


def searching(namespace: Namespace, watch: Watch, num_gpus: int = 1, **limits: Any) -> tuple[SearchRun, dict[str, Any]]:
    """Return a search whose two pods run, by default with one GPU each."""
    run = search(namespace, watch, stage(num_gpus=num_gpus), budget=Budget(**limits))
    run.reconcile()
    job = namespace.only()
    job["status"] = BOTH
    run.reconcile()
    return run, job


def used_h(job: dict[str, Any]) -> tuple[float, float]:
    use = metered_usage(job)
    return pytest.approx(use.seconds / HOUR_S, abs=0.01), pytest.approx(use.gpu_seconds / HOUR_S, abs=0.01)


@pytest.mark.parametrize(
    ("limits", "num_gpus"), [({"hours": 1.5}, 1), ({"gpu_hours": 3.5}, 1), ({"gpu_hours": 8.5}, 4)]
)
def test_hours_pass_once_and_gpu_hours_for_each_gpu_of_each_pod(limits, num_gpus, monkeypatch):
    run, job = searching(Namespace(), Watch(num_finished=1), num_gpus, **limits)
    pass_time(monkeypatch, HOUR_S, run)
    assert used_h(job) == (1, 2 * num_gpus)
    assert job["spec"]["suspend"] is False
    pass_time(monkeypatch, HOUR_S, run)
    assert job["spec"]["suspend"] is True


def test_pods_that_wait_for_a_node_or_quota_use_nothing(monkeypatch):
    run, job = searching(Namespace(), Watch(num_finished=1), hours=1)
    job["status"] = {"active": 2, "ready": 0}
    run.reconcile()
    pass_time(monkeypatch, 5 * HOUR_S, run)
    assert used_h(job) == (0, 0)


def test_the_next_job_knows_the_usage_of_a_deleted_one(monkeypatch):
    namespace, watch = Namespace(), Watch(num_finished=1)
    run, job = searching(namespace, watch, gpu_hours=3)
    pass_time(monkeypatch, HOUR_S, run)
    namespace.objects.clear()
    run, job = searching(namespace, watch, gpu_hours=3)
    assert used_h(job) == (1, 2)
    pass_time(monkeypatch, HOUR_S, run)
    assert job["spec"]["suspend"] is True


def test_usage_during_a_database_outage_is_added_afterwards(monkeypatch):
    watch = FlakyWatch(num_finished=1)
    run, job = searching(Namespace(), watch, gpu_hours=100)
    watch.is_down = True
    for _ in range(3):
        pass_time(monkeypatch, HOUR_S, run)
    assert used_h(job) == (0, 0)
    watch.is_down = False
    run.reconcile()
    run.reconcile()
    assert used_h(job) == (3, 6)
    assert watch.used.gpu_seconds == pytest.approx(6 * HOUR_S, abs=60)


def test_usage_counts_once_while_it_can_be_stored_but_not_recorded_with_the_job(monkeypatch):
    """As if etcd were full, or a webhook on Jobs away."""
    namespace, watch = Namespace(), Watch(num_finished=1)
    run, job = searching(namespace, watch)

    def refuse(*_, **__):
        raise UnreachableError("an admission webhook does not answer")

    with monkeypatch.context() as outage:
        outage.setattr(namespace, "_patch", refuse)
        for num_running in (2, 1):
            job["status"] = {"active": 2, "ready": num_running}
            for _ in range(90):
                with suppress(UnreachableError):
                    run.reconcile()
                pass_time(monkeypatch, 20)
    run.reconcile()
    assert used_h(job) == (1, 1.5)
    pass_time(monkeypatch, HOUR_S, run)
    assert used_h(job) == (2, 2.5)


def test_a_budget_can_be_exhausted_during_a_database_outage(monkeypatch):
    watch = FlakyWatch(num_finished=1)
    run, job = searching(Namespace(), watch, gpu_hours=1)
    watch.is_down = True
    pass_time(monkeypatch, HOUR_S, run)
    assert job["spec"]["suspend"] is True


def test_pods_that_ended_without_a_controller_used_nothing_after_their_end(monkeypatch):
    namespace, watch = Namespace(), Watch(num_finished=1)
    _, job = searching(namespace, watch)
    pass_time(monkeypatch, 10 * HOUR_S)
    job["status"] = ended("Failed", "FailedIndexes", ago_s=-3 * HOUR_S)
    search(namespace, watch, stage()).reconcile()
    assert watch.used.seconds == pytest.approx(3 * HOUR_S, abs=60)


def test_usage_is_metered_on_every_change_of_the_pods_and_twice_a_minute(monkeypatch):
    run, job = searching(Namespace(), Watch(num_finished=1))
    started = get_annotation(job, METERED_AT)
    run.reconcile()
    assert get_annotation(job, METERED_AT) == started
    pass_time(monkeypatch, 31, run)
    assert float(get_annotation(job, SECONDS)) == pytest.approx(31, abs=5)
    job["status"] = {"active": 1, "ready": 1}
    run.reconcile()
    assert get_annotation(job, "csi-job/running") == "1"
    assert float(get_annotation(job, GPU_SECONDS)) == pytest.approx(62, abs=10)
