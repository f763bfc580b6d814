"""The reply to a COMMIT that is lost: what it was for happens once."""

import signal

import psycopg2
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from csi_job.errors import StopRequestedError
from csi_job.signals import Stop
from csi_job.storage.storage import open_storage
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.definition import load_study
from csi_job.study.studies import enqueue_trial
from csi_job.study.target import set_target
from tests.support.reader import StudyReader
from tests.support.studies import SPACE, claim, define, expire, leased, storage_settings

DONE = TrialWrite(values=[0.5], state=TrialState.COMPLETE)


def _break_the_next_commit(storage, meanwhile=lambda: None, *, stored=True):
    """Break the client's connection after the next COMMIT, or before it; then let another client act."""
    dialect = storage.engine.dialect
    commit = dialect.do_commit

    def broken(connection):
        dialect.do_commit = commit
        if stored:
            commit(connection)
        connection.close()
        meanwhile()
        message = "server closed the connection unexpectedly"
        raise psycopg2.OperationalError(message)

    dialect.do_commit = broken


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("stored", [True, False])
def test_a_claim_whose_commit_was_not_answered_happens_once(storage, url, stored):
    study = define(storage, num_trials=1)
    expire(storage, leased(study))
    _break_the_next_commit(storage, stored=stored)
    assert leased(study, max_attempts=1).number == 1  # in the transaction in which trial 0 failed
    assert StudyReader(url).states() == {"FAIL": 1, "RUNNING": 1}


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("is_away", [False, True])
def test_a_signal_before_a_claim_is_recognised_releases_its_trial(storage, monkeypatch, caplog, is_away):
    study = define(storage, num_trials=5)
    leased(study)
    stop = Stop()

    def refuse(*_):
        raise psycopg2.OperationalError("connection refused")

    def meanwhile():
        stop.request(signal.SIGTERM)
        if is_away:
            monkeypatch.setattr("csi_job.storage.claim.RELEASE_S", 0.2)
            sa.event.listen(storage.engine, "do_connect", refuse)
        _break_the_next_commit(storage, stored=False)

    _break_the_next_commit(storage, meanwhile)
    with storage.retry.interrupted_by(stop.check, stop.wait), pytest.raises(StopRequestedError):
        claim(study)
    if is_away:
        assert "may be resumed only when its lease has expired" in caplog.text
    else:
        lease = leased(study, max_attempts=1)
        assert (lease.number, lease.attempt) == (1, 2)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_finished_trial_whose_commit_reply_was_lost_is_not_a_lost_lease(storage, url):
    study = define(storage, num_trials=5)
    lease = leased(study)
    _break_the_next_commit(storage)
    storage.write_trial(lease, DONE)
    assert not lease.lost
    assert StudyReader(url).states() == {"COMPLETE": 1}


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("stored", [True, False])
def test_a_trial_is_enqueued_once_if_the_reply_was_lost_and_another_came_first(storage, url, tmp_path, stored):
    study = define(storage)
    other = open_storage(storage_settings(url), tmp_path, create=False)
    second = {"unknown_weight": 0.75}
    _break_the_next_commit(storage, lambda: enqueue_trial(load_study(other, "toy"), SPACE, second), stored=stored)
    assert enqueue_trial(study, SPACE, {"unknown_weight": 0.25}) == (1 if stored else 2)
    enqueued = [trial.system_attrs["fixed_params"]["unknown_weight"] for trial in study.trials[1:]]
    assert enqueued == ([0.25, 0.75] if stored else [0.75, 0.25])
    other.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("change", "total"), [({"more_trials": 3}, 8), ({"num_trials": 7}, 7)])
def test_a_target_is_changed_once_if_the_reply_was_lost_and_another_addition_came_first(
    change, total, storage, url, tmp_path
):
    study = define(storage, num_trials=5)
    other = open_storage(storage_settings(url), tmp_path, create=False)
    _break_the_next_commit(storage, lambda: set_target(load_study(other, "toy"), more_trials=4))
    assert set_target(study, **change) == total
    assert study.user_attrs["target"] == total + 4
    other.close()
