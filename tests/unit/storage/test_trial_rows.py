from datetime import datetime, timedelta
from time import tzset

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState, create_trial

from csi_job.report.study_view import view_study
from csi_job.storage import trial_rows
from csi_job.storage.attributes import RUNG_PREFIX, outcome_of, seconds_of
from csi_job.storage.tables import PARAMS, TRIALS
from csi_job.study.target import set_target
from tests.support.studies import counted, define, study_counts, work_on


@pytest.mark.parametrize("value", [5.0, None])
def test_a_trial_trained_outside_the_space_counts_but_is_never_chosen(value, storage, tmp_path):
    study = define(storage, num_trials=12, pruner="none")
    work_on(study, tmp_path, num_trials=12, pruner="none")
    best = study.best_trial
    with storage.engine.begin() as connection:  # as version 0.1 trained what other programs had enqueued
        of_best = sa.and_(PARAMS.c.trial_id == best._trial_id, PARAMS.c.param_name == "unknown_weight")
        connection.execute(sa.update(PARAMS).where(of_best).values(param_value=value))
    reopened = define(storage)
    seen = reopened.trials[best.number]
    assert (seen.value, outcome_of(seen)) == (None, "infeasible")
    assert seen.user_attrs["reason"] == "outside the search space: unknown_weight"
    assert reopened.best_trial.number != best.number
    view = view_study(reopened)
    assert view.best.number == reopened.best_trial.number
    assert {*view.importances.shares, *view.importances.too_few} == {"optimizer", "patience", "unknown_weight"}
    assert view.num_finished == study_counts(reopened).num_finished == 12
    assert set_target(reopened, more_trials=1) == 13
    assert work_on(reopened, tmp_path).num_finished == 13  # its sampler learns from the others


def test_some_trials_are_read_by_id(study, storage):
    for _ in range(6):
        study.add_trial(create_trial(state=TrialState.FAIL))
    ids = [trial._trial_id for trial in study.trials]
    read = storage.read(lambda c: trial_rows.read_trials(c, study._study_id, after=ids[4], also={ids[1]}))
    assert [trial._trial_id for trial in read] == [ids[1], ids[5], ids[6]]


def test_more_ids_than_fit_into_a_statement_are_read(study, storage):
    rows = [
        {"study_id": study._study_id, "number": number, "state": TrialState.FAIL}
        for number in range(1, trial_rows.MAX_LISTED + 200)
    ]
    with storage.engine.begin() as connection:
        connection.execute(sa.insert(TRIALS), rows)
    ids = {trial._trial_id for trial in study.get_trials(deepcopy=False)}
    assert len(ids) == trial_rows.MAX_LISTED + 200
    chosen = set(sorted(ids)[: trial_rows.MAX_LISTED + 50])
    read = storage.read(lambda c: trial_rows.read_trials(c, study._study_id, after=max(ids) - 10, also=chosen))
    assert {trial._trial_id for trial in read} == chosen | set(sorted(ids)[-10:])


def test_a_trial_gets_its_start_when_it_runs_and_its_end_when_it_is_finished(study, storage):
    trial_id = study.trials[0]._trial_id

    def times(state):
        storage.write(lambda connection: trial_rows.set_state(connection, trial_id, state))
        trial = storage.get_trial(trial_id)
        return trial.state, trial.datetime_start, trial.datetime_complete

    assert times(TrialState.WAITING) == (TrialState.WAITING, None, None)
    before = datetime.now()  # noqa: DTZ005 - as Optuna has it
    _, start, end = times(TrialState.RUNNING)
    assert (before - timedelta(seconds=1) < start, end) == (True, None)
    assert times(TrialState.WAITING) == (TrialState.WAITING, start, None)
    assert times(TrialState.FAIL)[:2] == (TrialState.FAIL, start)
    assert study.trials[0].datetime_complete >= start


def test_times_in_the_hour_that_is_repeated_when_clocks_are_set_back_are_told_apart(study, storage, monkeypatch):
    utc = [datetime(2026, 10, 25, *time) for time in ((0, 50), (1, 20, 0, 123456))]  # noqa: DTZ001 - as stored
    times = dict(zip(("datetime_start", "datetime_complete"), utc, strict=True))
    storage.write(lambda connection: connection.execute(sa.update(TRIALS).values(state=TrialState.PRUNED, **times)))
    try:
        monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        tzset()
        trial = view_study(study).frozen_trials[0]
        start, end = trial.datetime_start, trial.datetime_complete
        assert [(start.hour, start.fold), (end.hour, end.fold)] == [(2, 0), (2, 1)]
        assert seconds_of(trial) == 1800.123456
        study.add_trial(trial)
        query = sa.select(TRIALS.c.datetime_start, TRIALS.c.datetime_complete).where(TRIALS.c.number == 1)
        assert [*storage.read(lambda connection: connection.execute(query).one())] == utc
    finally:
        monkeypatch.undo()
        tzset()


def test_removed_steps_take_the_rungs_along_that_a_pruner_derived_from_them(study, storage):
    rungs = {f"{RUNG_PREFIX}{rung}": 0.5 for rung in range(2)}
    template = create_trial(
        state=TrialState.RUNNING, intermediate_values={0: 0.1, 1: 0.2, 2: 0.3}, system_attrs={**rungs, "x": 1}
    )
    ids = [
        storage.write(lambda connection: trial_rows.add_trial(connection, study._study_id, template)) for _ in range(2)
    ]
    storage.write(lambda connection: trial_rows.remove_steps(connection, ids[0], 1))
    changed, other = (storage.get_trial(trial_id) for trial_id in ids)
    assert (changed.intermediate_values, changed.system_attrs) == ({0: 0.1}, {"x": 1})
    assert (other.intermediate_values, other.system_attrs) == ({0: 0.1, 1: 0.2, 2: 0.3}, {**rungs, "x": 1})


def test_sampling_reads_the_history_once(study, storage, tmp_path):
    work_on(study, tmp_path, num_trials=5)
    storage.set_study_user_attr(study._study_id, "target", 6)
    with counted(storage.engine) as statements:
        work_on(study, tmp_path, num_trials=6)
    assert sum("WITH chosen AS" in statement for statement in statements) == 1
