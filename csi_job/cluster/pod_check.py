"""What is wrong with an installation as its pods see it, found before a GPU is used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from csi_job.cluster.api import NAMESPACE_FILE, Cluster
from csi_job.config import Settings
from csi_job.errors import ClusterError, ConfigurationError, CsiJobError, DataError, StorageUnavailableError
from csi_job.storage.attributes import FINGERPRINT
from csi_job.storage.storage import StudyStorage, open_storage
from csi_job.study.definition import load_study

IN_A_POD: Final = "KUBERNETES_SERVICE_HOST"  # a variable of every pod
SHM: Final = Path("/dev/shm")  # noqa: S108 - looked at, not written
MIN_SHM_BYTES: Final = 128 * 2**20
CONNECTIONS_A_POD: Final = 4  # trials and leases, and the same of a dead pod, until the server notices
MIN_FREE_BYTES: Final = 2**30
PATIENCE_S: Final = 10.0  # with one more try to connect (10 s), a database that is away is named within 30 s


@dataclass(frozen=True)
class Wanted:
    """What the release asks for, as the chart tells it."""

    num_pods: int
    """Pods of the search."""
    num_gpus: int = 0
    """GPUs that each of them wants."""
    gpu_resource: str = "nvidia.com/gpu"
    """Its name."""
    database_secret: str = ""
    """`NAME/KEY` of the database's password; `` where that is not known."""
    wandb_secret: str = ""
    """The same of the key of Weights & Biases."""


def check_pod(settings: Settings, wanted: Wanted, wait_s: float = 0.0) -> Iterator[str]:
    """Check everything that a pod sees, and name all that is wrong at once, within 30 s.

    Args:
        settings: the settings in force.
        wanted: what the release asks for.
        wait_s: seconds to wait for a database that is away, where nothing else is wrong; it is named before.

    Yields:
        one line for each thing that is as it should be.

    Raises:
        ConfigurationError: something is wrong; the message names each.
        StorageUnavailableError: the database is away, and nothing else is wrong.

    """
    checks: tuple[Callable[[], str], ...] = (
        lambda: check_work(settings.work),
        lambda: check_shared_memory(SHM),
        lambda: check_labels(settings),
        lambda: check_secrets(settings, wanted),
        lambda: check_nodes(wanted, nodes_seen()),
    )
    problems: list[str] = []
    yield from passed(checks, problems)
    password = settings.storage.password_file
    if password is not None and not password.is_file():  # said already
        raise problem_of(problems)
    try:
        yield check_database(settings, wanted.num_pods, PATIENCE_S)
    except StorageUnavailableError as error:
        if problems or wait_s <= PATIENCE_S:
            raise problem_of([*problems, str(error)], kind=ConfigurationError if problems else type(error)) from None
        yield f"{error}; waiting up to {wait_s:.0f} s"
        yield check_database(settings, wanted.num_pods, wait_s)
    except CsiJobError as error:
        problems.append(str(error))
    if problems:
        raise problem_of(problems)


def passed(checks: Iterable[Callable[[], str]], problems: list[str]) -> Iterator[str]:
    """Yield the line of each check that passes, and collect what the others say."""
    for check in checks:
        try:
            yield check()
        except DataError as error:
            problems.append(error.render(identities=False))
        except CsiJobError as error:
            problems.append(str(error))


def problem_of(problems: Iterable[str], kind: type[CsiJobError] = ConfigurationError) -> CsiJobError:
    """Return the one error that names every problem."""
    return kind("; also: ".join(problems))


def check_work(work: Path) -> str:
    """Check that the work folder is a volume where this is a pod, can be written, and has room."""
    if IN_A_POD in os.environ and not work.is_mount():
        message = f"no volume is mounted at the work folder {work}"
        raise ConfigurationError(message, hint="mount the claim of work.existingClaim, or the one the chart makes")
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


def check_secrets(settings: Settings, wanted: Wanted) -> str:
    """Check that the files which the Secrets give are there."""
    if (file := settings.storage.password_file) is not None and not file.is_file():
        message = f"the database's password is missing ({file} is not there)"
        raise ConfigurationError(message, hint=_hint(wanted.database_secret, "database"))
    if (file := settings.tracking.wandb_api_key_file) is not None and not file.is_file():
        message = f"the key of Weights & Biases is missing ({file} is not there)"
        raise ConfigurationError(message, hint=_hint(wanted.wandb_secret, "wandb"))
    return "Secrets: there"


def _hint(secret: str, value: str) -> str:
    """Return what to look at: the Secret and key where they are known, else the values that name them."""
    name, _, key = secret.partition("/")
    if secret:
        return f"check that the Secret {name} exists and has the key {key} ({value}.secretKey)"
    return f"check that the Secret of {value}.existingSecret exists and has the key {value}.secretKey"


def check_database(settings: Settings, num_pods: int, wait_s: float) -> str:
    """Check that the database answers, knows the password, has connections enough, and fits the work folder."""
    storage = open_storage(settings.storage.model_copy(update={"connect_s": wait_s}), settings.work, create=True)
    try:
        if storage.engine.dialect.name != "postgresql":
            return "database: SQLite, for one pod only"
        with storage.engine.connect() as connection:
            most = int(connection.execute(sa.text("SHOW max_connections")).scalar_one())
        check_shared(storage, settings)
    finally:
        storage.close()
    wanted = num_pods * CONNECTIONS_A_POD + CONNECTIONS_A_POD
    if most < wanted:
        message = f"the database takes {most} connections, and {num_pods} pods want {wanted}"
        raise ConfigurationError(message, hint="raise database.maxConnections, or lower search.parallelism")
    return f"database: answers, {most} connections for {num_pods} pods"


def check_shared(storage: StudyStorage, settings: Settings) -> None:
    """Check that this pod sees the volume on which the study's cache was built; the cache stage builds it."""
    if settings.radiographs.labels is not None:
        return
    try:
        study = load_study(storage, settings.study.name)
    except ConfigurationError:  # none yet
        return
    key = (study.user_attrs.get(FINGERPRINT) or {}).get("cache", "")
    if key and not settings.folder.cache(key).is_dir():
        message = f"the work folder {settings.work} is not shared: the cache {key} of the study is not on it"
        raise ConfigurationError(message, hint="let all pods mount the same claim, ReadWriteMany on several nodes")


def nodes_seen() -> list[dict[str, Any]] | None:
    """Return the nodes, None where this process may not list them: a stage's pod has no token."""
    if IN_A_POD in os.environ and not NAMESPACE_FILE.exists():
        return None
    try:
        return Cluster().nodes()
    except ClusterError:
        return None


def check_nodes(wanted: Wanted, nodes: Iterable[Mapping[str, Any]] | None) -> str:
    """Check that some node has the GPUs of one pod; `nodes` is None where they can't be looked at."""
    num_gpus, gpu = wanted.num_gpus, wanted.gpu_resource
    if num_gpus == 0:
        return "nodes: no GPU is asked for"
    if nodes is None:
        return "nodes: could not look (no right to list them)"
    most = max((int(node["status"].get("allocatable", {}).get(gpu, 0)) for node in nodes), default=0)
    if most < num_gpus:
        message = f"no node has {num_gpus} {gpu}, the most is {most}"
        raise ConfigurationError(message, hint="lower search.gpus, or add such a node")
    return f"nodes: one has {most} {gpu}"
