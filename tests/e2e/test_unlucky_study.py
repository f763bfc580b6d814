"""A study continues after a permanently failed index, a suspension, and a reinstall."""

import time

import pytest

from tests.e2e.release import ENDLESS, INTERRUPT, Release, wait_until

pytestmark = pytest.mark.timeout(4800)
VALUES = {**ENDLESS, "search.parallelism": 1, "search.backoffLimit": 0}
LONG_TRIALS = {"job.study.num_trials": 2, "job.study.max_epochs": 400, "job.baseline.patience": 1000}
LONG_TRIALS |= {"job.space.patience": {"value": 1000}}
# Activations of several GiB in the first batch; a trial has two attempts, and the second failed trial ends the study.
TOO_LARGE = {"job.cache.image_size_px": 256, "job.space.model_arch": {"value": "resnet50"}}
TOO_LARGE |= {"job.space.batch_size": {"value": 32}, "job.baseline.model_arch": "resnet50"}
TOO_LARGE |= {"job.study.max_attempts": 2, "job.study.max_failed_trials": 1}
TOO_LARGE |= {"search.parallelism": 1, "search.resources.limits": {"memory": "2Gi"}, "search.backoffLimit": 6}
TOO_LARGE |= {"job.storage.lease_s": 2}  # expired when the next pod has started, which so begins no trial beside it
HEAD_START = 50  # epochs by which the first trial is ahead of the second
NUM_EPOCHS = "select count(*) from trial_intermediate_values"


def test_a_failed_index_a_suspension_and_a_reinstall_cost_no_trial(release):
    release.helm("install", "--wait", "--timeout", "5m", values=VALUES)
    wait_until("the first trials", lambda: release.num_finished() >= 1, 240)
    _fail_the_only_index(release)
    _suspend_and_resume(release)
    num_trials = _reinstall(release)

    release.wait_for_end(500)

    release.check_exact(num_trials)


def _fail_the_only_index(release: Release) -> None:
    before = release.uids("search")
    # Without retries per index the Job fails permanently; the exec may die with the container before it can report.
    release.kubectl("exec", release.any_running("search"), "--", *INTERRUPT, check=False)
    wait_until("the search is recreated", lambda: release.uids("search") - before, 120)
    assert "recreating it" in release.log()


def _suspend_and_resume(release: Release) -> None:
    finished = release.pause()
    time.sleep(5)
    assert release.num_finished() == finished
    assert release.running("search") == []
    release.csi_job("scale", "2")
    wait_until("two pods search", lambda: len(release.running("search")) == 2, 90)


def _reinstall(release: Release) -> int:
    """Uninstall in the middle, install again, and return the new number of trials."""
    finished = release.num_finished()
    release.uninstall()
    assert len(release.items("pvc")) == 2
    release.helm("install", "--wait", "--timeout", "5m", values=VALUES)
    wait_until("the study continues", lambda: release.num_finished() > finished, 240)
    num_trials = release.pause() + 3
    release.helm("upgrade", values=VALUES | {"job.study.num_trials": num_trials, "search.parallelism": 2})
    return num_trials


def test_trials_that_run_out_of_memory_are_retried_up_to_the_limit(release):
    release.helm("install", "--wait", "--timeout", "5m", values=TOO_LARGE)

    release.wait_for_end(600, "Failed")

    assert release.trials() == {"FAIL": 2}
    killed = [status["state"]["terminated"]["reason"] for status in release.containers("search")]
    assert killed.count("OOMKilled") == 4
    assert "out of memory; raise the stage's resources.limits.memory" in release.log()
    assert "2 trials failed, so the study stops" in release.outcome()
    assert release.items("jobs", "final") == []


def test_the_last_trial_finishes_although_its_pod_is_scaled_away_while_the_others_wait(release):
    values = {**LONG_TRIALS, "search.parallelism": 1}
    release.helm("install", "--wait", "--timeout", "5m", values=values)
    wait_until("the first trial is ahead", lambda: int(release.sql(NUM_EPOCHS)[0]) >= HEAD_START, 240)
    release.csi_job("scale", "2")
    wait_until("the second trial runs", lambda: sum(release.trials().values()) == 2, 120)

    wait_until("one pod waits", lambda: release.trials().get("COMPLETE") == 1, 300, every=0.5)
    release.csi_job("scale", "1")
    release.wait_for_end(500)

    assert release.trials() == {"COMPLETE": 2}
    attempts = "select value_json from trial_user_attributes where key = 'attempt' order by trial_id limit 2"
    assert release.sql(attempts) == ["1", "2"]  # the third would be of the confirmation
