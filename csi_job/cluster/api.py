"""One namespace of a cluster, through Kubernetes' dynamic client; every error is one line."""

import http.client
import json
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, Final

import urllib3
import websocket
import yaml
from kubernetes import client, config, dynamic
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from csi_job.errors import ClusterError
from csi_job.files import digest_json, is_file

Object = dict[str, Any]  # as in YAML
Write = Callable[[bytes], object]
GROUPS: Final = {"Job": "batch", "StatefulSet": "apps"}
FIELD_MANAGER: Final = "csi-job-controller"
UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
SERVER_ERROR: Final = 500
# What a retry can cure, besides most codes from 500: a timeout, and too many requests.
RETRIABLE: Final = frozenset({408, 429})
# A role or binding is missing; admission answers with the same code for an object that it refuses.
NO_PERMISSION: Final = re.compile(r"User .* cannot \w+ resource")
# So it answers 500 to an object with a wrong type or an unknown field.
UNREADABLE: Final = re.compile(r"failed to (create typed|convert|decode)|unable to (convert|decode)")
# Of a TLS handshake, e.g. by a load balancer whose server is away; the second form is of Python before 3.11.4.
CUT_OFF: Final = re.compile(r"EOF occurred|closed \(EOF\)")
CERTIFICATE_TIME: Final = re.compile("certificate (is not yet valid|has expired)")
WEBHOOK_DOWN: Final = "failed calling webhook"
# So a webhook fails whose service is gone or whose certificate is wrong, until an administrator repairs it.
WEBHOOK_BROKEN: Final = re.compile(rf'{WEBHOOK_DOWN}.*(service "[^"]*" not found|x509: |no such host|no service port)')
REPAIR: Final = "ask an administrator of the cluster to repair that webhook"
# What the client raises for a kubeconfig that is missing, is no YAML, or has something else in a field's place.
UNUSABLE: Final = (config.ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError)
TIMEOUT_S: Final = 30
CLOCK_TOLERANCE: Final = timedelta(seconds=5)
STDOUT, STDERR, STATUS = 1, 2, 3  # channels of an exec connection
NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POD_VARIABLE: Final = "POD_NAME"  # of the controller's pod, whose host name is another; set by the chart
JSON_MERGE: Final = "application/merge-patch+json"
MAX_EVENT_LENGTH: Final = 1024  # of its message, by Kubernetes

_dynamic: Any = dynamic  # which has no types


class UnreachableError(ClusterError):
    """The API server does not answer at the moment."""


class NotAllowedError(ClusterError):
    """The user lacks the right to do this."""


class NotYetError(ClusterError):
    """The cluster lacks something that is needed, and that may come."""


class NotFoundError(ClusterError):
    """The object does not exist."""


class AlreadyExistsError(ClusterError):
    """There is an object with this name."""


class ServerClock:
    """The API server's clock, by which ages are measured: that of a node or laptop may differ by minutes."""

    _ahead: ClassVar[timedelta] = timedelta()  # of this machine's clock

    @classmethod
    def now(cls) -> datetime:
        """Return its time."""
        return datetime.now(UTC) + cls._ahead

    @classmethod
    def synchronize(cls, date: str) -> None:
        """Set it by the `Date` of an answer; whole seconds and the way here make small differences meaningless."""
        with suppress(ValueError, TypeError):  # a proxy may answer anything
            ahead = parsedate_to_datetime(date) - datetime.now(UTC)
            cls._ahead = ahead if abs(ahead) > CLOCK_TOLERANCE else timedelta()


