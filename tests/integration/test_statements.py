"""The number of statements per trial, compared with stock Optuna on the same server."""

import optuna
import pytest

from csi_job.study.definition import Definition, define_study
from csi_job.study.settings import StudySettings
from csi_job.study.worker import WorkerOptions, run_worker
from csi_job.trial.space import SearchSpace
from tests.support.studies import counted

NUM_PARAMS, NUM_REPORTS, MAX_STATEMENTS = 8, 20, 27
SETTINGS = {"num_startup_trials": 5, "max_epochs": NUM_REPORTS, "pruner": "median"}


def suggest(trial):
    return {name: trial.suggest_float(name, 0, 1) for name in (f"p{index}" for index in range(NUM_PARAMS))}


def ours(running):
    for epoch in range(NUM_REPORTS):
        running.report(epoch, 0.5 + epoch / 100)
        running.end_if_behind()
    return [running.params["p0"]]


def stock(trial):
    params = suggest(trial)
    for epoch in range(NUM_REPORTS):
        trial.report(0.5 + epoch / 100, epoch)
        assert not trial.should_prune()
    return params["p0"]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_trial_costs_a_fraction_of_stock_optunas_statements(storage, url, tmp_path, record_property):
    def work(num_trials):
        storage.set_study_user_attr(study._study_id, "target", num_trials)
        given = StudySettings(name="wide", num_trials=num_trials, **SETTINGS)
        options = WorkerOptions(own_process=False)
        run_worker(study, ours, suggest=suggest, settings=given, work=tmp_path, options=options)

    storage.lease_s = 3600  # so that no renewal is counted, however slow the machine
    settings = StudySettings(name="wide", num_trials=10, **SETTINGS)
    study = define_study(storage, Definition.of(settings, SearchSpace(), {}, cache_key="0" * 16))
    work(10)
    with counted(storage.engine) as of_five:
        work(15)
    with counted(storage.engine) as of_ten:
        work(25)
    ours_each = (len(of_ten) - len(of_five)) / 5  # without the worker's own: its beginning and its end

    plain = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg2://"))
    peer = optuna.create_study(storage=plain, study_name="stock", direction="maximize")
    peer.optimize(stock, n_trials=10)
    with counted(plain.engine) as statements:
        peer.optimize(stock, n_trials=5)
    stock_each = len(statements) / 5
    record_property("statements", {"ours": ours_each, "stock": stock_each})
    assert ours_each <= MAX_STATEMENTS
    assert ours_each < stock_each / 8
