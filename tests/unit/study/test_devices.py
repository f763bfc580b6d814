"""Which GPU and how many threads each worker gets, on machines that this test makes up from what the driver says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csi_job.errors import ConfigurationError
from csi_job.study.devices import visible_gpus, worker_environments
from csi_job.study.settings import StudySettings
from csi_job.trial.settings import TrialSettings

TWO_GPUS = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
"""
TWO_INSTANCES = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111)
  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-aaaa/2/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine whose GPUs CUDA counts and `nvidia-smi -L` lists, of which there are none yet."""
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return monkeypatch


def install(machine: pytest.MonkeyPatch, folder: Path, num_gpus: int, listed: str = "") -> None:
    machine.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    machine.setattr(torch.cuda, "device_count", lambda: num_gpus)
    (folder / "list").write_text(listed)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n[ $1 = -L ] && exec cat {folder}/list\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.mark.parametrize(
    ("num_gpus", "listed", "given", "expected"),
    [
        (0, "", None, []),
        (0, TWO_GPUS, "", []),
        (2, TWO_GPUS, None, ["0", "1"]),
        (2, "", None, ["0", "1"]),
        (2, TWO_GPUS, "3, GPU-bbbb", ["3", "GPU-bbbb"]),
        (1, TWO_GPUS, "1,7", ["1"]),  # CUDA stops at the first that does not exist
        (1, TWO_INSTANCES, None, ["MIG-1111", "MIG-GPU-aaaa/2/0", "GPU-bbbb"]),  # of which CUDA sees one
        (1, TWO_INSTANCES, "MIG-1111,MIG-GPU-aaaa/2/0", ["MIG-1111", "MIG-GPU-aaaa/2/0"]),
    ],
)
def test_every_gpu_and_instance_is_found(
    machine: pytest.MonkeyPatch, tmp_path: Path, num_gpus: int, listed: str, given: str | None, expected: list[str]
) -> None:
    install(machine, tmp_path, num_gpus, listed)
    if given is not None:
        machine.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == expected


def test_gpus_without_the_drivers_tool_are_counted_by_cuda(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(machine, tmp_path, 2, TWO_INSTANCES)
    machine.setenv("PATH", "/nowhere")
    assert visible_gpus() == ["0", "1"]


@pytest.mark.parametrize(
    ("num_gpus", "device", "workers", "gpus", "threads"),
    [
        (0, "auto", "auto", [None], "8"),
        (0, "auto", 3, [None] * 3, "2"),
        (0, "cpu", 16, [None] * 16, "1"),
        (4, "cpu", "auto", [None], "8"),
        (4, "auto", "auto", ["0", "1", "2", "3"], "2"),
        (4, "cuda", 3, ["0", "1", "2"], "2"),
    ],
)
def test_a_worker_gets_a_gpu_and_a_share_of_the_cores(
    machine: pytest.MonkeyPatch,
    tmp_path: Path,
    num_gpus: int,
    device: str,
    workers: int,
    gpus: list[str | None],
    threads: str,
) -> None:
    install(machine, tmp_path, num_gpus)
    machine.setattr("csi_job.study.devices.num_cores", lambda: 8)
    study, trial = StudySettings.model_validate({"workers": workers}), TrialSettings.model_validate({"device": device})
    environments = worker_environments(study, trial)
    assert [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments] == gpus
    assert {environment["OMP_NUM_THREADS"] for environment in environments} == {threads}


def test_threads_that_are_set_stay(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(machine, tmp_path, 0)
    machine.setenv("OMP_NUM_THREADS", "5")
    assert {
        environment["OMP_NUM_THREADS"] for environment in worker_environments(StudySettings(workers=2), TrialSettings())
    } == {"5"}


@pytest.mark.parametrize(
    ("num_gpus", "device", "expected"),
    [
        (2, "auto", r"study.workers: 2 GPUs are visible, got 3; allowed: auto, or up to 2"),
        (1, "cuda", r"study.workers: one GPU is visible, got 3; allowed: auto, or up to 1"),
        (0, "cuda", r"trial.device is cuda, but torch finds no GPU"),
    ],
)
def test_more_workers_than_gpus_are_refused(
    machine: pytest.MonkeyPatch, tmp_path: Path, num_gpus: int, device: str, expected: str
) -> None:
    install(machine, tmp_path, num_gpus)
    with pytest.raises(ConfigurationError, match=expected):
        worker_environments(StudySettings(workers=3), TrialSettings.model_validate({"device": device}))
