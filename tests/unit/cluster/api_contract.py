"""What the controller relies on in an API server, run on the namespace in memory and on a real cluster (tests/e2e)."""

import copy
from typing import Any

import pytest

from csi_job.errors import ClusterError

OURS = {"who": "us"}
OLD = "2026-01-01T00:00:00Z"
CONTAINER = {"name": "none", "image": "none", "resources": {}}


def job(name: str = "a", *, labels: dict[str, str] | None = None, **annotations: str) -> dict[str, Any]:
    """A suspended Job, whose pods never start."""
    spec = {"completionMode": "Indexed", "suspend": True, "parallelism": 2, "completions": 2}
    template = {"spec": {"restartPolicy": "Never", "containers": [CONTAINER]}}
    metadata = {"name": name, "labels": labels or OURS, "annotations": annotations}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {**spec, "template": template}}


class ApiContract:
    """Subclasses provide the fixture `cluster`, an empty namespace."""

    def test_a_selector_needs_every_label(self, cluster):
        cluster.apply(job("a"))
        cluster.apply(job("b", labels={**OURS, "stage": "search"}))
        cluster.apply(job("c", labels={"who": "them", "stage": "search"}))
        assert [found["metadata"]["name"] for found in cluster.jobs(OURS)] == ["a", "b"]
        assert [found["metadata"]["name"] for found in cluster.jobs({**OURS, "stage": "search"})] == ["b"]
        assert cluster.find("Pod", OURS) == []
        assert len(cluster.find("Job")) == 3

    def test_what_does_not_exist_is_none_and_can_be_deleted(self, cluster):
        assert cluster.get("Job", "a") is None
        assert cluster.get("ConfigMap", "a") is None
        assert not cluster.patch("Job", "a", {"spec": {"suspend": False}})
        cluster.delete("Job", "a")
        cluster.apply(job())
        cluster.delete("Job", "a")
        assert cluster.jobs(OURS) == []

    def test_an_event_that_recurs_is_seen_last_when_it_is_recorded_again(self, cluster):
        about = {"apiVersion": "v1", "kind": "ConfigMap", "name": "r-stages", "uid": "u"}
        for is_recurring in (False, True):
            reason = f"Recurs{is_recurring}"
            cluster.record_event(about, reason, "it waits", key="d", is_recurring=is_recurring)
            (name,) = (
                one["metadata"]["name"] for one in cluster.events("ConfigMap", "r-stages") if one["reason"] == reason
            )
            cluster.patch("Event", name, {"lastTimestamp": OLD})
            cluster.record_event(about, reason, "it waits", key="d", is_recurring=is_recurring)
            (seen,) = (one for one in cluster.events("ConfigMap", "r-stages") if one["reason"] == reason)
            assert (seen["lastTimestamp"] == OLD) is not is_recurring
            assert seen["firstTimestamp"] > OLD

    def test_a_merge_patch_adds_changes_and_removes_fields(self, cluster):
        cluster.apply(job(kept="1", changed="1", removed="1"))
        change = {"changed": "2", "removed": None, "added": "1"}
        assert cluster.patch("Job", "a", {"metadata": {"annotations": change}, "spec": {"suspend": False}})
        found = cluster.get("Job", "a")
        assert found["metadata"]["annotations"].items() >= {"kept": "1", "changed": "2", "added": "1"}.items()
        assert "removed" not in found["metadata"]["annotations"]
        assert found["metadata"]["labels"] == OURS
        assert (found["spec"]["suspend"], found["spec"]["parallelism"]) == (False, 2)

    def test_an_apply_removes_what_it_applied_before_but_not_what_was_patched(self, cluster):
        cluster.apply(job(kept="1", dropped="1", patched="1"))
        cluster.patch("Job", "a", {"metadata": {"annotations": {"patched": "2", "added": "1"}}})
        cluster.apply(job(kept="2"))
        found = cluster.get("Job", "a")
        annotations = found["metadata"]["annotations"]
        assert annotations.items() >= {"kept": "2", "patched": "2", "added": "1"}.items()
        assert "dropped" not in annotations

    def test_a_job_can_be_resized_but_not_changed(self, cluster):
        cluster.apply(job())
        assert cluster.patch("Job", "a", {"spec": {"parallelism": 5, "completions": 5}})
        assert cluster.patch("Job", "a", {"spec": {"parallelism": 0}})
        with pytest.raises(ClusterError, match="rejected the request"):
            cluster.patch("Job", "a", {"spec": {"completions": 3}})
        changed = copy.deepcopy(job())
        changed["spec"]["template"]["spec"]["containers"][0]["image"] = "another"
        with pytest.raises(ClusterError, match=r"rejected the request.*immutable"):
            cluster.apply(changed)
