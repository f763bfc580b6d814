"""The budget over all pods of the search, kept in annotations of its Job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from csi_job.cluster.gpus import GPU_RESOURCE, num_gpus
from csi_job.cluster.stages import annotation

BEGAN: Final = "csi-job/began-s"
GPU_SECONDS: Final = "csi-job/gpu-seconds"
METERED: Final = "csi-job/metered-s"
ENDED: Final = "csi-job/ended-by"  # the budget holds the pods back, and not the user
METER_EVERY_S: Final = 30.0
S_PER_H: Final = 3600.0


@dataclass(frozen=True)
class Budget:
    """The limits of the search; None is no limit."""

    hours: float | None = None
    gpu_hours: float | None = None

    def spent(self, job: Mapping[str, Any]) -> str:
        """Return what of the budget is spent, in words; `` while some is left."""
        began_s = float(annotation(job, BEGAN, "inf"))
        if self.hours is not None and time.time() - began_s > self.hours * S_PER_H:
            return f"the budget of {self.hours:g} hours is spent"
        used_s = float(annotation(job, GPU_SECONDS, "0")) + _unmetered_s(job)
        if self.gpu_hours is not None and used_s > self.gpu_hours * S_PER_H:
            return f"the budget of {self.gpu_hours:g} GPU hours is spent"
        return ""


def first_reading(previous: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the annotations of a search that is made, with what the one before has used."""
    if previous is None:
        return {GPU_SECONDS: "0", METERED: f"{time.time():.0f}"}
    began = annotation(previous, BEGAN)
    return settled(previous) | ({BEGAN: began} if began else {})


def reading(job: Mapping[str, Any]) -> dict[str, str]:
    """Return the annotations brought up to date, empty while that is not due.

    Pods that run now are taken to have run since the last reading, also while the controller was away. The hours
    begin with the first pod: a search may have waited long for its quota.
    """
    now = time.time()
    begins = not annotation(job, BEGAN) and _num_active(job) > 0
    if now - float(annotation(job, METERED, "0")) < METER_EVERY_S and not begins:
        return {}
    return settled(job) | ({BEGAN: f"{now:.0f}"} if begins else {})


def settled(job: Mapping[str, Any]) -> dict[str, str]:
    """Return the annotations that hold what is used until now."""
    used_s = float(annotation(job, GPU_SECONDS, "0")) + _unmetered_s(job)
    return {GPU_SECONDS: f"{used_s:.0f}", METERED: f"{time.time():.0f}"}


def _unmetered_s(job: Mapping[str, Any]) -> float:
    gpus = num_gpus(job["spec"]["template"], annotation(job, GPU_RESOURCE))
    metered_s = float(annotation(job, METERED, f"{time.time()}"))
    return max(time.time() - metered_s, 0.0) * _num_active(job) * gpus


def _num_active(job: Mapping[str, Any]) -> int:
    return int((job.get("status") or {}).get("active") or 0)
