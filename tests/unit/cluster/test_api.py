import io
import json
import re
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import urllib3
import yaml

from csi_job.cluster.api import (
    UNAUTHORIZED,
    AlreadyExistsError,
    Cluster,
    NotAllowedError,
    NotYetError,
    ServerClock,
    UnreachableError,
    _of_connection,
)
from csi_job.cluster.pods import is_lost
from csi_job.errors import ClusterError


@dataclass
class Server:
    """Gives every request the same answer."""

    status: int = 200
    body: str = "{}"
    ahead: timedelta = timedelta()
    requests: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    configured = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            path, _, query = self.path.partition("?")
            configured.requests.append(f"{self.command} {path}")
            configured.queries.append(query)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(configured.status)
            self.send_header("Content-Length", str(len(configured.body)))
            self.end_headers()
            self.wfile.write(configured.body.encode())

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(timestamp or time.time() + configured.ahead.total_seconds())

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815 - the server's names

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


@pytest.mark.parametrize(
    ("status", "reply", "kind"),
    [
        (500, {"message": "failed to create typed patch object (here/r): .env: duplicate entries"}, ClusterError),
        (500, {"message": "failed to convert new object (here/r; batch/v1) to proper version: no"}, ClusterError),
        (500, {"message": "etcdserver: leader changed"}, UnreachableError),
        (500, {"message": "failed calling webhook: connection refused", "reason": "InternalError"}, UnreachableError),
        (500, {"message": 'failed calling webhook "a": service "w" not found', "reason": "InternalError"}, NotYetError),
        (500, {"message": 'failed calling webhook "a": tls: x509: unknown authority'}, NotYetError),
        (503, {"message": "apiserver is shutting down"}, UnreachableError),
        (429, {"message": "too many requests"}, UnreachableError),
        (409, {"message": "the object has been modified", "reason": "Conflict"}, UnreachableError),
        (409, {"message": 'jobs.batch "r" already exists', "reason": "AlreadyExists"}, AlreadyExistsError),
        (422, {"message": 'Job.batch "r" is invalid: spec.template.spec: no'}, ClusterError),
        (403, {"message": 'pods "r" is forbidden: no PriorityClass with name p was found'}, ClusterError),
        (403, {"message": 'jobs is forbidden: User "u" cannot patch resource "jobs"'}, NotAllowedError),
        (401, {"message": "Unauthorized"}, NotAllowedError),
    ],
)
def test_an_answer_is_an_outage_only_if_a_retry_can_mend_it(server, status, reply, kind):
    server.status, server.body = status, json.dumps(reply)
    with pytest.raises(ClusterError, match=re.escape(reply["message"])) as raised:
        Cluster("here").apply({"kind": "Job", "metadata": {"name": "r"}})
    assert type(raised.value) is kind
    says = str(raised.value)
    assert ("an admission webhook does not answer" in says) is ("webhook: " in says and kind is UnreachableError)
    assert ("log in again" in says) is (status == UNAUTHORIZED)
    assert ("ask an administrator of the cluster to repair that webhook" in says) is ("webhook" in reply["message"])
    assert ("; if that lasts, ask" in says) is ("webhook: " in says and kind is UnreachableError)


