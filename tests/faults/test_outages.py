"""PostgreSQL goes down and comes back while workers run."""

import time

import pytest

from tests.support.processes import num_lines, wait_until
from tests.support.reader import check_exact
from tests.support.studies import Worker


@pytest.fixture
def mortal_url(mortal):
    with mortal.database() as url:
        yield url


def wait_for_epochs(work, more_than):
    """Wait until more than this many epochs have been computed, and return their number."""
    wait_until(lambda: num_lines(work / "computed.log") > more_than)
    return num_lines(work / "computed.log")


def test_training_continues_during_an_outage(mortal, mortal_url, tmp_path):
    worker = Worker(mortal_url, tmp_path, num_trials=1, max_epochs=100, epoch_s=0.1, pruner="none")
    num_epochs = wait_for_epochs(tmp_path, 2)
    with mortal.outage():
        wait_for_epochs(tmp_path, num_epochs + 5)
    assert worker.wait() == 0, worker.log()
    assert "training continues" in worker.log()
    assert "is back after" in worker.log()
    check_exact(mortal_url, 1, 100)
    assert (tmp_path / "computed.log").read_text().splitlines() == [f"0 {epoch}" for epoch in range(100)]


def test_a_worker_killed_during_an_outage_loses_one_epoch_at_most(mortal, mortal_url, tmp_path):
    given = {"num_trials": 1, "max_epochs": 40, "epoch_s": 0.1, "pruner": "none"}
    worker = Worker(mortal_url, tmp_path, **given)
    num_epochs = wait_for_epochs(tmp_path, 2)
    with mortal.outage():
        wait_for_epochs(tmp_path, num_epochs + 5)
        worker.send_signal(9)
        worker.wait()
    second = Worker(mortal_url, tmp_path, **given)
    assert second.wait() == 0, second.log()
    check_exact(mortal_url, 1, 40)
    computed = (tmp_path / "computed.log").read_text().splitlines()
    assert len(computed) - len(set(computed)) <= 1


def test_waiting_for_the_database_does_not_count_as_a_stall(mortal, mortal_url, tmp_path):
    """Finishing a trial and claiming one wait longer than `stall_s`."""
    worker = Worker(mortal_url, tmp_path, num_trials=8, max_epochs=2, epoch_s=0.1, stall_s=4.0, pruner="none")
    wait_for_epochs(tmp_path, 2)
    with mortal.outage():
        time.sleep(6)
    assert worker.wait() == 0, worker.log()
    assert "is back after" in worker.log()
    check_exact(mortal_url, 8, 2)


def test_too_long_an_outage_ends_the_worker_with_one_line(mortal, mortal_url, tmp_path):
    worker = Worker(mortal_url, tmp_path, num_trials=1, max_epochs=400, epoch_s=0.1, outage_s=1.0)
    wait_for_epochs(tmp_path, 1)
    with mortal.outage():
        assert worker.wait() == 1
    last = worker.log().strip().splitlines()[-1]
    assert last.startswith("the database postgresql+psycopg2://")
    assert "Traceback" not in worker.log()
    again = Worker(mortal_url, tmp_path, num_trials=1, max_epochs=400, epoch_s=0.0)
    assert again.wait() == 0, again.log()
    check_exact(mortal_url, 1, 400)


def test_a_starting_worker_waits_for_a_starting_server(mortal, mortal_url, tmp_path):
    with mortal.outage():
        worker = Worker(mortal_url, tmp_path, num_trials=1, max_epochs=1, connect_s=60.0)
        wait_until(lambda: "is unreachable" in worker.log())
    assert worker.wait() == 0, worker.log()
    check_exact(mortal_url, 1, 1)
