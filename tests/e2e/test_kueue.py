"""A real Kueue: each stage waits for quota, and neither a resize nor a pause nor a preemption costs a trial."""

from collections.abc import Iterator

import pytest

from csi_job.cluster.stages import MIN_PODS
from tests.conftest import missing_service
from tests.e2e.queue import NAME, Queue
from tests.e2e.release import ENDLESS, Release, run, wait_until

pytestmark = pytest.mark.timeout(4800)
QUEUED = {**ENDLESS, "kueue.queueName": NAME, "search.parallelism": 2, "search.annotations": {MIN_PODS: "1"}}
WAITS = "search: waiting for quota"


@pytest.fixture
def queue(release: Release) -> Iterator[Queue]:
    if "workloads" not in run("kubectl", "api-resources", "--api-group=kueue.x-k8s.io", check=False).stdout:
        missing_service("Kueue is not installed in the test cluster")
    made = Queue(release)
    made.make()
    yield made
    made.remove()


def test_stages_wait_for_quota_and_resize_pause_and_preemption_cost_no_trial(release, queue):
    release.helm("install", "--wait", "--timeout", "5m", values=QUEUED)
    _stages_wait_for_quota(release, queue)
    _resize(release)
    _preempt(release, queue)
    _pause_and_resume(release)
    _give_way(release, queue)
    num_trials = release.pause() + 6
    release.helm("upgrade", values=QUEUED | {"job.study.num_trials": num_trials, "search.parallelism": 3})

    release.wait_for_end(600)

    release.check_exact(num_trials)
    assert queue.admissions() == ["cache", "search", "final"]


def _stages_wait_for_quota(release: Release, queue: Queue) -> None:
    wait_until("the cache waits", lambda: "cache: waiting for quota" in release.log(), 90)
    assert release.items("pods", "cache") == []
    queue.allow(1)
    wait_until("one of two pods searches", lambda: len(release.running("search")) == 1, 240)
    (job,) = release.items("jobs", "search")
    assert (job["spec"]["parallelism"], job["spec"]["completions"]) == (1, 2)
    queue.allow(4)


def _resize(release: Release) -> None:
    """Kueue evicts and requeues an admitted Job that is resized, and admits it in its new size."""
    release.csi_job("scale", "3")
    wait_until("three pods search", lambda: len(release.running("search")) == 3, 120)


def _preempt(release: Release, queue: Queue) -> None:
    before, num_waits = release.uids("search"), release.log().count(WAITS)
    queue.preempt(4)  # all of the quota: with less, the search is admitted again before anyone sees that it waits
    wait_until("the search is reported as waiting", lambda: release.log().count(WAITS) > num_waits, 120)
    release.kubectl("delete", "job", "urgent", "--wait=false")
    wait_until("new pods search", lambda: len(release.uids("search") - before) == 3, 180)


def _pause_and_resume(release: Release) -> None:
    release.pause()
    release.csi_job("scale", "2")
    wait_until("two pods search again", lambda: len(release.running("search")) == 2, 120)


def _give_way(release: Release, queue: Queue) -> None:
    """The search has all of the quota when the cache stage has to run again, and continues after it."""
    (search,) = release.items("jobs", "search")
    queue.allow(2)
    release.helm("upgrade", values=QUEUED | {"cache.env": [{"name": "AGAIN", "value": "1"}]})
    wait_until("the search gives way", lambda: "hands over its trials until the cache is done" in release.log(), 120)
    wait_until("the cache is done", lambda: "cache: done" in release.log(), 180)
    wait_until("two pods search again", lambda: len(release.running("search")) == 2, 120)
    assert [job["metadata"]["uid"] for job in release.items("jobs", "search")] == [search["metadata"]["uid"]]
    queue.allow(4)
