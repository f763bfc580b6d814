"""Passwords, roles and databases of a real PostgreSQL: what is rejected, retried and shown."""

import threading
from contextlib import nullcontext

import pytest
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from csi_job.errors import ConfigurationError, StorageUnavailableError
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.study.definition import load_study
from csi_job.study.studies import delete_study, enqueue_trial, list_studies
from csi_job.study.target import set_target
from tests.support.postgres import Server, embedded_server, guarded_server, pooler_of, standby_of
from tests.support.processes import wait_until
from tests.support.studies import SPACE, define, work_on

STANDBY = r"cannot be used: .*read-only transaction; name the primary in storage\.url instead of a standby"
PASSWORD = "p@ss/w:o{r}d%20#?&é' \\"


@pytest.fixture(scope="module")
def guarded():
    """A server that requires a password from `anna`."""
    with guarded_server(PASSWORD, "CONNECTION LIMIT 2") as server:
        yield server


def settings(server, password=PASSWORD, database="csi", **others):
    url = f"postgresql://anna@/{database}?host={server.data}"
    return StorageSettings(url=SecretStr(url), password=SecretStr(password), **others)


def test_a_password_may_contain_any_characters(guarded, tmp_path):
    storage = open_storage(settings(guarded), tmp_path, create=True)
    study = define(storage)
    assert work_on(study, tmp_path).num_finished == 5
    storage.upgrade()  # connects by itself, with the password
    assert PASSWORD not in storage.url
    storage.close()


@pytest.mark.parametrize(("encoding", "is_stored"), [("SQL_ASCII", True), ("LATIN1", False)])
def test_a_name_of_any_characters_is_stored_or_rejected(guarded, tmp_path, encoding, is_stored):
    made = f"CREATE DATABASE {encoding} OWNER anna ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    guarded.run(made)
    storage = open_storage(settings(guarded, database=encoding.lower()), tmp_path, create=True)
    expected = nullcontext() if is_stored else pytest.raises(ConfigurationError, match="lacks a character of the study")
    with expected:
        define(storage, name="肺 ü")
        assert load_study(storage, "肺 ü").study_name == "肺 ü"
    define(storage, name="ü")
    storage.close()


def test_each_session_asks_for_durability_timeouts_and_the_isolation_that_claims_expect(guarded, tmp_path, caplog):
    guarded.run("ALTER ROLE anna SET synchronous_commit = off")
    guarded.run("ALTER ROLE anna SET default_transaction_isolation = 'serializable'")
    guarded.run("ALTER SYSTEM SET fsync = off")
    guarded.reload()
    wait_until(lambda: guarded.run("SHOW fsync") == [("off",)])
    storage = open_storage(settings(guarded), tmp_path, create=True)
    expected = {
        "synchronous_commit": "on",
        "transaction_isolation": "read committed",
        "TimeZone": "UTC",
        **dict.fromkeys(("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"), "1min"),
    }
    for engine in (storage.engine, storage.autocommit_engine, storage.read_engine):
        with engine.connect() as connection:
            assert expected == {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in expected}
    storage.close()
    open_storage(settings(guarded), tmp_path, create=True).close()
    assert caplog.text.count("fsync = off") == 1
    for undo in ("ALTER SYSTEM RESET fsync", "ALTER ROLE anna RESET ALL"):
        guarded.run(undo)
    guarded.reload()


@pytest.mark.parametrize(
    ("name", "default", "is_unsafe"),
    [
        ("synchronous_commit", "off", True),
        ("synchronous_commit", "local", False),
        ("default_transaction_isolation", "serializable", True),
    ],
)
def test_a_pooler_is_rejected_where_the_defaults_of_its_sessions_are_unsafe(server, tmp_path, name, default, is_unsafe):
    with server.database() as url, pooler_of(server, 1) as options:
        server.run(f"ALTER DATABASE {make_url(url).database} SET {name} = '{default}'")
        pooled = make_url(url).set(query=options).render_as_string()
        message = f"connection pooler.*are unsafe.*{name} = {default}.*ALTER ROLE"
        with pytest.raises(ConfigurationError, match=message) if is_unsafe else nullcontext():
            open_storage(StorageSettings(url=SecretStr(pooled)), tmp_path, create=True).close()
        open_storage(StorageSettings(url=SecretStr(url)), tmp_path, create=True).close()