class Cluster:
    """The API server as seen from one namespace; objects are plain dictionaries."""

    def __init__(self, namespace: str | None = None) -> None:
        """Connect from within a pod or by the kubeconfig; to its namespace by default."""
        self._has_answered = False
        try:
            load: Any = config.load_incluster_config if _uses_pods_account() else config.load_kube_config
            load()
            self.namespace = namespace or _default_namespace()
            # Discovery would take some 20 requests and a cache file to find the few kinds that `_request` knows.
            self._client = _dynamic.DynamicClient(client.ApiClient(), discoverer=lambda *_: None)
        except ImportError as error:  # of PySocks, for a proxy of the kubeconfig or of HTTPS_PROXY
            message = f"the proxy of the API server needs a package ({error})"
            raise ClusterError(message, hint="pip install pysocks, or use an HTTP proxy") from None
        except UNUSABLE as error:
            is_misplaced = isinstance(error, (TypeError, AttributeError, KeyError))
            reason = "a field of the kubeconfig is missing or wrong" if is_misplaced else " ".join(str(error).split())
            raise ClusterError(
                f"no cluster is configured ({reason})", hint="set KUBECONFIG, or run this within a pod"
            ) from None

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object, None if it does not exist."""
        with suppress(NotFoundError):
            return self._request("get", kind, name=name)
        return None

    def find(self, kind: str, labels: Mapping[str, str] | None = None) -> list[Object]:
        """Return the objects with these labels."""
        selector = ",".join(f"{name}={value}" for name, value in (labels or {}).items())
        return list(self._request("get", kind, label_selector=selector)["items"])

    def jobs(self, labels: Mapping[str, str]) -> list[Object]:
        """Return the Jobs with these labels, oldest first, without those being deleted."""
        jobs = [job for job in self.find("Job", labels) if "deletionTimestamp" not in job["metadata"]]
        return sorted(jobs, key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["name"]))

    def events(self, kind: str, name: str) -> list[Object]:
        """Return what was reported about an object, in no order; what a reporter left out is empty."""
        selector = f"involvedObject.kind={kind},involvedObject.name={name}"
        found = self._request("get", "Event", field_selector=selector)["items"]
        return [{"type": "", "reason": "", "message": "", **event} for event in found]

    def record_event(
        self,
        about: Mapping[str, Any],
        reason: str,
        message: str,
        *,
        key: str,
        is_warning: bool = False,
        is_recurring: bool = False,
    ) -> None:
        """Record what happens to an object, which `kubectl events` shows; one that can't be recorded is lost.

        `about` refers to the object, `reason` is a word in CamelCase; with a message it is recorded once per `key`. If
        it `is_recurring`, that record gets the time at which it was last seen.
        """
        name = f"{about['name']}.{digest_json([key, reason, message])[:16]}"
        now = f"{ServerClock.now():%Y-%m-%dT%H:%M:%SZ}"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name},
            "involvedObject": {**about, "namespace": self.namespace},
            "reason": reason,
            "message": message[:MAX_EVENT_LENGTH],
            "type": "Warning" if is_warning else "Normal",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": FIELD_MANAGER},
        }
        with suppress(ClusterError):
            try:
                self.create(event)
            except AlreadyExistsError:
                if is_recurring:
                    self.patch("Event", name, {"lastTimestamp": now})

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> None:
        """Create an object, or change it to what the manifest says, by server-side apply."""
        options = {"field_manager": FIELD_MANAGER, "force_conflicts": True, **_dry_run(dry_run)}
        self._request("server_side_apply", manifest["kind"], body=manifest, **options)

    def create(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> None:
        """Create an object."""
        self._request("create", manifest["kind"], body=manifest, **_dry_run(dry_run))

    def patch(self, kind: str, name: str, patch: Mapping[str, Any]) -> bool:
        """Change some fields of an object in one step; return False if it no longer exists."""
        options = {"field_manager": FIELD_MANAGER, "content_type": JSON_MERGE}
        with suppress(NotFoundError):
            self._request("patch", kind, name=name, body=patch, **options)
            return True
        return False

    def delete(self, kind: str, name: str) -> None:
        """Delete an object, if it exists; the pods of a Job get SIGTERM."""
        with suppress(NotFoundError):
            self._request("delete", kind, name=name, propagation_policy="Background")

    def _request(self, verb: str, kind: str, **arguments: Any) -> Object:
        group = GROUPS.get(kind, "")
        resource = _dynamic.Resource(
            prefix="apis" if group else "api",
            group=group,
            api_version="v1",
            kind=kind,
            name=f"{kind.lower()}s",
            namespaced=kind != "Node",
            client=self._client,
        )
        plain = {"serialize": False, "_request_timeout": TIMEOUT_S}
        with _one_line_errors(is_known=self._has_answered):
            answer = getattr(resource, verb)(namespace=self.namespace, **plain, **arguments)
        reply = _json(answer.data)
        if reply is None:  # e.g. the login page of a proxy
            raise ClusterError("the API server's reply is not JSON", hint="see: kubectl cluster-info")
        self._has_answered = True
        if date := answer.headers.get("Date"):
            ServerClock.synchronize(date)
        return reply

    def read_from(self, pod: str, container: str, command: list[str], write: Write, *, idle_timeout_s: float) -> None:
        """Run a command in a pod, which may be this one, and pass each piece of its standard output to `write`.

        The container has to be named where a webhook has added its own.

        Raises:
            ClusterError: the command failed, or gave no output for `idle_timeout_s`.
        """
        if pod == os.environ.get(POD_VARIABLE, socket.gethostname()):  # which needs no right to run its own commands
            _run_here(command, write)
            return
        core: Any = client.CoreV1Api(self._client.client)
        captured = {STDERR: b"", STATUS: b""}
        with _one_line_errors(is_known=self._has_answered):
            connection: Any = stream(
                core.connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                container=container,
                command=command,
                stdout=True,
                stderr=True,
                binary=True,
                _preload_content=False,
            )
            connection.sock.settimeout(idle_timeout_s)
            try:
                for channel, data in _frames(connection.sock):
                    if channel == STDOUT:
                        write(data)
                    elif channel in captured:
                        captured[channel] += data
            except websocket.WebSocketException as error:
                raise ClusterError(f"the connection to the pod {pod} was lost ({type(error).__name__})") from None
            finally:
                connection.close()
        if json.loads(captured[STATUS] or b"{}").get("status") != "Success":
            text = captured[STDERR].decode(errors="replace").strip()
            raise ClusterError(f"reading from the pod {pod} failed: {text or 'the connection was lost'}")


@contextmanager
def _one_line_errors(*, is_known: bool) -> Iterator[None]:
    """Turn the client's exceptions into `ClusterError`, or `UnreachableError` if a retry may help.

    It may also for a rejected certificate if the server `is_known`, having answered before: its authority is being
    replaced, which a pod reads again for each connection, or its certificate renewed.
    """
    try:
        yield
    except ApiException as error:
        raise _of_answer(error, is_known=is_known) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _of_connection(error, is_known=is_known) from None


def _of_connection(error: BaseException, *, is_known: bool) -> ClusterError:
    """Return the error of a connection that failed; a certificate rejected from the first is not worth a retry."""
    while (cause := getattr(error, "reason", None)) is not None and isinstance(cause, BaseException):
        error = cause
    is_tls = isinstance(error, urllib3.exceptions.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(error)
    is_refused = is_tls and not is_known and not CUT_OFF.search(str(error))
    kind = ClusterError if is_refused else UnreachableError
    reason = str(error).rpartition(": ")[2] or type(error).__name__
    is_clock = CERTIFICATE_TIME.search(reason)
    hint = "correct this machine's clock, or renew the certificate" if is_clock else "see: kubectl cluster-info"
    return kind(f"the API server cannot be reached ({reason})", hint=hint)


def _of_answer(error: ApiException, *, is_known: bool) -> ClusterError:
    """Return the error that an answer means: an outage if a retry may help, else a refusal."""
    status, cause = int(error.status or 0), error.__context__
    body: bytes | str | None = error.body
    if isinstance(cause, (KeyboardInterrupt, SystemExit)):  # the client turns whatever ends an exec into status 0
        raise cause
    if isinstance(cause, websocket.WebSocketBadStatusException):
        status, body = cause.status_code, cause.resp_body
    elif not status:
        return _of_connection(cause or error, is_known=is_known)
    reply = _json(body) or {}
    message = str(reply.get("message") or http.client.responses.get(status) or "no reason given")
    is_foreign = status == NOT_FOUND and reply.get("reason") != "NotFound"  # of a load balancer whose servers are away
    if (is_foreign and is_known) or _is_outage(status, str(reply.get("reason") or ""), message):
        if WEBHOOK_BROKEN.search(message):
            return NotYetError(message, hint=REPAIR)
        is_webhook = WEBHOOK_DOWN in message
        what = "an admission webhook does not answer" if is_webhook else "the API server is not available"
        hint = f"if that lasts, {REPAIR}" if is_webhook else ""
        return UnreachableError(f"{what} (status {status}: {message})", hint=hint)
    if is_foreign:
        return ClusterError(f"the API server's reply is not Kubernetes's ({message})", hint="see: kubectl cluster-info")
    # Two writers at once are an outage, so that a conflict is one of names here.
    kind = {NOT_FOUND: NotFoundError, CONFLICT: AlreadyExistsError}.get(status, ClusterError)
    if status == UNAUTHORIZED or (status == FORBIDDEN and NO_PERMISSION.search(message)):
        kind = NotAllowedError
    hint = "log in again" if status == UNAUTHORIZED and not _uses_pods_account() else ""  # a pod can't
    return kind(f"the API server rejected the request: {message}", hint=hint)


def _json(body: Any) -> Object | None:
    """Return the body of an answer, None if it is not from Kubernetes: a proxy may answer anything."""
    try:
        reply = json.loads(body or "")
    except ValueError:
        return None
    return reply if isinstance(reply, dict) else None


def _is_outage(status: int, reason: str, message: str) -> bool:
    if status == CONFLICT:  # two writers at once, not an object that exists already
        return reason == "Conflict"
    if status == SERVER_ERROR:
        return not UNREADABLE.search(message)
    return status in RETRIABLE or status > SERVER_ERROR


def _dry_run(wanted: bool) -> dict[str, str]:  # noqa: FBT001 - passed on from the callers' keyword
    return {"dry_run": "All"} if wanted else {}


def _run_here(command: list[str], write: Write) -> None:
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process,  # noqa: S603 - our own command
    ):
        for line in process.stdout or ():
            write(line)
        if process.wait() != 0:
            stderr.seek(0)
            raise ClusterError(stderr.read().decode(errors="replace").strip() or f"exit {process.returncode}")


def _frames(socket: Any) -> Iterator[tuple[int, bytes]]:
    """Yield channel and content of each frame; the client's own reader copies everything received for each frame."""
    while True:
        code, frame = socket.recv_data_frame(True)
        if code == websocket.ABNF.OPCODE_CLOSE:
            return
        if code in (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_TEXT) and frame.data:
            yield frame.data[0], frame.data[1:]


def _uses_pods_account() -> bool:
    """Return whether this is a pod with an account, and nobody names a cluster: a notebook or a runner may be one."""
    named = filter(None, os.environ.get("KUBECONFIG", "").split(os.pathsep))
    return is_file(NAMESPACE_FILE) and not any(is_file(Path(path)) for path in named)


def _default_namespace() -> str:
    if _uses_pods_account():
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    try:
        contexts: Any = config.list_kube_config_contexts
        _, active = contexts()
    except config.ConfigException:
        return "default"
    return str(active["context"].get("namespace") or "default")
