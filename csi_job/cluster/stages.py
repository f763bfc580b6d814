"""The stages of a release: the Jobs that the chart describes in a ConfigMap, and their state on the cluster."""

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import yaml

from csi_job.cluster.api import Cluster
from csi_job.cluster.pods import seconds_since
from csi_job.errors import ClusterError
from csi_job.files import digest_json
from csi_job.work_folder import WorkFolder
from csi_job.yaml_file import parse_yaml

STAGES: Final = ("cache", "search", "final")
CONTROLLER: Final = "controller"  # the component that creates them
DATABASE: Final = "database"  # the component that holds the study, if the chart installs it
FETCH: Final = "fetch"  # the component that `cluster fetch` reads the volume through
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
NAME: Final = {"app.kubernetes.io/name": "csi-job"}  # an umbrella chart has more under the same instance
QUEUE: Final = "kueue.x-k8s.io/queue-name"
MIN_PODS: Final = "kueue.x-k8s.io/job-min-parallelism"  # with how many pods Kueue may start a Job that has more
EXPIRY: Final = "ttlSecondsAfterFinished"
MUTABLE_FIELDS: Final = ("parallelism", "completions", "suspend", EXPIRY)  # of a Job; any other change needs a new one
# What follows is also in the chart; tests/chart/test_contract.py compares them.
WORK: Final = WorkFolder(Path("/work"))  # mount of the work volume
SECRETS: Final = Path("/run/secrets")  # below it, what is mounted from Secrets
SETTINGS_FILE: Final = Path("/etc/csi-job/settings.yaml")
MAIN_CONTAINERS: Final = {"cache": "study"}  # of a component whose container has another name
# Set in the controller's pod: name of the release, and of the ConfigMap with its stages.
RELEASE_VARIABLE: Final = "RELEASE_NAME"
STAGES_VARIABLE: Final = "RELEASE_STAGES"
# Annotations of the Jobs, which are all the memory that the controller has.
DIGEST: Final = "csi-job/digest"
MADE_BY: Final = "csi-job/controller"  # digest of the controller that created the Job
ROUND: Final = "csi-job/round"
TRIES: Final = "csi-job/tries"
HELD: Final = "csi-job/held"  # starts when the pods of the Job that it replaces have ended, or:
GIVES_WAY: Final = "for the cache"  # value of `HELD` of a search that has left its quota to the cache stage
DONE: Final = "csi-job/done-"  # of the ConfigMap, with the name of a stage: its digest, when it has succeeded
PARALLELISM: Final = "csi-job/parallelism"  # as in the values when the Job was created or last resized by them
NO_STUDY: Final = "there is no study"  # in what a pod says
START_OVER: Final = "restore its database, or start over with helm upgrade"
# Reasons of Events that say what holds at the moment; any other is said once, also by a restarted controller.
RECURRING: Final = ("Waiting", "PodWaiting", "PodsRefused", "DatabaseWaiting", "DatabaseUnavailable", "DatabaseBack")
GPU_RESOURCE: Final = "csi-job/gpu-resource"  # also an annotation of the ConfigMap
SETTINGS: Final = "csi-job/settings"  # of a stage's pods: the settings file that they read


