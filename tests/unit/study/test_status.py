"""How a study stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from csi_job.errors import DataError, InfeasibleTrialError
from csi_job.storage.storage import StudyStorage
from csi_job.study.definition import set_target
from csi_job.study.status import StudyStatus, study_status
from csi_job.study.studies import enqueue_trial
from csi_job.study.trial_run import RunningTrial
from tests.support.studies import SPACE, define, objective, work_on


def test_a_new_study_has_only_its_baseline_waiting(study: optuna.Study) -> None:
    status = study_status(study)
    assert (status.num_finished, status.num_waiting, status.target) == (0, 1, 5)
    assert status.best is None
    assert status.eta_s is None
    assert not status.is_finished


def test_a_finished_study_is_finished(study: optuna.Study, tmp_path: Path) -> None:
    work_on(study, tmp_path)
    status = study_status(study)
    assert status.is_finished
    assert status.num_finished == status.target == 5
    assert status.best is not None
    assert status.best.f1 == study.best_value
    assert status.best.params == study.best_params


def test_what_runs_failed_or_was_infeasible_is_told(storage: StudyStorage, tmp_path: Path) -> None:
    study = define(storage)
    seen: list[StudyStatus] = []

    def watched(running: RunningTrial[Any]) -> list[float]:
        if running.number == 1:
            raise InfeasibleTrialError("out of memory")
        if running.number == 2:
            raise ValueError("no such layer")
        running.report(0, 0.25)
        running.report(1, 0.125)
        seen.append(study_status(study))
        return objective(running)

    work_on(study, tmp_path, watched)
    first = seen[0]
    assert first.num_running == 1
    running = first.running[0]
    assert (running.number, running.attempt, running.epoch, running.max_epochs) == (0, 1, 1, 4)
    assert running.f1 == 0.25
    assert running.lease_age_s is not None
    assert 0 <= running.lease_age_s < storage.lease_s
    assert not running.is_orphan
    assert seen[-1].eta_s is not None
    last = study_status(study)
    assert (last.num_infeasible, last.num_failed) == (1, 1)
    [(reason, count)] = last.failures
    assert "no such layer" in reason
    assert count == 1


def test_a_trial_given_back_is_an_orphan(study: optuna.Study, tmp_path: Path) -> None:
    def stopped(_: RunningTrial[Any]) -> list[float]:
        raise DataError("stop here")

    with pytest.raises(DataError):
        work_on(study, tmp_path, stopped)
    status = study_status(study)
    assert status.num_running == 0
    [left] = status.running
    assert left.is_orphan
    assert left.lease_age_s is None
    assert not status.is_finished


def test_cancelled_trials_are_no_failures(study: optuna.Study) -> None:
    enqueue_trial(study, SPACE, {"unknown_weight": 0.1})
    set_target(study, num_trials=1)
    status = study_status(study)
    assert (status.num_cancelled, status.num_failed, status.failures) == (1, 0, ())
