"""A release watched from outside, in a namespace in memory; tests/e2e watches a real one."""

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest

from csi_job.cluster.api import NotAllowedError, UnreachableError, Write
from csi_job.cluster.budget import ENDED_BY, GPU_SECONDS
from csi_job.cluster.overview import split_lines, watch_release
from csi_job.cluster.stages import GIVES_WAY, HELD, QUEUE, selector
from csi_job.errors import ClusterError, NoStudyError
from csi_job.study.status import StudyStatus
from csi_job.terminal.release import ReleaseView, render_release
from csi_job.terminal.status import status_json
from tests.unit.cluster.namespace import Namespace, event, release_map
from tests.unit.terminal.conftest import shown

OPEN = StudyStatus("csi", "f1", 2, 1, 0, 0, 0, 0, 0, (), None, None, None, ())
DONE = StudyStatus("csi", "f1", 2, 2, 0, 0, 0, 0, 0, (), None, None, None, ())
USED = {GPU_SECONDS: "5400"}
NOW = datetime.now(UTC).isoformat()
SUSPENDED = "search: suspended; to resume it: csi-job cluster scale N --release r -n here"
IMAGE = "correct the image, or global.imagePullSecrets, with helm upgrade"


def labels(component: str) -> dict[str, str]:
    return selector("r", component)


def make_pod(component: str, state: dict[str, Any], phase: str, num_gpus: int = 0) -> dict[str, Any]:
    metadata = {"name": f"r-{component}-0-x", "labels": labels(component), "creationTimestamp": NOW}
    containers = [{"name": component, "resources": {"limits": {"nvidia.com/gpu": num_gpus}}}]
    status = {"phase": phase, "containerStatuses": [{"name": component, "state": state}]}
    spec = {"containers": containers, "hostname": "h"}
    return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


class Cluster(Namespace):
    """A release whose pods give one answer after the other; after the last answer the controller has ended."""

    def __init__(self, pods: list[dict[str, Any]], answers: list[Any]) -> None:
        search = {"kind": "Job", "metadata": {"name": "s", "labels": labels("search"), "annotations": USED}, "spec": {}}
        controller = {"kind": "Job", "metadata": {"name": "c", "labels": labels("controller")}, "spec": {}}
        super().__init__(release_map(), search, controller, *pods)
        self.answers, self.commands = answers, list[tuple[str, list[str]]]()

    def read_from(self, pod: str, container: str, command: list[str], write: Write, *, idle_timeout_s: float) -> None:
        assert idle_timeout_s > 0
        assert container == pod.split("-")[1]
        self.commands.append((pod, command))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        for status in answer:
            write(f"{status_json(status)}\n".encode())
        if not self.answers:
            self.end("Complete")
            self.objects = {key: item for key, item in self.objects.items() if key[0] != "Pod"}
            state = {"terminated": {"exitCode": 0, "message": "a\nall is well\n"}}
            self.create(make_pod("controller", state, "Succeeded"))


UP = [make_pod("controller", {"running": {}}, "Running"), make_pod("search", {"running": {}}, "Running", 2)]


def watched(cluster: Cluster, **options: Any) -> list[ReleaseView]:
    views: list[ReleaseView] = []
    watch_release(cluster, None, views.append, every_s=0.01, **options)
    return views


def test_one_snapshot_shows_pods_and_gpus_and_the_study_as_the_controllers_pod_reports_it():
    cluster = Cluster(UP, [[OPEN], [OPEN]])
    (view,) = watched(cluster, once=True)
    assert view.study == OPEN
    assert [(seen.stage, seen.state, seen.num_gpus) for seen in view.pods] == [
        ("controller", "Running", 0),
        ("search", "Running", 2),
    ]
    assert (view.num_gpus, view.gpu_hours, view.is_over) == (2, 1.5, False)
    ((name, command),) = cluster.commands
    assert name == "r-controller-0-x"
    assert "--json" in command
    assert "--watch" not in command