@dataclass(frozen=True)
class Stage:
    """One stage: its Job as in the chart, and a digest of all fields that can't be changed on an existing Job."""

    name: str
    manifest: Mapping[str, Any]
    digest: str

    @classmethod
    def of(cls, name: str, manifest: Mapping[str, Any]) -> Self:
        """Compute the digest."""
        fixed = {key: value for key, value in manifest["spec"].items() if key not in MUTABLE_FIELDS}
        return cls(name, manifest, digest_json([fixed, manifest["metadata"]["labels"]])[:8])

    @property
    def template(self) -> Mapping[str, Any]:
        """The template of its pods."""
        template: Mapping[str, Any] = self.manifest["spec"]["template"]
        return template

    @property
    def pod(self) -> Mapping[str, Any]:
        """The spec of its pods."""
        spec: Mapping[str, Any] = self.template["spec"]
        return spec

    @property
    def volumes(self) -> list[Mapping[str, Any]]:
        """The volumes of its pods."""
        return list(self.pod.get("volumes") or ())

    @property
    def claims(self) -> list[str]:
        """Names of the volume claims that its pods mount."""
        return claims_of(self.pod)

    @property
    def work_claim(self) -> str:
        """Name of the volume claim for its results."""
        return next((v["persistentVolumeClaim"]["claimName"] for v in self.volumes if v["name"] == "work"), "")

    @property
    def parallelism(self) -> int:
        """Number of pods in the values."""
        return int(self.manifest["spec"].get("parallelism", 1))

    @property
    def labels(self) -> dict[str, str]:
        """Labels that select the stage's Jobs and pods."""
        return selector(self.manifest["metadata"]["labels"][INSTANCE], self.name)

    def job(self, number: int, owner: Mapping[str, Any], annotations: Mapping[str, str]) -> dict[str, Any]:
        """Return the manifest of the stage's Job for the `number`-th round, owned by the ConfigMap."""
        job = copy.deepcopy(dict(self.manifest))
        suffix = "" if number == 1 else f"-{number}"
        job["metadata"]["name"] = f"{job['metadata']['name']}-{self.digest}{suffix}"
        own = {DIGEST: self.digest, ROUND: str(number)}
        if "parallelism" in job["spec"]:
            own[PARALLELISM] = str(self.parallelism)
            job["spec"] |= scale_patch(self.parallelism, queued=is_queued(job))
        job["spec"].pop(EXPIRY, None)  # set when its end was seen
        job["metadata"].pop("namespace", None)
        job["metadata"]["annotations"] = (job["metadata"].get("annotations") or {}) | own | dict(annotations)
        job["metadata"]["ownerReferences"] = [dict(owner)]
        return job


@dataclass(frozen=True)
class Release:
    """An installed release: its stages in order, and the owner of its Jobs."""

    name: str
    digest: str
    owner: Mapping[str, Any]
    stages: tuple[Stage, ...]
    fetch_pod: Mapping[str, Any]
    gpu_resource: str = ""
    """Name of what counts as a GPU; empty if the chart does not say."""
    done: Mapping[str, str] = field(default_factory=dict)
    """Digests of the stages that have succeeded, also if their Jobs have expired."""

    @property
    def search(self) -> Stage:
        """The stage with any number of pods."""
        return self.stage("search")

    @property
    def database(self) -> str:
        """Name of the StatefulSet with the study's database, if the chart has installed one."""
        return f"{self.owner['name'].removesuffix('-stages')}-database"

    @property
    def controller(self) -> str:
        """Name of the Job of the controller that the chart creates for these stages."""
        return f"{self.owner['name'].removesuffix('-stages')}-controller-{self.digest}"

    def stage(self, name: str) -> Stage:
        """Return the stage with this name."""
        return next(stage for stage in self.stages if stage.name == name)

    def record(self, cluster: Cluster, reason: str, message: str, *, is_warning: bool = False) -> None:
        """Record an Event of the release, once for controllers with the same settings unless it may recur."""
        options = {"is_warning": is_warning, "is_recurring": reason in RECURRING}
        cluster.record_event(self.owner, reason, message, key=self.digest, **options)

    def after(self, stage: Stage) -> tuple[Stage, ...]:
        """Return the stages that build on this one."""
        return self.stages[self.stages.index(stage) + 1 :]


def selector(release_name: str, component: str = "") -> dict[str, str]:
    """Return the labels that select the objects of a release, or those of one of its components."""
    return {**NAME, INSTANCE: release_name} | ({COMPONENT: component} if component else {})


def claims_of(pod: Mapping[str, Any]) -> list[str]:
    """Return the names of the volume claims that a pod's spec mounts."""
    found = (volume.get("persistentVolumeClaim") for volume in pod.get("volumes") or ())
    return [claim["claimName"] for claim in found if claim]


