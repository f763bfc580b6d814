"""What is wrong with an installation, found before a GPU is used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from csi_job.cluster.api import NAMESPACE_FILE, Cluster
from csi_job.config import Settings
from csi_job.errors import ClusterError, ConfigurationError, CsiJobError, DataError

SHM: Final = Path("/dev/shm")  # noqa: S108 - looked at, not written
MIN_SHM_BYTES: Final = 128 * 2**20
CONNECTIONS_A_POD: Final = 4  # trials, leases, and two to spare
MIN_FREE_BYTES: Final = 2**30


def check_release(settings: Settings, num_pods: int, num_gpus: int = 0, gpu: str = "nvidia.com/gpu") -> Iterator[str]:
    """Check everything, and name all that is wrong at once.

    Args:
        settings: the settings in force.
        num_pods: pods of the search.
        num_gpus: GPUs that each of them wants.
        gpu: name of the GPU resource.

    Yields:
        one line for each thing that is as it should be.

    Raises:
        ConfigurationError: something is wrong; the message names each.

    """
    problems: list[str] = []
    checks: tuple[Callable[[], str], ...] = (
        lambda: check_work(settings.work),
        lambda: check_shared_memory(SHM),
        lambda: check_labels(settings),
        lambda: check_database(settings, num_pods),
        lambda: check_nodes(num_gpus, gpu),
    )
    for check in checks:
        try:
            yield check()
        except DataError as error:
            problems.append(error.render(identities=False))
        except CsiJobError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("; also: ".join(problems))


def check_work(work: Path) -> str:
    """Check that the work folder can be written and has room."""
    try:
        with tempfile.NamedTemporaryFile(dir=work, prefix=".check-") as file:
            file.write(b"csi-job")
            file.flush()
    except OSError as error:
        message = f"the work folder {work} can't be written by user {os.getuid()} ({error.strerror})"
        hint = "check the claim's access mode and podSecurityContext.fsGroup (on NFS: supplementalGroups)"
        raise ConfigurationError(message, hint=hint) from None
    state = os.statvfs(work)
    free = state.f_bavail * state.f_frsize
    if free < MIN_FREE_BYTES:
        message = f"the work folder {work} has {free / 2**20:.0f} MiB left"
        raise ConfigurationError(message, allowed="at least 1 GiB", hint="raise work.size")
    return f"work folder {work}: writable, {free / 2**30:.0f} GiB left"


def check_shared_memory(shm: Path, smallest: int = MIN_SHM_BYTES) -> str:
    """Check the size of the shared memory."""
    if not shm.is_dir():
        return "shared memory: none on this system"
    state = os.statvfs(shm)
    size = state.f_blocks * state.f_frsize
    if size < smallest:
        message = f"the shared memory has {size / 2**20:.0f} MiB"
        raise ConfigurationError(message, allowed=f"at least {smallest / 2**20:.0f} MiB", hint="raise shmSize")
    return f"shared memory: {size / 2**20:.0f} MiB"


def check_labels(settings: Settings) -> str:
    """Check that the label table can be read and its images are there."""
    radiographs = settings.radiographs
    if radiographs.labels is None or radiographs.images is None:
        return "label table: not mounted here"
    from csi_job.radiographs.read import find_images
    from csi_job.radiographs.table import read_table

    table = read_table(radiographs.labels, radiographs)
    find_images(radiographs.images, table.file_ids, table.rows)
    return f"label table: {len(table.file_ids)} images"


def check_database(settings: Settings, num_pods: int) -> str:
    """Check that the database answers, knows the password, and has a connection for every pod."""
    from csi_job.study.storage import open_storage

    file = settings.storage.password_file
    if file is not None and not file.is_file():
        message = f"the database's password is missing ({file} is not there)"
        raise ConfigurationError(message, hint="check that the Secret exists and has the key database.secretKey names")
    storage = open_storage(settings.storage, settings.work, create=True)
    try:
        if storage.engine.dialect.name != "postgresql":
            return "database: SQLite, for one pod only"
        with storage.engine.connect() as connection:
            most = int(connection.execute(sa.text("SHOW max_connections")).scalar_one())
    finally:
        storage.close()
    wanted = num_pods * CONNECTIONS_A_POD + CONNECTIONS_A_POD
    if most < wanted:
        message = f"the database takes {most} connections, and {num_pods} pods want {wanted}"
        raise ConfigurationError(message, hint="raise database.maxConnections, or lower search.parallelism")
    return f"database: answers, {most} connections for {num_pods} pods"


def check_nodes(num_gpus: int, gpu: str) -> str:
    """Check that some node has the GPUs of one pod, as far as this process may look."""
    if num_gpus == 0:
        return "nodes: no GPU is asked for"
    in_pod_without_token = "KUBERNETES_SERVICE_HOST" in os.environ and not NAMESPACE_FILE.exists()
    try:
        nodes = None if in_pod_without_token else Cluster().nodes()
    except ClusterError:
        nodes = None
    if nodes is None:
        return "nodes: could not look (no right to list them)"
    most = max((int(node["status"].get("allocatable", {}).get(gpu, 0)) for node in nodes), default=0)
    if most < num_gpus:
        message = f"no node has {num_gpus} {gpu}, the most is {most}"
        raise ConfigurationError(message, hint="lower search.gpus, or add such a node")
    return f"nodes: one has {most} {gpu}"
