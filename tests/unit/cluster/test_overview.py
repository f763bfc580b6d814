"""A release watched from outside, on a namespace that is a dictionary; the real one is watched by tests/e2e."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from csi_job.cluster.overview import Lines, watch_release
from csi_job.cluster.stages import find_release
from csi_job.errors import ClusterError
from csi_job.study.status import StudyStatus
from csi_job.terminal.release import ReleaseView
from csi_job.terminal.status import status_json
from tests.unit.cluster.namespace import ended

OPEN = StudyStatus("csi", "f1", 2, 1, 0, 0, 0, 0, 0, (), None, None, None, ())
DONE = StudyStatus("csi", "f1", 2, 2, 0, 0, 0, 0, 0, (), None, None, None, ())
NOW = datetime.now(UTC).isoformat()


def labels(component: str) -> dict[str, str]:
    return {"app.kubernetes.io/instance": "r", "app.kubernetes.io/component": component}


def pod(component: str, state: dict[str, Any], phase: str, num_gpus: int = 0) -> dict[str, Any]:
    metadata = {"name": f"r-{component}-0-x", "labels": labels(component), "creationTimestamp": NOW}
    containers = [{"name": component, "resources": {"limits": {"nvidia.com/gpu": num_gpus}}}]
    status = {"phase": phase, "containerStatuses": [{"name": component, "state": state}]}
    return {"metadata": metadata, "spec": {"containers": containers, "hostname": "h"}, "status": status}


class Namespace:
    """A release whose pods tell what they are told to, one answer a question."""

    namespace = "here"

    def __init__(self, pods: list[dict[str, Any]], answers: list[Any]) -> None:
        self.all_pods, self.answers, self.asked = pods, answers, []
        self.status: dict[str, Any] = {}

    def config_maps(self, _labels: Any) -> list[dict[str, Any]]:
        job = {"metadata": {"name": "r", "labels": labels("x")}, "spec": {}}
        data = {f"{name}.yaml": yaml.safe_dump(job) for name in ("cache", "search", "final", "fetch")}
        return [{"metadata": {"name": "r-stages", "uid": "u", "labels": labels("stages")}, "data": data}]

    def config_map(self, name: str) -> dict[str, Any] | None:
        return next((found for found in self.config_maps({}) if found["metadata"]["name"] == name), None)

    def pods(self, _labels: Any) -> list[dict[str, Any]]:
        return self.all_pods

    def jobs(self, wanted: dict[str, str]) -> list[dict[str, Any]]:
        if wanted["app.kubernetes.io/component"] == "search":
            return [{"metadata": {"annotations": {"csi-job/gpu-seconds": "5400"}}}]
        return [{"metadata": {}, "status": self.status}]

    def read_from(self, name: str, command: list[str], into: Any, *, silence_s: float) -> None:
        assert silence_s > 0
        self.asked.append((name, command))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        for status in answer:
            into.write(f"{status_json(status)}\n".encode())
        if not self.answers:
            self.status = ended("Complete")
            self.all_pods = [
                pod("controller", {"terminated": {"exitCode": 0, "message": "a\nall is well\n"}}, "Succeeded")
            ]


UP = [pod("controller", {"running": {}}, "Running"), pod("search", {"running": {}}, "Running", 2)]


def watched(cluster: Namespace, **options: Any) -> list[ReleaseView]:
    views: list[ReleaseView] = []
    watch_release(cluster, None, views.append, every_s=0.01, **options)  # type: ignore[arg-type]
    return views


def test_one_look_asks_the_controllers_pod_and_shows_pods_study_and_gpus() -> None:
    cluster = Namespace(UP, [[OPEN], [OPEN]])
    (view,) = watched(cluster, once=True)
    assert view.study == OPEN
    assert [(seen.stage, seen.state, seen.num_gpus) for seen in view.pods] == [
        ("controller", "Running", 0),
        ("search", "Running", 2),
    ]
    assert (view.num_gpus, view.gpu_hours, view.is_over) == (2, 1.5, False)
    ((name, command),) = cluster.asked
    assert name == "r-controller-0-x"
    assert "--json" in command
    assert "--watch" not in command


def test_a_database_that_does_not_start_is_shown_with_the_reason() -> None:
    waiting = pod("database", {"waiting": {"reason": "ErrImagePull", "message": "postgres:none"}}, "Pending")
    (view,) = watched(Namespace([*UP, waiting], [[OPEN], [OPEN]]), once=True)
    assert [(seen.stage, seen.why) for seen in view.pods][-1] == ("database", "ErrImagePull: postgres:none")


def test_watching_goes_on_after_a_pod_went_away_and_ends_with_the_controllers_last_words() -> None:
    cluster = Namespace(UP, [[OPEN], ClusterError("broke off"), [OPEN, DONE]])
    views = watched(cluster)
    assert any("broke off" in view.note for view in views)
    assert [view.study for view in views][-1] == DONE
    assert (views[-1].is_over, views[-1].note) == (True, "all is well")
    assert all("--watch" in command for _, command in cluster.asked)


def test_without_a_pod_that_runs_the_pods_are_shown_and_the_reason() -> None:
    waiting = pod("controller", {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, "Pending")
    (view,) = watched(Namespace([waiting], []), once=True)
    assert view.study is None
    assert view.note == "no pod runs that could tell of the study"
    assert view.pods[0].why == "ImagePullBackOff: no such image"


@pytest.mark.parametrize("size", [1, 3, 100])
def test_lines_are_whole_however_they_come(size: int) -> None:
    text = "one\n\ntwo ü\nthree".encode()
    taken: list[str] = []
    lines = Lines(taken.append)
    for start in range(0, len(text), size):
        lines.write(text[start : start + size])
    assert taken == ["one", "two ü"]


def test_the_controllers_pod_finds_its_release_without_the_right_to_list(monkeypatch: pytest.MonkeyPatch) -> None:
    class Narrow(Namespace):
        listed = False

        def config_maps(self, labels: Any) -> list[dict[str, Any]]:
            if labels:
                self.listed = True
                message = "the API server refuses: forbidden"
                raise ClusterError(message)
            return super().config_maps(labels)

    cluster = Narrow(UP, [[OPEN]])
    monkeypatch.setenv("RELEASE_STAGES", "r-stages")
    assert find_release(cluster, "r").name == "r"  # type: ignore[arg-type]
    assert not cluster.listed
    with pytest.raises(ClusterError, match="forbidden"):
        find_release(cluster, "another")  # type: ignore[arg-type]
