"""The database URL from the settings, validated, with all secrets kept separately."""

import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from csi_job.errors import ConfigurationError, explain_os_errors
from csi_job.files import exists, is_file, make_folder, open_private, real_path
from csi_job.storage.settings import StorageSettings
from csi_job.work_folder import WorkFolder, no_database

POSTGRES_SCHEMES: Final = ("postgres", "postgresql", "postgresql+psycopg2")
SQLITE_SCHEMES: Final = ("sqlite", "sqlite+pysqlite")
ALLOWED: Final = "sqlite:///FILE, postgresql+psycopg2://USER@HOST/DATABASE"
SECRET_OPTIONS: Final = ("password", "sslpassword")  # libpq also accepts these in the URL's query
REPEATED_OPTIONS: Final = ("host", "port")  # once per server
ENCODE: Final = "a password needs percent-encoding there (@ is %40, / is %2F)"
HINT: Final = "give it as CSI_JOB_STORAGE__PASSWORD or in storage.password_file"
NETWORK_FILE_SYSTEMS: Final = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "9p", "afs", "ceph", "lustre", "gpfs",
    "beegfs", "glusterfs", "ocfs2", "gfs2")  # fmt: skip
LOCAL_FUSE: Final = frozenset({"fuse.fuse-overlayfs"})  # the root of a rootless container, visible to one host only