def study_of(template: Mapping[str, Any]) -> object:
    """Return the name of the study in the settings of a stage's pods; None if it is not given there."""
    settings = parse_yaml(get_annotation(template, SETTINGS)) if template.get("metadata") else None
    study = settings.get("study") if isinstance(settings, Mapping) else None
    return study.get("name") if isinstance(study, Mapping) else None


def component_of(item: Mapping[str, Any]) -> str:
    """Return the component of a release that an object belongs to."""
    return str(item["metadata"]["labels"].get(COMPONENT, ""))


def read_release(cluster: Cluster, config_map_name: str) -> Release | None:
    """Read a release from the ConfigMap of its stages; None once it is uninstalled."""
    found = cluster.get("ConfigMap", config_map_name)
    return None if found is None else _release(found)


def find_release(cluster: Cluster, name: str | None) -> Release:
    """Find the release with this name; by default the one this pod controls, else the only one in the namespace.

    Raises:
        ClusterError: there is none, or several and no name was given.
    """
    own = read_release(cluster, os.environ[STAGES_VARIABLE]) if STAGES_VARIABLE in os.environ else None
    if own is not None and name in {None, own.name}:
        return own  # a pod has no right to list
    found = find_releases(cluster, name)
    if not found:
        message = f"no release of csi-job in namespace {cluster.namespace}"
        raise ClusterError(
            message, got=name, hint="choose another with --namespace; helm upgrade restores a damaged one"
        )
    if len(found) > 1:
        names = sorted(release.name for release in found)
        message = f"several releases in namespace {cluster.namespace}"
        raise ClusterError(message, allowed=names, hint="choose one with --release")
    return found[0]


def find_releases(cluster: Cluster, name: str | None = None) -> list[Release]:
    """Return the releases in the namespace, or those with this name."""
    labels = {**NAME, COMPONENT: "stages"} if name is None else selector(name, "stages")
    return [_release(item) for item in cluster.find("ConfigMap", labels) if "final.yaml" in item.get("data", {})]


def _release(config_map: Mapping[str, Any]) -> Release:
    metadata = config_map["metadata"]
    try:
        data = {name: yaml.safe_load(config_map["data"][f"{name}.yaml"]) for name in (*STAGES, FETCH)}
        return Release(
            name=metadata["labels"][INSTANCE],
            digest=get_annotation(config_map, DIGEST),
            owner={"apiVersion": "v1", "kind": "ConfigMap", "name": metadata["name"], "uid": metadata["uid"]},
            stages=tuple(Stage.of(name, data[name]) for name in STAGES),
            fetch_pod=data[FETCH],
            done={name: get_annotation(config_map, DONE + name) for name in STAGES},
            gpu_resource=get_annotation(config_map, GPU_RESOURCE),
        )
    except (KeyError, TypeError, yaml.YAMLError):
        message = f"the ConfigMap {metadata['name']} can't be read: changed by hand, or of another version of csi-job"
        raise ClusterError(message, hint="restore it with helm upgrade (in Helm 4 with --force-conflicts)") from None


def scale_patch(num_pods: int, *, queued: bool) -> dict[str, Any]:
    """Return the fields of a Job's spec for this number of pods; 0 keeps its indexes (completions).

    Only Kueue suspends and resumes a Job in one of its queues, and it resumes whatever has quota. There, 0 is a
    parallelism, which takes no quota, rather than a suspension.
    """
    if num_pods == 0:
        return {"parallelism": 0} if queued else {"suspend": True}
    fields = {"parallelism": num_pods, "completions": num_pods}
    return fields if queued else fields | {"suspend": False}


def resize(cluster: Cluster, job: Mapping[str, Any], num_pods: int, annotations: Mapping[str, str | None]) -> bool:
    """Change a Job's number of pods and these annotations; return False if it no longer exists.

    Kueue lets no running Job be resized that it may start with fewer pods, and would undo the change when it queues the
    Job again. So that right is taken from it first; it gets it back while the Job waits.
    """
    name = job["metadata"]["name"]
    if get_annotation(job, MIN_PODS):
        cluster.patch("Job", name, {"metadata": {"annotations": {MIN_PODS: None}}})
    spec = scale_patch(num_pods, queued=is_queued(job))
    return cluster.patch("Job", name, {"metadata": {"annotations": annotations}, "spec": spec})


