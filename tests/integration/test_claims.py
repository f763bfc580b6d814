"""Claims: their order, the exact total, and fencing, on both databases."""

import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import optuna
import psycopg2
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from csi_job.errors import ConfigurationError, CsiJobError, LeaseLostError, StopRequestedError, StorageUnavailableError
from csi_job.signals import Stop
from csi_job.storage.claim import Claim, NothingToClaim
from csi_job.storage.lease import worker_id
from csi_job.storage.storage import open_storage
from csi_job.storage.tables import LEASES, TRIALS
from csi_job.storage.trial_rows import TrialWrite
from csi_job.study.confirmation import open_confirmation
from csi_job.study.definition import load_study
from csi_job.study.status import study_status
from csi_job.study.studies import delete_study, enqueue_trial, list_studies
from csi_job.study.target import set_target
from tests.support.processes import wait_until
from tests.support.reader import Reader, StudyReader
from tests.support.studies import SPACE, claim, define, expire, leased, storage_settings, toy_space

DONE = TrialWrite(values=[0.5], state=TrialState.COMPLETE)


def test_the_baseline_is_trial_0_and_new_trials_follow(storage, url):
    study = define(storage, num_trials=3)
    numbers = [leased(study).number for _ in range(3)]
    assert numbers == [0, 1, 2]
    outcome = claim(study)
    assert (outcome.num_finished, outcome.target, len(outcome.running)) == (0, 3, 3)
    assert StudyReader(url).states() == {"RUNNING": 3}


def test_an_orphan_comes_first_then_the_waiting_then_new_ones(storage):
    study = define(storage, num_trials=10)
    first = claim(study)
    for x in (0.25, 0.75):
        enqueue_trial(study, SPACE, {"unknown_weight": x})
    with storage.engine.begin() as connection:  # PostgreSQL then reads this row after the other
        connection.execute(sa.update(TRIALS).where(TRIALS.c.number == 1).values(number=1))
    storage.write_trial(first.lease, TrialWrite(), checkpoint="the stored one")
    expire(storage, first.lease)
    outcome = claim(study)
    assert (first.taken_over, outcome.taken_over) == (False, True)
    assert (first.checkpoint, outcome.checkpoint) == (None, "the stored one")
    assert (outcome.lease.number, outcome.lease.attempt) == (first.lease.number, 2)
    assert [leased(study).number for _ in range(3)] == [1, 2, 3]  # two enqueued ones, a new one


def test_the_lease_of_a_dead_process_on_this_host_is_taken_over_immediately(storage):
    study = define(storage, num_trials=1)
    host, boot, space, _, _ = worker_id().split("|")
    leased(study, worker_id=f"{host}|{boot}|{space}|999999999|1")
    with storage.engine.begin() as connection:  # even if the clock was set back
        connection.execute(sa.update(LEASES).values(renewed_at_s=LEASES.c.renewed_at_s + 3600))
    assert leased(study).attempt == 2


def test_a_running_trial_without_a_lease_is_taken_over(storage):
    study = define(storage, num_trials=1)
    optuna.load_study(study_name="toy", storage=storage.migration_url()).ask()
    lease = leased(study, max_attempts=1)
    assert (lease.number, lease.attempt) == (0, 2)
    storage.renew(lease)


def test_released_trials_are_free_immediately_and_count_no_lost_attempt(storage):
    storage.lease_s = 1e10
    study = define(storage, num_trials=2)
    for attempt in range(1, 8):
        leases = [leased(study, max_attempts=2) for _ in range(2)]
        assert [(lease.number, lease.attempt) for lease in leases] == [(0, attempt), (1, attempt)]
        for lease in leases:
            storage.release(lease, TrialWrite(), limit_s=0)


