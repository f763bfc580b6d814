"""Results brought from the release's volume to this machine."""

from __future__ import annotations

import copy
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from csi_job.cluster.api import Cluster
from csi_job.cluster.pods import trouble_of
from csi_job.cluster.stages import COMPONENT, INSTANCE, find_release
from csi_job.errors import ClusterError

RESULTS: Final = ("models", "problems.csv")
START_S: Final = 180.0
SILENCE_S: Final = 120.0
# An exec can lose the end of its output and report success all the same, a known flaw: the last bytes tell.
WHOLE: Final = b"all results are here"
TRIES: Final = 5
# What is there is packed, but not the models of candidates that lost.
PACK: Final = (
    f"cd /work && ls -d {' '.join(RESULTS)} 2>/dev/null | tar --exclude=models/candidates -cf - -T - "
    f"&& printf '%s' '{WHOLE.decode()}'"
)


def fetch_results(cluster: Cluster, release_name: str | None, destination: Path) -> Iterator[Path]:
    """Copy models and reports from the volume through a small pod that is removed afterwards.

    Args:
        cluster: the namespace.
        release_name: the release; None: the only one.
        destination: folder that is made and filled.

    Yields:
        the files that were copied.

    Raises:
        ClusterError: no such release, no results yet, or the copy broke off.

    """
    release = find_release(cluster, release_name)
    with _running(cluster, release.fetch_pod, release.owner) as pod, tempfile.TemporaryFile() as archive:
        _read_whole(cluster, pod, archive)
        yield from _unpacked(archive, destination)


def _read_whole(cluster: Cluster, pod: str, archive: IO[bytes]) -> None:
    """Read the archive, again where its end is missing, and leave it at its beginning."""
    for _ in range(TRIES):
        archive.seek(0)
        archive.truncate()
        cluster.read_from(pod, ["sh", "-c", PACK], archive, silence_s=SILENCE_S)
        archive.seek(max(archive.tell() - len(WHOLE), 0))
        is_whole = archive.read() == WHOLE
        archive.seek(0)
        if is_whole:
            return
    raise ClusterError(f"the copy from the volume broke off {TRIES} times", hint="run the same command again")


@contextmanager
def _running(cluster: Cluster, manifest: Mapping[str, Any], owner: Mapping[str, Any]) -> Iterator[str]:
    """Make the pod, wait until it runs, and remove it."""
    pod = copy.deepcopy(dict(manifest))
    name = pod["metadata"]["name"] = f"{pod['metadata']['name']}-{time.time_ns() % 10**8:08d}"
    pod["metadata"].pop("namespace", None)
    pod["metadata"]["ownerReferences"] = [dict(owner)]
    labels = {INSTANCE: pod["metadata"]["labels"][INSTANCE], COMPONENT: "fetch"}
    cluster.create_pod(pod)
    try:
        _wait(cluster, name, labels)
        yield name
    finally:
        cluster.delete_pod(name)


def _wait(cluster: Cluster, name: str, labels: Mapping[str, str]) -> None:
    until = time.monotonic() + START_S
    trouble = "it is still starting"
    while time.monotonic() < until:
        pod = next((pod for pod in cluster.pods(labels) if pod["metadata"]["name"] == name), None)
        if pod is not None:
            if pod["status"].get("phase") == "Running":
                return
            found = trouble_of(pod)
            trouble = found.why if found else trouble
        time.sleep(1)
    message = f"the pod that reads the volume did not start in {START_S:.0f} s: {trouble}"
    raise ClusterError(message)


def _unpacked(archive: IO[bytes], destination: Path) -> Iterator[Path]:
    try:
        with tarfile.open(fileobj=archive) as tar:
            members = [member for member in tar.getmembers() if member.isfile()]
            if not members:
                raise ClusterError("there are no results on the volume yet", hint="see the controller's log")
            destination.mkdir(parents=True, exist_ok=True)
            for member in members:
                tar.extract(member, destination, filter="data")
                yield destination / member.name
    except tarfile.TarError:
        raise ClusterError("the copy from the volume broke off", hint="run the same command again") from None
