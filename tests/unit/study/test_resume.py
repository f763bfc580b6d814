import errno
import os
from pathlib import Path

import pytest

from csi_job.study import resume
from csi_job.study.attempts import attempt_name, fresh_attempt_folder
from tests.support.studies import value_at, write_checkpoint

X, UID, OTHER = 0.5, "1a2b3c4d", "5e6f7a8b"  # the other study has the same name in another database


def attempt(folder, number, *epochs, uid=UID):
    return [write_checkpoint(folder / attempt_name(number, uid), epoch, X) for epoch in epochs]


def tear(path):
    path.write_bytes(path.read_bytes()[:70])


def make_unreadable(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [tear, make_unreadable])
def test_a_trial_resumes_from_the_promoted_checkpoint_or_if_it_is_damaged_the_one_before(tmp_path, damage, caplog):
    _, earlier = attempt(tmp_path, 1, 0, 2)
    before, promoted = attempt(tmp_path, 2, 2, 3)
    for expected, epoch in ((promoted, 3), (before, 2), (earlier, 2)):
        assert resume.find_checkpoint(tmp_path, promoted, epoch, attempt=3, uid=UID) == expected
        damage(expected)
    assert (f"{promoted} cannot be read (Is a directory)" in caplog.text) == (damage is make_unreadable)


def test_a_folder_that_cannot_be_listed_leaves_those_of_earlier_attempts(tmp_path, monkeypatch, caplog):
    *_, older = attempt(tmp_path, 1, 0, 1)
    *_, promoted = attempt(tmp_path, 2, 2, 3)
    scandir = os.scandir

    def scan(folder):
        if Path(folder) == promoted.parent:
            raise OSError(errno.ESTALE, "Stale file handle")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    assert resume.find_checkpoint(tmp_path, promoted, 3, attempt=3, uid=UID) == older
    assert caplog.messages == [f"the checkpoints in {promoted.parent} cannot be read (Stale file handle)"]


def test_a_newer_one_of_the_promoted_attempt_counts_but_no_other(tmp_path):
    _, promoted, newer = attempt(tmp_path, 2, 2, 3, 4)
    attempt(tmp_path, 1, 8, 9)  # of a worker that continued without its lease
    assert resume.find_checkpoint(tmp_path, promoted, 3, attempt=4, uid=UID) == newer


def test_the_previous_attempt_is_resumed_even_if_it_stored_nothing(tmp_path):
    """It was killed while the database was away."""
    attempt(tmp_path, 1, 8, 9)  # of a worker that continued without its lease
    *_, newest = attempt(tmp_path, 2, 0, 1)
    assert resume.find_checkpoint(tmp_path, None, -1, attempt=3, uid=UID) == newest


def test_a_worker_of_a_deleted_study_of_the_same_name_is_not_resumed(tmp_path):
    attempt(tmp_path, 1, 0, 1, 2, uid="deadbeef")
    assert resume.find_checkpoint(tmp_path, None, 1, attempt=2, uid=UID) is None
    [own] = attempt(tmp_path, 1, 0)
    assert resume.find_checkpoint(tmp_path, own, 1, attempt=2, uid=UID) == own
    assert fresh_attempt_folder(tmp_path, 1, "deadbeef") != own.parent


@pytest.mark.parametrize("uid", [UID, ""])
def test_a_checkpoint_of_version_0_1_is_resumed(tmp_path, uid):
    *_, newest = attempt(tmp_path, 1, 0, 1, uid="")
    assert newest.parent.name == "attempt-1"
    assert resume.find_checkpoint(tmp_path, None, 0, attempt=2, uid=uid) == newest


def test_without_an_intact_checkpoint_a_trial_starts_over(tmp_path):
    for path in attempt(tmp_path, 1, 0, 1):
        tear(path)
    assert resume.find_checkpoint(tmp_path, None, 1, attempt=3, uid=UID) is None
    assert resume.find_checkpoint(tmp_path / "no folder", None, 1, attempt=3, uid=UID) is None


def test_a_checkpoint_gives_the_value_of_every_epoch(tmp_path):
    *_, newest = attempt(tmp_path, 1, 0, 1, 2)
    assert resume.checkpoint_values(newest) == {epoch: value_at(X, epoch) for epoch in range(3)}