def test_a_signal_ends_the_wait_of_a_write_but_not_that_of_a_release_or_a_renewal(storage):
    study = define(storage, num_trials=1)
    lease, stop, failures = leased(study), Stop(), []
    away, busy = psycopg2.OperationalError("server closed the connection"), sqlite3.OperationalError("locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    stop.request(signal.SIGTERM)

    @sa.event.listens_for(storage.engine, "before_cursor_execute")
    def fail_once(*_):
        if failures:
            raise failures.pop()

    def after(failure, write):
        failures.append(failure)
        with storage.retry.interrupted_by(stop.check, stop.wait):
            write()

    with pytest.raises(StopRequestedError):
        after(away, lambda: storage.write_trial(lease, TrialWrite()))
    after(busy, lambda: storage.renew(lease))
    for write in (lambda: storage.renew(lease), lambda: storage.release(lease, TrialWrite(), limit_s=0)):
        with pytest.raises(StorageUnavailableError):  # at once, although another try would succeed
            after(away, write)
    after(away, lambda: storage.release(lease, TrialWrite(), limit_s=10))
    assert leased(study, max_attempts=1).attempt == 2


def test_a_late_renewal_does_not_take_a_released_trial_back(storage):
    study = define(storage, num_trials=1)
    lease = leased(study)
    storage.renew(lease)
    for _ in range(2):  # again, as when the first reply was lost
        storage.release(lease, TrialWrite(), limit_s=0)
    with pytest.raises(LeaseLostError):
        storage.renew(lease)
    assert leased(study, max_attempts=1).attempt == 2


def test_attempts_without_an_epoch_fail_a_trial_and_free_its_place(storage, url, caplog):
    study = define(storage, num_trials=1)
    for _ in range(2):
        expire(storage, leased(study, max_attempts=2))
    assert leased(study, max_attempts=2).number == 1  # trial 0 failed, which the total does not count
    assert StudyReader(url).states() == {"FAIL": 1, "RUNNING": 1}
    reason = study.trials[0].user_attrs["reason"]
    assert reason == "no epoch finished in 2 attempts in a row; the workers died or stalled"
    assert caplog.messages == [f"trial 0 failed: {reason}"]


def test_the_count_of_lost_attempts_begins_again_with_every_stored_epoch(storage):
    study = define(storage, num_trials=1)
    for attempt in range(1, 10):
        lease = leased(study, max_attempts=2)
        assert lease.attempt == attempt
        if attempt % 2 == 0:
            storage.write_trial(lease, TrialWrite(steps={attempt: 0.1}), num_epochs=1)
        expire(storage, lease)


def test_a_lease_from_the_future_expires_from_now_on(storage):
    study = define(storage, num_trials=2)
    lease, other = (leased(study, worker_id="another-host|boot|space|1|1") for _ in range(2))
    assert isinstance(claim(study), NothingToClaim)
    changes = {"renewed_at_s": LEASES.c.renewed_at_s + 3600, "lease_s": 0.2}
    with storage.engine.begin() as connection:  # as if the database's clock had been set back by an hour
        connection.execute(sa.update(LEASES).where(LEASES.c.trial_id == lease.trial_id).values(**changes))
    assert study_status(study).running[0].lease_age_s == 0.0
    storage.release(other, TrialWrite(), limit_s=5)  # which a date would undo
    assert leased(study).number == other.number
    wait_until(lambda: isinstance(claim(study), Claim))
    with pytest.raises(LeaseLostError):
        storage.renew(lease)


def test_a_trial_never_ends_before_it_started(storage):
    study = define(storage, num_trials=1)
    lease = leased(study)
    with storage.engine.begin() as connection:
        connection.execute(sa.update(TRIALS).values(datetime_start=datetime(2999, 1, 1)))  # noqa: DTZ001 - as stored
    storage.write_trial(lease, DONE)
    assert study.trials[0].duration == timedelta(0)


def test_too_many_failures_stop_the_study_with_the_last_reason(storage):
    study, other = define(storage, num_trials=5), define(storage, name="other")

    def fail(study, **attributes):
        storage.write_trial(leased(study), TrialWrite(user_attrs=attributes, state=TrialState.FAIL))

    fail(study)  # as Optuna's `tell` does
    with pytest.raises(CsiJobError, match=r"1 trial failed.*unknown"):
        claim(study, max_failed=0)
    for reason in ("no such file", "no such layer"):
        fail(study, reason=reason)
    fail(study, reason="outside the space", rejected=True)  # which does not count
    for _ in range(2):  # of which the second is the latest of all trials
        fail(other, reason="no such study")
    pruned = TrialWrite(user_attrs={"reason": "others were better"}, state=TrialState.PRUNED)
    storage.write_trial(leased(study, max_failed=3), pruned)
    with pytest.raises(CsiJobError, match=r"3 trials failed.*no such layer"):
        claim(study, max_failed=2)


def test_concurrent_claims_never_exceed_the_target(storage, url, tmp_path):
    define(storage, num_trials=12)

    def worker(_):
        own = open_storage(storage_settings(url), tmp_path, create=False)
        study, count = define(own), 0
        while isinstance(outcome := claim(study), Claim):
            own.write_trial(outcome.lease, DONE)
            count += 1
        own.close()
        return count

    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(worker, range(6)))
    assert sum(counts) == 12
    assert StudyReader(url).states() == {"COMPLETE": 12}
    assert sorted(number for (number,) in Reader(url).rows("SELECT number FROM trials")) == list(range(12))