@dataclass(frozen=True)
class Address:
    """A database: its URL without the secrets, which only the driver gets."""

    url: URL
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file on this host."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path:
        """The file of an SQLite database."""
        return Path(self.url.database or "")

    def __str__(self) -> str:
        """Return the URL for display: no password, no options."""
        if self.is_sqlite:
            return f"sqlite:///{self.url.database}"
        return self.url.set(query={}).render_as_string(hide_password=True)

    @property
    def argument(self) -> str:
        """The URL for a command line: with its options, without the secrets."""
        return str(self) if self.is_sqlite else self.url.render_as_string()

    def place(self, work: Path) -> str:
        """Return what tells the database from others: its file from the work folder, or its servers and its name.

        Neither the user nor options such as `sslmode` are part of it. What the URL leaves out is as libpq takes it.
        """
        if self.is_sqlite:  # within the work folder it moves along
            return os.path.relpath(real_path(self.path), real_path(work))
        options = _connect_options(self.url)

        def given(name: str, variable: str) -> str:
            return str(options.get(name) or os.environ.get(variable, ""))

        hosts = [host if host.startswith("/") else host.lower() for host in given("host", "PGHOST").split(",")]
        ports = given("port", "PGPORT").split(",")
        service = given("service", "PGSERVICE")
        # A service's file may name the port and the database.
        default_port, default_name = ("", "") if service else ("5432", given("user", "PGUSER"))
        servers = {f"{host}:{port or default_port}" for host, port in zip(hosts, itertools.cycle(ports), strict=False)}
        others = [value for value in (given("hostaddr", "PGHOSTADDR"), service) if value]
        return "/".join([*others, ",".join(sorted(servers)), given("dbname", "PGDATABASE") or default_name])

    def with_secrets(self) -> str:
        """Return the URL with its secrets, for a library that connects by itself."""
        url = self.url.set(password=self.secrets.get("password"))
        options = {name: secret for name, secret in self.secrets.items() if name != "password"}
        return url.update_query_dict(options).render_as_string(hide_password=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the secrets out of a pickle; the copy takes the password from PGPASSWORD or ~/.pgpass."""
        return {"url": self.url, "secrets": {}}


def database_address(settings: StorageSettings, work: Path) -> Address:
    """Return the database that the settings name, by default `<work>/studies.db`.

    Raises:
        ConfigurationError: an invalid URL, an unsupported database, an unreadable password file.
    """
    if settings.url is None:
        return Address(URL.create("sqlite", database=str(WorkFolder(work).database)))
    url = _parsed(settings.url.get_secret_value().strip())
    if url.drivername in SQLITE_SCHEMES:
        return _sqlite_address(url)
    if url.drivername not in POSTGRES_SCHEMES:
        raise ConfigurationError("this database cannot hold a study", got=url.drivername, allowed=ALLOWED)
    options = {name: value for name, value in url.query.items() if name not in REPEATED_OPTIONS}
    for name, given in options.items():
        if not isinstance(given, str):
            message = f"storage.url gives {name} {len(given)} times"
            raise ConfigurationError(message, hint=f"give it once there, or {HINT}")
    secrets: dict[str, str] = {name: str(options[name]) for name in SECRET_OPTIONS if name in options}
    password = _given_password(settings)
    if password is not None or url.password is not None:
        secrets["password"] = str(url.password) if password is None else password
    if "\0" in secrets.get("password", ""):
        raise ConfigurationError("the database's password contains a NUL byte, which PostgreSQL cannot take", hint=HINT)
    query: dict[str, Any] = {**url.difference_update_query(SECRET_OPTIONS).query}
    host, port = url.host, url.port
    if (socket_folder := unquote(host or "")).startswith("/"):  # as libpq takes one; SQLAlchemy takes it as an option
        query |= {"host": socket_folder} | ({"port": str(port)} if port else {})
        host, port = None, None
    url = URL.create("postgresql+psycopg2", url.username, None, host, port, url.database, query)
    _connect_options(url)
    return Address(url, secrets)


def check_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Reject an SQLite file on a network file system, where its locks do not work.

    Raises:
        ConfigurationError: the file is on nfs, cifs, fuse or similar.
    """
    kind = _file_system(real_path(path), mounts)
    if kind in NETWORK_FILE_SYSTEMS or (kind.startswith("fuse.") and kind not in LOCAL_FUSE):
        message = f"an SQLite study cannot be on a network file system ({kind}), whose locks do not work"
        hint = "put it on a local disk, or share the study on PostgreSQL: storage.url postgresql+psycopg2://…"
        raise ConfigurationError(message, got=str(path), hint=hint)


def check_sqlite_file(path: Path, *, create: bool) -> None:
    """Reject a missing SQLite file, or create it.

    Raises:
        ConfigurationError: the file is missing, no file, or on a network file system, or it cannot be created.
    """
    check_file_system(path)
    if exists(path):  # asked first, since another process may be about to create it
        if is_file(path):
            return
        # SQLite would wait for the lock of a device forever.
        raise ConfigurationError("the database is not a file", got=str(path), hint="name another in storage.url")
    if not create:
        raise no_database(path)
    with explain_os_errors("the database cannot be used", path, kind=ConfigurationError):
        make_folder(path.parent)
        os.close(open_private(path))


def _file_system(path: Path, mounts: Path) -> str:
    """Return the type of the file system that a path is on, `""` if unknown."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], base=8)), before.split()[4]))
        # A later mount on the same point hides an earlier one.
        if (point == path or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _parsed(text: str) -> URL:
    # Never show the text: if it cannot be parsed, any part of it may be the password.
    message = "storage.url cannot be parsed"
    try:
        url = make_url(text)
    except Exception:  # noqa: BLE001 - whatever the parser says quotes the URL, and with it the password
        raise ConfigurationError(message, allowed=ALLOWED, hint=f"{ENCODE}, or {HINT}") from None
    if "\0" in text or "%00" in text:
        raise ConfigurationError(f"{message}: it contains a NUL byte", allowed=ALLOWED)
    if url.drivername in POSTGRES_SCHEMES and _is_ambiguous(text, url):
        message = "storage.url contains more than one @"
        raise ConfigurationError(message, hint=f"{ENCODE}, or {HINT}")
    return url


def _connect_options(url: URL) -> dict[str, Any]:
    """Return what the driver makes of a PostgreSQL URL."""
    try:
        return dict(url.get_dialect()().create_connect_args(url)[1])
    except (SQLAlchemyError, ValueError):  # whose texts quote the URL's options
        message = "storage.url has hosts or ports that do not fit together"
        raise ConfigurationError(message, allowed="?host=A,B&port=1,2, with as many ports as hosts") from None


def _is_ambiguous(text: str, url: URL) -> bool:
    """Return whether an @ may belong to the password, unlike one in the value of an option after the database."""
    head, _, options = text.partition("?")
    has_database = head.partition("://")[2].count("/") > 0
    if has_database and all("=" in option for option in options.split("&") if "@" in option):
        return head.count("@") > 1 or "@" in (url.host or "")
    return text.count("@") > 1


def _sqlite_address(url: URL) -> Address:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        message = "a study needs a database file"
        raise ConfigurationError(message, got=f"sqlite:///{url.database or ''}", allowed="sqlite:///FILE")
    if url.query:
        message = "the URL of an SQLite file takes no options"
        raise ConfigurationError(message, got=", ".join(url.query), allowed="sqlite:///FILE")
    try:
        path = Path(url.database).expanduser()
    except RuntimeError:  # unknown user
        message = "the home folder of storage.url cannot be found"
        raise ConfigurationError(message, got=url.database, hint="write the path out, or as ./~name") from None
    return Address(URL.create("sqlite", database=str(path.absolute())))


def _given_password(settings: StorageSettings) -> str | None:
    if settings.password is not None:
        return settings.password.get_secret_value()
    if settings.password_file is None:
        return None
    try:
        text = settings.password_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"storage.password_file cannot be read ({reason})"
        raise ConfigurationError(message, got=str(settings.password_file)) from None
    return text.removesuffix("\n").removesuffix("\r")
