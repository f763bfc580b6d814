import os
import signal
import threading
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from csi_job import errors
from csi_job.signals import Stop
from csi_job.storage.attributes import curve_of
from csi_job.storage.claim import claim_trial
from csi_job.storage.tables import LEASES, PARAMS, STEPS, USER_ATTRIBUTES
from csi_job.study.worker import WorkerOptions
from tests.support.reader import check_exact
from tests.support.studies import define, leased, objective, study_counts, value_at, work_on, write_checkpoint


@pytest.fixture
def late(monkeypatch):
    """Return a function that ends the time limit, which has no other clock here."""
    now_s = [1000.0]
    monkeypatch.setattr("csi_job.study.worker.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    return lambda: now_s.append(now_s.pop() + 600)


def seize(storage):
    """Give every lease to somebody else."""
    with storage.engine.begin() as connection:
        connection.execute(sa.update(LEASES).values(token="another", owner="another|a|b|1|1", lease_s=600))


def test_a_worker_runs_the_study_to_its_total_and_leaves_a_full_one_alone(study, tmp_path, logged):
    summary = work_on(study, tmp_path)
    assert summary.outcomes.total() == summary.num_finished == 5
    counts = study_counts(study)
    assert (counts.num_finished, counts.target, counts.num_running) == (5, 5, 0)
    check_exact(f"sqlite:///{tmp_path}/studies.db", 5, 4)
    first = study.trials[0]
    assert first.params == {"unknown_weight": 0.5, "optimizer": "adam"}
    kept = {name: first.user_attrs[name] for name in ("sampler", "pruner", "max_epochs", "attempt", "epochs")}
    assert kept == {"sampler": "tpe", "pruner": "median", "max_epochs": 4, "attempt": 1, "epochs": 4}
    assert not work_on(study, tmp_path).outcomes
    assert logged.messages[-1] == "study toy is complete (5 trials)"


def test_a_lease_dated_back_with_the_clock_proves_no_live_worker(storage, tmp_path, monkeypatch):
    study = define(storage, num_trials=1)
    leased(study, worker_id="another-host|boot|space|1|1")
    claims = []

    def set_back(*arguments, **options):
        claims.append(claim_trial(*arguments, **options))
        with storage.engine.begin() as connection:  # after the first look, as if the clock had been set back
            earlier_s = LEASES.c.renewed_at_s - 3600 * (len(claims) == 1)
            connection.execute(sa.update(LEASES).values(renewed_at_s=earlier_s, lease_s=7200 if len(claims) < 3 else 0))
        return claims[-1]

    monkeypatch.setattr("csi_job.study.worker.claim_trial", set_back)
    assert work_on(study, tmp_path).outcomes["complete"] == 1  # it waited until the lease expired
    assert len(claims) == 5


def test_another_phase_may_change_epochs_sampler_and_pruner(storage, tmp_path):
    study = define(storage, num_trials=3)
    work_on(study, tmp_path, num_trials=3)
    second = {"max_epochs": 6, "sampler": "random", "pruner": "none"}
    again = define(storage, **second)
    storage.set_study_user_attr(study._study_id, "target", 5)
    work_on(again, tmp_path, **second)
    phases = [(trial.user_attrs["sampler"], trial.user_attrs["max_epochs"]) for trial in again.trials]
    assert phases == [("tpe", 4)] * 3 + [("random", 6)] * 2


def fails_with(error):
    def failing(_):
        raise error

    return failing


def test_an_infeasible_trial_counts_and_teaches_the_sampler(study, tmp_path):
    def infeasible(running):
        if running.number in (1, 2):
            running.report(0, 0.9)
            raise errors.InfeasibleTrialError("out of memory with a micro-batch of one image")
        return objective(running)

    summary = work_on(study, tmp_path, infeasible)
    assert summary.outcomes["infeasible"] == 2
    assert summary.num_finished == 5
    trial = study.trials[1]
    assert (trial.state, trial.value) == (TrialState.PRUNED, None)
    assert trial.user_attrs["infeasible"] is True
    assert "micro-batch" in trial.user_attrs["reason"]
    assert trial.constraints == {"trainable": 1.0}
    assert study.best_trial.number not in (1, 2)


def test_a_failed_trial_is_replaced_and_its_reason_names_no_file(study, tmp_path, caplog):
    def failing(running):
        if running.number == 1:
            raise RuntimeError("cannot load /data/patients/PAT0042.png now")
        if running.number == 2:
            raise KeyError("PAT0042")
        return objective(running)

    summary = work_on(study, tmp_path, failing)
    assert (summary.outcomes["failed"], summary.num_finished, len(study.trials)) == (2, 5, 7)
    reasons = [trial.user_attrs["reason"] for trial in study.trials[1:3]]
    assert "cannot load … now" in reasons[0]
    assert "KeyError" in reasons[1]
    assert "PAT0042" not in str(reasons)
    assert {record.levelname for record in caplog.records if " failed (" in record.getMessage()} == {"WARNING"}


@pytest.mark.parametrize("values", [[float("nan")], [], [0.1, 0.2], ["high"]])
def test_non_finite_or_missing_values_fail_the_trial(values, study, tmp_path):
    with pytest.raises(errors.CsiJobError, match=r"2 trials failed"):
        work_on(study, tmp_path, lambda _: values, max_failed_trials=1)
    assert {trial.state for trial in study.trials} == {TrialState.FAIL}


@pytest.mark.parametrize(
    ("enqueued", "reason"),
    [
        ({"unknown_weight": 5.0}, "unknown_weight 5.0 is not between 0.0 and 1.0"),
        ({"unknown_weight": float("nan")}, "unknown_weight: must be a number from 0 to 100, got nan"),
        ({"unknown_weight": [0.5]}, "unknown_weight: must be a number from 0 to 100, got [0.5]"),
        ({"optimizer": "rmsprop"}, "optimizer: must be one of adam, adamw, sgd, got 'rmsprop'"),
        ({"optimizer": "adamw"}, "optimizer 'adamw' is not one of adam, sgd"),
        ({"optimizer": "sgd", "patience": 2.5}, "patience: must be a whole number from 1 to 1000000, got 2.5"),
        ({"batch_size": 64}, "batch_size 64 is not 32, its only value"),
        ({"lr": 0.5}, "unknown hyperparameter, got 'lr'; allowed: model_arch, "),
    ],
)
def test_values_outside_the_space_that_optuna_enqueues_fail_the_trial_and_nothing_else(
    enqueued, reason, study, tmp_path
):
    own = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path}/studies.db")
    own.enqueue_trial(enqueued)
    own.enqueue_trial({"unknown_weight": 0.25, "optimizer": "sgd", "patience": 2}, user_attrs={"note": "by hand"})
    for key in ("dashboard:study_note:0", "artifacts:1"):
        own._storage.set_study_system_attr(own._study_id, key, "looks fine")
    summary = work_on(study, tmp_path, max_failed_trials=0)
    assert (summary.num_finished, summary.outcomes["failed"]) == (5, 1)
    _, rejected, sound, *_ = study.trials
    assert (rejected.state, rejected.params) == (TrialState.FAIL, {})
    assert rejected.user_attrs["reason"].startswith(f"not trained: {reason}")
    assert sound.state is TrialState.COMPLETE
    assert sound.params == {"optimizer": "sgd", "patience": 2, "unknown_weight": 0.25}