def test_a_worker_whose_lease_was_taken_over_writes_nothing_more(storage, url):
    study = define(storage, num_trials=1)
    old = leased(study)
    storage.write_trial(old, TrialWrite(steps={0: 0.1}), num_epochs=1)
    expire(storage, old)
    new = leased(study)
    writes = [
        lambda: storage.write_trial(old, TrialWrite(steps={1: 9.0})),
        lambda: storage.write_trial(old, TrialWrite(user_attrs={"a": 1})),
        lambda: storage.write_trial(old, DONE),
        lambda: storage.rewrite_steps(old, 0, TrialWrite(), None),
        lambda: storage.renew(old),
    ]
    for write in writes:
        old.lost = False
        with pytest.raises(LeaseLostError):
            write()
        assert (old.lost, new.lost) == (True, False)
    storage.write_trial(new, DONE)
    with pytest.raises(LeaseLostError):  # though it is finished as this write would
        storage.write_trial(old, DONE)
    reader = StudyReader(url)
    assert reader.curves() == {0: [(0, 0.1)]}
    assert reader.rows("SELECT value FROM trial_values") == [(0.5,)]


@pytest.mark.parametrize("max_attempts", [2, 1])  # with 1 it would fail
def test_a_lease_renewed_while_it_is_being_claimed_is_not_taken_over(storage, max_attempts):
    study = define(storage, num_trials=1)
    lease = leased(study)
    expire(storage, lease)
    renewed = []

    @sa.event.listens_for(storage.engine, "before_cursor_execute")
    def renew_meanwhile(connection, _cursor, statement, *_):
        if "SET token=" in statement and not renewed:
            renewed.append(True)
            connection.execute(sa.update(LEASES).values(renewed_at_s=LEASES.c.renewed_at_s + 1))

    assert isinstance(claim(study, max_attempts=max_attempts), NothingToClaim)
    assert renewed
    storage.renew(lease)


def test_a_trial_that_another_tool_finished_is_not_finished_here(storage, url):
    study = define(storage, num_trials=2)
    lease = leased(study)
    leased(study)  # still runs
    optuna.load_study(study_name="toy", storage=storage.migration_url()).tell(0, state=TrialState.FAIL)
    with pytest.raises(LeaseLostError):
        storage.write_trial(lease, DONE)
    assert StudyReader(url).states() == {"FAIL": 1, "RUNNING": 1}


