"""What the pods of a search use is counted once, and remembered by the study."""

from __future__ import annotations

import time
from typing import Any

import pytest

from csi_job.cluster.budget import GPU_SECONDS, METERED, SECONDS, Budget, Use, metered_use
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stages import annotation
from tests.unit.cluster.namespace import Namespace, Watch, ended, search, stage

HOUR_S = 3600
BOTH: dict[str, Any] = {"active": 2, "ready": 2}


class AwayAtTimes(Watch):
    """A study whose database may be away."""

    is_away = False

    def spend(self, use: Use) -> Use | None:
        return None if self.is_away else super().spend(use)


def searching(namespace: Namespace, watch: Watch, **limits: Any) -> tuple[SearchRun, dict[str, Any]]:
    """Return a search whose two pods of one GPU run."""
    run = search(namespace, watch, stage(), budget=Budget(**limits))
    run.step()
    job = namespace.only()
    job["status"] = BOTH
    run.step()
    return run, job


def pass_time(job: dict[str, Any], hours: float = 1) -> None:
    job["metadata"]["annotations"][METERED] = f"{float(annotation(job, METERED)) - hours * HOUR_S:.0f}"


def used_h(job: dict[str, Any]) -> tuple[float, float]:
    use = metered_use(job)
    return pytest.approx(use.seconds / HOUR_S, abs=0.01), pytest.approx(use.gpu_seconds / HOUR_S, abs=0.01)


@pytest.mark.parametrize("limits", [{"hours": 1.5}, {"gpu_hours": 3.5}])
def test_hours_pass_once_and_gpu_hours_for_each_pod(limits: dict[str, float]) -> None:
    run, job = searching(Namespace(), Watch(num_finished=1), **limits)
    pass_time(job)
    run.step()
    assert used_h(job) == (1, 2)
    assert job["spec"]["suspend"] is False
    pass_time(job)
    run.step()
    assert job["spec"]["suspend"] is True


def test_pods_that_wait_for_a_node_or_their_quota_use_nothing() -> None:
    run, job = searching(Namespace(), Watch(num_finished=1), hours=1)
    job["status"] = {"active": 2, "ready": 0}
    run.step()
    pass_time(job, 5)
    run.step()
    assert used_h(job) == (0, 0)


def test_the_next_job_knows_what_one_that_was_deleted_had_used() -> None:
    namespace, watch = Namespace(), Watch(num_finished=1)
    run, job = searching(namespace, watch, gpu_hours=3)
    pass_time(job)
    run.step()
    namespace.kept.clear()
    run, job = searching(namespace, watch, gpu_hours=3)
    assert used_h(job) == (1, 2)
    pass_time(job)
    run.step()
    assert job["spec"]["suspend"] is True


def test_another_study_begins_with_its_whole_budget() -> None:
    namespace = Namespace()
    run, job = searching(namespace, Watch(num_finished=1), gpu_hours=1)
    pass_time(job)
    run.step()
    _, job = searching(Namespace(), Watch(num_finished=0), gpu_hours=1)
    assert used_h(job) == (0, 0)


def test_what_is_used_while_the_database_is_away_is_added_when_it_is_back() -> None:
    watch = AwayAtTimes(num_finished=1)
    run, job = searching(Namespace(), watch, gpu_hours=100)
    watch.is_away = True
    for _ in range(3):
        pass_time(job)
        run.step()
    assert used_h(job) == (0, 0)
    watch.is_away = False
    run.step()
    run.step()
    assert used_h(job) == (3, 6)
    assert watch.used.gpu_seconds == pytest.approx(6 * HOUR_S, abs=60)


def test_a_budget_ends_also_while_the_database_is_away() -> None:
    watch = AwayAtTimes(num_finished=1)
    run, job = searching(Namespace(), watch, gpu_hours=1)
    watch.is_away = True
    pass_time(job)
    run.step()
    assert job["spec"]["suspend"] is True


def test_pods_that_ended_while_no_controller_looked_used_nothing_after_their_end() -> None:
    namespace, watch = Namespace(), Watch(num_finished=1)
    _, job = searching(namespace, watch)
    pass_time(job, 10)
    job["status"] = ended("Failed", "FailedIndexes", ago_s=7 * HOUR_S)
    search(namespace, watch, stage()).step()
    assert watch.used.seconds == pytest.approx(3 * HOUR_S, abs=60)


def test_a_reading_comes_with_every_change_of_the_pods_and_twice_a_minute() -> None:
    run, job = searching(Namespace(), Watch(num_finished=1))
    began = annotation(job, METERED)
    run.step()
    assert annotation(job, METERED) == began
    job["metadata"]["annotations"][METERED] = f"{time.time() - 31:.0f}"
    run.step()
    assert float(annotation(job, SECONDS)) == pytest.approx(31, abs=5)
    job["status"] = {"active": 1, "ready": 1}
    run.step()
    assert annotation(job, "csi-job/running") == "1"
    assert float(annotation(job, GPU_SECONDS)) == pytest.approx(62, abs=10)