def test_a_database_that_does_not_start_is_shown_with_the_reason():
    waiting = make_pod(
        "database", {"waiting": {"reason": "ErrImagePull", "message": "postgres:none: not found"}}, "Pending"
    )
    (view,) = watched(Cluster([*UP, waiting], [[OPEN], [OPEN]]), once=True)
    assert [(seen.stage, seen.why) for seen in view.pods][-1] == (
        "database",
        f"ErrImagePull: postgres:none: not found; {IMAGE}",
    )


def test_a_controller_whose_pod_is_refused_or_whose_job_is_gone_is_shown_with_the_reason():
    cluster = Cluster([], [])
    cluster.create(
        event("c", "FailedCreate", 'Error creating: pods "c-" is forbidden: no PriorityClass with name p', 9)
    )
    reason = "no PriorityClass with name p; create it, or change controller.priorityClassName"
    (view,) = watched(cluster, once=True)
    assert view.note == f"controller's pods can't be created: {reason}"
    cluster.delete("Job", "c")
    (view,) = watched(cluster, once=True)
    assert view.note == "the release has no controller, so no stage follows; repeat helm upgrade"


def test_a_failure_of_a_users_container_is_distinguished_from_the_programs_own():
    ended = {"terminated": {"exitCode": 7, "message": "no licence", "reason": "Error"}}
    own, other = (make_pod("search", ended, "Failed") for _ in range(2))
    other["metadata"]["name"], other["status"]["containerStatuses"][0]["name"] = "other", "licence"
    (view,) = watched(Cluster([own, other], []), once=True)
    assert [pod.why for pod in view.pods] == ["container licence: exit 7: no licence", "no licence"]


def test_a_search_that_lacks_pods_is_shown_with_the_reason():
    cluster = Cluster(UP, [[OPEN], [OPEN]])
    cluster.create(event("s", "FailedCreate", 'Error creating: pods "s-1-" is forbidden: exceeded quota: q', 9))
    (view,) = watched(cluster, once=True)
    assert view.note.startswith("search's pods can't be created: exceeded quota: q; lower search.resources or ")
    assert view.study == OPEN


def test_a_search_that_waits_for_quota_is_shown_with_its_queue():
    cluster = Cluster(UP, [[OPEN], [OPEN], [OPEN]])
    job = cluster.objects["Job", "s"]
    job["metadata"]["labels"] = job["metadata"]["labels"] | {QUEUE: "team"}
    job["spec"] = {"suspend": True, "parallelism": 2}
    (view,) = watched(cluster, once=True)
    why = "kubectl describe workloads -n here shows why (without Kueue's rights: kubectl events -n here)"
    assert view.note == f"search: waiting for quota in the queue team; {why}"
    job["spec"]["parallelism"] = 0
    (view,) = watched(cluster, once=True)
    assert view.note == SUSPENDED


@pytest.mark.parametrize(
    ("annotations", "note"),
    [
        ({}, SUSPENDED),
        ({ENDED_BY: "budget"}, ""),  # until its pods have handed over
        ({HELD: "true"}, "search: starts when the pods of the Job that it replaces have ended"),
        ({HELD: GIVES_WAY}, "search: gives way to the cache stage, which lacks quota, and continues after it"),
    ],
)
def test_a_search_that_is_suspended_is_shown_with_the_reason(annotations, note):
    cluster = Cluster(UP, [[OPEN], [OPEN]])
    cluster.patch("Job", "s", {"metadata": {"annotations": annotations}, "spec": {"suspend": True}})
    (view,) = watched(cluster, once=True)
    assert view.note == note


