"""TLS options in the URL reach the driver; a wrong one is a configuration error of one line.

The embedded PostgreSQL is built without TLS, so a proxy in front of it speaks TLS as PostgreSQL does
(https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL).
"""

import contextlib
import socket
import ssl
import threading

import pytest
import trustme
from sqlalchemy.engine import make_url

from csi_job.errors import ConfigurationError
from csi_job.storage.storage import open_storage
from tests.support.studies import define, storage_settings

HOST = "127.0.0.1"


class Proxy:
    """Accepts connections, with TLS if it has a certificate, and forwards them to the server."""

    def __init__(self, upstream, context):
        self.upstream, self.context = upstream, context
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.num_secure = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client):
        with contextlib.suppress(OSError), client, socket.socket(socket.AF_UNIX) as server:
            client.recv(8)  # SSLRequest
            client.sendall(b"S" if self.context else b"N")
            if self.context:
                client = self.context.wrap_socket(client, server_side=True)
                self.num_secure += 1
            server.connect(self.upstream)
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()
            _copy(client, server)


def _copy(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def secure(server, authority):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(context)
    proxy = Proxy(f"{server.own_data()}/.s.PGSQL.5432", context)
    yield proxy
    proxy.listener.close()


def through(url, proxy, **options):
    query = {"gssencmode": "disable", **options}
    return make_url(url).set(host=HOST, port=proxy.port, query=query).render_as_string(hide_password=False)


def test_a_study_is_created_over_tls_with_a_verified_certificate(secure, authority, postgres_url, tmp_path):
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    url = through(postgres_url, secure, sslmode="verify-full", sslrootcert=str(tmp_path / "root.pem"))
    storage = open_storage(storage_settings(url), tmp_path, create=True)
    assert define(storage).study_name == "toy"
    assert secure.num_secure >= 1
    storage.close()


def test_a_certificate_of_another_authority_is_rejected_with_one_line(secure, postgres_url, tmp_path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    url = through(postgres_url, secure, sslmode="verify-ca", sslrootcert=str(tmp_path / "other.pem"))
    _check_rejected(url, tmp_path, "certificate verify failed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sslmode": "verify-full", "sslrootcert": "/none.pem"}, "/none.pem"),
        ({"sslmode": "perhaps"}, "sslmode"),
        ({"sslmode": "require", "sslcert": "/etc/hosts", "sslkey": "/etc/hosts"}, "/etc/hosts"),  # no certificate
    ],
)
def test_an_impossible_tls_setting_is_rejected_with_one_line(secure, postgres_url, tmp_path, options, words):
    _check_rejected(through(postgres_url, secure, **options), tmp_path, words)


def test_a_server_without_tls_is_rejected_if_tls_is_required(server, postgres_url, tmp_path):
    plain = Proxy(f"{server.data}/.s.PGSQL.5432", None)
    _check_rejected(through(postgres_url, plain, sslmode="require"), tmp_path, "does not support SSL")
    plain.listener.close()


def _check_rejected(url, work, words):
    with pytest.raises(ConfigurationError) as error:
        open_storage(storage_settings(url), work, create=True)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
