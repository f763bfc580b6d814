"""Several workers in one pod, as on a node with several GPUs; here they share the CPU."""

import pytest

from tests.e2e.release import ENDLESS, Release, wait_until

pytestmark = pytest.mark.timeout(6000)


def workers_of(release: Release, pod: str) -> set[str]:
    """Process ids of the workers that have begun a trial in a pod."""
    (host,) = (item["spec"]["hostname"] for item in release.items("pods", "search") if item["metadata"]["name"] == pod)
    names = release.sql("select distinct value_json from trial_user_attributes where key = 'worker'")
    found = (name.strip('"').split(":") for name in names)
    return {process for worker_host, process in found if worker_host == host}


def test_a_pod_loses_a_worker_and_then_all_without_losing_a_trial(release):
    values = {"search.parallelism": 1, "job.study.workers": 2, **ENDLESS}
    release.helm("install", "--wait", "--timeout", "5m", values=values)
    pod = release.any_running("search")
    wait_until("both workers run trials", lambda: len(workers_of(release, pod)) == 2, 240)

    first_two = workers_of(release, pod)
    release.kubectl("exec", pod, "--", "sh", "-c", f"kill -9 {min(first_two)}")
    wait_until("a third worker runs a trial", lambda: workers_of(release, pod) - first_two, 240)
    assert "killed, perhaps because memory ran out; restarting it" in release.kubectl("logs", pod)
    assert release.running("search") == [pod]

    before = release.uids("search")
    release.kubectl("delete", "pod", pod, "--wait=false")
    wait_until("another pod searches", lambda: release.uids("search") - before, 240)
    num_trials = release.pause() + 5
    assert release.trials()["FAIL"] == 0
    release.helm("upgrade", values={**values, "job.study.num_trials": num_trials, "search.parallelism": 2})
    release.wait_for_end(900)
    release.check_exact(num_trials)
    assert [len(item["spec"]["containers"]) for item in release.items("pods", "final")] == [1]
