"""Workers are killed between any two statements, around every COMMIT and between file operations."""

import random

import pytest

from tests.faults.harness.crash_points import Death
from tests.faults.harness.fleet import FaultyWorker, Fleet
from tests.faults.harness.invariants import Expected, check_study
from tests.faults.harness.sweep import seen_points, sweep
from tests.faults.harness.worker import Plan, run
from tests.support.reader import StudyReader

NEEDED = {"claim", "report", "checkpoint", "tell", "clean up", "release", "renewal", "connect"}
NUM_TRIALS, NUM_DEATHS = 40, 6


def phase(point):
    return point.partition(":")[0]


@pytest.mark.timeout(900)
def test_a_worker_killed_at_any_point_leaves_an_exact_study(server, tmp_path):
    with server.database() as url:
        seen = {point for point in seen_points(url, tmp_path / "seen") if phase(point) != "start"}
        assert {phase(point) for point in seen} >= NEEDED
        assert any("answer to COMMIT" in point for point in seen)
        assert {"clean up: before remove of .tmp", "ask: before COMMIT 1"} <= seen
        done = sweep(seen, url, tmp_path, num_trials=NUM_TRIALS, num_studies=18)
    assert not done.complaints
    assert not done.missed
    assert done.num_kills >= len(seen)


def test_a_worker_killed_while_trials_pause_and_are_promoted_changes_nothing(server, tmp_path):
    """One worker at a time, so that an undisturbed study says what is right."""
    settings = {"num_trials": 6, "max_epochs": 4, "pruner": "asha", "min_resource": 1, "sampler": "random"}

    def study(url, name, points):
        left, folder = sorted(points), tmp_path / name

        def start(_):
            death = Death(at=left.pop(0) if left else None)
            plan = Plan(folder / "record", death=death, record_points=not points)
            return FaultyWorker(url, folder, run=run, plan=plan, name=name, max_attempts=1000, **settings)

        endings = Fleet(start, 1).finish()
        expected = Expected(6, 4, endings, reduction_factor=2)
        assert endings.others + check_study(url, name, folder / "record", expected).violations == []
        reader = StudyReader(url, name)
        rows = reader.trials("t.number, p.step, t.state, p.intermediate_value", "trial_intermediate_values")
        reader.connection.close()
        return rows, {*endings.points}

    with server.database() as url:
        right, _ = study(url, "undisturbed", set())
        seen = (tmp_path / "undisturbed" / "record" / "points.log").read_text().splitlines()
        missed = {point for point in seen if phase(point) in {"claim", "pause"}}
        assert {"pause: before remove of .pt", "pause: after the autocommit statement 1 of transaction 1"} <= missed
        while missed:
            rows, killed = study(url, f"{len(missed)} left", missed)
            assert rows == right
            assert killed
            missed -= killed


def test_workers_killed_while_creating_tables_and_study_leave_it_to_the_next(server, tmp_path):
    draws = random.Random(1)
    afters = sorted(draws.sample(range(1, 60), NUM_DEATHS))
    settings = {"name": "set-up", "num_trials": 4, "max_epochs": 2, "lease_s": 1.0, "max_attempts": 100}
    with server.database() as url:

        def start(index):
            death = Death(after=afters[index]) if index < NUM_DEATHS else Death()
            return FaultyWorker(url, tmp_path, run=run, plan=Plan(tmp_path / "record", death=death), **settings)

        endings = Fleet(start, 1).finish()
        findings = check_study(url, "set-up", tmp_path / "record", Expected(4, 2, endings))
    assert endings.num_killed_themselves == NUM_DEATHS
    assert not endings.others
    assert not findings.violations
