"""Problems of an installation that a pod can see, found before any GPU is used."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from csi_job.cluster.api import NAMESPACE_FILE, Cluster
from csi_job.cluster.refusals import to_number
from csi_job.config import LoadedSettings, Settings
from csi_job.errors import ClusterError, ConfigurationError, CsiJobError, DataError, StorageUnavailableError
from csi_job.files import exists, is_file, is_folder
from csi_job.html.format import plural
from csi_job.storage.attributes import fingerprint_of
from csi_job.storage.storage import StudyStorage, open_storage
from csi_job.study.definition import load_study
from csi_job.study.record import read_record
from csi_job.study_settings import check_results, check_settings

IN_A_POD: Final = "KUBERNETES_SERVICE_HOST"  # set in every pod
SHM: Final = Path("/dev/shm")  # noqa: S108 - only its size is read
MIN_SHM_BYTES: Final = 128 * 2**20
MIN_FREE_BYTES: Final = 2**30
CONNECTIONS_PER_WORKER: Final = 4  # trials and leases, and as many of a dead one until the server notices
DATABASE_WAIT_S: Final = 10.0  # with one more attempt to connect (10 s), a missing database is reported within 30 s


@dataclass(frozen=True)
class Requirements:
    """What the release needs, according to the chart."""

    num_pods: int
    """Pods of the search."""
    num_gpus: int = 0
    """GPUs per pod of the stage."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name of the GPU resource."""
    database_secret: str = ""
    """`NAME/KEY` of the database password; empty if unknown."""
    wandb_secret: str = ""
    """`NAME/KEY` of the Weights & Biases API key; empty if unknown."""
    stage: str = "search"
    """The stage that needs the GPUs."""


def check_pod(settings: Settings, required: Requirements, wait_s: float = 0.0) -> Iterator[str]:
    """Check everything that a pod sees, and report all problems at once, within 30 s.

    If nothing else is wrong, an unreachable database is reported and waited for, for `wait_s`.

    Yields:
        one line per passed check.

    Raises:
        ConfigurationError: there are problems; the message lists them.
        StorageUnavailableError: the database is unreachable, and nothing else is wrong.
    """
    problems: list[str] = []
    checks: tuple[Callable[[], str], ...] = (
        lambda: check_work(settings.work),
        lambda: check_shared_memory(SHM),
        lambda: check_labels(settings),
        lambda: check_secrets(settings, required),
        lambda: check_nodes(required, _visible_nodes()),
    )
    yield from run_checks(checks, problems)
    password = settings.storage.password_file
    if password is not None and not is_file(password):  # already reported
        raise combined_error(problems)
    try:
        num_workers = required.num_pods * num_workers_per_pod(settings, required)
        yield check_database(settings, num_workers, DATABASE_WAIT_S)
    except StorageUnavailableError as error:
        if problems or wait_s <= DATABASE_WAIT_S:
            kind = ConfigurationError if problems else type(error)
            raise combined_error([*problems, str(error)], kind) from None
        yield f"{error}; waiting up to {wait_s:.0f} s"
        yield check_database(settings, num_workers, wait_s)
    except CsiJobError as error:
        problems.append(str(error))
    if problems:
        raise combined_error(problems)


def run_checks(checks: Iterable[Callable[[], str]], problems: list[str]) -> Iterator[str]:
    """Yield the line of each passed check, and collect the errors of the others."""
    for check in checks:
        try:
            yield check()
        except DataError as error:
            problems.append(error.render(identities=False))
        except CsiJobError as error:
            problems.append(str(error))


def combined_error(problems: Iterable[str], kind: type[CsiJobError] = ConfigurationError) -> CsiJobError:
    """Return one error that lists every problem."""
    return kind("; also: ".join(problems))


def check_work(work: Path) -> str:
    """Check that the work folder is writable, has space, and in a pod is a mounted volume."""
    if IN_A_POD in os.environ and not work.is_mount():
        message = f"no volume is mounted at the work folder {work}"
        raise ConfigurationError(message, hint="mount the claim of work.existingClaim, or the chart's own")
    try:
        with tempfile.NamedTemporaryFile(dir=work, prefix=".check-") as file:
            file.write(b"csi-job")
            file.flush()
    except OSError as error:
        message = f"the work folder {work} is not writable for user {os.getuid()} ({error.strerror})"
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
    if not is_folder(shm):
        return "shared memory: none on this system"
    state = os.statvfs(shm)
    size = state.f_blocks * state.f_frsize
    if size < smallest:
        message = f"the shared memory has {size / 2**20:.0f} MiB"
        raise ConfigurationError(message, allowed=f"at least {smallest / 2**20:.0f} MiB", hint="raise shmSize")
    return f"shared memory: {size / 2**20:.0f} MiB"


