"""A namespace that is a dictionary, and the stages that the controller makes in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from csi_job.cluster.budget import Budget, Use
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stages import COMPONENT, INSTANCE, QUEUE, STAGES, Release, Stage
from csi_job.study.status import StudyStatus


def ended(kind: str, reason: str = "", ago_s: float = 0.0) -> dict[str, Any]:
    """Return the status of a Job that is Complete or Failed."""
    at = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat()
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": at}]}


@dataclass
class Namespace:
    """What the controller asks of the API server, kept in memory."""

    namespace = "here"
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    all_pods: list[dict[str, Any]] = field(default_factory=list)

    def jobs(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        return [job for job in self.kept.values() if labels.items() <= job["metadata"]["labels"].items()]

    def config_maps(self, _labels: Mapping[str, str]) -> list[dict[str, Any]]:
        data = {f"{name}.yaml": yaml.safe_dump(dict(stage(name).manifest)) for name in (*STAGES, "fetch")}
        return [{"metadata": {"name": "r-stages", "uid": "u", "labels": {INSTANCE: "r"}}, "data": data}]

    def pods(self, _labels: Mapping[str, str]) -> list[dict[str, Any]]:
        return self.all_pods

    def apply_job(self, manifest: Mapping[str, Any]) -> None:
        self.kept[manifest["metadata"]["name"]] = copy.deepcopy(dict(manifest))

    def patch_job(self, name: str, patch: Mapping[str, Any]) -> bool:
        if name not in self.kept:
            return False
        job = self.kept[name]
        job["spec"].update(patch.get("spec", {}))
        job["metadata"]["annotations"].update(patch.get("metadata", {}).get("annotations", {}))
        return True

    def delete_job(self, name: str) -> None:
        del self.kept[name]

    def end(self, kind: str, reason: str = "") -> None:
        for job in self.kept.values():
            job["status"] = ended(kind, reason)

    def names(self, component: str) -> list[str]:
        return [job["metadata"]["name"] for job in self.jobs({COMPONENT: component})]

    def only(self) -> dict[str, Any]:
        (job,) = self.kept.values()
        return job


class Watch:
    """A study that stands as it is told to."""

    def __init__(self, num_finished: int, target: int = 4) -> None:
        self.num_finished, self.target = num_finished, target
        self.used = Use()

    def spend(self, use: Use) -> Use:
        self.used += use
        return self.used

    def look(self) -> StudyStatus:
        none: Any = None
        return StudyStatus("s", "f1", self.target, self.num_finished, 0, 0, 0, 0, 0, (), none, none, none, ())


def stage(name: str = "search", *, parallelism: int = 2, image: str = "a", queue: str = "") -> Stage:
    container = {"image": image, "resources": {"limits": {"nvidia.com/gpu": 1}}}
    spec = {"parallelism": parallelism, "template": {"spec": {"containers": [container]}}}
    labels = {INSTANCE: "r", COMPONENT: name} | ({QUEUE: queue} if queue else {})
    return Stage(name, {"metadata": {"name": f"r-{name}", "labels": labels}, "spec": spec}, image * 8)


def search(namespace: Namespace, watch: Watch, chosen: Stage, me: str = "first", **limits: Any) -> SearchRun:
    release = Release("r", me, {"kind": "ConfigMap", "name": "r-stages"}, (chosen, stage("final")), {})
    options: dict[str, Any] = {"budget": Budget(), "max_rounds": 3} | limits
    cluster: Any = namespace
    looks: Any = watch
    return SearchRun(cluster, release, chosen, me=me, missing_s=1, watch=looks, **options)