def partial_admission(stage: Stage, num_pods: int) -> dict[str, str]:
    """Return the annotation by which Kueue may start a stage with fewer pods, if there are more than that."""
    least = get_annotation(stage.manifest, MIN_PODS)
    return {MIN_PODS: least} if least.isdecimal() and int(least) < num_pods else {}


def is_queued(job: Mapping[str, Any]) -> bool:
    """Return whether Kueue decides when a Job runs."""
    return QUEUE in job["metadata"].get("labels", {})


def is_paused(job: Mapping[str, Any]) -> bool:
    """Return whether a Job was scaled to 0."""
    return job["spec"].get("parallelism") == 0 if is_queued(job) else bool(job["spec"].get("suspend"))


def is_waiting(job: Mapping[str, Any]) -> bool:
    """Return whether a Job waits until Kueue has quota for it."""
    return bool(job["spec"].get("suspend")) and not is_paused(job)


def suspension(job: Mapping[str, Any]) -> str:
    """Return why a suspended Job has no pods, or how to resume it."""
    held = get_annotation(job, HELD)
    if held == GIVES_WAY:
        return "gives way to the cache stage, which lacks quota, and continues after it"
    if held:
        return "starts when the pods of the Job that it replaces have ended"
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    if component_of(job) == "search":
        resume = f"csi-job cluster scale N --release {job['metadata']['labels'][INSTANCE]} -n {namespace}"
    else:
        num_pods = int(job["spec"].get("completions", 1))
        fields = {"parallelism": num_pods} if is_queued(job) else {"suspend": False}
        patch = json.dumps({"spec": fields}, separators=(",", ":"))
        resume = f"kubectl patch job {name} -n {namespace} -p '{patch}'"
    return f"suspended; to resume it: {resume}"


def quota_wait(job: Mapping[str, Any]) -> str:
    """Return what a Job of Kueue waits for; only its workload says whether the queue is full, stopped or missing.

    An event also says that the queue is full, for users who have none of Kueue's roles.
    """
    queue = (job["metadata"].get("labels") or {}).get(QUEUE, "")
    namespace = job["metadata"]["namespace"]
    why = f"kubectl describe workloads -n {namespace} shows why (without Kueue's rights: kubectl events -n {namespace})"
    return f"waiting for quota in the queue {queue}; {why}"


@dataclass(frozen=True)
class JobResult:
    """How a Job ended."""

    failed: bool
    at_s: float
    """Seconds since 1970."""
    reason: str = ""
    message: str = ""


def job_result(job: Mapping[str, Any]) -> JobResult | None:
    """Return how a Job ended, None while it is active."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            at_s = datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()
            failed = condition["type"] == "Failed"
            return JobResult(failed, at_s, condition.get("reason", ""), condition.get("message", ""))
    return None


def age_s(item: Mapping[str, Any]) -> float:
    """Return the seconds since an object was created."""
    return seconds_since(datetime.fromisoformat(item["metadata"]["creationTimestamp"]))


def get_annotation(item: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return an annotation of an object."""
    return str((item["metadata"].get("annotations") or {}).get(name, default))


def is_gpu(resource: str, gpu_resource: str) -> bool:
    """Return whether a resource is the release's GPU; if that is unknown, go by the resource's name."""
    return resource == gpu_resource if gpu_resource else "gpu" in resource


def num_gpus(pod: Mapping[str, Any], gpu_resource: str) -> int:
    """Return the number of GPUs of a pod, or of a Job's template."""
    total = 0
    for container in pod["spec"]["containers"]:  # a webhook may have put its own first
        resources = container.get("resources") or {}
        amounts = (resources.get("requests") or {}) | (resources.get("limits") or {})
        total += sum(int(number) for name, number in amounts.items() if is_gpu(name, gpu_resource))
    return total
