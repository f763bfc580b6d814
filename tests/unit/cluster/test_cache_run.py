"""The cache stage among the others; what it has in common with them is in test_stage_run.py."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from csi_job.cluster import stage_run
from csi_job.cluster.budget import ENDED_BY, Budget
from csi_job.cluster.search_run import SearchRun
from csi_job.cluster.stage_run import JOB_NAME, RETRIED, CacheRun
from csi_job.cluster.stages import DIGEST, GIVES_WAY, HELD, SETTINGS, Release, get_annotation, is_paused, selector
from csi_job.errors import StageFailedError
from tests.unit.cluster.namespace import Namespace, Watch, ended, event, pass_time, search, stage

RUNNING = {"phase": "Running"}
OLD = "2026-01-01T00:00:00Z"
QUOTA = 'Error creating: pods "c-" is forbidden: exceeded quota: q, requested: pods={}, used: pods=3, limited: pods=3'


def cache(
    namespace: Namespace, watch: Watch, *, queue: str = "", max_rounds: int = 2, missing_s: float = 100
) -> CacheRun:
    stages = (stage("cache", parallelism=1, queue=queue), stage(queue=queue), stage("final"))
    release = Release("r", "second", {"kind": "ConfigMap", "name": "r-stages"}, stages, {}, done={"cache": "old"})
    study: Any = watch
    limits: dict[str, Any] = {"budget": Budget(hours=2), "max_rounds": max_rounds, "missing_s": missing_s}
    return CacheRun(namespace, release, stages[0], watch=study, controller_digest="second", **limits)


def test_a_finished_cache_runs_again_for_a_study_that_no_longer_exists_but_not_forever(logged):
    """As after the claim of the database was deleted: the search has no study, and nothing else creates it."""
    namespace, watch = Namespace(), Watch(num_finished=0)
    run = cache(namespace, watch)
    run.reconcile()
    namespace.end("Complete")
    assert run.reconcile()
    watch.is_missing = True
    assert not run.reconcile()
    assert "cache: its study no longer exists; recreating it (2 of 2)" in logged.messages
    assert not run.reconcile()
    namespace.only()["status"] = ended("Complete")
    with pytest.raises(StageFailedError, match="cache was created 2 times and has not finished: its study no longer"):
        run.reconcile()
    watch.is_missing = False
    assert run.reconcile()


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_cache_whose_job_has_expired_is_done_while_its_study_exists(is_missing):
    watch = Watch(num_finished=0)
    watch.is_missing = is_missing
    run = cache(namespace := Namespace(), watch)
    run.release.done["cache"] = run.stage.digest  # type: ignore[index] # a dictionary in this test
    assert run.reconcile() is not is_missing
    assert bool(namespace.names("cache")) is is_missing


def running_search(
    namespace: Namespace, queue: str = "", watch: Watch | None = None
) -> tuple[SearchRun, dict[str, Any]]:
    """Return a search of earlier settings with a running pod, and its Job."""
    older = search(namespace, watch or Watch(num_finished=0), stage(queue=queue))
    older.reconcile()
    (name,) = namespace.names("search")
    namespace.objects["Job", name]["status"] = {"active": 2}
    labels = selector("r", "search") | {JOB_NAME: name}
    namespace.create({"kind": "Pod", "metadata": {"name": "s", "labels": labels}, "spec": {}, "status": RUNNING})
    return older, namespace.objects["Job", name]


def queued(namespace: Namespace, run: CacheRun) -> None:
    """Let a cache stage wait in its queue for longer than Kueue takes to admit what fits."""
    run.reconcile()
    job = namespace.objects["Job", namespace.names("cache")[0]]
    job["spec"]["suspend"] = True
    job["metadata"]["creationTimestamp"] = OLD
    run.reconcile()


@pytest.mark.parametrize("queue", ["", "team"])
def test_a_cache_without_quota_gets_that_of_the_search_which_continues_after_it(queue, logged):
    """An upgrade changes both while the search fills the quota: they would wait for each other."""
    older, held = running_search(namespace := Namespace(), queue)
    name = held["metadata"]["name"]
    run = cache(namespace, Watch(num_finished=0), queue=queue, missing_s=1)
    run.reconcile()
    (waits,) = namespace.names("cache")
    if queue:
        namespace.objects["Job", waits]["spec"]["suspend"] = True
        run.reconcile()
        assert not get_annotation(held, HELD)  # it may be about to start
        namespace.objects["Job", waits]["metadata"]["creationTimestamp"] = OLD
    else:
        namespace.create(event(waits, "FailedCreate", QUOTA.format(1), 5))
        run.reconcile()
        assert not get_annotation(held, HELD)  # a pod may just be ending
        namespace.create(event(waits, "FailedCreate", QUOTA.format(1), 40))
    run.reconcile()
    assert get_annotation(held, HELD) == GIVES_WAY
    assert held["spec"]["completions"] == 2
    assert held["spec"]["parallelism"] == 0 if queue else held["spec"]["suspend"]
    assert f"cache: waits for quota; Job {name} hands over its trials until the cache is done" in logged.messages
    run.reconcile()  # while the pods hand over, no quota is missing for good
    job = namespace.objects["Job", waits]
    assert not get_annotation(job, RETRIED)
    namespace.delete("Pod", "s")
    run.reconcile()  # then it may be, but not at once: Kubernetes, which would wait for a minute, tries again
    assert bool(get_annotation(job, RETRIED)) is not bool(queue)
    held["status"] = {}
    older.reconcile()
    assert held["spec"]["parallelism"] == 2
    assert not held["spec"].get("suspend")
    assert not get_annotation(held, HELD)


@pytest.mark.parametrize(
    ("refusal", "is_retried"),
    [
        (QUOTA.format(1), True),
        (QUOTA.format(4), False),  # which no search can make room for
        ('admission webhook "pods" denied the request: no', False),
    ],
    ids=["quota", "small quota", "webhook"],
)
def test_kubernetes_tries_again_every_few_seconds_to_create_a_pod_for_which_the_search_made_room(
    refusal, is_retried, monkeypatch
):
    _, held = running_search(namespace := Namespace())
    run = cache(namespace, Watch(num_finished=0))
    run.reconcile()
    namespace.delete("Pod", "s")
    held["metadata"]["annotations"][HELD] = GIVES_WAY
    (waits,) = namespace.names("cache")
    job = namespace.objects["Job", waits]
    namespace.create(event(waits, "FailedCreate", refusal, 40))
    run.reconcile()
    assert bool(get_annotation(job, RETRIED)) is is_retried
    now_s = time.monotonic()
    for later_s, again in ((2, False), (8, is_retried)):
        monkeypatch.setattr(time, "monotonic", lambda later_s=later_s: now_s + later_s)
        job["metadata"]["annotations"][RETRIED] = "2999-01-01"  # whatever someone wrote there
        run.reconcile()
        assert (get_annotation(job, RETRIED) != "2999-01-01") is again


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_search_is_billed_until_its_pods_have_ended_but_not_for_its_wait(is_restarted, monkeypatch):
    """If no controller saw the end of its pods, only until it was asked to give way."""
    watch = Watch(num_finished=0)
    older, job = running_search(namespace := Namespace(), "team", watch)
    job["status"] = {"active": 2, "ready": 2}
    older.reconcile()
    pass_time(monkeypatch, 3600)
    queued(namespace, run := cache(namespace, watch, queue="team"))
    assert get_annotation(job, HELD) == GIVES_WAY
    pass_time(monkeypatch, 60)  # while they hand over
    namespace.delete("Pod", "s")
    job["status"] = {}
    if not is_restarted:
        run.reconcile()
    pass_time(monkeypatch, 3 * 3600, older)
    job["status"] = {"active": 2, "ready": 2}
    older.reconcile()
    used_s = 3600 + 60 * (not is_restarted)
    assert watch.used.seconds == pytest.approx(used_s, abs=5)
    assert watch.used.gpu_seconds == pytest.approx(2 * used_s, abs=10)


@pytest.mark.parametrize(
    ("settings", "is_other"),
    [("study: {name: before}", False), ("study: {name: other}", True), ("78edb37d90d4b4bd", False)],  # a digest, of 0.1
)
def test_a_search_of_earlier_settings_keeps_to_the_budget_unless_it_is_of_another_study(
    settings, is_other, monkeypatch, logged
):
    """An upgrade may be rejected, and the cache stage wait for its pods or take hours."""
    watch = Watch(num_finished=0)
    _, job = running_search(namespace := Namespace(), "", Watch(num_finished=0))
    job["status"] = {"active": 2, "ready": 2}
    job["metadata"]["annotations"][DIGEST] = "other"
    job["spec"]["template"] |= {"metadata": {"annotations": {SETTINGS: settings}}}
    run = cache(namespace, watch)
    template: Any = run.release.search.template
    template["metadata"] = {"annotations": {SETTINGS: "study:\n  num_trials: 9\n  name: before\na: =\n"}}
    run.reconcile()
    run.reconcile()
    for seconds, is_stopped in ((3600, False), (3660, not is_other)):
        pass_time(monkeypatch, seconds, run)
        assert is_paused(job) is is_stopped
    assert watch.used.gpu_seconds == pytest.approx(2 * (3600 + 3660) * (not is_other), abs=10)
    assert bool(get_annotation(job, ENDED_BY)) is not is_other
    assert ("cache: meanwhile, the budget of 2 hours is exhausted; the search's" in logged.text) is not is_other


def test_a_quota_that_the_search_does_not_hold_ends_the_stage():
    namespace, watch = Namespace(), Watch(num_finished=0)
    run = cache(namespace, watch, missing_s=1)
    run.reconcile()
    (name,) = namespace.names("cache")
    job = namespace.objects["Job", name]
    namespace.create(event(name, "FailedCreate", QUOTA.format(1), 5))
    with pytest.raises(StageFailedError, match=r"cache can't start: .*exceeded quota: q"):
        run.reconcile()
    assert not get_annotation(job, RETRIED)  # nothing has made room


def test_a_quota_that_is_smaller_than_the_pod_ends_the_stage_beside_the_running_search():
    _, running = running_search(namespace := Namespace())
    run = cache(namespace, Watch(num_finished=0), missing_s=1)
    run.reconcile()
    namespace.create(event(namespace.names("cache")[0], "FailedCreate", QUOTA.format(4), 40))
    with pytest.raises(StageFailedError, match=r"cache can't start: exceeded quota: q, requested: pods=4"):
        run.reconcile()
    assert not get_annotation(running, HELD)


def test_a_search_in_another_queue_does_not_give_way():
    _, running = running_search(namespace := Namespace(), "gpus")
    queued(namespace, cache(namespace, Watch(num_finished=0), queue="cpus"))
    assert not get_annotation(running, HELD)


def test_a_search_that_gave_way_in_vain_resumes_and_does_so_only_once(monkeypatch, logged):
    """As when the whole queue has less than the stage needs: it would wait forever, and the search with it."""
    _, held = running_search(namespace := Namespace(), "team")
    queued(namespace, run := cache(namespace, Watch(num_finished=0), queue="team"))
    (pod,) = namespace.find("Pod")
    namespace.delete("Pod", "s")
    run.reconcile()
    assert get_annotation(held, HELD) == GIVES_WAY  # Kueue may be about to admit the stage
    monkeypatch.setattr(stage_run, "MAKE_ROOM_AFTER_S", 0.0)
    run.reconcile()
    assert f"cache: still waits for quota; Job {held['metadata']['name']} continues" in logged.messages
    namespace.create(pod)
    run.reconcile()
    assert held["spec"]["parallelism"] == 2
    assert not get_annotation(held, HELD)


@pytest.mark.parametrize("queue", ["", "team"])
def test_a_restarted_controller_gives_the_room_that_the_search_has_left_as_long_as_the_earlier_one(queue, monkeypatch):
    """Otherwise it fails the stage, or resumes the search, before the stage has taken the quota."""
    _, held = running_search(namespace := Namespace(), queue)
    queued(namespace, run := cache(namespace, Watch(num_finished=0), queue=queue, missing_s=1))
    if not queue:
        (waits,) = namespace.names("cache")
        namespace.create(event(waits, "FailedCreate", QUOTA.format(1), 40))
        namespace.objects["Job", waits]["spec"]["suspend"] = False
        run.reconcile()
    assert get_annotation(held, HELD) == GIVES_WAY
    namespace.delete("Pod", "s")
    now_s = time.monotonic()
    monkeypatch.setattr(stage_run, "time", SimpleNamespace(monotonic=lambda: now_s))
    again = cache(namespace, Watch(num_finished=0), queue=queue, missing_s=1)
    again.reconcile()
    assert get_annotation(held, HELD) == GIVES_WAY
    now_s += 31
    if queue:
        again.reconcile()
        assert not get_annotation(held, HELD)
    else:
        with pytest.raises(StageFailedError, match="exceeded quota: q"):
            again.reconcile()
