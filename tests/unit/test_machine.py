import os

import pytest

from csi_job import machine
from csi_job.machine import num_cores


@pytest.mark.parametrize(
    ("quota", "num_usable"),
    [("max 100000", 4), ("800000 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1), ("", 4)],
)
def test_a_containers_quota_limits_the_cores(quota, num_usable, tmp_path, monkeypatch):
    path = tmp_path / "cpu.max"
    if quota:  # none without cgroup v2
        path.write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "CPU_QUOTA", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})

    assert num_cores() == num_usable
