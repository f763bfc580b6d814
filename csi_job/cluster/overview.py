"""A release as seen from outside: pods from the API server, the study from a pod that can reach the database."""

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from csi_job.cluster.api import Cluster, NotAllowedError, UnreachableError
from csi_job.cluster.budget import ENDED_BY, S_PER_H, metered_usage
from csi_job.cluster.pods import PREFIX, failure_of, has_silent_node, host_of, last_line, seconds_since
from csi_job.cluster.refusals import job_problem, last_event, why_not_started, with_remedy
from csi_job.cluster.stages import (
    CONTROLLER,
    DATABASE,
    MAIN_CONTAINERS,
    NO_STUDY,
    RELEASE_VARIABLE,
    SETTINGS_FILE,
    STAGES,
    START_OVER,
    Release,
    age_s,
    component_of,
    find_release,
    get_annotation,
    is_paused,
    is_waiting,
    job_result,
    num_gpus,
    quota_wait,
    selector,
    suspension,
)
from csi_job.errors import ClusterError
from csi_job.study.status import StudyStatus
from csi_job.terminal.release import PodView, ReleaseView
from csi_job.terminal.status import status_from_dict

STATUS_SOURCES: Final = (CONTROLLER, "search", "final", "cache")  # components whose pods reach the database
STATUS_COMMAND: Final = (
    "env",
    f"--unset={RELEASE_VARIABLE}",  # only the study, not the release again
    "CSI_JOB_STORAGE__CONNECT_S=5",  # instead of the stage's own, which is minutes
    "csi-job",
    "status",
    f"--config={SETTINGS_FILE}",
    "--json",
)
MISSING_RIGHT: Final = re.compile(r'cannot (\w+) resource "([^"]+)"')
EXEC_IDLE_TIMEOUT_S: Final = 60.0
CURRENT_S: Final = 90.0  # while the controller waits, it says so once a minute
STATE_ORDER: Final = ("Running", "Terminating", "Pending", "Failed", "Succeeded")


def watch_release(
    cluster: Cluster,
    release_name: str | None,
    show: Callable[[ReleaseView], None],
    *,
    every_s: float,
    once: bool = False,
) -> None:
    """Show a release every `every_s` seconds until its controller has ended, or `once`."""
    options = () if once else ("--watch", f"--every={every_s:g}")
    view = first = ReleaseView(release_name or "", cluster.namespace, (), 0.0)

    def on_status(status: StudyStatus) -> None:
        nonlocal view
        view = view_release(cluster, release, status)
        show(view)

    while not view.is_over:
        try:
            release = find_release(cluster, release_name)
            is_known = view.study is not None and view.study.is_finished
            note = "" if is_known else _stream_status(cluster, release, on_status, options)
            view = view_release(cluster, release, view.study)
            if note or view.is_over or not once:
                show(replace(view, note=view.note or note))
        except (UnreachableError, NotAllowedError) as error:
            # An API server that has just started refuses what it allowed, until it has read who may do what.
            is_outage = isinstance(error, UnreachableError) or (view is not first and MISSING_RIGHT.search(str(error)))
            if once or not is_outage:
                raise
            show(replace(view, note=f"{error}; retrying"))
        if once:
            return
        time.sleep(0.0 if view.is_over else every_s)


def view_release(cluster: Cluster, release: Release, study: StudyStatus | None = None) -> ReleaseView:
    """Return the state of a release, with what is known of its study."""
    pods = cluster.find("Pod", selector(release.name))
    own = [pod for pod in pods if component_of(pod) in (CONTROLLER, DATABASE, *STAGES)]
    jobs = {name: cluster.jobs(selector(release.name, name)) for name in (CONTROLLER, *STAGES)}
    controllers, search = jobs[CONTROLLER], jobs["search"]
    used_s = metered_usage(search[-1]).gpu_seconds if search else 0.0
    is_over = bool(controllers) and job_result(controllers[-1]) is not None
    views = [_view(cluster, pod, release.gpu_resource) for pod in own]
    order = {state: place for place, state in enumerate(STATE_ORDER)}
    views.sort(key=lambda view: (order.get(view.state, len(order)), view.stage, view.name))
    note = _outcome(own) if is_over else _blocker(cluster, release, jobs)
    return ReleaseView(release.name, cluster.namespace, tuple(views), used_s / S_PER_H, study, note, is_over)


