"""The controller's decisions in a namespace in memory; tests/e2e drives a real one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from csi_job.cluster.budget import GPU_SECONDS, Budget, Usage
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stages import DONE, MIN_PODS, PARALLELISM, get_annotation, scale_patch
from csi_job.errors import StageFailedError
from tests.unit.cluster.namespace import Namespace, Watch, pass_time, release_map, search, stage, started


def test_a_search_that_ends_with_trials_left_is_recreated_a_limited_number_of_times():
    namespace, run = started(Watch(num_finished=3), stage())
    for number in (2, 3):
        namespace.end("Complete")
        assert not run.reconcile()
        assert not run.reconcile()
        assert namespace.only()["metadata"]["name"].endswith(f"-{number}")
    namespace.end("Failed", "FailedIndexes")
    with pytest.raises(StageFailedError, match="3 times"):
        run.reconcile()


def test_no_pod_is_started_to_wait_for_a_database_that_is_away():
    watch = Watch(num_finished=0)
    watch.is_away = True
    namespace, run = started(watch, stage())
    assert namespace.names("search") == []
    watch.is_away = False
    run.reconcile()
    assert namespace.only()["spec"]["parallelism"] == 2


def test_a_search_that_makes_progress_is_recreated_without_a_limit():
    namespace, run = started(watch := Watch(num_finished=0, target=10), stage())
    for watch.num_finished, watch.num_paused in ((1, 0), (1, 1), (1, 2), (2, 1), (4, 0)):
        namespace.end("Failed", "FailedIndexes")
        run.reconcile()
        run.reconcile()
    assert namespace.only()["metadata"]["name"].endswith("-6")


def test_an_index_that_failed_for_good_is_restored_less_and_less_often(logged):
    namespace, run = started(Watch(num_finished=1), stage())
    for minutes, suffix in ((1, "a"), (3, "-2"), (3, "-2"), (5, "-3"), (60, "-3")):
        job = namespace.only()
        created = datetime.now(UTC) - timedelta(minutes=minutes)
        job["metadata"]["creationTimestamp"] = created.isoformat()
        job["status"] = {"failedIndexes": "1"}
        run.reconcile()
        run.reconcile()
        assert namespace.only()["metadata"]["name"].endswith(suffix)
    values = {record.getMessage(): vars(record).get("values") for record in logged.records}
    recreating = "search: pod 1 failed too often without finishing an epoch; recreating it (2 of 3)"
    assert values[recreating] == {"stage": "search", "tries": 2, "max_tries": 3}
    best = {"best_f1": 0.5, "best_trial": 0}
    trials = {"finished": 1, "target": 4, "complete": 1, "pruned": 0, "infeasible": 0, "failed": 0, "paused": 0}
    counts = "1 of 4 trials finished (1 complete); best val_f1 0.5000 (trial 0)"
    progress = f"search: {counts}; confirmation 8 of 8 (after 1 of 4 trials)"
    assert values[progress] == {"stage": "search", **trials, **best, "confirmed": 8, "to_confirm": 8}


def test_a_failed_index_does_not_matter_once_all_trials_are_finished():
    namespace, run = started(Watch(num_finished=4), stage())
    namespace.end("Failed", "FailedIndexes")
    assert run.reconcile()


def test_a_configuration_error_fails_at_once_and_is_retried_by_the_next_controller():
    namespace, run = started(Watch(num_finished=0), stage())
    namespace.end("Failed", "PodFailurePolicy")
    with pytest.raises(StageFailedError):
        run.reconcile()
    again = search(namespace, Watch(num_finished=0), stage(), digest="second")
    assert not again.reconcile()
    assert not again.reconcile()
    assert namespace.only()["metadata"]["name"].endswith("-2")


def test_only_a_changed_parallelism_in_the_values_overrides_scale():
    namespace, run = started(Watch(num_finished=0), stage(parallelism=2))
    name = namespace.only()["metadata"]["name"]
    namespace.patch("Job", name, {"spec": scale_patch(5, queued=False)})
    run.reconcile()
    assert namespace.only()["spec"]["parallelism"] == 5
    search(namespace, Watch(num_finished=0), stage(parallelism=3), digest="second").reconcile()
    assert namespace.only()["metadata"]["name"] == name
    assert namespace.only()["spec"]["completions"] == 3
    assert get_annotation(namespace.only(), PARALLELISM) == "3"


def test_a_changed_template_replaces_the_job_and_keeps_its_size_and_suspension():
    namespace = Namespace()
    search(namespace, Watch(num_finished=0), stage(image="a")).reconcile()
    namespace.patch(
        "Job", namespace.only()["metadata"]["name"], {"spec": scale_patch(5, queued=False) | {"suspend": True}}
    )
    run = search(namespace, Watch(num_finished=0), stage(image="b"), digest="second")
    run.reconcile()
    run.reconcile()
    job = namespace.only()
    assert job["metadata"]["name"] == "r-search-bbbbbbbb"
    assert (job["spec"]["parallelism"], job["spec"]["suspend"]) == (5, True)


def past_its_budget(num_finished: int = 1) -> tuple[Namespace, SearchRun, dict[str, Any]]:
    """Start a search with a budget of one GPU hour that has used more, as its next step finds out."""
    namespace = Namespace()
    run = search(namespace, Watch(num_finished=num_finished), stage(), budget=Budget(gpu_hours=1))
    run.reconcile()
    run.reconcile()
    namespace.only()["metadata"]["annotations"][GPU_SECONDS] = "3601"
    return namespace, run, namespace.only()


@pytest.mark.parametrize("unconfirmed", [{"num_left": 2}, {"planned_for": 3}])
def test_a_finished_search_is_recreated_until_its_winner_is_confirmed(unconfirmed):
    namespace, watch = Namespace(), Watch(num_finished=4)
    vars(watch).update(unconfirmed)
    run = search(namespace, watch, stage())
    run.reconcile()
    namespace.end("Complete")
    assert not run.reconcile()
    assert not run.reconcile()
    assert namespace.only()["metadata"]["name"].endswith("-2")
    vars(watch).update({"num_left": 0, "planned_for": 4})
    namespace.end("Complete")
    assert run.reconcile()


@pytest.mark.parametrize("is_installed_again", [False, True])
def test_an_exhausted_budget_leaves_the_pods_only_the_confirmation(is_installed_again):
    """Until it is raised, whether the Job that it ended is still there or not."""
    namespace, run, job = past_its_budget()
    run.watch.num_left = 2
    job["status"] = {"active": 2}
    assert not run.reconcile()
    assert (job["spec"]["suspend"], run.watch.has_ended) == (True, False)  # trials are handed over first
    job["status"] = {}
    assert not run.reconcile()
    assert (job["spec"]["suspend"], job["spec"]["parallelism"], run.watch.has_ended) == (False, 2, True)
    job["status"] = {"active": 2}
    assert not run.reconcile()
    assert job["spec"]["suspend"] is False
    run.watch.num_left = 0
    namespace.end("Complete")
    assert run.reconcile()
    if is_installed_again:
        namespace = Namespace()
    raised = search(namespace, run.watch, stage(), digest="second", budget=Budget(gpu_hours=2))
    raised.reconcile()
    raised.reconcile()
    assert (namespace.only()["spec"]["suspend"], run.watch.has_ended) == (False, False)


def test_a_search_whose_study_has_used_its_budget_starts_no_pod():
    """After a reinstall, e.g.: a pod that is stopped as it starts may not see the signal."""
    namespace, watch = Namespace(), Watch(num_finished=1)
    watch.used = Usage(gpu_seconds=3601)
    run = search(namespace, watch, stage(), budget=Budget(gpu_hours=1))
    assert not run.reconcile()
    job = namespace.only()
    assert job["spec"]["suspend"] is True
    assert run.reconcile()
    search(namespace, watch, stage(), digest="second", budget=Budget(gpu_hours=2)).reconcile()
    assert job["spec"]["suspend"] is False


def test_a_budget_exhausted_before_any_trial_is_complete_is_an_error():
    _, run, _ = past_its_budget(num_finished=0)
    run.reconcile()
    with pytest.raises(StageFailedError, match="GPU hours is exhausted, but no trial is complete"):
        run.reconcile()


def test_a_study_whose_complete_trials_are_all_outside_its_space_is_an_error():
    """No worker confirms one, so the search would be created again and again."""
    namespace, run = started(watch := Watch(num_finished=4), stage())
    watch.all_outside_space, watch.planned_for = True, 0
    namespace.end("Complete")
    with pytest.raises(StageFailedError, match="study is finished, but no complete trial is inside the study's space"):
        run.reconcile()


def test_a_raised_budget_resumes_the_search_it_ended_but_not_one_that_a_user_suspended():
    namespace, run, job = past_its_budget()
    run.reconcile()
    assert job["spec"]["suspend"] is True
    raised = search(namespace, Watch(num_finished=1), stage(), digest="second", budget=Budget(gpu_hours=2))
    raised.reconcile()
    assert job["spec"]["suspend"] is False
    namespace.patch("Job", job["metadata"]["name"], {"spec": scale_patch(0, queued=False)})
    raised.reconcile()
    assert job["spec"]["suspend"] is True


def test_a_budget_stays_exhausted_when_the_pods_are_gone_and_a_pause_does_not_use_a_raised_one(monkeypatch):
    namespace, watch = Namespace(), Watch(num_finished=1)
    run = search(namespace, watch, stage(), budget=Budget(gpu_hours=1))
    run.reconcile()
    job = namespace.only()
    job["status"] = {"active": 2, "ready": 2}
    run.reconcile()
    pass_time(monkeypatch, 3600)
    assert not run.reconcile()
    job["status"] = {}
    assert run.reconcile()
    assert job["spec"]["suspend"] is True
    pass_time(monkeypatch, 3600)
    raised = search(namespace, watch, stage(), digest="second", budget=Budget(gpu_hours=3))
    raised.reconcile()
    job["status"] = {"active": 2, "ready": 2}
    raised.reconcile()
    assert job["spec"]["suspend"] is False
    assert float(get_annotation(job, GPU_SECONDS)) == pytest.approx(7200, abs=60)


def train(namespace: Namespace) -> None:
    namespace.apply(stage("final").job(1, {}, {}))


def test_a_raised_budget_deletes_the_final_job_of_fewer_trials_before_the_search_resumes():
    namespace, run, job = past_its_budget()
    run.reconcile()
    train(namespace)
    run.reconcile()
    assert namespace.names("final")
    raised = search(namespace, Watch(num_finished=1), stage(parallelism=3), digest="second", budget=Budget(gpu_hours=2))
    raised.reconcile()
    assert namespace.only() is job
    assert job["spec"]["suspend"] is False


def test_a_recreated_search_deletes_the_final_job_unless_no_trial_is_left():
    for num_finished, num_kept in ((3, 0), (4, 1)):
        namespace = Namespace()
        train(namespace)
        search(namespace, Watch(num_finished=num_finished), stage()).reconcile()
        assert len(namespace.names("search")) == 1
        assert len(namespace.names("final")) == num_kept


@pytest.mark.parametrize(
    ("num_finished", "budget", "runs"), [(4, Budget(), False), (3, Budget(), True), (3, Budget(gpu_hours=1), False)]
)
def test_a_search_whose_job_has_expired_runs_again_only_if_trials_are_left(num_finished, budget, runs):
    """And the budget is not exhausted; then the final stage that is done has to run again, too."""
    done = {f"{DONE}{name}": stage(name).digest for name in ("search", "final")}
    namespace = Namespace(release_map(**done))
    watch = Watch(num_finished=num_finished)
    watch.used = Usage(gpu_seconds=3601)
    run = search(namespace, watch, stage(), done={"search": "a" * 8, "final": "a" * 8}, budget=budget)
    assert run.reconcile() is not runs
    assert bool(namespace.names("search")) is runs
    annotations = namespace.objects["ConfigMap", "r-stages"]["metadata"]["annotations"]
    assert (f"{DONE}final" in annotations) is not runs


def test_a_deadline_ends_the_search_with_the_best_trial_so_far(logged):
    chosen = stage()
    chosen.manifest["spec"]["activeDeadlineSeconds"] = 600
    namespace, run = started(watch := Watch(num_finished=1), chosen)
    namespace.end("Failed", "DeadlineExceeded")
    assert run.reconcile()
    assert "search: done, the deadline of 600 s has passed" in logged.messages
    watch.num_finished = 0
    with pytest.raises(StageFailedError, match=r"no trial is complete.*search\.deadlineSeconds"):
        run.reconcile()


def test_a_search_in_a_queue_is_paused_and_resized_without_touching_its_suspension():
    namespace, run = started(Watch(num_finished=1), stage(queue="queue"), budget=Budget(gpu_hours=1))
    job = namespace.only()
    assert get_annotation(job, MIN_PODS) == "1"
    larger = search(namespace, Watch(num_finished=0), stage(queue="queue", parallelism=3), digest="second")
    larger.reconcile()
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 3
    assert get_annotation(job, MIN_PODS) == ""  # Kueue would undo the change when it queues the Job again
    job["spec"]["suspend"] = True
    larger.reconcile()
    assert get_annotation(job, MIN_PODS) == "1"
    del job["spec"]["suspend"]
    job["metadata"]["annotations"][GPU_SECONDS] = "3601"
    run.reconcile()
    assert (job["spec"]["parallelism"], job["spec"]["completions"]) == (0, 3)
    assert "suspend" not in job["spec"]