def check_labels(settings: Settings) -> str:
    """Check that the label table is readable and that its images exist."""
    radiographs = settings.radiographs
    if radiographs.labels is None or radiographs.images is None:
        return "label table: not mounted here"
    from csi_job.radiographs.read import find_images
    from csi_job.radiographs.table import read_table

    table = read_table(radiographs.labels, radiographs)
    find_images(radiographs.images, table.file_ids, table.rows)
    return f"label table: {plural(len(table.file_ids), 'image')}"


def check_secrets(settings: Settings, required: Requirements) -> str:
    """Check that the files from the Secrets exist."""
    files = (
        ("the database password", settings.storage.password_file, required.database_secret, "database"),
        ("the Weights & Biases API key", settings.tracking.wandb_api_key_file, required.wandb_secret, "wandb"),
    )
    for what, file, secret, section in files:
        if file is not None and not is_file(file):
            name, _, key = (secret or f"in {section}.existingSecret/in {section}.secretKey").partition("/")
            hint = f"check that the Secret {name} exists and has the key {key}"
            hint += f" ({section}.secretKey)" if secret else ""
            raise ConfigurationError(f"{what} is missing (no file {file})", hint=hint)
    return "Secrets: found"


def num_workers_per_pod(settings: Settings, required: Requirements) -> int:
    """Return how many workers a pod of the search runs; raise `ConfigurationError` if they are more than its GPUs."""
    return settings.study.num_workers(0 if settings.trial.device == "cpu" else required.num_gpus)


def check_database(settings: Settings, num_workers: int, wait_s: float) -> str:
    """Check that the database answers, accepts the password, allows enough connections and fits the work folder."""
    storage = open_storage(settings.storage.model_copy(update={"connect_s": wait_s}), settings.work, create=True)
    try:
        if storage.engine.dialect.name != "postgresql":
            return "database: SQLite, for a single pod"
        with storage.engine.connect() as connection:
            allowed = int(connection.execute(sa.text("SHOW max_connections")).scalar_one())
        _check_volume_is_shared(storage, settings)
    finally:
        storage.close()
    required = (num_workers + 1) * CONNECTIONS_PER_WORKER
    if allowed < required:
        need = "1 worker needs" if num_workers == 1 else f"{num_workers} workers need"
        message = f"the database allows {allowed} connections, but {need} {required}"
        raise ConfigurationError(message, hint="raise database.maxConnections, or lower search.parallelism")
    return f"database: answers, {allowed} connections for {plural(num_workers, 'worker')}"


def check_study(loaded: LoadedSettings) -> str:
    """Check, before the cache is built, that the settings are those of the study, if it was created already."""
    settings = loaded.settings
    record = read_record(settings.storage, settings.work, settings.study.name)
    check_results(settings, record)
    if record is None:
        return f"study {settings.study.name}: new"
    check_settings(loaded.over(record).settings, record)
    return f"study {record.name}: was created with these settings"


def _check_volume_is_shared(storage: StudyStorage, settings: Settings) -> None:
    """Check that this pod sees the volume that holds the study's cache; the cache stage has yet to build it."""
    if settings.radiographs.labels is not None:
        return
    try:
        study = load_study(storage, settings.study.name)
    except ConfigurationError:  # not created yet
        return
    key = fingerprint_of(study.user_attrs).get("cache", "")
    if key and not is_folder(settings.folder.cache(key)):
        message = f"the work folder {settings.work} is not shared: it lacks the study's cache {key}"
        raise ConfigurationError(message, hint="let all pods mount the same claim, ReadWriteMany on several nodes")


def _visible_nodes() -> list[dict[str, Any]] | None:
    """Return the nodes, None if this process may not list them: a stage's pod has no token."""
    if IN_A_POD in os.environ and not exists(NAMESPACE_FILE):
        return None
    try:
        return Cluster().find("Node")
    except ClusterError:
        return None


def check_nodes(required: Requirements, nodes: Iterable[Mapping[str, Any]] | None) -> str:
    """Check that some node has the GPUs of one pod; `nodes` is None if they can't be listed."""
    num_gpus, resource = required.num_gpus, required.gpu_resource
    if num_gpus == 0:
        return "nodes: no GPU required"
    if nodes is None:
        return "nodes: not checked (no permission to list them)"
    found = (node["status"].get("allocatable", {}).get(resource, 0) for node in nodes)
    largest = max((int(to_number(amount)) for amount in found), default=0)  # Kubernetes writes 1000 as 1k
    if largest < num_gpus:
        message = f"no node has {num_gpus} {resource}; the largest has {largest}"
        raise ConfigurationError(message, hint=f"lower {required.stage}.gpus, or add such a node")
    return f"nodes: one has {largest} {resource}, for {required.stage}"