@pytest.mark.parametrize("objective_name", ["f1", "f1-and-cost"])
def test_a_result_has_its_parameters_and_epochs_even_if_the_server_lost_them(objective_name, storage, tmp_path):
    study = define(storage, num_trials=1, objective=objective_name)

    def losing(running):
        values = objective(running)
        with storage.engine.begin() as connection:  # as a crash does with synchronous_commit = off
            for table in (PARAMS, STEPS):
                connection.execute(sa.delete(table))
            connection.execute(sa.delete(USER_ATTRIBUTES).where(USER_ATTRIBUTES.c.key == "curve"))
        return values

    work_on(study, tmp_path, losing)
    first = study.trials[0]
    assert (first.state, first.params) == (TrialState.COMPLETE, {"unknown_weight": 0.5, "optimizer": "adam"})
    assert curve_of(first) == [(epoch, value_at(0.5, epoch)) for epoch in range(4)]


def test_too_many_failures_end_the_worker(study, tmp_path):
    with pytest.raises(errors.StudyFailedError, match=r"3 trials failed.*no such layer.*max_failed_trials"):
        work_on(study, tmp_path, fails_with(ValueError("no such layer")), max_failed_trials=2)
    with pytest.raises(errors.StudyFailedError, match="3 trials failed"):  # another worker counts them, too
        work_on(study, tmp_path, max_failed_trials=2)


@pytest.mark.parametrize(
    "error", [errors.DataError("damaged"), errors.ConfigurationError("no GPU"), errors.ResourceError("disk full")]
)
def test_an_error_that_would_fail_every_trial_ends_the_worker_and_releases_the_trial(error, study, tmp_path):
    with pytest.raises(type(error)):
        work_on(study, tmp_path, fails_with(error))
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    assert work_on(study, tmp_path).num_finished == 5


def test_a_lost_gpu_ends_the_process_and_leaves_the_trial(study, tmp_path):
    with pytest.raises(errors.CsiJobError, match="GPU is lost"):
        work_on(study, tmp_path, fails_with(RuntimeError("CUDA error: an illegal memory access was encountered")))
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]


