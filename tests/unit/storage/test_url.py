import pickle
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from csi_job.errors import ConfigurationError
from csi_job.storage.engine import make_engine
from csi_job.storage.settings import StorageSettings
from csi_job.storage.url import check_file_system, check_sqlite_file, database_address

NASTY = "p@ss/w:o{r}d%20#?&=é' \\"
REPEATED = ("password", "sslpassword", "sslmode")
WITH_AT_SIGNS = (
    *("a@secret?b", "a?secret=@c", "a@secret?b=c", "a/secret@b?c"),
    *("a/b?c@secret", "a@b/secret", "a@b?secret&c=d"),
)
MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /data rw - nfs4 server:/export rw
31 22 0:41 / /cloud\\040drive rw - fuse.rclone remote: rw
32 22 0:42 / /merged rw - fuse.fuse-overlayfs overlay rw
33 22 0:43 / /layers rw - cifs //server/share rw
34 22 0:44 / /layers rw - ext4 /dev/sdb1 rw
"""


def settings(url, **others):
    return StorageSettings(url=None if url is None else SecretStr(url), **others)


def test_a_relative_sqlite_file_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert database_address(settings("sqlite:///shared study.db"), Path("work")).path == tmp_path / "shared study.db"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_postgresql_gets_the_psycopg2_driver(scheme):
    address = database_address(settings(f"{scheme}://anna@db:5433/csi?sslmode=require"), Path())
    assert address.url.drivername == "postgresql+psycopg2"
    assert address.url.query["sslmode"] == "require"
    assert str(address) == "postgresql+psycopg2://anna@db:5433/csi"
    assert address.argument == "postgresql+psycopg2://anna@db:5433/csi?sslmode=require"


def test_the_folder_of_a_socket_may_stand_in_place_of_the_host():
    encoded = database_address(settings("postgresql://anna:secret@%2Frun%2Fpg:5433/csi?sslmode=disable"), Path())
    plain = database_address(settings("postgresql://anna@/csi?host=/run/pg&port=5433&sslmode=disable"), Path())
    assert encoded.url == plain.url
    assert "secret" not in encoded.argument
    assert database_address(settings(encoded.argument), Path()).url == plain.url


@pytest.mark.parametrize("source", ["setting", "file", "url", "option"])
def test_a_password_of_any_characters_reaches_the_driver_and_nothing_else(source, tmp_path):
    url = "postgresql://anna@db/csi"
    given = {}
    if source == "setting":
        given["password"] = SecretStr(NASTY)
    elif source == "file":
        given["password_file"] = tmp_path / "password"
        (tmp_path / "password").write_text(f"{NASTY}\n", encoding="utf-8")
    else:
        coded = quote(NASTY, safe="")
        url = f"postgresql://anna:{coded}@db/csi" if source == "url" else f"{url}?password={coded}"
    address = database_address(settings(url, **given), Path())
    assert address.secrets["password"] == NASTY
    engine = make_engine(address)
    shown = (
        f"{address!r} {address} {engine!r} {engine.url.render_as_string(hide_password=False)} {pickle.dumps(address)!r}"
    )
    assert "p@ss" not in shown
    assert "p%40ss" not in shown
    assert pickle.loads(pickle.dumps(address)).secrets == {}


def test_the_setting_wins_over_the_file_and_the_file_over_the_url(tmp_path):
    (tmp_path / "password").write_text("file")
    url = "postgresql://anna:url@db/csi"
    both = settings(url, password=SecretStr("setting"), password_file=tmp_path / "password")
    assert database_address(both, Path()).secrets == {"password": "setting"}
    assert database_address(settings(url, password_file=tmp_path / "password"), Path()).secrets == {"password": "file"}
    assert database_address(settings(url), Path()).secrets == {"password": "url"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        *((f"postgresql://anna:secret@{rest}/csi", "cannot be parsed") for rest in ("w:ord@db", "db:port")),
        *((url, "cannot be parsed") for url in ("secret", "://secret", "")),
        ("postgresql://anna:secret@word@db/csi", "more than one @"),
        ("mysql://u:secret@db/csi", r"postgresql\+psycopg2"),
        ("postgresql+asyncpg://u:secret@db/csi", r"postgresql\+psycopg2"),
        ("redis://secret", r"postgresql\+psycopg2"),
        *((f"sqlite://{end}", "database file") for end in ("", "/:memory:", "/file:x?mode=memory&uri=true")),
        ("sqlite:///~nosuchuser/x.db", r"home folder.*~nosuchuser/x\.db"),
        ("sqlite:///x.db?timeout=3&mode=ro", r"no options, got 'timeout, mode'"),
        *((f"postgresql://anna@db/csi?{name}=secret&{name}=secret2", f"{name} 2 times") for name in REPEATED),
        *((f"postgresql://anna:{password}@db/csi", "more than one @") for password in WITH_AT_SIGNS),
    ],
)
def test_a_url_that_cannot_be_used_is_rejected_without_showing_it(url, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        database_address(settings(url), Path())
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_password_file_is_named(tmp_path):
    missing = tmp_path / "no such file"
    with pytest.raises(ConfigurationError, match=r"password_file.*No such file.*no such file"):
        database_address(settings("postgresql://db/csi", password_file=missing), Path())


@pytest.mark.parametrize("path", ["/data/studies.db", "/cloud drive/a/studies.db"])
def test_a_network_file_system_is_rejected_with_a_hint_at_postgresql(path, tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    with pytest.raises(ConfigurationError, match=r"network file system.*PostgreSQL"):
        check_file_system(Path(path), mounts)


@pytest.mark.parametrize("path", ["/dev/null", "/"])
def test_what_is_no_file_is_rejected_as_a_database(path):
    with pytest.raises(ConfigurationError, match="the database is not a file"):
        check_sqlite_file(Path(path), create=True)


@pytest.mark.parametrize("question", ["exists", "is_file"])
def test_a_database_that_another_process_creates_meanwhile_is_taken(question, tmp_path, monkeypatch):
    database, answer = tmp_path / "studies.db", getattr(Path, question)

    def answer_just_before(path):
        was_so = answer(path)
        database.touch()
        return was_so

    monkeypatch.setattr(Path, question, answer_just_before)
    check_sqlite_file(database, create=True)


@pytest.mark.parametrize("path", ["/home/studies.db", "/merged/studies.db", "/layers/studies.db", "/database/s.db"])
def test_a_local_file_system_is_accepted(path, tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    check_file_system(Path(path), mounts)
    check_file_system(Path(path), tmp_path / "a system without mountinfo")


@pytest.mark.parametrize("option", ["sslrootcert=/a@b", "sslmode=require&sslcert=/a@b&sslkey=/a@c", "password=a@b"])
def test_an_at_sign_in_the_value_of_an_option_is_accepted(option):
    address = database_address(settings(f"postgresql://anna@db/csi?{option}"), Path())
    assert (address.url.host, address.url.database) == ("db", "csi")
    name, _, value = option.rpartition("&")[2].partition("=")
    assert {**address.url.query, **address.secrets}[name] == value


def test_several_servers_are_accepted():
    address = database_address(settings("postgresql://anna@/csi?host=a,b&port=1,2"), Path())
    assert address.url.query == {"host": "a,b", "port": "1,2"}


@pytest.mark.parametrize(
    "options", ["host=a&host=b&port=1&port=2", "host=a&port=x", "host=a,b,c&port=1,2", "host=::1&host=::2"]
)
def test_servers_that_no_driver_takes_are_refused_without_quoting_the_url(options):
    with pytest.raises(ConfigurationError, match="hosts or ports that do not fit together; allowed: ") as caught:
        database_address(settings(f"postgresql://anna@/csi?{options}&password=hush"), Path())
    assert "hush" not in str(caught.value)


@pytest.fixture
def _libpq(monkeypatch):
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSERVICE", "PGUSER"):
        monkeypatch.delenv(name, raising=False)


def place(url):
    return database_address(settings(f"postgresql://{url}"), Path()).place(Path())


@pytest.mark.usefixtures("_libpq")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("anna@db/csi", "bert:secret@db/csi"),  # a vault changes the user with the password
        ("anna@db/csi", "anna@DB:5432/csi?sslmode=require"),
        ("anna@db/csi", "anna@/csi?host=db&port=5432"),
        ("anna@%2Frun%2Fpg/csi", "anna@/csi?host=/run/pg"),
        ("anna@/csi?host=a,b&port=1,2", "anna@/csi?host=b:2&host=a:1"),
        ("anna@/csi?host=a&host=b", "anna@/csi?host=a,B&port=5432,5432"),
        ("anna@db", "anna@db/anna"),
        ("anna@?service=a", "bert@?service=a"),  # whose file may name the database
    ],
)
def test_urls_of_one_database_name_one_place(one, other):
    assert place(one) == place(other)


@pytest.mark.usefixtures("_libpq")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("anna@db/csi", "anna@db/other"),
        ("anna@db/csi", "anna@db/CSI"),
        ("anna@db/csi", "anna@db:5433/csi"),
        ("anna@db/csi", "anna@db/csi?port=5433"),
        ("anna@/csi?host=/run/pg", "anna@/csi?host=/run/PG"),
        ("anna@/csi?host=/run/pg", "anna@/csi"),
        ("anna@/csi?host=a&host=b", "anna@/csi?host=a&host=c"),
        ("anna@/csi?host=a,b&port=1,2", "anna@/csi?host=a,b&port=2,1"),
        ("anna@/csi?hostaddr=10.0.0.1", "anna@/csi?hostaddr=10.0.0.2"),
        ("anna@db/csi?hostaddr=10.0.0.1", "anna@db/csi?hostaddr=10.0.0.2"),
        ("anna@/csi?service=a", "anna@/csi?service=b"),
        ("anna@/csi?service=db", "anna@db/csi"),
        ("anna@db", "bert@db"),  # libpq's default is the database named like the user
    ],
)
def test_urls_of_two_databases_name_two_places(one, other):
    assert place(one) != place(other)


@pytest.mark.usefixtures("_libpq")
def test_the_place_of_a_database_is_what_libpq_adds_to_its_url(monkeypatch):
    for name, value in {"PGHOST": "DB", "PGPORT": "5433", "PGUSER": "csi"}.items():
        monkeypatch.setenv(name, value)
    assert place("") == place("anna@db:5433/csi") == "db:5433/csi"
    monkeypatch.setenv("PGDATABASE", "other")
    assert place("") == "db:5433/other"
    places = {place("")}
    for name in ("PGHOSTADDR", "PGSERVICE"):
        monkeypatch.setenv(name, "10.0.0.1")
        places.add(place(""))
    assert len(places) == 3


def test_the_place_of_an_sqlite_file_moves_with_the_work_folder(tmp_path):
    of_two = [database_address(settings(f"sqlite:///{tmp_path}/{name}/a.db"), Path()) for name in ("old", "new")]
    assert of_two[0].place(tmp_path / "old") == of_two[1].place(tmp_path / "new") == "a.db"
    assert of_two[0].place(tmp_path) != of_two[1].place(tmp_path)


def test_a_nul_byte_is_rejected_wherever_it_comes_from(tmp_path):
    (tmp_path / "password").write_bytes(b"sec\0ret\n")
    given = [
        settings("postgresql://anna@db/csi", password_file=tmp_path / "password"),
        settings("postgresql://anna@db/csi", password=SecretStr("sec\0ret")),
        settings("postgresql://anna:sec%00ret@db/csi"),
        settings("sqlite:///sec\0ret"),
    ]
    for storage in given:
        with pytest.raises(ConfigurationError, match="NUL") as caught:
            database_address(storage, Path())
        assert "sec" not in str(caught.value)


@pytest.mark.parametrize(("create", "message"), [(True, "the database cannot be used"), (False, "does not exist")])
def test_a_link_to_itself_is_refused_in_one_line(tmp_path, create, message):
    link = tmp_path / "studies.db"
    link.symlink_to(link)
    assert database_address(settings(f"sqlite:///{link}"), tmp_path).place(tmp_path) == "studies.db"
    with pytest.raises(ConfigurationError, match=message):
        check_sqlite_file(link, create=create)