def _blocker(cluster: Cluster, release: Release, jobs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return what keeps a release from its next step, given the Jobs of each component; empty if nothing does."""
    if not jobs[CONTROLLER]:
        return "the release has no controller, so no stage follows; repeat helm upgrade"
    active = {component: found[-1] for component, found in jobs.items() if found and not job_result(found[-1])}
    for component, job in active.items():
        if is_waiting(job):
            return f"{component}: {quota_wait(job)}"
        if is_paused(job) and not get_annotation(job, ENDED_BY):
            return f"{component}: {suspension(job)}"
        if problem := job_problem(cluster, job):
            return f"{component}'s pods can't be created: {with_remedy(component, problem.reason)}"
    return _controllers_wait(cluster, release, CURRENT_S if active.keys() & set(STAGES) else math.inf)


def _controllers_wait(cluster: Cluster, release: Release, current_s: float) -> str:
    """Return what the controller waits for according to its last Event, unless that is older than `current_s`."""
    with suppress(NotAllowedError):
        last = last_event(cluster.events("ConfigMap", release.owner["name"]), ["Waiting"])
        is_wait = (last.get("reason"), last.get("type")) == ("Waiting", "Warning")
        if is_wait and seconds_since(datetime.fromisoformat(last["lastTimestamp"])) < current_s:
            return str(last["message"])
    return ""


def _stream_status(
    cluster: Cluster, release: Release, on_status: Callable[[StudyStatus], None], options: Sequence[str]
) -> str:
    """Read the study's status from a pod for as long as it reports it; return why it stopped, empty at its end."""
    pods = cluster.find("Pod", selector(release.name))
    running = [pod for name in STATUS_SOURCES for pod in pods if component_of(pod) == name and _is_up(pod)]
    if not running:
        return "no pod is running that could report the study's status"
    write = split_lines(lambda line: on_status(status_from_dict(json.loads(line))))
    name, component = running[0]["metadata"]["name"], component_of(running[0])
    container, command = MAIN_CONTAINERS.get(component, component), [*STATUS_COMMAND, *options]
    try:
        cluster.read_from(name, container, command, write, idle_timeout_s=EXEC_IDLE_TIMEOUT_S)
    except NotAllowedError as error:
        right = MISSING_RIGHT.search(str(error))
        missing = f"you may not {right[1]} {right[2]} in this namespace" if right else str(error)
        return f"the trials are not shown: {missing}"
    except ClusterError as error:
        note = str(error).rpartition(PREFIX)[2]  # without the log before it
        if NO_STUDY not in note:
            return note
        has_created = any(cluster.jobs(selector(release.name, name)) for name in STAGES[1:])
        return (
            f"the study no longer exists; {START_OVER}"
            if has_created
            else "the cache stage has yet to create the study"
        )
    return ""


def split_lines(on_line: Callable[[str], None]) -> Callable[[bytes], None]:
    """Return a function that takes bytes as they come and calls back for every complete line."""
    rest = b""

    def write(data: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                on_line(line.decode())

    return write


def _view(cluster: Cluster, pod: Mapping[str, Any], gpu_resource: str) -> PodView:
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    failure, problem = failure_of(pod), why_not_started(cluster, pod)
    why = failure.message if failure else problem.reason if problem else ""
    if failure and failure.container not in ("", component_of(pod)):
        why = f"container {failure.container}: exit {failure.exit_code}: {why}"
    return PodView(
        name=metadata["name"],
        host=host_of(pod),
        stage=component_of(pod),
        state="Terminating" if "deletionTimestamp" in metadata else status.get("phase", "Pending"),
        why=why,
        node=spec.get("nodeName", ""),
        age_s=age_s(pod),
        num_gpus=num_gpus(pod, gpu_resource),
    )


def _is_up(pod: Mapping[str, Any]) -> bool:
    """Return whether a command can run in the main container."""
    if has_silent_node(pod) or "deletionTimestamp" in pod["metadata"]:
        return False
    states = [status.get("state", {}) for status in pod.get("status", {}).get("containerStatuses") or ()]
    return bool(states) and all("running" in state for state in states)


def _outcome(pods: Sequence[Mapping[str, Any]]) -> str:
    """Return the controller's last message, which is the outcome of the release."""
    controllers = [pod for pod in pods if component_of(pod) == CONTROLLER]
    outcome = ""
    for pod in sorted(controllers, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
        for status in pod.get("status", {}).get("containerStatuses") or ():
            ended = status.get("state", {}).get("terminated") or {}
            outcome = last_line(ended.get("message") or "") or outcome
    return outcome
