"""A release watched: its pods by the API server, its study by a pod that can reach the database, maybe this one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from csi_job.cluster.api import Cluster
from csi_job.cluster.budget import GPU_SECONDS, S_PER_H
from csi_job.cluster.gpus import num_gpus
from csi_job.cluster.pods import failure_of, last_line, trouble_of
from csi_job.cluster.stages import (
    COMPONENT,
    CONTROLLER,
    DATABASE,
    INSTANCE,
    STAGES,
    Release,
    annotation,
    ending_of,
    find_release,
)
from csi_job.errors import ClusterError
from csi_job.study.status import StudyStatus
from csi_job.terminal.release import PodView, ReleaseView
from csi_job.terminal.status import status_from_dict

TELLERS: Final = (CONTROLLER, "search", "final", "cache")  # whose pods know the database, the likeliest first
# The pod's own patience with a database that is away would be its stage's.
ASK: Final = (
    "env",
    "--unset=RELEASE_NAME",  # the study alone
    "CSI_JOB_STORAGE__CONNECT_S=5",
    "csi-job",
    "status",
    "--config=/etc/csi-job/settings.yaml",
    "--json",
)
SILENCE_S: Final = 60.0
ORDER: Final = {name: place for place, name in enumerate(("Running", "Terminating", "Pending", "Failed", "Succeeded"))}

Show = Callable[[ReleaseView], None]


def watch_release(
    cluster: Cluster, release_name: str | None, show: Show, *, every_s: float, once: bool = False
) -> None:
    """Show a release again and again, until its controller has ended.

    Args:
        cluster: the namespace.
        release_name: the release; None: the only one.
        show: is called with each look.
        every_s: seconds between looks.
        once: look once.

    Raises:
        ClusterError: no such release.

    """
    release = find_release(cluster, release_name)
    study: StudyStatus | None = None
    options = () if once else ("--watch", f"--every={every_s:g}")

    def told(status: StudyStatus) -> None:
        nonlocal study
        study = status
        show(look_at(cluster, release, status))

    while True:
        note = "" if study and study.is_finished else _ask(cluster, release, told, options)
        view = look_at(cluster, release, study)
        if note or view.is_over or not once:
            show(replace(view, note=view.note or note))
        if once or view.is_over:
            return
        time.sleep(every_s)


def look_at(cluster: Cluster, release: Release, study: StudyStatus | None = None) -> ReleaseView:
    """Return how a release stands, with what is known of its study."""
    pods = cluster.pods({INSTANCE: release.name})
    own = [pod for pod in pods if _component(pod) in (CONTROLLER, DATABASE, *STAGES)]
    controllers = cluster.jobs({INSTANCE: release.name, COMPONENT: CONTROLLER})
    search = cluster.jobs(release.search.labels)
    used_s = float(annotation(search[-1], GPU_SECONDS, "0")) if search else 0.0
    is_over = bool(controllers) and ending_of(controllers[-1]) is not None
    seen = [_view(pod, release.gpu_resource) for pod in own]
    views = sorted(seen, key=lambda view: (ORDER.get(view.state, len(ORDER)), view.stage, view.name))
    outcome = _outcome(own) if is_over else ""
    return ReleaseView(release.name, cluster.namespace, tuple(views), used_s / S_PER_H, study, outcome, is_over)


def _ask(cluster: Cluster, release: Release, told: Callable[[StudyStatus], None], options: Sequence[str]) -> str:
    """Let a pod tell of the study, one line a look, for as long as it does; return why it does not."""
    pods = cluster.pods({INSTANCE: release.name})
    running = [pod for name in TELLERS for pod in pods if _component(pod) == name and _is_up(pod)]
    if not running:
        return "no pod runs that could tell of the study"
    lines = Lines(lambda line: told(status_from_dict(json.loads(line))))
    try:
        cluster.read_from(running[0]["metadata"]["name"], [*ASK, *options], lines, silence_s=SILENCE_S)
    except ClusterError as error:
        return last_line(str(error))
    return ""


class Lines:
    """A sink that hands over each line that is written into it."""

    def __init__(self, take: Callable[[str], None]) -> None:
        """Hand lines over to `take`."""
        self._take, self._rest = take, b""

    def write(self, data: bytes, /) -> None:
        """Take what may be part of a line or many lines."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._take(line.decode())


def _view(pod: Mapping[str, Any], gpu_resource: str) -> PodView:
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    failure, trouble = failure_of(pod), trouble_of(pod)
    why = failure.message if failure else trouble.why if trouble else ""
    age = datetime.now(UTC) - datetime.fromisoformat(metadata["creationTimestamp"])
    return PodView(
        name=metadata["name"],
        host=spec.get("hostname") or metadata["name"],
        stage=_component(pod),
        state="Terminating" if "deletionTimestamp" in metadata else status.get("phase", "Pending"),
        why=why,
        node=spec.get("nodeName", ""),
        age_s=age.total_seconds(),
        num_gpus=num_gpus(pod, gpu_resource),
    )


def _component(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["labels"].get(COMPONENT, ""))


def _is_up(pod: Mapping[str, Any]) -> bool:
    """Return whether the main container runs."""
    states = [status.get("state", {}) for status in pod.get("status", {}).get("containerStatuses") or ()]
    return bool(states) and all("running" in state for state in states) and "deletionTimestamp" not in pod["metadata"]


def _outcome(pods: Sequence[Mapping[str, Any]]) -> str:
    """Return the last words of the controller, which are the outcome of the release."""
    controllers = [pod for pod in pods if _component(pod) == CONTROLLER]
    words = ""
    for pod in sorted(controllers, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
        for status in pod.get("status", {}).get("containerStatuses") or ():
            ended = status.get("state", {}).get("terminated") or {}
            words = last_line(ended.get("message") or "") or words
    return words
