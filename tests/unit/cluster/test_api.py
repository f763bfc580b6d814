"""What the API server's errors become, with a server that answers as configured."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from csi_job.cluster.api import Cluster, UnreachableError
from csi_job.errors import ClusterError


@dataclass
class Server:
    """Gives every request the same answer."""

    status: int = 200
    body: str = "{}"
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    configured = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            configured.requests.append(f"{self.command} {self.path.partition('?')[0]}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(configured.status)
            self.end_headers()
            self.wfile.write(configured.body.encode())

        do_GET = do_PATCH = do_DELETE = answer  # noqa: N815 - the server's names

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=listening.serve_forever, daemon=True).start()
    _use(f"http://127.0.0.1:{listening.server_port}", tmp_path / "kubeconfig", monkeypatch)
    yield configured
    listening.shutdown()
    listening.server_close()


def _use(url: str, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a server the one of the kubeconfig."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "here"}}
    clusters, users = [{"name": "c", "cluster": {"server": url}}], [{"name": "u", "user": {}}]
    config = {"clusters": clusters, "users": users, "contexts": [context], "current-context": "c"}
    kubeconfig.write_text(yaml.safe_dump(config))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))


def test_a_server_error_gives_the_servers_reason(server: Server) -> None:
    server.status, server.body = 500, json.dumps({"message": 'duplicate entries for key [name="A"]'})
    with pytest.raises(UnreachableError, match=r"status 500: duplicate entries for key \[name=\"A\"\]"):
        Cluster("here").apply({"kind": "Job", "metadata": {"name": "r"}})


@pytest.mark.parametrize("body", ["<html>no</html>", "", "[]", '"text"'])
def test_an_answer_that_is_not_from_kubernetes_is_described_by_its_status(server: Server, body: str) -> None:
    server.status, server.body = 503, body
    with pytest.raises(UnreachableError, match="status 503: Service Unavailable"):
        Cluster("here").patch("Job", "r", {})


def test_patching_or_deleting_a_missing_job_is_no_error(server: Server) -> None:
    server.status, server.body = 404, json.dumps({"message": "not found"})
    cluster = Cluster("here")
    assert not cluster.patch("Job", "r", {"spec": {}})
    cluster.delete("Job", "r")
    path = "/apis/batch/v1/namespaces/here/jobs/r"
    assert server.requests == [f"PATCH {path}", f"DELETE {path}"]
    server.status = 200
    assert cluster.patch("Job", "r", {"spec": {}})
    server.status = 422
    with pytest.raises(ClusterError, match="the API server rejected the request: not found"):
        cluster.patch("Job", "r", {"spec": {}})


def test_a_pod_reads_from_itself_without_permission(server: Server) -> None:
    into, me = io.BytesIO(), socket.gethostname()
    Cluster("here").read_from(me, ["sh", "-c", "echo one; echo two"], into.write, idle_timeout_s=1)
    assert into.getvalue() == b"one\ntwo\n"
    with pytest.raises(ClusterError, match="no such study"):
        Cluster("here").read_from(me, ["sh", "-c", "echo no such study >&2; exit 2"], into.write, idle_timeout_s=1)
    assert server.requests == []


@pytest.mark.parametrize("body", ["<html>log in</html>", "[]"])
def test_a_reply_that_is_not_from_kubernetes_is_retried(server: Server, body: str) -> None:
    server.body = body
    with pytest.raises(UnreachableError, match="reply is not JSON"):
        Cluster("here").get("ConfigMap", "r-stages")
