import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from csi_job.errors import CsiJobError
from csi_job.storage.attributes import PLANNED_FOR
from csi_job.storage.claim import NothingToClaim
from csi_job.study.confirmation import Progress, Training, latest, open_confirmation, plan, training_of
from csi_job.study.definition import load_study
from csi_job.study.status import study_status
from csi_job.study.studies import delete_study
from csi_job.study.worker import WorkerOptions
from tests.support.processes import wait_until
from tests.support.studies import claim, define, leased, study_counts, work_on

ONE = Training("a" * 16, 1, {"learning_rate": 0.1}, 4, "trial 3")
TWO = replace(ONE, seed=2)
OTHER = replace(ONE, digest="b" * 16, name="baseline")
WAITING, RUNNING, COMPLETE, FAIL = TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL


@pytest.fixture
def confirmation(study):
    return open_confirmation(study)


def content(confirmation):
    trials = confirmation.get_trials(deepcopy=False)
    return [(training_of(trial).digest[0], training_of(trial).seed, trial.state) for trial in trials]


def work(confirmation, folder, run=lambda _: [0.5]):
    options = WorkerOptions(own_process=False, may_add=False, noun="training")
    work_on(confirmation, folder, run, options=options, suggest=training_of, max_failed_trials=1)


def test_each_training_is_enqueued_once_in_the_order_given_whoever_plans(confirmation, study):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: plan(open_confirmation(study), lambda _: [ONE, OTHER, TWO], 5), range(4)))
    assert content(confirmation) == [("a", 1, WAITING), ("b", 1, WAITING), ("a", 2, WAITING)]
    assert training_of(confirmation.get_trials()[0]) == ONE
    assert study_counts(confirmation).target == 3
    assert confirmation.user_attrs[PLANNED_FOR] == 5


def test_the_confirmation_of_a_namesake_made_meanwhile_is_not_taken(study, storage, tmp_path, monkeypatch):
    def load_late(*name):
        monkeypatch.undo()
        delete_study(study, tmp_path)
        open_confirmation(define(storage))
        return load_study(*name)

    monkeypatch.setattr("csi_job.study.confirmation.load_study", load_late)
    with pytest.raises(CsiJobError, match="the study was deleted"):
        open_confirmation(study)


def test_a_plan_cancels_what_waits_and_is_not_wanted_and_enqueues_it_again_when_it_is(study, confirmation):
    plan(confirmation, lambda _: [ONE, TWO, OTHER], 5)
    leased(confirmation)
    assert plan(confirmation, lambda _: [TWO], 6) == Progress(0, 2)  # what runs is left alone
    assert content(confirmation) == [("a", 1, RUNNING), ("a", 2, WAITING), ("b", 1, FAIL)]
    status = study_status(study).confirmation
    assert (status.num_finished, status.num_left, status.planned_for) == (0, 2, 6)
    assert plan(confirmation, lambda _: [OTHER], 6) == Progress(0, 2)
    assert content(confirmation)[2:] == [("b", 1, FAIL), ("b", 1, WAITING)]
    assert study_counts(confirmation).num_failed == 0  # cancelled ones say nothing about the training


def test_a_training_is_claimed_with_its_epochs_and_nothing_is_ever_sampled(confirmation, tmp_path):
    seen = []

    def run(running):
        seen.append((running.params, running.max_epochs))
        if len(seen) == 1:
            raise CsiJobError("once")
        return [0.25]

    plan(confirmation, lambda _: [ONE], 5)
    work(confirmation, tmp_path, run)
    assert content(confirmation) == [("a", 1, FAIL)]
    assert isinstance(claim(confirmation, may_add=False), NothingToClaim)  # though the total is not reached
    assert plan(confirmation, lambda _: [ONE], 5) == Progress(0, 1)
    work(confirmation, tmp_path, run)
    assert seen == [(ONE, 4), (ONE, 4)]
    assert latest(confirmation.get_trials())[ONE.key].value == 0.25
    assert plan(confirmation, lambda _: [ONE], 5) == Progress(1, 0)


def test_a_worker_that_waits_returns_when_the_others_are_done(storage, confirmation, tmp_path, logged):
    storage.lease_s = 3600.0
    plan(confirmation, lambda _: [ONE], 5)
    lease = leased(confirmation)
    options = WorkerOptions(own_process=False, may_add=False, waits=True)
    waiting = threading.Thread(
        target=work_on,
        args=(load_study(storage, confirmation.study_name), tmp_path, lambda _: [0.5]),
        kwargs={"options": options, "suggest": training_of},
    )
    waiting.start()
    wait_until(lambda: "waiting for the last 1 of 1 trials on other workers" in logged.text)
    assert waiting.is_alive()
    storage.hold(lease)
    storage.set_trial_state_values(lease.trial_id, COMPLETE, [0.75])
    waiting.join(120)
    assert not waiting.is_alive()
    assert [trial.value for trial in confirmation.get_trials()] == [0.75]