@pytest.mark.parametrize("kubeconfig", ["", "kubeconfig", "missing"])
def test_a_kubeconfig_that_is_named_comes_before_the_account_of_a_pod(tmp_path, monkeypatch, kubeconfig):
    """As in kubectl; a notebook or a runner of a pipeline is a pod, too, maybe of another cluster."""
    _use("https://127.0.0.1:1", tmp_path / "kubeconfig", monkeypatch)
    (tmp_path / "namespace").write_text("runners")
    monkeypatch.setattr("csi_job.cluster.api.NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", kubeconfig)  # at import it gave the default location, which `_use` has set
    assert Cluster().namespace == ("here" if kubeconfig == "kubeconfig" else "runners")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("clusters: [", "no cluster is configured (while parsing a flow node"),
        ("- a list", "no cluster is configured ("),
        ("{}", "no cluster is configured ("),
        ({"certificate-authority-data": "a"}, "no cluster is configured (Invalid base64"),
        ({"proxy-url": "gopher://p"}, "Proxy URL had unsupported scheme gopher"),
        ({"proxy-url": "socks5://p:1"}, "the proxy of the API server needs a package"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:SOCKS support")
def test_an_unusable_kubeconfig_is_one_line(tmp_path, monkeypatch, config, message):
    path = tmp_path / "kubeconfig"
    _use("https://127.0.0.1:1", path, monkeypatch)
    monkeypatch.setitem(sys.modules, "socks", None)
    if isinstance(config, str):
        path.write_text(config)
    else:
        content = yaml.safe_load(path.read_text())
        content["clusters"][0]["cluster"] |= config
        path.write_text(yaml.safe_dump(content))
    with pytest.raises(ClusterError, match=f"^.*{re.escape(message)}.*$"):
        Cluster("here")


def test_a_refused_websocket_is_an_answer(server):
    message = 'pods "p" is forbidden: User "u" cannot create resource "pods/exec" in API group ""'
    server.status, server.body = 403, json.dumps({"message": message})
    with pytest.raises(NotAllowedError, match=f"rejected the request: {re.escape(message)}$"):
        Cluster("here").read_from("p", "c", ["true"], io.BytesIO().write, idle_timeout_s=1)
    assert "container=c" in server.queries[-1].split("&")  # needed where a webhook has added another
    server.status, server.body = 503, ""
    with pytest.raises(UnreachableError, match=r"not available \(status 503: Service Unavailable\)"):
        Cluster("here").read_from("p", "c", ["true"], io.BytesIO().write, idle_timeout_s=1)


READ = {"pod": "p", "container": "c", "command": ["true"], "write": print, "idle_timeout_s": 1}


@pytest.mark.parametrize(("method", "arguments"), [("read_from", READ), ("find", {"kind": "Pod"})])
def test_a_connection_that_fails_is_an_outage_with_its_reason(tmp_path, monkeypatch, method, arguments):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        _use(f"http://127.0.0.1:{closed.getsockname()[1]}", tmp_path / "kubeconfig", monkeypatch)
        with pytest.raises(
            UnreachableError, match=r"cannot be reached \(.*Connection refused.*\); see: kubectl cluster"
        ):
            getattr(Cluster("here"), method)(**arguments)


@pytest.mark.parametrize(("method", "arguments"), [("read_from", READ), ("find", {"kind": "Pod"})])
def test_a_tls_handshake_that_is_cut_off_is_an_outage(tmp_path, monkeypatch, method, arguments):
    """As a load balancer does whose server is away."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cut_off():
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    client.recv(1 << 16)
                    client.close()

        Thread(target=cut_off, daemon=True).start()
        _use(f"https://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "kubeconfig", monkeypatch)
        with pytest.raises(UnreachableError, match=r"cannot be reached \(.*EOF"):
            getattr(Cluster("here"), method)(**arguments)


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("certificate is not yet valid", "correct this machine's clock, or renew the certificate"),
        ("certificate has expired", "correct this machine's clock, or renew the certificate"),
        ("self-signed certificate", "see: kubectl cluster-info"),
    ],
)
@pytest.mark.parametrize("is_known", [False, True])
def test_a_certificate_that_is_rejected_is_no_outage_unless_the_server_has_answered_before(reason, hint, is_known):
    """By a node whose clock is wrong, for example."""
    failed = ssl.SSLCertVerificationError(1, f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {reason}")
    error = _of_connection(urllib3.exceptions.SSLError(failed), is_known=is_known)
    assert type(error) is (UnreachableError if is_known else ClusterError)
    assert str(error) == f"the API server cannot be reached ({reason}); {hint}"


@pytest.mark.parametrize(("method", "arguments"), [("read_from", READ), ("find", {"kind": "Pod"})])
def test_a_server_that_has_answered_may_get_another_authority(server, monkeypatch, method, arguments):
    """As in a rotation of the cluster's authority, during which the controller ended for good."""
    server.body = '{"items": []}'
    rejected = ssl.SSLCertVerificationError(
        1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed"
    )

    def refuse(*_, **__):
        raise urllib3.exceptions.SSLError(rejected) if method == "find" else rejected

    for has_answered, kind in ((False, ClusterError), (True, UnreachableError)):
        cluster = Cluster("here")
        with monkeypatch.context() as patched:
            if has_answered:
                cluster.find("Pod")
            patched.setattr("urllib3.PoolManager.request", refuse)
            patched.setattr("websocket.WebSocket.connect", refuse)
            with pytest.raises(ClusterError, match="self-signed") as raised:
                getattr(cluster, method)(**arguments)
        assert type(raised.value) is kind


@pytest.mark.parametrize("body", ["<html>no</html>", "", "[]", '"text"'])
def test_an_answer_that_is_not_from_kubernetes_is_described_by_its_status(server, body):
    server.status, server.body = 503, body
    with pytest.raises(UnreachableError, match="status 503: Service Unavailable"):
        Cluster("here").patch("Job", "r", {})
    server.status = 404
    cluster = Cluster("here")
    with pytest.raises(ClusterError, match=r"reply is not Kubernetes's \(Not Found\)") as caught:
        cluster.get("ConfigMap", "r-stages")
    assert type(caught.value) is ClusterError
    server.status, server.body = 200, "{}"
    cluster.get("ConfigMap", "r-stages")
    server.status, server.body = 404, body
    with pytest.raises(UnreachableError, match="status 404: Not Found"):
        cluster.get("ConfigMap", "r-stages")


def test_patching_or_deleting_a_missing_job_is_no_error(server):
    server.status, server.body = 404, json.dumps({"message": "not found", "reason": "NotFound"})
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


@pytest.mark.parametrize(
    ("status", "reason", "verbs"),
    [(409, "AlreadyExists", ["POST", "PATCH"]), (403, "Forbidden", ["POST"]), (503, "", ["POST"])],
)
def test_a_recurring_event_is_recorded_again_only_if_it_exists(server, status, reason, verbs):
    """While the API server is away, a second request would only wait for it twice."""
    server.status, server.body = status, json.dumps({"message": "no", "reason": reason})
    Cluster("here").record_event({"name": "r"}, "Waiting", "it waits", key="d", is_recurring=True)
    assert [request.split()[0] for request in server.requests] == verbs


def test_a_pod_reads_from_itself_without_permission(server):
    into, me = io.BytesIO(), socket.gethostname()
    Cluster("here").read_from(me, "c", ["sh", "-c", "echo one; echo two"], into.write, idle_timeout_s=1)
    assert into.getvalue() == b"one\ntwo\n"
    with pytest.raises(ClusterError, match="no such study"):
        Cluster("here").read_from(me, "c", ["sh", "-c", "echo no such study >&2; exit 2"], into.write, idle_timeout_s=1)
    assert server.requests == []


@pytest.mark.parametrize("body", ["<html>log in</html>", "[]"])
def test_a_reply_that_is_not_from_kubernetes_is_refused(server, body):
    server.body = body
    with pytest.raises(ClusterError, match="reply is not JSON"):
        Cluster("here").get("ConfigMap", "r-stages")


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1), timedelta()])
def test_ages_go_by_the_servers_clock(server, monkeypatch, ahead):
    """By its own, a controller takes a pod within its grace for lost and starts a second Job, or waits forever."""
    monkeypatch.setattr(ServerClock, "_ahead", timedelta())
    server.ahead, server.body = ahead, '{"items": []}'
    Cluster("here").find("Pod")
    pods = [
        {"metadata": {"deletionTimestamp": f"{datetime.now(UTC) + ahead - timedelta(seconds=s)}"}} for s in (20, 40)
    ]
    assert list(map(is_lost, pods)) == [False, True]
    for date in ("yesterday", "Fri, 27 Nov 2026 03:00:00 -0000"):  # as a proxy may date its answers
        ServerClock.synchronize(date)
    assert list(map(is_lost, pods)) == [False, True]
