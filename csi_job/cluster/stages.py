"""The stages of a release: the Jobs that the chart describes in a ConfigMap, and how far they are."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import yaml

from csi_job.cluster.api import Cluster
from csi_job.cluster.gpus import GPU_RESOURCE
from csi_job.errors import ClusterError
from csi_job.files import digest_json

STAGES: Final = ("cache", "search", "final")
CONTROLLER: Final = "controller"  # the component that makes them
DATABASE: Final = "database"  # the component that holds the study, where the chart brings it
ELASTIC: Final = ("parallelism", "completions", "suspend")  # changed on a living Job; all else makes another
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
NAME: Final = {"app.kubernetes.io/name": "csi-job"}
QUEUE: Final = "kueue.x-k8s.io/queue-name"
OWN_STAGES: Final = "RELEASE_STAGES"  # variable of the controller's pod: the ConfigMap of its release
# Annotations of the Jobs, which are all the memory that the controller has.
DIGEST: Final = "csi-job/digest"
MADE_BY: Final = "csi-job/controller"  # digest of the controller that made the Job
ROUND: Final = "csi-job/round"
TRIES: Final = "csi-job/tries"
PARALLELISM: Final = "csi-job/parallelism"


@dataclass(frozen=True)
class Stage:
    """One stage: the Job as the chart describes it, and the digest of all that a living Job can't change."""

    name: str
    manifest: Mapping[str, Any]
    digest: str

    @property
    def parallelism(self) -> int:
        """Return the number of pods that the values ask for."""
        return int(self.manifest["spec"].get("parallelism", 1))

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels by which the stage's Jobs and pods are found."""
        given = self.manifest["metadata"]["labels"]
        return {INSTANCE: given[INSTANCE], COMPONENT: self.name}

    def job(self, number: int, owner: Mapping[str, Any], annotations: Mapping[str, str]) -> dict[str, Any]:
        """Return the manifest of the stage's Job, made for the `number`-th time, owned by the ConfigMap."""
        job = copy.deepcopy(dict(self.manifest))
        suffix = "" if number == 1 else f"-{number}"
        job["metadata"]["name"] = f"{job['metadata']['name']}-{self.digest}{suffix}"
        own = {DIGEST: self.digest, ROUND: str(number)}
        if "parallelism" in job["spec"]:
            own[PARALLELISM] = str(self.parallelism)
            job["spec"] |= sized(self.parallelism, queued=is_queued(job))
        job["metadata"].pop("namespace", None)
        job["metadata"]["annotations"] = own | dict(annotations)
        job["metadata"]["ownerReferences"] = [dict(owner)]
        return job


@dataclass(frozen=True)
class Release:
    """An installed release: its stages in order, and what its Jobs are owned by."""

    name: str
    digest: str
    owner: Mapping[str, Any]
    stages: tuple[Stage, ...]
    fetch_pod: Mapping[str, Any]
    gpu_resource: str = ""
    """Name of what counts as a GPU; `` where the chart does not say."""

    @property
    def search(self) -> Stage:
        """Return the stage whose number of pods may change."""
        return next(stage for stage in self.stages if stage.name == "search")

    def after(self, stage: Stage) -> tuple[Stage, ...]:
        """Return the stages that build on this one."""
        return self.stages[self.stages.index(stage) + 1 :]


def read_release(cluster: Cluster, config_map_name: str) -> Release | None:
    """Read a release from the ConfigMap of its stages; None once it is uninstalled."""
    found = cluster.config_map(config_map_name)
    return None if found is None else _release(found)


def find_release(cluster: Cluster, name: str | None) -> Release:
    """Return the release of this name, or the one that this pod controls, or the only one of the namespace.

    Raises:
        ClusterError: there is none, or several and none is named.

    """
    own = read_release(cluster, os.environ[OWN_STAGES]) if OWN_STAGES in os.environ else None
    if own is not None and name in {None, own.name}:
        return own  # a pod has no right to list
    labels = {**NAME, COMPONENT: "stages", **({INSTANCE: name} if name else {})}
    found = [item for item in cluster.config_maps(labels) if "final.yaml" in item.get("data", {})]
    names = sorted(item["metadata"]["labels"][INSTANCE] for item in found)
    if not found:
        message = f"there is no release of csi-job in the namespace {cluster.namespace}"
        raise ClusterError(message, got=name, hint="name another with --namespace")
    if len(found) > 1:
        message = f"there are several releases in the namespace {cluster.namespace}"
        raise ClusterError(message, allowed=names, hint="name one with --release")
    return _release(found[0])


def _release(config_map: Mapping[str, Any]) -> Release:
    metadata, data = config_map["metadata"], config_map["data"]
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": metadata["name"], "uid": metadata["uid"]}
    return Release(
        name=metadata["labels"][INSTANCE],
        digest=annotation(config_map, DIGEST),
        owner=owner,
        stages=tuple(_stage(name, yaml.safe_load(data[f"{name}.yaml"])) for name in STAGES),
        fetch_pod=yaml.safe_load(data["fetch.yaml"]),
        gpu_resource=annotation(config_map, GPU_RESOURCE),
    )


def _stage(name: str, manifest: dict[str, Any]) -> Stage:
    fixed = {key: value for key, value in manifest["spec"].items() if key not in ELASTIC}
    return Stage(name, manifest, digest_json([fixed, manifest["metadata"]["labels"]])[:8])


def sized(num_pods: int, *, queued: bool) -> dict[str, Any]:
    """Return the fields of a Job's spec that give it so many pods; 0 leaves its places (completions).

    A Job in a queue of Kueue is suspended and resumed by Kueue alone, which resumes whatever has its quota; so 0 is
    there no suspension but a parallelism, that takes no quota.
    """
    if num_pods == 0:
        return {"parallelism": 0} if queued else {"suspend": True}
    fields = {"parallelism": num_pods, "completions": num_pods}
    return fields if queued else fields | {"suspend": False}


def is_queued(job: Mapping[str, Any]) -> bool:
    """Return whether Kueue decides when a Job runs."""
    return QUEUE in job["metadata"].get("labels", {})


def is_paused(job: Mapping[str, Any]) -> bool:
    """Return whether `sized(0)` holds a Job's pods back."""
    return job["spec"].get("parallelism") == 0 if is_queued(job) else bool(job["spec"].get("suspend"))


@dataclass(frozen=True)
class Ending:
    """How a Job ended."""

    failed: bool
    at_s: float
    """Seconds since 1970."""
    reason: str = ""
    message: str = ""


def ending_of(job: Mapping[str, Any]) -> Ending | None:
    """Return how a Job ended, None while it goes on."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            at_s = datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()
            failed = condition["type"] == "Failed"
            return Ending(failed, at_s, condition.get("reason", ""), condition.get("message", ""))
    return None


def annotation(job: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return an annotation of an object."""
    return str((job["metadata"].get("annotations") or {}).get(name, default))
