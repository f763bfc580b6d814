"""One namespace of a cluster, through the Kubernetes client; its refusals become errors of one line."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import urllib3
import websocket
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from csi_job.errors import ClusterError

Given = ParamSpec("Given")
Answer = TypeVar("Answer")
OWNER = "csi-job-controller"  # the field manager of everything that is applied here
NOT_FOUND = 404
FORBIDDEN = 403
TIMEOUT_S = 30
STDOUT, STDERR, STATUS = 1, 2, 3  # channels of an exec connection
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


class Sink(Protocol):
    """What takes bytes: a file, or something that looks at them as they come."""

    def write(self, data: bytes, /) -> object:
        """Take some."""


class UnreachableError(ClusterError):
    """The API server does not answer just now."""


class NotAllowedError(ClusterError):
    """The user has no right to what was asked for."""


def _one_line(method: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """Turn the client's exceptions into `ClusterError`, and an API server that is away into `UnreachableError`."""

    @functools.wraps(method)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
        try:
            return method(*args, **kwargs)
        except ApiException as error:
            raise _refusal(error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            message = f"the API server cannot be reached ({type(error).__name__})"
            raise UnreachableError(message, hint="see: kubectl cluster-info") from None

    return call


def _refusal(error: ApiException) -> ClusterError:
    status = int(error.status or 0)
    if status in {0, 429} or status >= 500:  # noqa: PLR2004 - HTTP's own numbers
        return UnreachableError(f"the API server does not answer just now (status {status}: {_said(error)})")
    kind = NotAllowedError if status == FORBIDDEN else ClusterError
    return kind(f"the API server refuses: {_said(error)}")


def _said(error: ApiException) -> str:
    """Return what the API server says of a refusal; a proxy before it may say anything."""
    try:
        body = json.loads(error.body or "{}")
    except ValueError:
        body = None
    message = body.get("message") if isinstance(body, dict) else ""
    return str(message or error.reason or "no reason is given")


def _read_here(command: list[str], into: Sink) -> None:
    with (
        tempfile.TemporaryFile() as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told) as process,  # noqa: S603 - our own command
    ):
        for line in process.stdout or ():
            into.write(line)
        if process.wait() != 0:
            told.seek(0)
            raise ClusterError(told.read().decode(errors="replace").strip() or f"exit {process.returncode}")


