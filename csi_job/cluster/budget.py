"""The search's budget: usage over all pods is metered from its Job and stored with the study."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from csi_job.cluster.api import Cluster, Object, ServerClock
from csi_job.cluster.stages import (
    GIVES_WAY,
    GPU_RESOURCE,
    HELD,
    Release,
    get_annotation,
    is_paused,
    job_result,
    num_gpus,
    resize,
    study_of,
)

# Annotations of the search Job.
SECONDS: Final = "csi-job/seconds"
GPU_SECONDS: Final = "csi-job/gpu-seconds"
METERED_AT: Final = "csi-job/metered-s"
RUNNING: Final = "csi-job/running"  # pods that were running when it was last metered
ENDED_BY: Final = "csi-job/ended-by"  # the budget suspended the Job, not the user
METER_EVERY_S: Final = 30.0
S_PER_H: Final = 3600.0


@dataclass(frozen=True)
class Usage:
    """What the search has used."""

    seconds: float = 0.0
    """With at least one pod running."""
    gpu_seconds: float = 0.0
    """Over all pods."""
    until_s: float = 0.0
    """Time of the last metering, in seconds since 1970."""

    def __add__(self, later: "Usage") -> "Usage":
        """Return the sum, metered when the later one was."""
        return Usage(self.seconds + later.seconds, self.gpu_seconds + later.gpu_seconds, later.until_s)


AddUsage = Callable[[Callable[[float], Usage]], Usage | None]
"""Adds to the study's usage what the given function returns for the time of its last metering; returns the total, None
while the study is unreachable."""


@dataclass(frozen=True)
class Budget:
    """The limits of the search; None means no limit."""

    hours: float | None = None
    gpu_hours: float | None = None

    def exhausted_reason(self, job: Mapping[str, Any]) -> str:
        """Return which limit is exhausted, empty if none is."""
        usage = metered_usage(job) + unmetered_usage(job)
        if self.hours is not None and usage.seconds > self.hours * S_PER_H:
            return f"the budget of {self.hours:g} hours is exhausted"
        if self.gpu_hours is not None and usage.gpu_seconds > self.gpu_hours * S_PER_H:
            return f"the budget of {self.gpu_hours:g} GPU hours is exhausted"
        return ""


def initial_annotations() -> dict[str, str]:
    """Return the annotations of a new search Job; what the study has used so far is read right away."""
    return {METERED_AT: f"{_now_s():.0f}", RUNNING: "0"}


def meter(cluster: Cluster, job: Mapping[str, Any], add: AddUsage) -> None:
    """Keep the usage with the study, which outlives every Job, and the total with the Job."""
    if annotations := add_usage(job, add):
        cluster.patch("Job", job["metadata"]["name"], {"metadata": {"annotations": annotations}})


def enforce(cluster: Cluster, release: Release, budget: Budget, add: AddUsage) -> str:
    """Meter the running search of the release's study, if need be one of earlier settings, and stop it without budget.

    The search stage does so itself; this is for as long as that has yet to begin, or another controller to start.

    Returns:
        which limit is exhausted, empty if none is.
    """
    reason = ""
    for job in unfinished_searches(cluster, release):
        meter(cluster, job, add)
        reason = budget.exhausted_reason(job)
        if reason and not (is_paused(job) or get_annotation(job, ENDED_BY)):
            resize(cluster, job, 0, {ENDED_BY: "budget"})
    return reason


def unfinished_searches(cluster: Cluster, release: Release) -> list[Object]:
    """Return the search Jobs of the release's study, also of earlier settings, that have begun but not ended."""
    ours = (None, study_of(release.search.template))  # Jobs of earlier charts do not say which study they search
    jobs = [job for job in cluster.jobs(release.search.labels) if study_of(job["spec"]["template"]) in ours]
    return [job for job in jobs if not job_result(job) and get_annotation(job, HELD) in ("", GIVES_WAY)]


def add_usage(job: Mapping[str, Any], add: AddUsage) -> dict[str, str]:
    """Add the usage since the last metering, if that is due; return what the Job's annotations got to record it."""
    total = add(partial(unmetered_usage, job)) if metering_is_due(job) else None
    if total is None:
        return {}
    annotations = metering_annotations(job, total)
    job["metadata"]["annotations"].update(annotations)
    return annotations


def metering_is_due(job: Mapping[str, Any]) -> bool:
    """Return whether to meter now: the first time, whenever the number of pods has changed, and regularly."""
    metered_at_s = float(get_annotation(job, METERED_AT, "0"))
    has_changed = get_annotation(job, RUNNING) != str(_num_running(job))
    return not get_annotation(job, SECONDS) or has_changed or _now_s() - metered_at_s >= METER_EVERY_S


def metering_annotations(job: Mapping[str, Any], total: Usage) -> dict[str, str]:
    """Return the annotations that record this total."""
    return {
        SECONDS: f"{total.seconds:.0f}",
        GPU_SECONDS: f"{total.gpu_seconds:.0f}",
        METERED_AT: f"{total.until_s:.0f}",
        RUNNING: str(_num_running(job)),
    }


def metered_usage(job: Mapping[str, Any]) -> Usage:
    """Return what the study had used when it was last metered."""
    return Usage(float(get_annotation(job, SECONDS, "0")), float(get_annotation(job, GPU_SECONDS, "0")))


def unmetered_usage(job: Mapping[str, Any], study_until_s: float = 0.0) -> Usage:
    """Return what was used since, assuming that the pods running then are still running.

    Of a later metering, at `study_until_s`, only the study knows if it could not be recorded with the Job. That was
    moments ago, so that the pods running now count.
    """
    result = job_result(job)
    until_s = result.at_s if result else _now_s()
    since_s = float(get_annotation(job, METERED_AT, f"{until_s}"))
    running = int(get_annotation(job, RUNNING, "0"))
    if study_until_s > since_s:
        since_s, running = study_until_s, _num_running(job)
    elapsed_s = max(until_s - since_s, 0.0)
    gpus = running * num_gpus(job["spec"]["template"], get_annotation(job, GPU_RESOURCE))
    return Usage(elapsed_s if running else 0.0, elapsed_s * gpus, until_s)


def _now_s() -> float:
    """Return the time in whole seconds, as annotations have it."""
    return float(round(ServerClock.now().timestamp()))


def _num_running(job: Mapping[str, Any]) -> int:
    """Return the number of running pods; a pod that waits for a node holds no GPU yet."""
    return int((job.get("status") or {}).get("ready") or 0)
