import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from csi_job.errors import DataError, InfeasibleTrialError
from csi_job.report.study_view import view_study
from csi_job.storage.attributes import FINGERPRINT, f1_standard_error_of
from csi_job.storage.lease import RELEASED_AT_S
from csi_job.storage.tables import LEASES
from csi_job.storage.trial_rows import TrialWrite, add_trial
from csi_job.study.status import choose_trial, ranked_trials, study_status
from csi_job.study.studies import enqueue_trial
from csi_job.study.target import set_target
from tests.support.studies import SPACE, define, leased, objective, work_on


def test_a_new_study_has_only_its_baseline_waiting_and_a_finished_one_is_finished(study, tmp_path):
    status = study_status(study)
    assert (status.num_finished, status.num_waiting, status.target, status.is_finished) == (0, 1, 5, False)
    assert (status.best, status.eta_s) == (None, None)
    work_on(study, tmp_path)
    status = study_status(study)
    assert (status.num_finished, status.num_waiting, status.target, status.is_finished) == (5, 0, 5, True)
    assert (status.best.f1, status.best.params) == (study.best_value, study.best_params)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("unknown_weight", 5.0, FloatDistribution(0, 9)),
        ("optimizer", "lion", CategoricalDistribution(["lion"])),
        ("optimizer", "adamw", CategoricalDistribution(["adamw"])),
        ("patience", 3, IntDistribution(1, 9)),  # only with sgd
        ("batch_size", 64, IntDistribution(1, 99)),  # not searched, so the default
        ("dropout", 0.5, FloatDistribution(0, 1)),
    ],
)
def test_a_trial_that_another_program_added_outside_the_space_is_never_the_best(study, tmp_path, name, value, kind):
    work_on(study, tmp_path)
    best = choose_trial(study.trials, study.user_attrs).trial
    study.add_trial(create_trial(value=0.99, params={name: value}, distributions={name: kind}))
    assert choose_trial(study.trials, study.user_attrs).trial.number == best.number
    assert study_status(study).best.f1 == best.value
    study.add_trial(create_trial(value=0.97, params=best.params, distributions=best.distributions))
    assert choose_trial(study.trials, study.user_attrs).trial.value == 0.97


def test_in_a_space_that_only_a_later_version_knows_every_trial_counts(study, tmp_path):
    work_on(study, tmp_path)
    fingerprint = study.user_attrs[FINGERPRINT]
    fingerprint["space"]["optimizer"]["choices"].append("lion")
    study.set_user_attr(FINGERPRINT, fingerprint)
    assert study_status(study).best.f1 == study.best_value


def test_a_hyperparameter_that_the_studys_version_did_not_have_excludes_no_trial(study, tmp_path):
    work_on(study, tmp_path)
    fingerprint = study.user_attrs[FINGERPRINT]
    for name in ("weight_decay", "momentum"):
        del fingerprint["space"][name]
    study.set_user_attr(FINGERPRINT, fingerprint)
    assert [trial.number for trial in ranked_trials(study.trials, study.user_attrs)] == [
        trial.number for trial in sorted(study.trials, key=lambda trial: -trial.value)
    ]


def test_running_failed_and_infeasible_trials_are_shown(storage, tmp_path):
    storage.lease_s = 3600.0
    study = define(storage)
    seen = []

    def watched(running):
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
    assert 0 <= running.lease_age_s < storage.lease_s
    assert not running.is_orphan
    last = study_status(study)
    assert (last.num_infeasible, last.num_failed) == (1, 1)
    [(reason, count)] = last.failures
    assert "no such layer" in reason
    assert count == 1


def test_a_released_trial_is_an_orphan(study, tmp_path):
    def stopped(_):
        raise DataError("stop here")

    with pytest.raises(DataError):
        work_on(study, tmp_path, stopped)
    status = study_status(study)
    assert status.num_running == 0
    [left] = status.running
    assert left.is_orphan
    assert left.lease_age_s is None
    assert not status.is_finished


def test_cancelled_trials_do_not_count_as_failed(study):
    enqueue_trial(study, SPACE, {"unknown_weight": 0.1})
    set_target(study, num_trials=1)
    status = study_status(study)
    assert (status.num_cancelled, status.num_failed, status.failures) == (1, 0, ())


