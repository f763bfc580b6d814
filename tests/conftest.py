"""What every test shares: a clean environment, phantoms, and services that skip locally but fail under CI."""

import atexit
import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests train at once on few cores
gc.set_threshold(100_000, 20, 20)  # importing torch and all tests makes half a million objects, none of them garbage
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, as would its programs
# No generated test fails because the machine is busy, and each example cleans up after itself.
patient = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("patient", deadline=None, suppress_health_check=patient)
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller's shell reaches a test."""
    for name in [name for name in os.environ if name.startswith(("CSI_JOB_", "WANDB_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What our program logs, from INFO on as its users see it; pytest's `caplog` begins at WARNING, with Optuna's."""
    caplog.set_level("INFO", logger="csi_job")
    with caplog.filtering(logging.Filter("csi_job")):
        yield caplog


def pytest_configure(config: pytest.Config) -> None:
    """Skip the last collections of garbage of one of several processes: to search all imports takes seconds."""
    if hasattr(config, "workerinput"):
        atexit.register(os._exit, 0)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Exempt what was imported from the others, too."""
    if hasattr(session.config, "workerinput"):
        gc.freeze()


class _Scheduler(LoadFileScheduling):
    """Keeps a file in one process, which shares its fixtures, and all faults of workers and databases in one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "workers" if file.startswith("tests/faults/") and not file.endswith("test_failing_calls.py") else file


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Run one process more than there are cores, since faults mostly wait."""
    return (yield) + ("PYTEST_XDIST_AUTO_NUM_WORKERS" not in os.environ)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Scheduler | None:
    return _Scheduler(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slow rooms, lest one process ends long after the others."""
    slow = ("faults", "integration", "unit/trial", "unit/tracking")
    items.sort(key=lambda item: [not item.nodeid.startswith(f"tests/{room}/") for room in slow])


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `labels.csv` and `images/` of 90 small phantoms."""
    from csi_job.phantoms.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 90, seed=7)
    return folder


def missing_service(reason: str) -> None:
    """Skip where a service is missing; under `CI=true` that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (a skip elsewhere, a failure under CI=true)")
    pytest.skip(reason)
