"""Simultaneous starts, scaling while trials run, wrong clocks, and two studies with one name."""

import signal

from sqlalchemy.engine import make_url

from tests.faults.harness.fleet import Endings, FaultyWorker, Fleet
from tests.faults.harness.invariants import Expected, check_study
from tests.faults.harness.worker import Plan, run
from tests.support.postgres import pooler_of
from tests.support.reader import StudyReader

NUM_STARTING, NUM_MANY = 64, 32
SETTINGS = {"name": "starts", "max_epochs": 2, "max_attempts": 100, "sampler": "random", "connect_s": 300.0}


def test_64_workers_start_simultaneously_on_an_empty_database(server, tmp_path):
    record = tmp_path / "record"
    settings = {**SETTINGS, "num_trials": 64, "lease_s": 30.0}
    with server.database() as url:
        fleet = Fleet(lambda _: FaultyWorker(url, tmp_path, run=run, plan=Plan(record), **settings), NUM_STARTING)
        endings = fleet.finish()
        findings = check_study(url, "starts", record, Expected(64, 2, endings))
    assert (endings.others, endings.num_finished) == ([], NUM_STARTING)
    assert not findings.violations
    assert findings.num_repeated == 0


def test_scaling_up_and_down_while_trials_run_leaves_an_exact_study(server, tmp_path):
    record = tmp_path / "record"
    settings = {**SETTINGS, "num_trials": 80, "max_epochs": 3, "lease_s": 30.0}
    plan = Plan(record, epoch_s=0.05)
    with server.database() as url:
        fleet = Fleet(lambda _: FaultyWorker(url, tmp_path, run=run, plan=plan, **settings), 2)
        for num_workers, num_epochs in ((NUM_MANY, 10), (2, 60), (NUM_MANY, 90), (2, 140)):
            fleet.run_until_computed(record, num_epochs)
            fleet.resize(num_workers)
        endings = fleet.finish()
        findings = check_study(url, "starts", record, Expected(80, 3, endings))
    assert endings.others == []
    assert endings.num_terminated >= NUM_MANY // 2
    assert endings.num_not_released == 0
    assert not findings.violations


def test_workers_that_share_two_sessions_of_a_pooler_leave_an_exact_study(server, tmp_path):
    record = tmp_path / "record"
    settings = {**SETTINGS, "num_trials": 60, "lease_s": 5.0}
    plan = Plan(record, own_host=True, epoch_s=0.02)
    with server.database() as url, pooler_of(server, 2) as options:
        pooled = make_url(url).set(query=options).render_as_string()
        fleet = Fleet(lambda _: FaultyWorker(pooled, tmp_path, run=run, plan=plan, **settings), 6)
        for num_epochs in (10, 40, 70):
            fleet.run_until_computed(record, num_epochs)
            killed = fleet.workers[0]
            killed.send_signal(signal.SIGKILL)
            fleet.run_until(lambda killed=killed: killed not in fleet.workers)
        endings = fleet.finish()
        findings = check_study(url, "starts", record, Expected(60, 2, endings))
    assert (endings.others, endings.num_killed) == ([], 3)
    assert not findings.violations


def test_wrong_clocks_and_time_zones_change_nothing(server, tmp_path):
    record = tmp_path / "record"
    clocks = [(3600.0, "Pacific/Kiritimati"), (-3600.0, "America/Los_Angeles"), (0.0, "Asia/Kolkata")]
    settings = {**SETTINGS, "num_trials": 30, "lease_s": 5.0}

    with server.database() as url:

        def start(index):
            offset_s, zone = clocks[index % len(clocks)]
            plan = Plan(record, own_host=True, clock_offset_s=offset_s, time_zone=zone, epoch_s=0.1)
            return FaultyWorker(url, tmp_path, run=run, plan=plan, **settings)

        [(began,)] = server.run("SELECT timezone('utc', now())")
        fleet = Fleet(start, 3)
        for num_epochs in (8, 16, 24, 32):
            fleet.run_until_computed(record, num_epochs)
            fleet.workers[0].send_signal(signal.SIGKILL)
            fleet.collect(5.0)
        endings = fleet.finish()
        findings = check_study(url, "starts", record, Expected(30, 2, endings))
        reader = StudyReader(url, "starts")
        times = reader.trials("t.datetime_start, t.datetime_complete", condition="t.state IN ('COMPLETE', 'PRUNED')")
        reader.connection.close()
        [(ended,)] = server.run("SELECT timezone('utc', now())")
    assert endings.others == []
    assert endings.num_killed == 4
    assert not findings.violations
    assert all(began <= start <= complete <= ended for start, complete in times)
    assert findings.num_taken_over <= endings.num_killed  # nobody's clock made a live worker's lease look old


def test_one_of_two_studies_with_the_same_name_and_different_spaces_wins(server, tmp_path):
    record = tmp_path / "record"
    with server.database() as url:
        settings = {**SETTINGS, "num_trials": 12, "lease_s": 30.0}
        plans = [Plan(record, high=1.0 + index % 2) for index in range(6)]
        workers = [FaultyWorker(url, tmp_path, run=run, plan=plan, **settings) for plan in plans]
        codes = [worker.wait() for worker in workers]
        findings = check_study(url, "starts", record, Expected(12, 2, Endings()))
    assert sorted(map(str, set(codes))) == ["0", "2"]
    winners = {plan.high for plan, code in zip(plans, codes, strict=True) if code == 0}
    assert len(winners) == 1
    assert codes.count(0) == 3
    for worker, code in zip(workers, codes, strict=True):
        if code == 2:
            assert "space.unknown_weight.high" in worker.log(), worker.log()
    assert not findings.violations