def test_a_standby_is_named_and_followed_when_it_becomes_the_primary(tmp_path):
    with embedded_server() as primary, standby_of(primary) as standby:

        def is_replayed():
            return primary.run("SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication") == [(True,)]

        def through_failover(running):
            running.report(0, 0.5)
            if running.number == 2:
                wait_until(is_replayed)
                primary.stop()
                standby.promote()
            running.report(1, 0.5)
            return [0.5]

        with pytest.raises(ConfigurationError, match=STANDBY):
            open_storage(StorageSettings(url=SecretStr(standby.url)), tmp_path, create=True)
        servers = f"?host={standby.data}&host={primary.data}&target_session_attrs=read-write"
        storage = open_storage(
            StorageSettings(url=SecretStr(f"postgresql://postgres@/postgres{servers}")), tmp_path, create=True
        )
        study = define(storage)
        wait_until(is_replayed)
        theirs = open_storage(StorageSettings(url=SecretStr(standby.url)), tmp_path, create=True)
        assert [trial.number for trial in load_study(theirs, "toy").trials] == [0]
        with pytest.raises(ConfigurationError, match=STANDBY):
            set_target(load_study(theirs, "toy"), num_trials=9)
        theirs.close()
        assert work_on(study, tmp_path, through_failover, pruner="none").num_finished == 5
        storage.close()
        states = standby.run("SELECT state, count(*) FROM trials GROUP BY state")
        steps = standby.run("SELECT count(*) FROM trial_intermediate_values")
        assert (states, steps) == ([("COMPLETE", 5)], [(10,)])


def test_a_wrong_password_is_one_line_that_does_not_show_it(guarded, tmp_path):
    with pytest.raises(ConfigurationError, match="password authentication failed") as caught:
        open_storage(settings(guarded, "wr0ng-secret"), tmp_path, create=True)
    assert "wr0ng" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_joining_worker_retries_when_rejected_since_the_password_worked_before(guarded, tmp_path):
    refused = settings(guarded, "wr0ng-secret", connect_s=1.5).model_copy(update={"create_tables": False})
    with pytest.raises(StorageUnavailableError, match=r"rejects the connection: .*authentication failed"):
        open_storage(refused, tmp_path, create=True)


def test_a_joining_worker_creates_no_tables(server, tmp_path):
    with server.database() as url:
        given = StorageSettings(url=SecretStr(url), create_tables=False)
        with pytest.raises(ConfigurationError, match="there is no study in"):
            open_storage(given, tmp_path, create=True)
        open_storage(StorageSettings(url=SecretStr(url)), tmp_path, create=True).close()
        open_storage(given, tmp_path, create=True).close()


