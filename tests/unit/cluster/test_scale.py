from typing import Any

import pytest

from csi_job.cluster.budget import ENDED_BY
from csi_job.cluster.scale import scale_search
from csi_job.cluster.stages import (
    CONTROLLER,
    DIGEST,
    GIVES_WAY,
    HELD,
    PARALLELISM,
    QUEUE,
    find_release,
    scale_patch,
    selector,
)
from csi_job.errors import ClusterError
from tests.unit.cluster.namespace import Namespace, Watch, ended, release_map, search, stage

COMPLETE, FAILED = ended("Complete"), ended("Failed")


def searching(**options: Any) -> Namespace:
    namespace = Namespace(release_map())
    namespace.apply(stage(**options).job(1, {}, {}))
    return namespace


def other_job(component: str, status: dict[str, Any], digest: str = "") -> dict[str, Any]:
    metadata = {"name": component, "labels": selector("r", component), "annotations": {DIGEST: digest}}
    return {"kind": "Job", "metadata": metadata, "spec": {}, "status": status}


def test_a_search_gets_more_pods_is_suspended_and_resumed():
    namespace = searching(parallelism=2)
    assert scale_search(namespace, None, 5) == "the search of r: 2 pods -> 5 pods"
    assert namespace.only()["spec"].items() >= {"parallelism": 5, "completions": 5, "suspend": False}.items()
    assert "5 pods -> suspended" in scale_search(namespace, None, 0)
    assert namespace.only()["spec"]["suspend"] is True
    assert "suspended -> 3 pods" in scale_search(namespace, None, 3)
    assert namespace.only()["spec"]["suspend"] is False


def test_a_search_paused_just_after_an_upgrade_stays_paused_when_the_next_controller_starts():
    namespace = Namespace(release_map())
    values = find_release(namespace, None).search
    namespace.apply(values.job(1, {}, {PARALLELISM: "1"}))  # as in the values before the upgrade
    scale_search(namespace, None, 0)
    search(namespace, Watch(num_finished=0), values, digest="second").reconcile()
    (job,) = namespace.find("Job")
    assert job["spec"]["suspend"] is True


def test_a_search_in_a_queue_is_paused_by_its_parallelism():
    namespace = searching(queue="queue")
    assert QUEUE in namespace.only()["metadata"]["labels"]
    scale_search(namespace, None, 0)
    assert namespace.only()["spec"]["parallelism"] == 0
    assert "suspend" not in namespace.only()["spec"]


def test_a_search_whose_budget_is_exhausted_stays_suspended():
    namespace = searching()
    namespace.patch(
        "Job",
        namespace.names("search")[0],
        {"spec": scale_patch(0, queued=False), "metadata": {"annotations": {ENDED_BY: "budget"}}},
    )
    with pytest.raises(
        ClusterError, match=r"its budget is exhausted; raise budget.hours or budget.gpuHours with helm upgrade"
    ):
        scale_search(namespace, None, 4)
    assert namespace.only()["spec"]["suspend"] is True


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("true", "is being replaced; run the same command again$"),
        (GIVES_WAY, "gives way to the cache stage, which lacks quota; run the same command again when"),
    ],
)
def test_a_search_on_hold_keeps_its_size_and_says_until_when(held, message):
    namespace = searching()
    namespace.patch("Job", namespace.names("search")[0], {"metadata": {"annotations": {HELD: held}}})
    with pytest.raises(ClusterError, match=message):
        scale_search(namespace, None, 4)
    assert namespace.only()["spec"]["parallelism"] == 2


def test_a_search_that_ended_is_reported_as_finished():
    namespace = searching()
    namespace.end("Complete")
    with pytest.raises(ClusterError, match=r"is finished; raise job\.study\.num_trials"):
        scale_search(namespace, None, 4)


@pytest.mark.parametrize(
    ("component", "status", "message"),
    [
        ("cache", {}, "has not started yet"),
        ("final", {}, "is finished"),
        (CONTROLLER, COMPLETE, "is finished"),
        (CONTROLLER, FAILED, "has not started, and its controller has failed"),
        (CONTROLLER, {}, "has not started yet"),
    ],
)
def test_without_a_search_job_the_other_jobs_show_whether_it_is_over(component, status, message):
    namespace = Namespace(release_map())
    namespace.create(other_job(component, status, find_release(namespace, None).stages[-1].digest))
    with pytest.raises(ClusterError, match=message):
        scale_search(namespace, None, 4)


def test_a_final_job_of_other_settings_does_not_mean_that_the_search_is_over():
    namespace = Namespace(release_map(), other_job("final", COMPLETE, digest="older"))
    with pytest.raises(ClusterError, match="has not started yet"):
        scale_search(namespace, None, 4)


def test_a_search_replaced_meanwhile_is_not_reported_as_resized(monkeypatch):
    namespace = searching()
    monkeypatch.setattr(namespace, "patch", lambda *_: False)
    with pytest.raises(ClusterError, match="is being replaced; run the same command again"):
        scale_search(namespace, None, 4)
