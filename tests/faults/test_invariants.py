"""The check of a study detects every kind of damage."""

from argparse import Namespace
from dataclasses import replace

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from tests.faults.harness.__main__ import Session
from tests.faults.harness.figures import Figures
from tests.faults.harness.fleet import Endings, FaultyWorker
from tests.faults.harness.invariants import Expected, check_study
from tests.faults.harness.starts import Starts
from tests.faults.harness.worker import Plan, run

EXPECTED = Expected(num_trials=4, max_epochs=2, endings=Endings())
OF_TRIAL_1 = "trial_id = (SELECT trial_id FROM trials WHERE number = 1)"
DAMAGES = {
    f"UPDATE trials SET state = 'RUNNING' WHERE {OF_TRIAL_1}": ["are not 4", "RUNNING in the end", "lease of trial id"],
    f"UPDATE trials SET number = 0 WHERE {OF_TRIAL_1}": ["numbers of 4 trials"],
    f"UPDATE trials SET state = 'FAIL' WHERE {OF_TRIAL_1}": ["are not 4", "was acknowledged as complete"],
    f"DELETE FROM trial_intermediate_values WHERE step = 0 AND {OF_TRIAL_1}": ["has the steps [1]", "acknowledged"],
    f"UPDATE trial_intermediate_values SET intermediate_value = 9 WHERE {OF_TRIAL_1}": ["not those of x", "is {0: 9.0"],
    f"DELETE FROM trial_values WHERE {OF_TRIAL_1}": ["complete with the values []", "was acknowledged as complete"],
    f"UPDATE trial_values SET value = 9 WHERE {OF_TRIAL_1}": ["it is ('COMPLETE', 9.0)"],
}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return tmp_path_factory.mktemp("study") / "record"


@pytest.fixture(scope="module")
def finished(server, record):
    """The URL of a database with a study of four complete trials."""
    with server.database() as url:
        settings = {"name": "intact", "num_trials": 4, "max_epochs": 2, "pruner": "none"}
        worker = FaultyWorker(url, record.parent, run=run, plan=Plan(record), **settings)
        assert worker.wait() == 0, worker.log()
        yield url


def findings_after(server, finished, record, damage):
    """What the check finds in a copy of the database after a statement."""
    with server.database() as url:
        copy, original = make_url(url).database, make_url(finished).database
        server.run(f"DROP DATABASE {copy}")
        server.run(f"CREATE DATABASE {copy} TEMPLATE {original}")
        connection = psycopg2.connect(url)
        with connection, connection.cursor() as cursor:
            cursor.execute(damage)
        connection.close()
        return check_study(url, "intact", record, EXPECTED)


def test_an_intact_study_has_no_violation(server, finished, record):
    findings = findings_after(server, finished, record, "SELECT 1")
    assert findings.violations == []
    assert (findings.num_complete, findings.num_acknowledged, findings.num_repeated) == (4, 12, 0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_detected(server, finished, record, damage):
    violations = findings_after(server, finished, record, damage).violations
    for words in DAMAGES[damage]:
        assert any(words in line for line in violations), violations


def test_an_epoch_computed_twice_is_detected(finished, record):
    file = record / "computed.log"
    before = file.read_text()
    file.write_text(before + "1 0\n")
    try:
        findings = check_study(finished, "intact", record, EXPECTED)
    finally:
        file.write_text(before)
    assert findings.num_repeated == 1
    assert "1 epochs were computed again, 0 are accounted for" in findings.violations


def test_a_trial_left_at_a_rung_or_pruned_elsewhere_is_detected(finished, record):
    expected = replace(EXPECTED, max_epochs=3, reduction_factor=2)
    violations = check_study(finished, "intact", record, expected).violations
    assert sum("ended after epoch 2, although it is among the best of 4 there" in line for line in violations) == 2


def test_a_complaint_from_any_part_fails_the_run(server, tmp_path):
    session = Session(Namespace(), server, tmp_path)
    session.columns = {"all": Figures(), "stock": Figures(complaints=["too many trials"])}
    session.starts = {"ours": Starts(rounds=2), "stock": Starts(rounds=2, failed_rounds=2)}
    assert session.is_exact
    session.complaints = ["crash points: lost"]
    assert not session.is_exact
    session.complaints, session.starts["ours"] = [], Starts(rounds=2, failed_rounds=1)
    assert not session.is_exact
    session.starts["ours"], session.columns["training"] = Starts(rounds=2), Figures(complaints=["lost"])
    assert not session.is_exact
