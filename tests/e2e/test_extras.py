"""What users add to a release runs too: variables, containers, labels, a scheduler, whole objects."""

from typing import Any

import pytest

from csi_job.cluster.stages import STAGES
from tests.e2e.release import ENDLESS, IMAGE, INTERRUPT, RESTRICTED, Release, wait_until

pytestmark = pytest.mark.timeout(3000)
RESOURCES = {"requests": {"cpu": "10m", "memory": "16Mi"}}
MOUNT = {"name": "given", "mountPath": "/given"}
WAITS = "trap 'exit 143' TERM; while :; do sleep 1; done"


def container(name: str, script: str) -> dict[str, Any]:
    command = ["sh", "-c", script]
    return {"name": name, "image": IMAGE, "command": command, "resources": RESOURCES, "volumeMounts": [MOUNT]}


EXTRAS: dict[str, Any] = {
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "{{ .Release.Name }}-colours"},
            "data": {"COLOUR": "blue"},
        }
    ],
    "envFrom": [{"configMapRef": {"name": "demo-colours"}}],
    "volumes": [{"name": "given", "emptyDir": {}}],
    "volumeMounts": [MOUNT],
    "initContainers": [container("prepare", "echo ready > /given/first")],
    "sidecars": [{**container("proxy", WAITS), "securityContext": RESTRICTED}],
    "schedulerName": "default-scheduler",
    **{f"{stage}.annotations": {"note": stage} for stage in STAGES},
    **{f"{stage}.labels": {"part": stage} for stage in STAGES},
    "cache.parallelism": 2,
    "database.podDisruptionBudget": {"maxUnavailable": 0},
    "dashboard.enabled": True,
}


def test_what_users_add_runs_and_a_sidecar_neither_outlives_its_stage_nor_hides_a_failure(release):
    values = {**EXTRAS, **ENDLESS, "search.parallelism": 1, "search.backoffLimit": 0}
    release.helm("install", "--wait", "--timeout", "5m", values=values)
    pod = release.any_running("search")
    see = ("exec", pod, "-c", "search", "--", "sh", "-c", "cat /given/first; echo $COLOUR")
    assert release.kubectl(*see).split() == ["ready", "blue"]
    assert "disruption budget" in release.evict(release.database, check=False)
    _failure_counts(release, pod)

    release.helm("upgrade", values={**values, "job.study.num_trials": release.pause() + 2, "search.parallelism": 2})
    release.wait_for_end(600)

    assert release.trials()["FAIL"] == 0
    for stage in STAGES:
        (job,) = release.items("jobs", stage)
        for item in (job, *release.items("pods", stage)):
            assert item["metadata"]["annotations"]["note"] == item["metadata"]["labels"]["part"] == stage
        assert job["spec"]["template"]["spec"]["schedulerName"] == "default-scheduler"
    assert release.running("dashboard")


def _failure_counts(release: Release, pod: str) -> None:
    """The sidecar ends with 143 after it, which alone would be no failure."""
    before = release.uids("search")
    release.kubectl("exec", pod, "-c", "search", "--", *INTERRUPT, check=False)
    wait_until("the search is recreated", lambda: release.uids("search") - before, 180)
    assert f"pod {pod} (search) exit 130: " in release.log()  # its own line, or the reason for the recreation
    assert "recreating it" in release.log()
