"""The controller's decisions, on a namespace that is a dictionary; the real one is driven by tests/e2e."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from csi_job.cluster.budget import GPU_SECONDS, METERED, Budget
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stage_run import StageRun
from csi_job.cluster.stages import PARALLELISM, QUEUE, Release, Stage, annotation, sized
from csi_job.errors import StageFailedError
from tests.unit.cluster.namespace import Namespace, Watch, search, stage


def test_a_search_that_ended_with_trials_left_is_made_anew_a_bounded_number_of_times() -> None:
    namespace, watch = Namespace(), Watch(num_finished=3)
    run = search(namespace, watch, stage())
    run.step()
    for number in (2, 3):
        namespace.end("Complete")
        assert not run.step()
        assert not run.step()
        assert namespace.only()["metadata"]["name"].endswith(f"-{number}")
    namespace.end("Failed", "FailedIndexes")
    with pytest.raises(StageFailedError, match="3 times"):
        run.step()


def test_a_failed_index_does_not_matter_once_all_trials_are_finished() -> None:
    namespace = Namespace()
    run = search(namespace, Watch(num_finished=4), stage())
    run.step()
    namespace.end("Failed", "FailedIndexes")
    assert run.step()


def test_a_misconfiguration_fails_at_once_and_is_tried_again_by_the_next_controller() -> None:
    namespace = Namespace()
    run = search(namespace, Watch(num_finished=0), stage())
    run.step()
    namespace.end("Failed", "PodFailurePolicy")
    with pytest.raises(StageFailedError):
        run.step()
    again = search(namespace, Watch(num_finished=0), stage(), me="second")
    assert not again.step()
    assert not again.step()
    assert namespace.only()["metadata"]["name"].endswith("-2")


def test_only_a_changed_parallelism_of_the_values_undoes_what_scale_chose() -> None:
    namespace = Namespace()
    run = search(namespace, Watch(num_finished=0), stage(parallelism=2))
    run.step()
    name = namespace.only()["metadata"]["name"]
    namespace.patch_job(name, {"spec": sized(5, queued=False)})
    run.step()
    assert namespace.only()["spec"]["parallelism"] == 5
    search(namespace, Watch(num_finished=0), stage(parallelism=3), me="second").step()
    assert namespace.only()["metadata"]["name"] == name
    assert namespace.only()["spec"]["completions"] == 3
    assert annotation(namespace.only(), PARALLELISM) == "3"


def test_a_changed_template_replaces_the_job_and_keeps_its_size_and_suspension() -> None:
    namespace = Namespace()
    search(namespace, Watch(num_finished=0), stage(image="a")).step()
    namespace.patch_job(namespace.only()["metadata"]["name"], {"spec": sized(5, queued=False) | {"suspend": True}})
    run = search(namespace, Watch(num_finished=0), stage(image="b"), me="second")
    run.step()
    run.step()
    job = namespace.only()
    assert job["metadata"]["name"] == "r-search-bbbbbbbb"
    assert (job["spec"]["parallelism"], job["spec"]["suspend"]) == (5, True)


def past_its_budget(namespace: Namespace, num_finished: int = 1) -> SearchRun:
    """Start a search of one GPU hour that has used more, as its next step finds out."""
    run = search(namespace, Watch(num_finished=num_finished), stage(), budget=Budget(gpu_hours=1))
    run.step()
    run.step()
    namespace.only()["metadata"]["annotations"][GPU_SECONDS] = "3601"
    return run


def test_a_spent_budget_suspends_the_search_and_ends_the_stage() -> None:
    namespace = Namespace()
    run, job = past_its_budget(namespace), namespace.only()
    job["status"] = {"active": 2}
    assert not run.step()
    assert job["spec"]["suspend"] is True
    job["status"] = {}
    assert run.step()


def test_a_budget_that_is_spent_before_a_trial_is_complete_is_an_error_of_its_own() -> None:
    namespace = Namespace()
    run = past_its_budget(namespace, num_finished=0)
    run.step()
    with pytest.raises(StageFailedError, match="GPU hours is spent, and no trial is complete"):
        run.step()


def test_a_raised_budget_lets_the_search_that_it_ended_go_on_but_not_one_that_a_user_suspended() -> None:
    namespace = Namespace()
    run, job = past_its_budget(namespace), namespace.only()
    run.step()
    assert job["spec"]["suspend"] is True
    raised = search(namespace, Watch(num_finished=1), stage(), me="second", budget=Budget(gpu_hours=2))
    raised.step()
    assert job["spec"]["suspend"] is False
    namespace.patch_job(job["metadata"]["name"], {"spec": sized(0, queued=False)})
    raised.step()
    assert job["spec"]["suspend"] is True


def test_a_budget_stays_spent_when_the_pods_are_gone_and_a_pause_costs_nothing_of_a_raised_one() -> None:
    namespace, watch, an_hour_ago = Namespace(), Watch(num_finished=1), f"{time.time() - 3600:.0f}"
    run = search(namespace, watch, stage(), budget=Budget(gpu_hours=1))
    run.step()
    job = namespace.only()
    job["status"] = {"active": 2, "ready": 2}
    run.step()
    job["metadata"]["annotations"][METERED] = an_hour_ago
    assert not run.step()
    job["status"] = {}
    assert run.step()
    assert job["spec"]["suspend"] is True
    job["metadata"]["annotations"][METERED] = an_hour_ago
    raised = search(namespace, watch, stage(), me="second", budget=Budget(gpu_hours=3))
    raised.step()
    job["status"] = {"active": 2, "ready": 2}
    raised.step()
    assert job["spec"]["suspend"] is False
    assert float(annotation(job, GPU_SECONDS)) == pytest.approx(7200, abs=60)


def trained(namespace: Namespace) -> None:
    """Train the final model."""
    namespace.apply_job(stage("final").job(1, {}, {}))


def test_a_raised_budget_undoes_the_final_model_of_fewer_trials_before_the_search_goes_on() -> None:
    namespace = Namespace()
    run, job = past_its_budget(namespace), namespace.only()
    run.step()
    trained(namespace)
    run.step()
    assert namespace.names("final")
    raised = search(namespace, Watch(num_finished=1), stage(parallelism=3), me="second", budget=Budget(gpu_hours=2))
    raised.step()
    assert namespace.only() is job
    assert job["spec"]["suspend"] is False


def test_a_search_that_is_made_anew_undoes_the_final_model_unless_no_trial_is_left() -> None:
    for num_finished, num_kept in ((3, 0), (4, 1)):
        namespace = Namespace()
        trained(namespace)
        search(namespace, Watch(num_finished=num_finished), stage()).step()
        assert len(namespace.names("search")) == 1
        assert len(namespace.names("final")) == num_kept


def test_a_deadline_that_is_over_ends_the_search_with_the_best_so_far(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="csi_job")
    chosen = stage()
    chosen.manifest["spec"]["activeDeadlineSeconds"] = 600
    namespace, watch = Namespace(), Watch(num_finished=1)
    run = search(namespace, watch, chosen)
    run.step()
    namespace.end("Failed", "DeadlineExceeded")
    assert run.step()
    assert "search: done, the deadline of 600 s is over" in caplog.messages
    watch.num_finished = 0
    with pytest.raises(StageFailedError, match=r"no trial is complete.*search\.deadlineSeconds"):
        run.step()


@pytest.mark.parametrize("chosen", [stage(), stage("cache")], ids=["search", "cache"])
def test_only_kueue_says_when_a_job_of_its_queue_runs(chosen: Stage) -> None:
    chosen.manifest["metadata"]["labels"][QUEUE] = "queue"
    namespace = Namespace()
    run = search(namespace, Watch(num_finished=0), chosen)
    run.step()
    assert "suspend" not in namespace.only()["spec"]


def test_a_search_in_a_queue_is_paused_and_resized_without_a_word_on_suspension() -> None:
    namespace = Namespace()
    run = search(namespace, Watch(num_finished=1), stage(queue="queue"), budget=Budget(gpu_hours=1))
    run.step()
    job = namespace.only()
    search(namespace, Watch(num_finished=0), stage(queue="queue", parallelism=3), me="second").step()
    assert job["spec"]["completions"] == 3
    job["metadata"]["annotations"][GPU_SECONDS] = "3601"
    run.step()
    assert (job["spec"]["parallelism"], job["spec"]["completions"]) == (0, 3)
    assert "suspend" not in job["spec"]


def test_a_finished_stage_is_over_and_a_failed_one_raises_its_reason() -> None:
    namespace = Namespace()
    release = Release("r", "first", {"kind": "ConfigMap"}, (), {})
    cluster: Any = namespace
    run = StageRun(cluster, release, stage("cache"), me="first", missing_s=1)
    run.step()
    namespace.end("Complete")
    assert run.step()
    namespace.end("Failed", "BackoffLimitExceeded")
    with pytest.raises(StageFailedError, match="cache failed: BackoffLimitExceeded"):
        run.step()


def pod(name: str, phase: str, waiting: str = "") -> dict[str, Any]:
    """Return a pod that was scheduled an hour ago."""
    long_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    state = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
    status = {"phase": phase, "containerStatuses": [{"name": "search", "state": state}]}
    status["conditions"] = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": long_ago}]
    return {"metadata": {"name": name, "creationTimestamp": long_ago}, "status": status}


def test_an_image_that_one_pod_cannot_pull_ends_no_search_whose_other_pods_run() -> None:
    namespace = Namespace()
    run = search(namespace, Watch(num_finished=0), stage())
    run.step()
    namespace.all_pods = [pod("r-0", "Running"), pod("r-1", "Pending", "ImagePullBackOff")]
    assert not run.step()
    assert namespace.only()
    namespace.all_pods.pop(0)
    with pytest.raises(StageFailedError, match="search can't start: ImagePullBackOff"):
        run.step()
    assert namespace.kept == {}


def test_a_job_that_cannot_be_seen_yet_is_said_to_start_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="csi_job")
    namespace = Namespace()
    run = search(namespace, Watch(num_finished=0), stage())
    for _ in range(3):
        run.step()
        namespace.kept.clear()  # being deleted: `jobs` leaves it out
    assert [line for line in caplog.messages if "starts as Job" in line] == ["search: starts as Job r-search-aaaaaaaa"]
