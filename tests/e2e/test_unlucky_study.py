"""A study whose place in the search fails for good, that is suspended, uninstalled and installed again, goes on."""

from __future__ import annotations

import time

import pytest

from tests.e2e.release import Release, run, wait_until

pytestmark = pytest.mark.timeout(1200)
NUM_TRIALS = 10
VALUES = {"job.study.num_trials": NUM_TRIALS, "search.parallelism": 1, "search.backoffLimit": 0}


def test_a_failed_index_a_suspension_and_a_reinstall_cost_no_trial(release: Release) -> None:
    release.helm("install", "--wait", "--timeout", "5m", values=VALUES)
    wait_until("the first trials", lambda: release.num_finished() >= 1, 240)
    _fail_the_only_index(release)
    _suspend_and_resume(release)
    _reinstall(release)

    release.wait_for_end(700)

    assert release.num_finished() == NUM_TRIALS
    assert release.trials()["FAIL"] == 0
    assert release.trials()["RUNNING"] == 0


def _fail_the_only_index(release: Release) -> None:
    before = release.uids("search")
    # An interrupt is exit 130, which counts; with no retries of a place the Job fails for good.
    release.kubectl("exec", release.running("search")[0], "--", "python", "-c", "import os; os.kill(1, 2)")
    wait_until("the search is made anew", lambda: release.uids("search") - before, 120)
    assert "made anew" in release.story()


def _suspend_and_resume(release: Release) -> None:
    release.csi_job("scale", "0")
    wait_until("no pod searches", lambda: not release.items("pods", "search") or not release.running("search"), 90)
    finished = release.num_finished()
    time.sleep(5)
    assert release.num_finished() == finished
    assert release.running("search") == []
    release.csi_job("scale", "2")
    wait_until("two pods search", lambda: len(release.running("search")) == 2, 90)


def _reinstall(release: Release) -> None:
    finished = release.num_finished()
    assert finished < NUM_TRIALS
    run("helm", "uninstall", release.name, "-n", release.namespace, "--wait", "--timeout", "3m")
    wait_until("no pod is left", lambda: release.items("pods") == [], 120)
    assert len(release.items("pvc")) == 2
    release.helm("install", "--wait", "--timeout", "5m", values=VALUES)
    wait_until("the study is there", lambda: release.num_finished() >= finished, 120)
