"""Pods that are killed again and again are replaced soon, and no stage ever has the pods of two Jobs."""

import pytest

from csi_job.cluster.back_off import NO_FAILURES
from csi_job.cluster.pods import last_line
from tests.e2e.release import ENDLESS, INTERRUPT, Release, jobs_with_pods, wait_until

pytestmark = pytest.mark.timeout(3600)
ONE_POD = {**ENDLESS, "search.parallelism": 1}
NUM_KILLS = 3
KILLS = {"search": INTERRUPT, "controller": None}  # an error, and an eviction


def test_a_pod_is_replaced_in_seconds_however_often_it_was_killed(release):
    release.helm("install", "--wait", "--timeout", "5m", values=ONE_POD)
    release.any_running("search")
    failures = [_kill(release, component, kill) for component, kill in KILLS.items() for _ in range(NUM_KILLS)]
    assert max(failures) <= 1, failures  # Kubernetes waits 10 s for the first, twice as long for each further one
    assert release.trials()["FAIL"] == 0
    _replace_the_search(release)


def test_a_password_that_stops_working_ends_the_pods_within_a_minute_until_it_is_corrected(release):
    release.helm("install", "--wait", "--timeout", "5m", values={**ONE_POD, "job.study.max_epochs": 100})
    pod = release.any_running("search")
    wait_until("an epoch", lambda: int(release.sql("select count(*) from trial_intermediate_values")[0]) > 0, 120)
    (password,) = release.sql("select rolpassword from pg_authid where rolname = 'csi'")
    kick = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'csi-job'"
    release.sql(f"alter role csi password 'another'; {kick}")

    wait_until("the pod has ended", lambda: _ended_at(release, "search", pod), 60)
    (ended,) = [p for p in release.items("pods", "search") if p["metadata"]["name"] == pod]
    state = ended["status"]["containerStatuses"][0]["state"]["terminated"]
    assert state["exitCode"] == 1
    assert "rejects the connection" in last_line(state["message"])
    assert "it worked before, so a password or a right was changed" in last_line(state["message"])
    wait_until("the controller says what to do", lambda: "correct the database's Secret" in release.log(), 30)
    release.sql(f"alter role csi password '{password}'")
    before = release.trials()
    wait_until("the search continues", lambda: release.running("search") and release.trials() != before, 300)
    assert release.trials()["FAIL"] == 0


def _kill(release: Release, component: str, command: tuple[str, ...] | None) -> int:
    """Kill a pod once its Job has forgotten its failures; return how many its Job counts for the replacement."""
    name = wait_until(f"{component} runs steadily", lambda: _steady(release, component), 180)
    before = release.uids(component)
    if command is None:
        release.kubectl("delete", "pod", name, "--wait=false")
    else:
        release.kubectl("exec", name, "--", *command, check=False)
    (uid,) = wait_until(f"another {component} pod", lambda: release.uids(component) - before, 240)
    (pod,) = (pod for pod in release.items("pods", component) if pod["metadata"]["uid"] == uid)
    return sum(int(pod["metadata"]["annotations"].get(name, 0)) for name in NO_FAILURES)


def _steady(release: Release, component: str) -> str:
    """The name of the running pod if it has no failures."""
    for pod in release.items("pods", component):
        annotations = pod["metadata"]["annotations"]
        has_none = all(annotations.get(name, number) == number for name, number in NO_FAILURES.items())
        if has_none and pod["metadata"]["name"] in release.running(component):
            return str(pod["metadata"]["name"])
    return ""


def _ended_at(release: Release, component: str, name: str) -> str:
    for pod in release.items("pods", component):
        if pod["metadata"]["name"] == name:
            for status in pod["status"].get("containerStatuses", []):
                return str(status["state"].get("terminated", {}).get("finishedAt", ""))
    return ""


def _replace_the_search(release: Release) -> None:
    with jobs_with_pods(release) as seen:
        release.helm("upgrade", values={**ONE_POD, "search.env": [{"name": "COLOUR", "value": "blue"}]})
        wait_until("another search", lambda: len(set[str]().union(*seen)) == 2, 180)
    assert max(map(len, seen)) == 1


def test_a_deleted_namespace_is_empty_within_the_grace_of_its_pods(release):
    """Deleting it alone must do: its Jobs would keep their pods, waiting to replace them."""
    release.helm("install", "--wait", "--timeout", "5m", values=ONE_POD)
    release.any_running("search")
    admin = release.as_admin  # the user's own rights go with the namespace, maybe before its pods
    admin.run("kubectl", "delete", "namespace", release.namespace, "--wait=false")
    grace_s = 60
    wait_until("no pod is left", lambda: not admin.items("pods"), grace_s, every=0.5)