def test_a_worker_whose_lease_was_taken_writes_nothing_and_continues(study, storage, tmp_path, late):
    taken = []

    def robbed(running):
        if not taken:
            taken.append(running.number)
            running.report(0, 0.1)
            seize(storage)
        else:
            late()
        return objective(running)

    storage.set_study_user_attr(study._study_id, "target", 2)
    summary = work_on(study, tmp_path, robbed, timeout_s=600)
    assert summary.outcomes == {"complete": 1}
    assert study.trials[0].state is TrialState.RUNNING
    assert study.trials[0].intermediate_values == {0: 0.1}
    assert study.trials[1].state is TrialState.COMPLETE


def test_the_heartbeat_lets_the_training_see_that_the_lease_is_lost(storage, tmp_path, late):
    storage.lease_s = 0.4
    study = define(storage, num_trials=1)
    seen = []

    def robbed(running):
        seize(storage)
        late()
        try:
            while True:  # no report: only the thread can know
                running.batch_done()
        except errors.CsiJobError as error:
            seen.append(type(error).__name__)
            raise

    work_on(study, tmp_path, robbed, timeout_s=600)
    assert seen == ["LeaseLostError"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_releases_the_trial_after_its_last_epoch(number, study, tmp_path):
    def stopped(running):
        running.report(0, 0.1, checkpoint=write_checkpoint(running.checkpoint_folder, 0, 0.1))
        os.kill(os.getpid(), number)
        running.batch_done()
        raise AssertionError

    before = signal.getsignal(number)
    with pytest.raises(errors.StopRequestedError) as caught:
        work_on(study, tmp_path, stopped)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    resumed = []

    def watched(running):
        resumed.append((running.attempt, running.resume_from.name if running.resume_from else ""))
        return objective(running)

    work_on(study, tmp_path, watched)
    assert resumed[0] == (2, "epoch-0000.pt")
    assert study.trials[0].intermediate_values[0] == 0.1
    assert study.trials[0].user_attrs["epochs"] == 4


def test_a_signal_during_an_epoch_that_ends_costs_nothing(study, tmp_path):
    def stopped(running):
        os.kill(os.getpid(), signal.SIGTERM)
        running.report(0, 0.1, checkpoint=write_checkpoint(running.checkpoint_folder, 0, 0.1))
        raise AssertionError

    with pytest.raises(errors.StopRequestedError):
        work_on(study, tmp_path, stopped)
    assert study.trials[0].intermediate_values == {0: 0.1}
    interrupted = WorkerOptions(on_trial_finished=lambda _: os.kill(os.getpid(), signal.SIGTERM), own_process=False)
    with pytest.raises(errors.StopRequestedError):
        work_on(study, tmp_path, options=interrupted)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]  # and no other was started


def test_a_signal_while_a_worker_waits_for_others_ends_it_at_once(storage, tmp_path, monkeypatch):
    storage.lease_s = 10.0
    study = define(storage, num_trials=1)
    leased(study)
    wait = Stop.wait

    def signalled(stop, seconds):
        assert 0.5 <= seconds <= 1.0  # ten looks per lease or more
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        wait(stop, 3600)

    monkeypatch.setattr(Stop, "wait", signalled)
    with pytest.raises(errors.StopRequestedError):
        work_on(study, tmp_path)


def test_a_training_that_stalls_ends_the_worker(storage, tmp_path):
    storage.lease_s = 0.4
    study = define(storage, num_trials=1)

    def stuck(running):
        while True:
            running.check()

    with pytest.raises(errors.StalledError):
        work_on(study, tmp_path, stuck, options=WorkerOptions(stall_s=0.5, own_process=False))
    assert study.trials[0].state is TrialState.RUNNING


def test_after_the_timeout_no_trial_is_started(study, tmp_path, logged, late):

    def slow(running):
        late()
        return objective(running)

    assert work_on(study, tmp_path, slow, timeout_s=600).outcomes.total() == 1
    assert "time limit of 600 s reached" in logged.text


def test_plots_that_fail_do_not_end_the_search(study, tmp_path, caplog):
    broken = fails_with(OSError(28, "No space left on device"))
    summary = work_on(study, tmp_path, options=WorkerOptions(on_trial_finished=broken, own_process=False))
    assert summary.num_finished == 5
    assert "No space left" in caplog.text


def test_with_two_objectives_the_curve_is_an_attribute(storage, tmp_path):
    given = {"objective": "f1-and-cost", "num_trials": 12, "num_startup_trials": 3}
    study = define(storage, **given)

    def costly(running):
        running.gflops = 2.0
        running.attributes["gflops"] = 2.0
        return objective(running)

    work_on(study, tmp_path, costly, **given)
    assert all(not trial.intermediate_values for trial in study.trials)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in study.trials:
        assert [epoch for epoch, _ in trial.user_attrs["curve"]] == list(range(trial.user_attrs["epochs"]))
        assert len(trial.values or [0, 0]) == 2


def test_a_worker_can_run_outside_the_main_thread(study, tmp_path):
    summaries = []
    thread = threading.Thread(target=lambda: summaries.append(work_on(study, tmp_path)))
    thread.start()
    thread.join(60)
    assert summaries[0].num_finished == 5
