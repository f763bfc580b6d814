"""What every test shares: a clean environment, phantoms, and services that skip locally but fail under CI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests train at once on few cores


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller's shell reaches a test."""
    for name in [name for name in os.environ if name.startswith(("CSI_JOB_", "WANDB_"))]:
        monkeypatch.delenv(name)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file in one process, which shares its fixtures, and all faults in one; start with the slow rooms."""
    root = Path(__file__).parent
    slow = {"faults": 0, "integration": 1}

    def room(item: pytest.Item) -> str:
        return item.path.relative_to(root).parts[0]

    for item in items:
        group = "faults" if room(item) == "faults" else str(item.path)
        if room(item) != "e2e":
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: slow.get(room(item), 2))


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
