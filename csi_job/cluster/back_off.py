"""Kubernetes' back-off: how long an Indexed Job waits before it replaces the failed pod of an index.

It waits 10 s the first time and twice as long each time after that, also for pods that were drained or deleted, and
gives the index up after `backoffLimitPerIndex` errors. It never forgets, but it counts in annotations of the pod that
it replaces. Setting these to 0 once the pod has made progress keeps the wait at 10 s, and costs the other pods nothing.
"""

import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from csi_job.cluster.api import POD_VARIABLE, Cluster, UnreachableError
from csi_job.cluster.pods import host_of, is_running
from csi_job.errors import ClusterError
from csi_job.study.status import RunningStatus

logger = logging.getLogger(__name__)
NO_FAILURES: Final = {
    "batch.kubernetes.io/job-index-failure-count": "0",
    "batch.kubernetes.io/job-index-ignored-failure-count": "0",
}
STEADY_S: Final = 20.0  # a controller that has lived as long is not in a crash loop


class SearchBackOff:
    """Resets the back-off of every pod of the search that has finished an epoch."""

    def __init__(self, cluster: Cluster) -> None:
        """Start with no pod known."""
        self._cluster = cluster
        self._first_seen: dict[str, dict[int, int | None]] = {}  # for each pod the epochs of its trials

    def reset_after_progress(self, pods: Iterable[Mapping[str, Any]], running: Iterable[RunningStatus]) -> None:
        """Compare the trials of each pod with those first seen in it; any that has moved on is progress."""
        epochs: dict[str, dict[int, int | None]] = {}
        for trial in running:
            if not trial.is_orphan:
                epochs.setdefault(trial.host, {})[trial.number] = trial.epoch
        for pod in filter(is_running, pods):
            now = epochs.get(host_of(pod), {})
            seen = self._first_seen.setdefault(pod["metadata"]["name"], {})
            if any(now.get(number, -1) != epoch for number, epoch in seen.items()):
                reset_back_off(self._cluster, pod)
            self._first_seen[pod["metadata"]["name"]] = now | seen


class OwnBackOff:
    """Resets the back-off of the controller's own pod, so that it is always replaced soon."""

    def __init__(self, cluster: Cluster) -> None:
        """Remember the start."""
        self._cluster, self._name = cluster, os.environ.get(POD_VARIABLE, "")
        self._due_s = time.monotonic() + STEADY_S

    def reset_when_steady(self) -> None:
        """Reset it once, when the controller has lived long enough."""
        if self._name and time.monotonic() >= self._due_s:
            pod, self._name = self._cluster.get("Pod", self._name), ""
            if pod is not None:
                reset_back_off(self._cluster, pod)


def reset_back_off(cluster: Cluster, pod: Mapping[str, Any]) -> None:
    """Let a Job forget the failures of a pod's index, if there are any."""
    annotations = pod["metadata"].get("annotations") or {}
    if all(annotations.get(name, number) == number for name, number in NO_FAILURES.items()):
        return
    name = pod["metadata"]["name"]
    try:
        cluster.patch("Pod", name, {"metadata": {"annotations": NO_FAILURES}})
    except UnreachableError:
        raise
    except ClusterError as error:  # e.g. a role that an administrator made for an earlier version
        logger.debug("the back-off of pod %s stays: %s", name, error)
    else:
        logger.info("pod %s runs steadily; the next one in its place need not wait longer for earlier failures", name)