def test_a_missing_database_is_one_line(guarded, tmp_path):
    with pytest.raises(ConfigurationError, match='"nowhere" does not exist; correct storage'):
        open_storage(settings(guarded, database="nowhere"), tmp_path, create=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("ALTER TABLE trials RENAME TO moved", 'relation "trials" does not exist'),
        ("ALTER TABLE studies RENAME TO moved", 'relation "studies" does not exist'),
        ("ALTER TABLE trial_user_attributes RENAME value_json TO moved", ".* does not exist"),
        ("ALTER TABLE trials RENAME TO t; CREATE VIEW trials AS TABLE t UNION TABLE t", "cannot insert into view .*"),
        ("CREATE RULE r AS ON INSERT TO trials DO INSTEAD NOTHING", "cannot perform INSERT RETURNING on .*"),
    ],
)
def test_changed_tables_are_named_in_one_line(server, tmp_path, change, reason):
    with server.database() as url:
        storage = open_storage(StorageSettings(url=SecretStr(url)), tmp_path, create=True)
        study = define(storage)
        Server(url).run(change)
        with pytest.raises(ConfigurationError, match=f"cannot be used: {reason}; csi-job needs PostgreSQL or SQLite"):
            list_studies(storage) and study.trials and enqueue_trial(study, SPACE, {})
        storage.close()


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("reader LOGIN", "permission denied for table studies"),
        ("frozen LOGIN SUPERUSER", "in a read-only transaction"),  # what a standby answers too
    ],
)
def test_a_user_who_may_only_read_is_refused_at_the_first_write(server, tmp_path, role, reason):
    name = role.partition(" ")[0]
    with server.database() as url:
        first = open_storage(StorageSettings(url=SecretStr(url)), tmp_path, create=True)
        define(first)
        for statement in (
            f"CREATE ROLE {role}",
            f"ALTER ROLE {name} SET default_transaction_read_only = {'on' if name == 'frozen' else 'off'}",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO " + name,
        ):
            Server(url).run(statement)
        theirs = StorageSettings(url=SecretStr(url.replace("postgres@", f"{name}@")), outage_s=3600)
        storage = open_storage(theirs, tmp_path, create=True)
        study = load_study(storage, "toy")
        assert len(study.trials) == 1
        for write in (set_target, work_on, delete_study):
            with pytest.raises(ConfigurationError, match=f"cannot be used: .*{reason}; name the primary"):
                write(study, num_trials=9) if write is set_target else write(study, tmp_path)
        storage.close()
        joins = open_storage(theirs.model_copy(update={"create_tables": False}), tmp_path, create=False)
        with pytest.raises(StorageUnavailableError, match=reason):  # it worked for others: perhaps a fail-over
            joins.write(lambda connection: joins.lock(connection, 1), limit_s=0.1)
        joins.close()
        first.close()
        Server(url).run(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_host_without_a_server_is_retried_and_then_one_line(tmp_path):
    url = SecretStr("postgresql://anna:s3cret@127.0.0.1:1/csi")
    with pytest.raises(StorageUnavailableError, match=r"could not be used for \d+ s.*refused") as caught:
        open_storage(StorageSettings(url=url, connect_s=1.5), tmp_path, create=True)
    assert "s3cret" not in str(caught.value)


def test_a_server_without_a_free_slot_is_retried(guarded, tmp_path):
    first = open_storage(settings(guarded), tmp_path, create=True)
    held = [first.engine.connect(), first.engine.connect()]  # all that `anna` may have
    timer = threading.Timer(1.0, lambda: [*(connection.close() for connection in held), first.close()])
    timer.start()
    second = open_storage(settings(guarded, connect_s=30), tmp_path, create=True)
    timer.join()
    assert [study.study_name for study in second.get_all_studies()] in ([], ["toy"])
    second.close()


def test_looking_into_an_empty_database_creates_nothing_and_leaves_nothing_open(guarded, tmp_path):
    guarded.run("CREATE DATABASE empty OWNER anna")
    refusals = []
    for _ in range(4):  # each closes its connection, of which anna may have two
        with pytest.raises(ConfigurationError, match="there is no study in") as refusal:
            open_storage(settings(guarded, database="empty"), tmp_path, create=False)
        refusals.append(refusal)
    url = guarded.url.replace("/postgres?", "/empty?")
    assert Server(url).run("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_a_worker_has_at_most_two_connections(guarded, tmp_path):
    guarded.run("ALTER ROLE anna CONNECTION LIMIT 3")
    storage = open_storage(settings(guarded, lease_s=0.2), tmp_path, create=True)
    study = define(storage, name="connections", num_trials=2)
    seen = []

    def watched(running):
        for epoch in range(60):
            running.report(epoch, 0.5)
            [(count,)] = guarded.run("SELECT count(*) FROM pg_stat_activity WHERE usename = 'anna'")
            seen.append(count)
        return [0.5]

    work_on(study, tmp_path, watched, name="connections", pruner="none")
    assert 1 <= max(seen) <= 2
    storage.close()
