import os

from csi_job.machine import num_cores


def test_at_least_one_core_may_be_used():
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