@pytest.mark.parametrize(
    ("queue", "spec", "patch"),
    [
        ({}, {"suspend": True}, '{"spec":{"suspend":false}}'),
        ({QUEUE: "team"}, {"suspend": True, "parallelism": 0, "completions": 3}, '{"spec":{"parallelism":3}}'),
    ],
)
def test_any_other_stage_that_is_suspended_is_resumed_with_kubectl(queue, spec, patch):
    """In a queue, Kueue alone decides on the suspension."""
    cluster = Cluster(UP, [[OPEN], [OPEN]])
    cluster.create({"kind": "Job", "metadata": {"name": "f", "labels": labels("final") | queue}, "spec": spec})
    (view,) = watched(cluster, once=True)
    assert view.note == f"final: suspended; to resume it: kubectl patch job f -n here -p '{patch}'"


@pytest.mark.parametrize(
    ("newest", "note"), [({"reason": "Waiting"}, "no webhook"), ({"reason": "Failed"}, ""), ({"type": "Normal"}, "")]
)
def test_what_the_controller_waits_for_is_shown_while_no_stage_runs(newest, note):
    cluster = Cluster(UP, [ClusterError("there is no study")])
    cluster.delete("Job", "s")
    cluster.create(event("r-stages", "Started", "cache: started", 3, "ConfigMap"))
    cluster.create(event("r-stages", "Waiting", "no webhook", 3, "ConfigMap") | newest)
    (view,) = watched(cluster, once=True)
    assert view.note == (note or "the cache stage has yet to create the study")


@pytest.mark.parametrize(("ago_s", "note"), [(60, "no webhook"), (120, "")])
def test_what_the_controller_waits_for_while_a_stage_runs_is_shown_as_long_as_it_says_so(ago_s, note):
    cluster = Cluster(UP, [[OPEN], [OPEN]])
    cluster.create(event("r-stages", "Waiting", "no webhook", ago_s, "ConfigMap"))
    (view,) = watched(cluster, once=True)
    assert view.note == note


def test_of_a_pods_json_log_only_the_error_is_shown():
    log = '{"level": "warning", "message": "retrying"} csi-job: the database could not be used; run it again'
    (view,) = watched(Cluster(UP, [ClusterError(f"reading from the pod p failed: {log}")]), once=True)
    assert view.note == "the database could not be used; run it again"


@pytest.mark.parametrize(
    ("spec", "status", "note"), [({"suspend": True}, {}, SUSPENDED), ({"parallelism": 2}, {"active": 2}, "")]
)
def test_a_refusal_from_before_the_search_was_scaled_down_is_not_shown(spec, status, note):
    cluster = Cluster(UP, [[OPEN], [OPEN]])
    cluster.create(event("s", "FailedCreate", 'Error creating: pods "s-1-" is forbidden: exceeded quota: q', 9))
    cluster.objects["Job", "s"] |= {"spec": spec, "status": status}
    (view,) = watched(cluster, once=True)
    assert view.note == note


def test_no_pod_on_a_node_that_does_not_answer_is_asked():
    silent = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    cluster = Cluster([pod | {"status": pod["status"] | {"conditions": silent}} for pod in UP], [[OPEN]])
    (view,) = watched(cluster, once=True)
    assert (cluster.commands, view.note) == ([], "no pod is running that could report the study's status")
    assert all("does not answer" in pod.why for pod in view.pods)


def test_watching_continues_after_a_pod_is_lost_and_ends_with_the_controllers_outcome():
    cluster = Cluster(UP, [[OPEN], ClusterError("broke off"), [OPEN, DONE]])
    views = watched(cluster)
    assert any("broke off" in view.note for view in views)
    assert [view.study for view in views][-1] == DONE
    assert (views[-1].is_over, views[-1].note) == (True, "all is well")
    assert all("--watch" in command for _, command in cluster.commands)


def test_watching_rides_out_an_outage_of_the_api_server(monkeypatch):
    cluster = Cluster(UP, [[OPEN], [DONE]])
    away = iter([2, 4, 5, 9])
    calls, nth = 0, next(away)
    find = Namespace.find

    def sometimes(self, kind, labels=None):
        nonlocal calls, nth
        calls += 1
        if calls == nth:
            nth = next(away, 0)
            raise UnreachableError("the API server cannot be reached")
        return find(self, kind, labels)

    monkeypatch.setattr(Cluster, "find", sometimes)
    views = watched(cluster)
    assert (views[-1].is_over, views[-1].note, views[-1].study) == (True, "all is well", DONE)
    assert "the API server cannot be reached; retrying" in {view.note for view in views}
    assert next(away, None) is None


