"""A search is resized while it goes on; what does not go on is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from csi_job.cluster.budget import ENDED
from csi_job.cluster.scale import scale_search
from csi_job.cluster.stages import COMPONENT, CONTROLLER, DIGEST, INSTANCE, QUEUE, find_release, sized
from csi_job.errors import ClusterError
from tests.unit.cluster.namespace import Namespace, ended, stage

COMPLETE, FAILED = ended("Complete"), ended("Failed")


def scaled(namespace: Namespace, num_pods: int) -> str:
    cluster: Any = namespace
    return scale_search(cluster, None, num_pods)


def searching(**options: Any) -> Namespace:
    namespace = Namespace()
    namespace.apply_job(stage(**options).job(1, {}, {}))
    return namespace


def made(namespace: Namespace, component: str, status: dict[str, Any], digest: str = "") -> None:
    """Make a Job beside the search's."""
    metadata = {"name": component, "labels": {INSTANCE: "r", COMPONENT: component}, "annotations": {DIGEST: digest}}
    namespace.kept[component] = {"metadata": metadata, "spec": {}, "status": status}


def test_a_search_gets_more_pods_is_suspended_and_resumed() -> None:
    namespace = searching(parallelism=2)
    assert scaled(namespace, 5) == "the search of r: 2 pods -> 5 pods"
    assert namespace.only()["spec"].items() >= {"parallelism": 5, "completions": 5, "suspend": False}.items()
    assert "5 pods -> suspended" in scaled(namespace, 0)
    assert namespace.only()["spec"]["suspend"] is True
    assert "suspended -> 3 pods" in scaled(namespace, 3)
    assert namespace.only()["spec"]["suspend"] is False


def test_a_search_in_a_queue_is_paused_by_its_parallelism() -> None:
    namespace = searching(queue="queue")
    assert QUEUE in namespace.only()["metadata"]["labels"]
    scaled(namespace, 0)
    assert namespace.only()["spec"]["parallelism"] == 0
    assert "suspend" not in namespace.only()["spec"]


def test_a_search_whose_budget_is_spent_stays_suspended() -> None:
    namespace = searching()
    namespace.patch_job(
        namespace.names("search")[0],
        {"spec": sized(0, queued=False), "metadata": {"annotations": {ENDED: "budget"}}},
    )
    with pytest.raises(
        ClusterError, match=r"the budget is spent; raise budget.hours or budget.gpuHours by helm upgrade"
    ):
        scaled(namespace, 4)
    assert namespace.only()["spec"]["suspend"] is True


def test_a_search_that_ended_is_said_to_be_finished() -> None:
    namespace = searching()
    namespace.end("Complete")
    with pytest.raises(ClusterError, match=r"is finished; raise job\.study\.num_trials"):
        scaled(namespace, 4)


@pytest.mark.parametrize(
    ("component", "status", "said"),
    [
        ("cache", {}, "has not started yet"),
        ("final", {}, "is finished"),
        (CONTROLLER, COMPLETE, "is finished"),
        (CONTROLLER, FAILED, "has not started, and its controller has failed"),
        (CONTROLLER, {}, "has not started yet"),
    ],
)
def test_without_a_search_the_other_jobs_tell_whether_it_is_over(
    component: str, status: dict[str, Any], said: str
) -> None:
    namespace = Namespace()
    cluster: Any = namespace
    made(namespace, component, status, find_release(cluster, None).stages[-1].digest)
    with pytest.raises(ClusterError, match=said):
        scaled(namespace, 4)


def test_a_final_model_of_other_settings_does_not_say_that_the_search_is_over() -> None:
    namespace = Namespace()
    made(namespace, "final", COMPLETE, digest="older")
    with pytest.raises(ClusterError, match="has not started yet"):
        scaled(namespace, 4)


def test_a_search_that_is_replaced_meanwhile_is_not_said_to_be_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = searching()
    monkeypatch.setattr(namespace, "patch_job", lambda *_: False)
    with pytest.raises(ClusterError, match="is being replaced; run the same command again"):
        scaled(namespace, 4)
