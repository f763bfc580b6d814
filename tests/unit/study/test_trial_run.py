"""Reasons are one line and name no file and no patient."""

from __future__ import annotations

import pytest

from csi_job.errors import CsiJobError, DataError, Problem
from csi_job.study.sampling import derived_seed
from csi_job.study.trial_run import check_device, failure_reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("mat1 and mat2 shapes\ncannot be multiplied"), "mat1 and mat2 shapes cannot be multiplied"),
        (FileNotFoundError(2, "No such file or directory", "/data/PAT0042.png"), "No such file or directory"),
        (KeyError("PAT0042"), "KeyError"),
        (IndexError("PAT0042"), "IndexError"),
        (ValueError("bad header in C:\\images\\PAT0042.dcm"), "bad header in …"),
        (ValueError("PAT0042.nii.gz is torn"), "… is torn"),
        (DataError("the cache is damaged", problems=[Problem("torn", file_id="PAT0042")]), "the cache is damaged"),
    ],
)
def test_the_message_is_kept_without_identities(error: Exception, reason: str) -> None:
    text = failure_reason(error)
    assert reason in text
    assert "PAT0042" not in text
    assert "\n" not in text
    assert type(error).__name__ in text or isinstance(error, CsiJobError)


def test_the_place_in_this_package_is_named() -> None:
    with pytest.raises(ValueError, match="seed") as caught:
        derived_seed("no number", 1)  # type: ignore[arg-type]
    assert failure_reason(caught.value).startswith("ValueError in study/sampling.py:")


def test_a_long_reason_is_cut() -> None:
    assert len(failure_reason(ValueError("word " * 500))) == 200


def test_only_a_lost_gpu_ends_the_worker() -> None:
    check_device(RuntimeError("CUDA out of memory"))
    check_device(ValueError("CUDA error"))
    with pytest.raises(CsiJobError, match="GPU is lost"):
        check_device(RuntimeError("CUDA error: device-side assert triggered"))