class Cluster:
    """The API server as seen from one namespace; objects are plain dictionaries, as in YAML."""

    def __init__(self, namespace: str | None = None) -> None:
        """Connect from within a pod or by the kubeconfig.

        Args:
            namespace: default: the pod's own, or that of the kubeconfig's context.

        Raises:
            ClusterError: there is no configuration.

        """
        try:
            load: Any = config.load_incluster_config if NAMESPACE_FILE.is_file() else config.load_kube_config
            load()
        except (config.ConfigException, OSError) as error:
            raise ClusterError(
                f"no cluster is configured ({error})", hint="set KUBECONFIG, or run this within a pod"
            ) from None
        self.namespace = namespace or _default_namespace()
        self.api: Any = client.ApiClient()
        self._core: Any = client.CoreV1Api(self.api)
        self._batch: Any = client.BatchV1Api(self.api)

    @_one_line
    def config_map(self, name: str) -> dict[str, Any] | None:
        """Return a ConfigMap, None if there is none."""
        found = self._found(self._core.read_namespaced_config_map, name)
        return None if found is None else dict(self._plain(found))

    @_one_line
    def config_maps(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the ConfigMaps with these labels."""
        found = self._core.list_namespaced_config_map(
            self.namespace, label_selector=selector(labels), _request_timeout=TIMEOUT_S
        )
        return list(self._plain(found)["items"])

    @_one_line
    def jobs(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the Jobs with these labels, the oldest first, those being deleted left out."""
        found = self._batch.list_namespaced_job(
            self.namespace, label_selector=selector(labels), _request_timeout=TIMEOUT_S
        )
        jobs = [job for job in self._plain(found)["items"] if "deletionTimestamp" not in job["metadata"]]
        return sorted(jobs, key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["name"]))

    @_one_line
    def apply_job(self, manifest: Mapping[str, Any]) -> None:
        """Create a Job, or make it be as the manifest says, by server-side apply."""
        self._batch.patch_namespaced_job(
            manifest["metadata"]["name"],
            self.namespace,
            manifest,
            field_manager=OWNER,
            force=True,
            _content_type=APPLY,
            _request_timeout=TIMEOUT_S,
        )

    @_one_line
    def patch_job(self, name: str, patch: Mapping[str, Any]) -> bool:
        """Change some fields of a Job in one step; return False where it is gone, which is no error."""
        try:
            self._batch.patch_namespaced_job(
                name, self.namespace, patch, field_manager=OWNER, _content_type=MERGE, _request_timeout=TIMEOUT_S
            )
        except ApiException as error:
            if error.status == NOT_FOUND:
                return False
            raise
        return True

    @_one_line
    def delete_job(self, name: str) -> None:
        """Delete a Job; its pods get SIGTERM. One that is gone is no error."""
        try:
            self._batch.delete_namespaced_job(
                name, self.namespace, propagation_policy="Background", _request_timeout=TIMEOUT_S
            )
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise

    @_one_line
    def pods(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the pods with these labels."""
        found = self._core.list_namespaced_pod(
            self.namespace, label_selector=selector(labels), _request_timeout=TIMEOUT_S
        )
        return list(self._plain(found)["items"])

    @_one_line
    def create_pod(self, manifest: Mapping[str, Any]) -> None:
        """Create a pod."""
        self._core.create_namespaced_pod(self.namespace, manifest, _request_timeout=TIMEOUT_S)

    @_one_line
    def delete_pod(self, name: str) -> None:
        """Delete a pod; one that is gone is no error."""
        try:
            self._core.delete_namespaced_pod(name, self.namespace, _request_timeout=TIMEOUT_S)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise

    @_one_line
    def read_from(self, pod: str, command: list[str], into: Sink, *, silence_s: float) -> None:
        """Run a command in a pod, which may be this one, and write what it prints into a file.

        Args:
            pod: name of the pod.
            command: the command with its arguments.
            into: where its standard output goes, byte by byte.
            silence_s: seconds without output after which this gives up.

        Raises:
            ClusterError: the command failed or fell silent.

        """
        if pod == socket.gethostname():  # to itself a pod needs no right
            _read_here(command, into)
            return
        answer: Any = stream(
            self._core.connect_get_namespaced_pod_exec,
            pod,
            self.namespace,
            command=command,
            stdout=True,
            stderr=True,
            binary=True,
            _preload_content=False,
        )
        answer.sock.settimeout(silence_s)
        told = {STDERR: b"", STATUS: b""}
        try:
            for channel, data in _frames(answer.sock):
                if channel == STDOUT:
                    into.write(data)
                elif channel in told:
                    told[channel] += data
        except websocket.WebSocketException as error:
            raise ClusterError(f"reading from the pod {pod} broke off ({type(error).__name__})") from None
        finally:
            answer.close()
        if json.loads(told[STATUS] or b"{}").get("status") != "Success":
            text = told[STDERR].decode(errors="replace").strip()
            raise ClusterError(f"the pod {pod} could not be read: {text or 'the connection broke off'}")

    @_one_line
    def claim(self, name: str) -> dict[str, Any] | None:
        """Return a claim, None if there is none."""
        found = self._found(self._core.read_namespaced_persistent_volume_claim, name)
        return None if found is None else dict(self._plain(found))

    @_one_line
    def secret_keys(self, name: str) -> set[str] | None:
        """Return the keys of a Secret, but no value; None if there is none.

        Raises:
            NotAllowedError: without the right to read it.

        """
        found = self._found(self._core.read_namespaced_secret, name)
        return None if found is None else set(found.data or {})

    @_one_line
    def quotas(self) -> list[dict[str, Any]]:
        """Return the ResourceQuotas of the namespace."""
        found = self._core.list_namespaced_resource_quota(self.namespace, _request_timeout=TIMEOUT_S)
        return list(self._plain(found)["items"])

    @_one_line
    def nodes(self) -> list[dict[str, Any]] | None:
        """Return the nodes, None without the right to list them."""
        try:
            return list(self._plain(self._core.list_node(_request_timeout=TIMEOUT_S))["items"])
        except ApiException as error:
            if error.status == FORBIDDEN:
                return None
            raise

    def _found(self, read: Callable[..., Any], name: str) -> Any:
        """Return what is read by name, None if there is nothing of this name."""
        try:
            return read(name, self.namespace, _request_timeout=TIMEOUT_S)
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def _plain(self, answer: Any) -> Any:
        return self.api.sanitize_for_serialization(answer)


def _frames(socket: Any) -> Iterator[tuple[int, bytes]]:
    """Yield channel and content of each frame; the client's own reader copies all that came before for every frame."""
    while True:
        code, frame = socket.recv_data_frame(True)
        if code == websocket.ABNF.OPCODE_CLOSE:
            return
        if code in (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_TEXT) and frame.data:
            yield frame.data[0], frame.data[1:]


def selector(labels: Mapping[str, str]) -> str:
    """Return `a=b,c=d`."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _default_namespace() -> str:
    if NAMESPACE_FILE.is_file():
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    try:
        contexts: Any = config.list_kube_config_contexts
        _, active = contexts()
    except config.ConfigException:
        return "default"
    return str(active["context"].get("namespace") or "default")
