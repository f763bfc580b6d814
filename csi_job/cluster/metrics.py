"""The controller's metrics for Prometheus, behind a switch of the chart."""

import socket
import time
from collections import Counter
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from csi_job.cluster.api import Cluster
from csi_job.cluster.budget import S_PER_H, metered_usage
from csi_job.cluster.stages import Release, component_of, selector
from csi_job.cluster.study_watch import OUTCOMES, StudyWatch

REFRESH_S: Final = 10.0
PREFIX: Final = "csi_job"
STATES: Final = (*OUTCOMES, "waiting", "running")


class Metrics:
    """Gauges of the study and the release, refreshed by the controller's loop and served by a thread."""

    def __init__(self, port: int) -> None:
        """Serve them on this port of every address; 0 chooses a free one."""
        registry = CollectorRegistry()
        self._trials = Gauge(f"{PREFIX}_trials", "Trials of the study by state.", ["state"], registry=registry)
        self._target = Gauge(f"{PREFIX}_trials_target", "Total number of trials to finish.", registry=registry)
        self._best = Gauge(f"{PREFIX}_best_value", "Best validation F1 so far.", registry=registry)
        labels = ["component", "phase"]
        self._pods = Gauge(f"{PREFIX}_pods", "Pods of the release by component and phase.", labels, registry=registry)
        self._gpu_hours = Gauge(f"{PREFIX}_gpu_hours", "GPU hours used by the search.", registry=registry)
        outages = "Times the study became unavailable."
        self._outages = prometheus_client.Counter(f"{PREFIX}_database_outages", outages, registry=registry)
        self._best.set(float("nan"))
        self._num_outages, self._due_s = 0, 0.0
        address = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - scraped from outside the pod
        server, _ = start_http_server(port, address, registry)
        self.port = server.server_port

    def refresh(self, cluster: Cluster, release: Release, watch: StudyWatch) -> None:
        """Bring the metrics up to date, if that is due."""
        if time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + REFRESH_S
        self._outages.inc(watch.num_outages - self._num_outages)
        self._num_outages = watch.num_outages
        if watch.last is not None:
            self._target.set(watch.last.target)
            for state in STATES:
                self._trials.labels(state).set(getattr(watch.last, f"num_{state}"))
            if watch.last.best is not None:
                self._best.set(watch.last.best.f1)
        pods = cluster.find("Pod", selector(release.name))
        phases = Counter((component_of(pod), pod["status"]["phase"]) for pod in pods)
        self._pods.clear()
        for (component, phase), number in phases.items():
            self._pods.labels(component, phase).set(number)
        if jobs := cluster.jobs(release.search.labels):
            self._gpu_hours.set(metered_usage(jobs[-1]).gpu_seconds / S_PER_H)
