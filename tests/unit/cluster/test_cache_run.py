"""The cache stage among the others; what it has in common with them is in test_stage_run.py."""

from typing import Any

import pytest

from csi_job.cluster.cache_run import CacheRun
from csi_job.cluster.stage_run import JOB_NAME
from csi_job.cluster.stages import HELD, Release, get_annotation, selector
from csi_job.errors import StageFailedError
from tests.unit.cluster.namespace import Namespace, Watch, ended, event, search, stage

RUNNING = {"phase": "Running"}
OLD = "2026-01-01T00:00:00Z"
QUOTA = "Error creating: pods is forbidden: exceeded quota: q, requested: pods=1, used: pods=3, limited: pods=3"


def cache(
    namespace: Namespace, watch: Watch, *, queue: str = "", max_rounds: int = 2, missing_s: float = 100
) -> CacheRun:
    stages = (stage("cache", parallelism=1, queue=queue), stage(queue=queue), stage("final"))
    release = Release("r", "second", {"kind": "ConfigMap", "name": "r-stages"}, stages, {}, done={"cache": "old"})
    study: Any = watch
    limits: dict[str, Any] = {"max_rounds": max_rounds, "missing_s": missing_s}
    return CacheRun(namespace, release, stages[0], watch=study, controller_digest="second", **limits)


def test_a_finished_cache_runs_again_for_a_study_that_no_longer_exists_but_not_forever(caplog):
    """As after the claim of the database was deleted: the search has no study, and nothing else creates it."""
    caplog.set_level("INFO", logger="csi_job")
    namespace, watch = Namespace(), Watch(num_finished=0)
    run = cache(namespace, watch)
    run.reconcile()
    namespace.end("Complete")
    assert run.reconcile()
    watch.is_missing = True
    assert not run.reconcile()
    assert "cache: its study no longer exists; recreating it (2 of 2)" in caplog.messages
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


@pytest.mark.parametrize("queue", ["", "team"])
def test_a_cache_without_quota_gets_that_of_the_search_which_continues_after_it(queue, caplog):
    """An upgrade changes both while the search fills the quota: they would wait for each other."""
    caplog.set_level("INFO", logger="csi_job")
    watch = Watch(num_finished=0)
    older = search(namespace := Namespace(), watch, stage(queue=queue))
    older.reconcile()
    (name,) = namespace.names("search")
    held = namespace.objects["Job", name]
    held["status"] = {"active": 2}
    labels = selector("r", "search") | {JOB_NAME: name}
    namespace.create({"kind": "Pod", "metadata": {"name": "s", "labels": labels}, "spec": {}, "status": RUNNING})
    run = cache(namespace, watch, queue=queue, missing_s=1)
    run.reconcile()
    (waits,) = namespace.names("cache")
    if queue:
        namespace.objects["Job", waits]["spec"]["suspend"] = True
        run.reconcile()
        assert not get_annotation(held, HELD)  # it may be about to start
        namespace.objects["Job", waits]["metadata"]["creationTimestamp"] = OLD
    else:
        namespace.create(event(waits, "FailedCreate", QUOTA, 5))
    run.reconcile()
    assert get_annotation(held, HELD) == "true"
    assert held["spec"]["completions"] == 2
    assert held["spec"]["parallelism"] == 0 if queue else held["spec"]["suspend"]
    assert f"cache: waits for quota; Job {name} hands over its trials until the cache is done" in caplog.messages
    run.reconcile()  # while the pods hand over, no quota is missing for good
    namespace.delete("Pod", "s")
    run.reconcile()  # then it may be, but not at once
    held["status"] = {}
    older.reconcile()
    assert held["spec"]["parallelism"] == 2
    assert not held["spec"].get("suspend")
    assert not get_annotation(held, HELD)


def test_a_quota_that_the_search_does_not_hold_ends_the_stage():
    namespace, watch = Namespace(), Watch(num_finished=0)
    run = cache(namespace, watch, missing_s=1)
    run.reconcile()
    namespace.create(event(namespace.names("cache")[0], "FailedCreate", QUOTA, 5))
    with pytest.raises(StageFailedError, match=r"cache can't start: .*exceeded quota: q"):
        run.reconcile()
