"""What pods tell: how they failed, in csi-job's own line, and why they do not start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

# Why a container waits for what is not there at all.
NEVER_STARTS: Final = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
)
PREFIX: Final = "csi-job: "  # before every error of the command line
KILLED_FOR_MEMORY: Final = "OOMKilled"


@dataclass(frozen=True)
class Failure:
    """A container that ended with an error."""

    pod: str
    container: str
    exit_code: int
    message: str

    def __str__(self) -> str:
        """Return e.g. `pod r-search-1 (search) exit 1: the database …`."""
        return f"pod {self.pod} ({self.container}) exit {self.exit_code}: {self.message}"


@dataclass(frozen=True)
class Trouble:
    """Why a pod does not start; `is_missing` tells that what it needs is not there at all."""

    pod: str
    why: str
    is_missing: bool
    age_s: float
    """Since the pod could have started: an upper bound of the trouble's age."""


def failure_of(pod: Mapping[str, Any]) -> Failure | None:
    """Return how a pod failed, None where it did not."""
    for status in _containers(pod):
        ended = (status.get("state") or {}).get("terminated")
        if ended and ended["exitCode"] != 0:
            message = last_line(ended.get("message") or "") or str(ended.get("reason", ""))
            if ended.get("reason") == KILLED_FOR_MEMORY:
                message = "killed for memory; raise the stage's resources.limits.memory"
            return Failure(pod["metadata"]["name"], status["name"], int(ended["exitCode"]), message)
    return None


def trouble_of(pod: Mapping[str, Any]) -> Trouble | None:
    """Return why a pod does not start, None where nothing is wrong."""
    name = pod["metadata"]["name"]
    age_s = (datetime.now(UTC) - _ready_to_start(pod)).total_seconds()
    condition = _scheduled(pod)
    if condition.get("status") == "False":
        why = condition.get("message", condition.get("reason", ""))
        return Trouble(name, why, "persistentvolumeclaim" in why and "not found" in why, age_s)
    for status in _containers(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        if (reason := waiting.get("reason", "")) in NEVER_STARTS:
            return Trouble(name, f"{reason}: {waiting.get('message', '')}".strip(": "), is_missing=True, age_s=age_s)
    return None


def last_line(log: str) -> str:
    """Return the last line of a log, without the name of the program before an error."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    own = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    return (own or lines or [""])[-1]


def is_active(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod runs, or is about to."""
    return pod.get("status", {}).get("phase") in ("Pending", "Running")


def is_running(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod runs and is to go on."""
    return pod.get("status", {}).get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def _ready_to_start(pod: Mapping[str, Any]) -> datetime:
    """Return when the container that is next could have started: all of these have to come before it."""
    condition = _scheduled(pod)
    times = [pod["metadata"]["creationTimestamp"]]
    if condition.get("status") == "True":
        times.append(condition.get("lastTransitionTime"))
    ended = [(status.get("state") or {}).get("terminated") or {} for status in _containers(pod)]
    times += [state.get("finishedAt") for state in ended]
    return max(datetime.fromisoformat(time) for time in times if time)


def _scheduled(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the condition that tells whether a pod has its node, empty while there is none."""
    conditions: Iterable[Mapping[str, Any]] = pod.get("status", {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == "PodScheduled"), {})


def _containers(pod: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