@pytest.mark.parametrize(("pruner", "seconds"), [("asha", 230.0), ("none", 480.0)])
def test_the_time_left_is_counted_in_epochs_where_trials_pause(storage, pruner, seconds):
    """Of 8 trials, rungs after epochs 3 and 6 let 4 and 2 pass: 24 + 12 + 12 epochs, 25 of them done at 10 s each."""
    study = define(storage, num_trials=8)
    phase = {"max_epochs": 12, "sampler": "random", "pruner": pruner, "min_resource": 3, "reduction_factor": 2}
    storage.write_trial(leased(study), TrialWrite(user_attrs=phase | {"attempt": 1}, steps={0: 0.5}))
    done = [(TrialState.COMPLETE, 12), (TrialState.RUNNING, 3), (TrialState.RUNNING, 3), (TrialState.RUNNING, 6)]
    for number, (state, num_epochs) in enumerate(done, start=1):
        attributes = phase | {"attempt": 1, "runs": [[100.0, 100.0 + 10 * num_epochs, "host:1"]]}
        attributes |= {"paused": 1} if state is TrialState.RUNNING else {}
        values = dict.fromkeys(range(num_epochs), 0.5)
        value = 0.5 if state is TrialState.COMPLETE else None
        trial = create_trial(state=state, value=value, user_attrs=attributes, intermediate_values=values)
        trial_id = storage.write(lambda connection, trial=trial: add_trial(connection, study._study_id, trial))
        row = {"trial_id": trial_id, "token": f"{number}", "owner": "", "attempt": 1, "lease_s": 5.0}
        row |= {"renewed_at_s": RELEASED_AT_S, "num_epochs": 0, "num_lost": 0}
        storage.write(lambda connection, row=row: connection.execute(sa.insert(LEASES).values(row)))
    status = study_status(study)
    assert (status.num_running, status.num_paused, status.num_complete) == (1, 3, 1)
    assert status.eta_s == seconds
    assert status.trials_per_h == 7 / seconds * 3600
    assert [trial.seconds for trial in view_study(study).trials] == [None, 120.0, 30.0, 30.0, 60.0]
    set_target(study, max_epochs_total=33)  # of which 25 are done, and a trial takes 12
    limited = study_status(study)
    assert limited.eta_s == {"asha": 80.0, "none": pytest.approx((1 + 8 / 12) * 120.0)}[pruner]
    assert (limited.trials_per_h, limited.ends_by_epochs) == (status.trials_per_h, True)
    set_target(study, max_epochs_total=330)
    assert (study_status(study).eta_s, study_status(study).ends_by_epochs) == (seconds, False)
    set_target(study, max_epochs_total=20)  # only what is running is finished
    assert study_status(study).eta_s == {"asha": 10.0, "none": 120.0}[pruner]


def test_the_time_left_is_that_of_trials_of_mean_length(storage):
    study = define(storage, num_trials=8)
    leased(study)
    for seconds in (10.0, 10.0, 70.0):
        attributes = {"sampler": "random", "pruner": "none", "runs": [[0.0, seconds, "host:1"]]}
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.5, user_attrs=attributes))
    assert study_status(study).eta_s == 5 * 30.0


def test_nothing_is_chosen_while_nothing_is_complete(study):
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={0: 0.9}))
    assert choose_trial(study.trials, study.user_attrs) is None


RULE = "the cheapest trial whose val_f1 is within one standard error ({}, by patients) of the best, 0.8000 of trial 1"
UNKNOWN_ERROR = "the cheapest trial whose val_f1 is as high as the best, 0.8000 of trial 1"


@pytest.mark.parametrize(
    ("values", "errors", "number", "rule"),
    [
        ([[0.5], [0.7], [0.7], [0.6]], {"f1_se": 0.02}, 2, "the best val_f1, 0.7000"),
        ([[0.80, 4.0], [0.785, 1.5], [0.781, 2.0], [0.77, 0.5]], {"f1_se": 0.02}, 2, RULE.format("0.0200")),
        ([[0.80, 4.0], [0.785, 1.5]], {"f1_std": 0.02}, 2, RULE.format("0.0200")),  # its name in version 0.1
        ([[0.80, 4.0], [0.79, 1.0], [0.80, 3.0]], {}, 3, UNKNOWN_ERROR),
        ([[0.80, 4.0], [0.785, 1.5]], {"f1_se": -0.02}, 1, UNKNOWN_ERROR),  # by another program
        ([[0.80, 4.0], [0.785, 1.5], [0.79, 1.5], [0.79, 1.5]], {"f1_se": 0.02}, 3, RULE.format("0.0200")),
    ],
    ids=["first of the best", "cheapest within the error", "earlier name", "no error", "negative", "equally cheap"],
)
def test_the_trial_is_chosen_by_rule(storage, values, errors, number, rule):
    study = define(storage, objective="f1" if len(values[0]) == 1 else "f1-and-cost")
    for each in values:
        study.add_trial(create_trial(values=each, user_attrs=errors))
    chosen = choose_trial(study.trials, study.user_attrs)
    assert (chosen.trial.number, chosen.rule) == (number, rule)
    assert {f1_standard_error_of(trial) for trial in study.trials[1:]} == {0.02 if 0.02 in errors.values() else None}
