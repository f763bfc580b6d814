"""A study that is scaled, upgraded and loses its pods still runs exactly its number of trials."""

import json
from typing import Any

import pytest

from tests.e2e.release import ENDLESS, Release, run, wait_until

pytestmark = pytest.mark.timeout(6000)
MARK = "e2e/namespace"


def test_scaling_deaths_upgrades_and_a_rollback_cost_no_trial(release):
    endless = {**ENDLESS, "commonLabels": {MARK: release.namespace}}
    release.helm("install", "--wait", "--timeout", "5m", values={**endless, "search.parallelism": 1})
    wait_until("one pod searches", lambda: len(release.running("search")) == 1, 200)
    _scale(release)
    _delete_pods(release)
    _evict_and_drain(release)
    _upgrade_and_roll_back(release, endless)
    # Suspended, since the search continues to the old total until the cache stage has stored the new one; a changed
    # parallelism in the values resumes it.
    num_trials = release.pause() + 8
    release.helm("upgrade", values={**endless, "search.parallelism": 3, "job.study.num_trials": num_trials})

    release.wait_for_end(600)

    release.check_exact(num_trials)
    history = json.loads(release.run("helm", "history", release.name, "-o", "json").stdout)
    assert [entry["status"] for entry in history][-1] == "deployed"
    assert "pending" not in {entry["status"].split("-")[0] for entry in history}


def _scale(release: Release) -> None:
    release.csi_job("scale", "4")
    wait_until("four pods search", lambda: len(release.running("search")) == 4, 90)
    stays = _first_pod(release)
    release.csi_job("scale", "2")
    wait_until("two pods search", lambda: len(release.running("search")) == 2, 90)
    assert _first_pod(release) == stays


def _first_pod(release: Release) -> str:
    index = "batch.kubernetes.io/job-completion-index"
    pods = release.items("pods", "search")
    return next(pod["metadata"]["uid"] for pod in pods if pod["metadata"]["annotations"][index] == "0")


def _delete_pods(release: Release) -> None:
    for component in ("search", "controller", "database"):
        pod, before = release.any_running(component), release.uids(component)
        release.kubectl("delete", "pod", pod, "--wait=false")
        wait_until(f"another {component} pod", lambda c=component, b=before: release.uids(c) - b, 120)


def _evict_and_drain(release: Release) -> None:
    release.evict(release.any_running("search"))
    node = release.items("pods", "database")[0]["spec"]["nodeName"]
    chosen = f"--pod-selector={MARK}={release.namespace},app.kubernetes.io/component=search"
    try:  # pods of other releases on this node are left alone, and wait no longer than this
        run("kubectl", "drain", node, chosen, "--delete-emptydir-data", "--timeout=120s")
    finally:
        run("kubectl", "uncordon", node)
    release.any_running("search")


def _upgrade_and_roll_back(release: Release, endless: dict[str, Any]) -> None:
    before = release.uids("search")
    release.helm("upgrade", "--wait", "--timeout", "3m", values={**endless, "search.parallelism": 3})
    wait_until("three pods search", lambda: len(release.running("search")) == 3, 120)
    assert before <= release.uids("search"), "pods that stay were touched"
    changed = {**endless, "search.parallelism": 2, "search.env": [{"name": "COLOUR", "value": "blue"}]}
    changed |= {"search.resources.requests.memory": "80Mi"}
    release.helm("upgrade", "--wait", "--timeout", "3m", values=changed)
    wait_until("the search runs with the new variable", lambda: _with_variable(release, "COLOUR") == {True}, 180)
    release.run("helm", "rollback", release.name, "1", "--wait", "--timeout", "3m")
    wait_until("the search runs without it", lambda: _with_variable(release, "COLOUR") == {False}, 180)


def _with_variable(release: Release, name: str) -> set[bool]:
    """Whether the running pods have a variable; empty while one search replaces the other."""
    running = release.running("search")
    pods = [pod for pod in release.items("pods", "search") if pod["metadata"]["name"] in running]
    return {any(env["name"] == name for env in pod["spec"]["containers"][0]["env"]) for pod in pods}
