"""What a pod's status says: how it failed, in csi-job's own words, and why it does not start."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from csi_job.cluster.api import ServerClock

PULL_ERROR: Final = "ErrImagePull"
IMAGE_REASONS: Final = (PULL_ERROR, "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
CRASH_LOOP: Final = "CrashLoopBackOff"  # of a sidecar or the database; no other container is restarted
# A container with one of these can't start: it lacks something, or fails again and again.
WAITING_REASONS_FATAL: Final = (*IMAGE_REASONS, "CreateContainerConfigError", CRASH_LOOP)
# What runtime and registry say of an image that is not there, or not for us. After anything else, such as a timeout,
# 429, 5xx or a name that can't be resolved at the moment, the next try may succeed.
_MISSING_IMAGE: Final = re.compile(
    "InvalidImageName|ErrImageNeverPull|not found|(manifest|name) unknown|not known to registry|does not exist|"
    "no match for platform|unauthorized|authorization failed|forbidden|(?<!permission )denied",
    re.IGNORECASE,
)
# Names and addresses, which not every runtime quotes.
_NAMES: Final = re.compile(r'"[^"]*"|\S+/\S+')
PREFIX: Final = "csi-job: "  # before every error on the command line
OOM_KILLED: Final = "OOMKilled"
EVICTED: Final = "Evicted"
START_ERROR: Final = "StartError"  # with exit code 128
NO_PROGRAM: Final = (126, 127)  # exit codes of an entrypoint that finds no csi-job, and of the dynamic loader's errors
_LOADER: Final = "error while loading shared libraries"
# In a StartError of runc or crun: the image's fault, not the node's.
_NO_COMMAND: Final = re.compile("executable file .*not found|exec: .*(no such file|permission denied)")
LOST_AFTER_S: Final = 30.0  # past its grace
TAINTED: Final = "untolerated taint"  # in what the scheduler says
NO_CLAIM: Final = re.compile(r'persistentvolumeclaim "[^"]*" (not found|is being deleted)')
# What to do, by what Kubernetes says.
_REMEDIES: Final = (
    (
        '(secret|configmap|persistentvolumeclaim) "[^"]*" not found',
        "create it, or correct the values with helm upgrade",
    ),
    ('persistentvolumeclaim "[^"]*" is being deleted', "helm uninstall ends the pods that use it; then install again"),
)
# What the scheduler adds about evicting other pods, which repeats or helps nobody.
_PREEMPTION: Final = re.compile(r"\.? (no new claims to deallocate, )?preemption: .*|\. not found$")


@dataclass(frozen=True)
class Failure:
    """A container that exited with an error, or a pod that its node ended before any could."""

    pod: str
    container: str
    """Empty if none has exited."""
    exit_code: int | None
    message: str

    def __str__(self) -> str:
        """Return e.g. `pod r-search-1 (search) exit 1: the database …`."""
        where = f" ({self.container}) exit {self.exit_code}" if self.container else ""
        return f"pod {self.pod}{where}: {self.message}"


@dataclass(frozen=True)
class StartupProblem:
    """Why a pod does not start."""

    pod: str
    cause: str
    is_missing: bool
    """Whether what it needs does not exist at all."""
    has_started: bool = False
    """Whether only one of its containers, such as a sidecar, does not run."""
    remedy: str = ""
    """What to do about it, where that is known."""

    @property
    def reason(self) -> str:
        """The cause, followed by the remedy."""
        return f"{self.cause.rstrip('.')}; {self.remedy}" if self.remedy else self.cause

    def __str__(self) -> str:
        """Return e.g. `pod r-search-1 does not start: ErrImagePull: …`."""
        return f"pod {self.pod} {'is not ready' if self.has_started else 'does not start'}: {self.reason}"


def failure_of(pod: Mapping[str, Any]) -> Failure | None:
    """Return how a pod failed, None if it did not."""
    init = pod["spec"].get("initContainers") or ()
    sidecars = {one["name"] for one in init if one.get("restartPolicy") == "Always"}  # stopped after csi-job's own end
    for status in _containers(pod):
        if status["name"] in sidecars:
            continue
        ended = (status.get("state") or {}).get("terminated")
        if ended and ended["exitCode"] != 0:
            message = last_line(ended.get("message") or "") or str(ended.get("reason", ""))
            if ended.get("reason") == OOM_KILLED:
                message = "out of memory; raise the stage's resources.limits.memory"
            elif is_evicted(pod):  # its log is gone
                message = f"evicted: {pod['status'].get('message', '').strip().rstrip('.')}"
            elif (ended["exitCode"] in NO_PROGRAM and _LOADER not in message) or _is_no_command(ended):
                message = f"{message.rstrip('.')}; is {status.get('image')} the right image?"
            return Failure(pod["metadata"]["name"], status["name"], int(ended["exitCode"]), message)
    return _rejection(pod)


def is_evicted(pod: Mapping[str, Any]) -> bool:
    """Return whether its node ended the pod, e.g. for using more than its share of the disk."""
    return bool(pod.get("status", {}).get("reason") == EVICTED)


def _rejection(pod: Mapping[str, Any]) -> Failure | None:
    """Return why a pod failed of which no container did, e.g. as its node had no healthy GPU for it after all."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed" or not status.get("reason"):
        return None
    message = f"{status['reason']}: {status.get('message', '')}".strip(": ")
    return Failure(pod["metadata"]["name"], "", None, message)