@pytest.mark.parametrize(
    ("reason", "rides_out"), [('User "u" cannot list resource "pods"', True), ("Unauthorized; log in again", False)]
)
def test_watching_rides_out_an_api_server_that_has_just_started_but_not_an_expired_login(
    reason, rides_out, monkeypatch
):
    cluster = Cluster(UP, [[OPEN], [DONE]])
    refuse = iter([False] * 8 + [True])
    find = Namespace.find

    def sometimes(self, kind, labels=None):
        if next(refuse, False):
            raise NotAllowedError(reason)
        return find(self, kind, labels)

    monkeypatch.setattr(Cluster, "find", sometimes)
    with nullcontext() if rides_out else pytest.raises(NotAllowedError, match="log in again"):
        views = watched(cluster)
        assert (views[-1].is_over, views[-1].study) == (True, DONE)
        assert f"{reason}; retrying" in {view.note for view in views}


def test_a_right_that_was_missing_from_the_start_ends_the_watch(monkeypatch):
    def refuse(*_):
        raise NotAllowedError('User "u" cannot list resource "configmaps"')

    monkeypatch.setattr(Cluster, "find", refuse)
    with pytest.raises(NotAllowedError, match="cannot list"):
        watched(Cluster(UP, []))


def test_a_viewer_sees_the_pods_below_one_line_about_the_missing_right():
    refused = NotAllowedError(
        'the API server rejected the request: User "v" cannot get resource "pods/exec" in API group ""'
    )
    cluster = Cluster(UP, [refused, []])
    (view,) = watched(cluster, once=True)
    first, *rest = shown(render_release(view), 160).splitlines()
    assert first == "the trials are not shown: you may not get pods/exec in this namespace"
    assert any("search" in line for line in rest)


def test_a_study_that_does_not_exist_has_yet_to_be_created_or_is_gone():
    absent = NoStudyError("there is no study in postgresql://a", hint="`csi-job hyperopt` creates one")
    answers = [ClusterError(f"reading from the pod c failed: csi-job: {absent}")] * 2
    cluster = Cluster(UP, [*answers, []])
    (view,) = watched(cluster, once=True)
    assert view.note == "the study no longer exists; restore its database, or start over with helm upgrade"
    cluster.delete("Job", "s")
    (view,) = watched(cluster, once=True)
    assert view.note == "the cache stage has yet to create the study"


def test_without_a_running_pod_the_pods_and_the_reason_are_shown():
    waiting = make_pod("controller", {"waiting": {"reason": "ImagePullBackOff", "message": "x: not found"}}, "Pending")
    (view,) = watched(Cluster([waiting], []), once=True)
    assert view.study is None
    assert view.note == "no pod is running that could report the study's status"
    assert view.pods[0].why == f"ImagePullBackOff: x: not found; {IMAGE}"


@pytest.mark.parametrize("size", [1, 3, 100])
def test_lines_are_complete_however_their_bytes_arrive(size):
    text = "one\n\ntwo ü\nthree".encode()
    taken: list[str] = []
    write = split_lines(taken.append)
    for start in range(0, len(text), size):
        write(text[start : start + size])
    assert taken == ["one", "two ü"]


def test_a_pod_that_its_node_rejected_is_shown_with_the_reason():
    rejected = make_pod("search", {}, "Failed")
    rejected["status"] = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy device"}
    view, *_ = watched(Cluster([UP[0], rejected], [[OPEN]]), once=True)
    assert [pod.why for pod in view.pods if pod.state == "Failed"] == ["UnexpectedAdmissionError: no healthy device"]
