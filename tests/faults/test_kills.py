"""Workers are killed at random; what the database says in the end is checked by plain SQL."""

import random
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from csi_job.storage.storage import open_storage
from csi_job.study.confirmation import Training, open_confirmation, plan, training_of
from csi_job.study.worker import WorkerOptions
from tests.faults.harness.fleet import FaultyWorker, Fleet
from tests.support.processes import preload, wait_until
from tests.support.reader import StudyReader, check_exact
from tests.support.studies import Worker, define, objective, storage_settings, value_at, work_on

preload("tests.faults.test_kills")

NUM_WORKERS, NUM_TRIALS, NUM_KILLS, MAX_EPOCHS = 3, 24, 8, 4
NUM_KILLED_TRIALS = 40


def hit(fleet, number, index):
    """Send a signal to a worker and wait until another runs in its place."""
    worker = fleet.workers[index]
    worker.send_signal(number)
    fleet.run_until(lambda: worker not in fleet.workers)


def computed(work):
    """How often each epoch of each trial was computed."""
    return Counter((work / "computed.log").read_text().splitlines())


def settings(**others):
    return {"num_trials": NUM_TRIALS, "max_epochs": MAX_EPOCHS, "epoch_s": 0.05, "max_attempts": 100, **others}


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_killed_workers_leave_an_exact_study(url, tmp_path, pruner):
    # Four seconds of kills within at least five seconds of work, however fast the machine.
    given = settings(num_trials=NUM_KILLED_TRIALS, epoch_s=0.1, lease_s=30.0, pruner=pruner, min_resource=1)
    fleet = Fleet(lambda _: FaultyWorker(url, tmp_path, **given), NUM_WORKERS)
    draws = random.Random(1)
    for _ in range(NUM_KILLS):
        time.sleep(draws.uniform(0.2, 0.7))
        hit(fleet, signal.SIGKILL, draws.randrange(NUM_WORKERS))
    endings = fleet.finish()
    check_exact(url, NUM_KILLED_TRIALS, MAX_EPOCHS)
    assert endings.others == []
    assert endings.num_killed >= NUM_KILLS // 2
    repeated = sum(count - 1 for count in computed(tmp_path).values())
    assert repeated <= endings.num_killed  # at most one epoch per kill
    assert not list((tmp_path / "checkpoints" / "toy").glob("trial-*/*/*.pt"))


def confirming(arguments):
    """A worker process that shares the trainings of a confirmation: three recipes with four seeds."""
    work, epoch_s = Path(arguments["work"]), arguments["epoch_s"]
    storage = open_storage(storage_settings(arguments["url"], lease_s=arguments["lease_s"]), work, create=True)
    confirmation = open_confirmation(define(storage))
    trainings = [Training(digest * 16, seed, {}, MAX_EPOCHS, digest) for seed in range(4) for digest in "abc"]

    def train(running):
        running.params = SimpleNamespace(unknown_weight=f1_of(running.params))
        return objective(running, epoch_s)

    def replan(_):
        plan(confirmation, lambda _: trainings, 5)

    replan(None)
    options = WorkerOptions(may_add=False, waits=True, on_trial_finished=replan, noun="training")
    work_on(confirmation, work, train, options=options, suggest=training_of, pruner="none", max_attempts=100)


def f1_of(training):
    return (ord(training.digest[0]) - ord("a") + 1) / 8 + training.seed / 64


def test_killed_workers_do_each_training_of_a_confirmation_once(url, tmp_path):
    given = {"epoch_s": 0.2, "lease_s": 30.0}
    fleet = Fleet(lambda _: FaultyWorker(url, tmp_path, run=confirming, **given), NUM_WORKERS)
    reader = _once_running(url, "toy/confirmation")
    draws = random.Random(3)
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        num_epochs = sum(map(len, reader.curves().values()))
        wait_until(lambda before=num_epochs: sum(map(len, reader.curves().values())) > before)
        hit(fleet, number, draws.randrange(NUM_WORKERS))
    assert fleet.finish().others == []
    study = open_confirmation(define(open_storage(storage_settings(url), tmp_path, create=False)))
    trials = study.get_trials()
    assert sorted(training_of(trial).key for trial in trials) == [(d * 16, seed) for d in "abc" for seed in range(4)]
    for trial in trials:
        x = f1_of(training_of(trial))
        assert (trial.state, trial.value) == (TrialState.COMPLETE, x)
        assert trial.intermediate_values == {epoch: value_at(x, epoch) for epoch in range(MAX_EPOCHS)}
    assert not list((tmp_path / "checkpoints").rglob("*.pt"))


def test_terminated_workers_release_their_trials_immediately(url, tmp_path):
    # With leases of ten minutes the study finishes in time only if they are released.
    given = settings(num_trials=9, lease_s=600.0, epoch_s=0.1)
    fleet = Fleet(lambda _: FaultyWorker(url, tmp_path, **given), NUM_WORKERS)
    draws = random.Random(2)
    for _ in range(4):
        time.sleep(draws.uniform(0.2, 0.6))
        index = draws.randrange(NUM_WORKERS)
        fleet.workers[index].wait_for_trial()
        hit(fleet, signal.SIGTERM, index)
    endings = fleet.finish()
    check_exact(url, 9, MAX_EPOCHS)
    assert endings.others == []
    assert endings.num_terminated >= 1


def test_a_worker_that_sleeps_past_its_lease_writes_nothing_when_it_wakes(url, tmp_path):
    given = settings(num_trials=4, lease_s=1.0, epoch_s=0.2)
    sleeper = Worker(url, tmp_path, **given)
    reader = _once_running(url)
    _stop_outside_of_a_transaction(sleeper, reader)
    other = Worker(url, tmp_path, **given)
    assert other.wait() == 0, other.log()
    before = reader.rows("SELECT * FROM trial_values"), reader.curves()
    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.wait() == 0, sleeper.log()
    assert "no longer belongs to this worker" in sleeper.log()
    assert (reader.rows("SELECT * FROM trial_values"), reader.curves()) == before
    check_exact(url, 4, MAX_EPOCHS)


def test_a_stalled_worker_exits_and_its_trial_is_resumed(url, tmp_path):
    stalled = Worker(url, tmp_path, num_trials=2, max_epochs=2, epoch_s=3600.0, stall_s=1.0, lease_s=1.0)
    assert stalled.wait() == 1
    assert "no batch ended for 1 s" in stalled.log()
    other = Worker(url, tmp_path, num_trials=2, max_epochs=2, lease_s=1.0)
    assert other.wait() == 0, other.log()
    check_exact(url, 2, 2)


def _stop_outside_of_a_transaction(worker, reader):
    """Suspend a worker while it holds no lock: a suspended process would keep SQLite's only lock forever."""

    def is_stopped_without_a_lock():
        worker.send_signal(signal.SIGSTOP)
        if reader.is_locked():
            worker.send_signal(signal.SIGCONT)
            return False
        return True

    wait_until(is_stopped_without_a_lock)


def _once_running(url, study="toy"):
    """Return a reader of a study once a trial has a finished epoch."""

    def is_running():
        try:
            return bool(StudyReader(url, study).curves())
        except Exception:  # noqa: BLE001 - there is no file, or no table yet
            return False

    wait_until(is_running)
    return StudyReader(url, study)
