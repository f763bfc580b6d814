"""Copy the results from the release's volume to this machine."""

import copy
import logging
import math
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from csi_job.cluster.api import Cluster
from csi_job.cluster.pods import failure_of
from csi_job.cluster.refusals import why_not_started
from csi_job.cluster.stages import FETCH, WORK, Release, find_release
from csi_job.errors import ClusterError
from csi_job.files import make_folder, real_path, replacing_unlocked
from csi_job.logs import RepeatedWarnings, announced

logger = logging.getLogger(__name__)
RESULTS: Final = ("models", WORK.problems.name)
STARTUP_TIMEOUT_S: Final = 900.0  # a node may have to pull the image first
MISSING_TIMEOUT_S: Final = 180.0  # for what the pod needs and does not exist
EXEC_IDLE_TIMEOUT_S: Final = 120.0
# An exec can lose the end of its output and still report success, a known bug; this marker is that end.
END_MARKER: Final = b"all results are here"
MAX_TRIES: Final = 5
# Packs whatever exists, except hidden files, which are temporary and may vanish meanwhile, the models of candidates
# that lost, and second copies of those that won.
PACK: Final = (
    f"cd {WORK.root} && "
    f"find {' '.join(RESULTS)} -type f ! -path '*/.*' ! -path 'models/candidates/*' 2>/dev/null "
    '| while IFS= read -r file; do case "$file" in '
    'models/final/*.safetensors|models/final/*.pth) cmp -s "$file" "models/${file##*/}" && continue; esac; '
    "printf '%s\\n' \"$file\"; done | tar -cf - -T - "
    f"&& printf '%s' '{END_MARKER.decode()}'"
)


def fetch_results(cluster: Cluster, release_name: str | None, destination: Path) -> Iterator[Path]:
    """Copy models and reports from the volume to a folder through a small temporary pod, and yield the files."""
    release = find_release(cluster, release_name)
    with _running_pod(cluster, release) as pod, tempfile.TemporaryFile() as archive:
        _read_archive(cluster, pod, archive)
        yield from _unpack(archive, destination)


def _read_archive(cluster: Cluster, pod: str, archive: IO[bytes]) -> None:
    """Read the archive, again if its end is missing, and rewind it."""
    for _ in range(MAX_TRIES):
        archive.seek(0)
        archive.truncate()
        cluster.read_from(pod, FETCH, ["sh", "-c", PACK], archive.write, idle_timeout_s=EXEC_IDLE_TIMEOUT_S)
        archive.seek(max(archive.tell() - len(END_MARKER), 0))
        is_complete = archive.read() == END_MARKER
        archive.seek(0)
        if is_complete:
            return
    raise ClusterError(f"the copy from the volume was cut off {MAX_TRIES} times", hint="run the same command again")


@contextmanager
def _running_pod(cluster: Cluster, release: Release) -> Iterator[str]:
    """Create the release's fetch pod, wait until it runs, and delete it at the end."""
    pod = copy.deepcopy(dict(release.fetch_pod))
    name = pod["metadata"]["name"] = f"{pod['metadata']['name']}-{time.time_ns() % 10**8:08d}"
    pod["metadata"].pop("namespace", None)
    pod["metadata"]["ownerReferences"] = [dict(release.owner)]
    cluster.create(pod)
    try:
        with announced("starting a pod that reads the volume; its node may have to pull the image first"):
            _wait_until_running(cluster, name)
        yield name
    finally:
        cluster.delete("Pod", name)


def _wait_until_running(cluster: Cluster, name: str) -> None:
    begun_s, missing_since_s = time.monotonic(), math.inf
    reason, warnings = "it is still starting", RepeatedWarnings(logger)
    while (waited_s := time.monotonic() - begun_s) < STARTUP_TIMEOUT_S:
        pod = cluster.get("Pod", name)
        if pod is None:
            raise ClusterError("the pod that reads the volume was deleted", hint="run the same command again")
        if pod["status"].get("phase") == "Running":
            return
        if failure := failure_of(pod):
            raise ClusterError(f"the pod that reads the volume failed: {failure}", hint="run the same command again")
        if problem := why_not_started(cluster, pod):
            reason = problem.reason
            warnings.log(f"{problem}; waiting for it")
            if problem.is_missing:
                missing_since_s = min(missing_since_s, waited_s)
                if waited_s - missing_since_s > MISSING_TIMEOUT_S:
                    break
        time.sleep(1)
    raise ClusterError(f"the pod that reads the volume did not start within {waited_s:.0f} s: {reason}")


def _unpack(archive: IO[bytes], destination: Path) -> Iterator[Path]:
    try:
        with tarfile.open(fileobj=archive) as tar:
            members = [member for member in tar.getmembers() if member.isfile()]
            if not members:
                raise ClusterError("there are no results on the volume yet", hint="see the controller's log")
            for member in members:
                path = destination / member.name
                content = tar.extractfile(member)
                if content is None or not real_path(path).is_relative_to(real_path(destination)):
                    raise ClusterError("the volume has a file that lies outside its folder", got=member.name)
                make_folder(path.parent)
                with replacing_unlocked(path) as temporary:
                    with temporary.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    os.utime(temporary, (member.mtime, member.mtime))
                yield path
    except tarfile.TarError:
        raise ClusterError("the copy from the volume is incomplete", hint="run the same command again") from None
