"""What each worker's process may use: one GPU of its own, and a share of the cores."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import torch

from csi_job.cache.decode_pool import num_cores
from csi_job.study.settings import StudySettings
from csi_job.trial.memory import choose_device
from csi_job.trial.settings import TrialSettings

Environment = dict[str, str]


def visible_gpus() -> list[str]:
    """Return the GPUs of this process, each as the value of CUDA_VISIBLE_DEVICES that shows it alone.

    A process sees at most one MIG instance, whatever CUDA counts, so these come from their list.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0  # neither creates a CUDA context
    if not num_gpus:
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = _driver_uuids() if given is None else [name.strip() for name in given.split(",")]
    instances = [name for name in names if name.startswith("MIG-")]
    if given is not None:
        return instances or names[:num_gpus]
    return names if instances else [str(index) for index in range(num_gpus)]


def _driver_uuids() -> list[str]:
    """Return the UUIDs of all MIG instances, and of the GPUs without any; none if the driver's tool is missing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)  # noqa: S603 - the driver's tool
    return re.findall(r"\(UUID: (MIG-[^)]+|GPU-[^)]+(?=\)(?!\s+MIG)))", listed.stdout)


def worker_environments(study: StudySettings, trial: TrialSettings) -> list[Environment]:
    """Check the devices, before any trial is claimed, and return the environment variables of each worker's process.

    Raises:
        ConfigurationError: a GPU is requested and there is none, or there are more workers than GPUs.

    """
    gpus = [] if trial.device == "cpu" else visible_gpus()
    num_workers = study.num_workers(len(gpus))
    if num_workers == 1 or not gpus:  # else this process must take no memory of a GPU
        choose_device(trial)
    num_threads = max(num_cores() // num_workers, 1)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(num_threads))}
    return [{**threads, **({"CUDA_VISIBLE_DEVICES": gpus[n]} if gpus else {})} for n in range(num_workers)]
