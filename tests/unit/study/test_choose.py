"""Which trial is the result."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState, create_trial

from csi_job.storage.attributes import f1_standard_error_of
from csi_job.storage.storage import StudyStorage
from csi_job.study.status import choose_trial
from tests.support.studies import define


def add(study: optuna.Study, f1: float, gflops: float | None = None, error: float | None = 0.02) -> None:
    values = [f1] if gflops is None else [f1, gflops]
    study.add_trial(create_trial(values=values, user_attrs={"f1_se": error}))


def test_nothing_is_chosen_while_nothing_is_complete(study: optuna.Study) -> None:
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={0: 0.9}))
    assert choose_trial(study) is None


def test_with_one_objective_the_best_is_chosen_and_of_equals_the_first(study: optuna.Study) -> None:
    for f1 in (0.5, 0.7, 0.7, 0.6):
        add(study, f1)
    chosen = choose_trial(study)
    assert chosen is not None
    assert chosen.trial.number == 2
    assert chosen.rule == "the best val_f1, 0.7000"


def test_with_two_objectives_the_cheapest_within_one_standard_error_is_chosen(storage: StudyStorage) -> None:
    study = define(storage, objective="f1-and-cost")
    for f1, gflops in [(0.80, 4.0), (0.785, 1.5), (0.781, 2.0), (0.77, 0.5)]:
        add(study, f1, gflops)
    chosen = choose_trial(study)
    assert chosen is not None
    assert chosen.trial.values == [0.785, 1.5]
    assert "within one standard error (0.0200, by patients) of the best, 0.8000 of trial 1" in chosen.rule


def test_without_a_known_uncertainty_only_equals_are_cheaper(storage: StudyStorage) -> None:
    study = define(storage, objective="f1-and-cost")
    for f1, gflops in [(0.80, 4.0), (0.79, 1.0), (0.80, 3.0)]:
        add(study, f1, gflops, error=None)
    chosen = choose_trial(study)
    assert chosen is not None
    assert chosen.trial.values == [0.80, 3.0]


def test_a_standard_error_stored_under_its_earlier_name_counts_too(storage: StudyStorage) -> None:
    study = define(storage, objective="f1-and-cost")
    study.add_trial(create_trial(values=[0.80, 4.0], user_attrs={"f1_std": 0.02}))
    study.add_trial(create_trial(values=[0.785, 1.5]))
    chosen = choose_trial(study)
    assert chosen is not None
    assert chosen.trial.values == [0.785, 1.5]
    assert [f1_standard_error_of(trial) for trial in study.trials] == [None, 0.02, None]
