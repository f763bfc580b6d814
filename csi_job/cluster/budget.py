"""The budget over all pods of the search: what they use is read off its Job, and kept with the study."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from csi_job.cluster.gpus import GPU_RESOURCE, num_gpus
from csi_job.cluster.stages import annotation, ending_of

SECONDS: Final = "csi-job/seconds"
GPU_SECONDS: Final = "csi-job/gpu-seconds"
METERED: Final = "csi-job/metered-s"
RUNNING: Final = "csi-job/running"  # pods that ran when it was metered
ENDED: Final = "csi-job/ended-by"  # the budget holds the pods back, and not the user
METER_EVERY_S: Final = 30.0
S_PER_H: Final = 3600.0


@dataclass(frozen=True)
class Use:
    """What searching has used."""

    seconds: float = 0.0
    """In which any pod ran."""
    gpu_seconds: float = 0.0
    """Over all pods."""

    def __add__(self, other: Use) -> Use:
        """Return both together."""
        return Use(self.seconds + other.seconds, self.gpu_seconds + other.gpu_seconds)


@dataclass(frozen=True)
class Budget:
    """The limits of the search; None is no limit."""

    hours: float | None = None
    gpu_hours: float | None = None

    def spent(self, job: Mapping[str, Any]) -> str:
        """Return what of the budget is spent, in words; `` while some is left."""
        use = metered_use(job) + unmetered_use(job)
        if self.hours is not None and use.seconds > self.hours * S_PER_H:
            return f"the budget of {self.hours:g} hours is spent"
        if self.gpu_hours is not None and use.gpu_seconds > self.gpu_hours * S_PER_H:
            return f"the budget of {self.gpu_hours:g} GPU hours is spent"
        return ""


def first_reading() -> dict[str, str]:
    """Return the annotations of a search that is made; what the study has used so far is read at once."""
    return {METERED: f"{time.time():.0f}", RUNNING: "0"}


def is_due(job: Mapping[str, Any]) -> bool:
    """Return whether the use is to be read: the first time, when the number of pods has changed, and regularly."""
    metered_s = float(annotation(job, METERED, "0"))
    is_changed = annotation(job, RUNNING) != str(_num_running(job))
    return not annotation(job, SECONDS) or is_changed or time.time() - metered_s >= METER_EVERY_S


def reading(job: Mapping[str, Any], total: Use) -> dict[str, str]:
    """Return the annotations after a reading that came to this total."""
    return {
        SECONDS: f"{total.seconds:.0f}",
        GPU_SECONDS: f"{total.gpu_seconds:.0f}",
        METERED: f"{time.time():.0f}",
        RUNNING: str(_num_running(job)),
    }


def metered_use(job: Mapping[str, Any]) -> Use:
    """Return what the study had used at the last reading."""
    return Use(float(annotation(job, SECONDS, "0")), float(annotation(job, GPU_SECONDS, "0")))


def unmetered_use(job: Mapping[str, Any]) -> Use:
    """Return what was used since the last reading: pods that ran then are taken to have run on."""
    ending = ending_of(job)
    until_s = ending.at_s if ending else time.time()
    elapsed_s = max(until_s - float(annotation(job, METERED, f"{until_s}")), 0.0)
    running = int(annotation(job, RUNNING, "0"))
    gpus = running * num_gpus(job["spec"]["template"], annotation(job, GPU_RESOURCE))
    return Use(elapsed_s if running else 0.0, elapsed_s * gpus)


def _num_running(job: Mapping[str, Any]) -> int:
    """Return the number of pods that run; one that waits for a node has no GPU yet."""
    return int((job.get("status") or {}).get("ready") or 0)