@pytest.mark.parametrize("deleted_by", ["csi-job", "optuna"])
def test_a_deleted_study_ends_its_workers_with_one_line(deleted_by, storage, url, tmp_path):
    old = define(storage)
    lease = leased(old)
    storage.hold(lease)
    other = open_storage(storage_settings(url), tmp_path, create=False)
    if deleted_by == "optuna":  # which leaves the lease behind
        optuna.delete_study(study_name="toy", storage=storage.migration_url())
    else:
        delete_study(load_study(other, "toy"), tmp_path)
    assert list_studies(storage) == []
    new = define(other, space=toy_space(9.0), baseline={"unknown_weight": 8.0})
    open_confirmation(new)
    plain = optuna.load_study(study_name="toy", storage=storage.migration_url())
    trial = plain.ask()  # starts the waiting trial, without a claim
    reader = StudyReader(url)
    ids = reader.rows("SELECT study_id, trial_id FROM trials")
    if storage.address.is_sqlite:
        assert ids == [(old._study_id, lease.trial_id)]  # SQLite uses both ids again
    for write in (TrialWrite(steps={0: 9.0}), TrialWrite(params={"x": (0.5, FloatDistribution(0, 1))}), DONE):
        with pytest.raises(LeaseLostError, match="deleted"):
            storage.write_trial(lease, write)
    writes = [
        lambda: storage.renew(lease),
        lambda: storage.release(lease, TrialWrite(), limit_s=0),
        lambda: storage.rewrite_steps(lease, 0, TrialWrite(), None),
        lambda: claim(old),
        lambda: open_confirmation(old),
        lambda: enqueue_trial(old, SPACE, {}),
        lambda: old.add_trial(optuna.trial.create_trial(value=1.0)),
        lambda: old.set_user_attr("used", 1),
        lambda: set_target(old, num_trials=99),
        lambda: delete_study(old, tmp_path),
    ]
    for write_ in writes:
        with pytest.raises((ConfigurationError, LeaseLostError), match="deleted"):
            write_()
    assert len(other.get_all_studies()) == 2  # the new study and its confirmation
    plain.tell(trial, 0.25)
    with pytest.raises(LeaseLostError, match="deleted"):  # though the new study's trial has this id and this state
        storage.write_trial(lease, DONE)
    assert Reader(url).rows("SELECT trial_id FROM trials") == [(trial._trial_id,)]
    assert reader.curves() == {}
    assert (new.user_attrs["target"], "used" in new.user_attrs, new.trials[0].params) == (5, False, {})
    other.close()


def test_two_studies_in_one_database_are_independent(storage):
    one, two = define(storage, num_trials=2), define(storage, name="other", num_trials=2)
    for study in (two, one):
        enqueue_trial(study, SPACE, {"unknown_weight": 0.25})
    set_target(two, num_trials=1)  # which cancels its own trial
    assert [leased(study).number for study in (one, two, one)] == [0, 0, 1]
    outcome = claim(two)
    assert len(outcome.running) == 1
    storage.write_trial(leased(define(storage, name="third")), TrialWrite(state=TrialState.FAIL))
    counts = {listed.name: listed.counts for listed in list_studies(storage) if listed.counts}
    assert {name: count.num_running for name, count in counts.items()} == {"toy": 2, "other": 1, "third": 0}
    assert {name: count.num_failed for name, count in counts.items()} == {"toy": 0, "other": 0, "third": 1}


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_after_a_server_restart_every_worker_has_a_full_lease_to_renew(storage):
    study = define(storage, num_trials=1)
    lease = leased(study)
    up_s = sa.literal_column("extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")
    renewed_at_s = LEASES.c.renewed_at_s - up_s - 700  # before the server's start
    with storage.engine.begin() as connection:
        connection.execute(sa.update(LEASES).values(renewed_at_s=renewed_at_s, lease_s=up_s + 600))
    outcome = claim(study)
    assert lease.trial_id in outcome.running
    with storage.engine.begin() as connection:
        connection.execute(sa.update(LEASES).values(lease_s=0))
    assert leased(study).attempt == 2