def _is_no_command(ended: Mapping[str, Any]) -> bool:
    """Return whether a container could not start, for a reason that is its image's rather than its node's."""
    return ended.get("reason") == START_ERROR and bool(_NO_COMMAND.search(ended.get("message") or ""))


def startup_problem(pod: Mapping[str, Any]) -> StartupProblem | None:
    """Return why a pod does not start, or is lost with its node; None if nothing is wrong."""
    name = pod["metadata"]["name"]
    if is_active(pod) and (is_lost(pod) or has_silent_node(pod)):
        reason = f"its node {pod['spec'].get('nodeName')} does not answer; if it is gone, delete it to replace the pod"
        return StartupProblem(name, reason, is_missing=False, has_started=True)
    condition = _scheduled(pod)
    if condition.get("status") == "False":
        reason = _PREEMPTION.sub("", condition.get("message", condition.get("reason", "")))
        remedy = startup_remedy(reason)
        if all(TAINTED in part for part in reason.split(", ")):  # else other nodes may be free one day
            remedy = "set tolerations, or wait until the taint is removed (kubectl describe nodes)"
        return StartupProblem(name, reason, bool(NO_CLAIM.search(reason)), remedy=remedy)
    for status in _containers(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in WAITING_REASONS_FATAL:
            last = (status.get("lastState") or {}).get("terminated") or {}
            message = last_line(last.get("message") or "") or waiting.get("message", "")
            cause = f"{waiting['reason']}: {message}".strip(": ")
            # What a container said last is its own, also where it sounds like Kubernetes.
            remedy = "" if waiting["reason"] == CRASH_LOOP else startup_remedy(cause)
            has_started = is_running(pod)
            where = f"container {status['name']}: " if has_started else ""
            is_missing = waiting["reason"] not in IMAGE_REASONS or is_missing_image(cause)
            return StartupProblem(name, where + cause, is_missing, has_started, remedy)
    return None


def startup_remedy(reason: str) -> str:
    """Return what to do about a pod that does not start for this reason, empty if that is not known."""
    if is_image_problem(reason):
        if is_missing_image(reason):
            return "correct the image, or global.imagePullSecrets, with helm upgrade"
        return "Kubernetes pulls it again; if that lasts, check the registry and the image's name"
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, reason)), "")


def is_image_problem(reason: str) -> bool:
    """Return whether an image is why a pod does not start."""
    return any(image in reason for image in IMAGE_REASONS)


def is_missing_image(reason: str) -> bool:
    """Return whether it is that the image is not there, or not for us; what its name or address says does not count."""
    return bool(_MISSING_IMAGE.search(_NAMES.sub("", reason)))


def starting_s(pod: Mapping[str, Any]) -> float:
    """Return for how long a pod with a node has been starting its containers, 0 if it does not."""
    is_starting = pod.get("status", {}).get("phase") == "Pending" and _scheduled(pod).get("status") == "True"
    return seconds_since(_ready_to_start(pod)) if is_starting else 0.0


def last_line(log: str) -> str:
    """Return the last line of a log, or of csi-job's own errors in it, without the program's name."""
    lines = [_message(line.strip()) for line in log.splitlines() if line.strip()]
    own = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    return (own or lines or [""])[-1]


def _message(line: str) -> str:
    """Return what a line of a JSON log says, without its time and level; any other line as it is."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return str(entry.get("message") or line) if isinstance(entry, dict) else line


def is_active(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod runs or is about to."""
    return pod.get("status", {}).get("phase") in ("Pending", "Running")


def is_running(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod runs and is not being deleted."""
    return pod.get("status", {}).get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def host_of(pod: Mapping[str, Any]) -> str:
    """Return a pod's host name, by which the study knows its workers."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])


def is_lost(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod has outlived its grace period, as on a node that is gone."""
    until = pod["metadata"].get("deletionTimestamp")  # the end of its grace period
    return bool(until) and seconds_since(datetime.fromisoformat(until)) > LOST_AFTER_S


def has_silent_node(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod's node does not answer: Kubernetes then calls the pod unready, but not its containers."""
    states = {condition["type"]: condition["status"] for condition in pod.get("status", {}).get("conditions") or ()}
    is_unready = (states.get("Ready"), states.get("ContainersReady")) == ("False", "True")
    return is_unready and "readinessGates" not in pod["spec"]


def seconds_since(time: datetime) -> float:
    """Return the seconds since a time on the cluster's clock; a node's may be ahead of the API server's."""
    return max((ServerClock.now() - time).total_seconds(), 0.0)


def _ready_to_start(pod: Mapping[str, Any]) -> datetime:
    """Return when the next container could have started: after its pod has a node, and after those before it."""
    condition = _scheduled(pod)
    times = [pod["metadata"]["creationTimestamp"]]
    if condition.get("status") == "True":
        times.append(condition.get("lastTransitionTime"))
    ended = [(status.get("state") or {}).get("terminated") or {} for status in _containers(pod)]
    times += [state.get("finishedAt") for state in ended]
    return max(datetime.fromisoformat(time) for time in times if time)


def _scheduled(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the condition that says whether a pod has a node, empty if there is none yet."""
    conditions: Sequence[Mapping[str, Any]] = pod.get("status", {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == "PodScheduled"), {})


def _containers(pod: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
