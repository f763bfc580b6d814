import json
import shutil

import pytest
from optuna.trial import TrialState, create_trial

from csi_job.errors import ResourceError
from csi_job.storage.lease import Lease, new_token
from csi_job.study import attempts
from csi_job.trial.checkpoint import checkpoint_results
from csi_job.work_folder import WorkFolder
from tests.support.studies import counted, value_at, write_checkpoint

X, UID, OTHER = 0.5, "1a2b3c4d", "5e6f7a8b"  # the other study has the same name in another database


def attempt(folder, number, *epochs, uid=UID):
    return [write_checkpoint(folder / attempts.attempt_name(number, uid), epoch, X) for epoch in epochs]


def tear(path):
    path.write_bytes(path.read_bytes()[:70])


def make_unreadable(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [tear, make_unreadable])
def test_a_trial_resumes_from_the_stored_checkpoint_or_if_it_is_damaged_the_one_before(tmp_path, damage, caplog):
    _, earlier = attempt(tmp_path, 9, 0, 2)
    before, stored = attempt(tmp_path, 10, 2, 3)
    (tmp_path / "attempt-of-another-program").mkdir()
    for expected, epoch in ((stored, 3), (before, 2), (earlier, 2)):
        assert attempts.find_checkpoint(tmp_path, stored, epoch, attempt=11, uid=UID) == expected
        damage(expected)
    assert (f"{stored} cannot be read (Is a directory)" in caplog.text) == (damage is make_unreadable)


def test_a_folder_that_cannot_be_listed_leaves_those_of_earlier_attempts(tmp_path, caplog):
    *_, older = attempt(tmp_path, 1, 0, 1)
    *_, stored = attempt(tmp_path, 2, 2, 3)
    shutil.rmtree(stored.parent)
    stored.parent.touch()
    assert attempts.find_checkpoint(tmp_path, stored, 3, attempt=4, uid=UID) == older
    assert caplog.messages == [f"the checkpoints in {stored.parent} cannot be read (Not a directory)"]


def test_attempts_that_cannot_be_listed_are_not_taken_for_none(tmp_path):
    (tmp_path / "trial-7").touch()
    with pytest.raises(ResourceError, match="cannot be listed"):
        attempts.find_checkpoint(tmp_path / "trial-7", None, 3, attempt=4, uid=UID)
    assert attempts.find_checkpoint(tmp_path / "trial-8", None, 3, attempt=4, uid=UID) is None


def test_a_newer_one_of_the_stored_attempt_counts_but_no_earlier_one(tmp_path):
    _, stored, newer = attempt(tmp_path, 2, 2, 3, 4)
    attempt(tmp_path, 1, 8, 9)  # of a worker that continued without its lease
    assert attempts.find_checkpoint(tmp_path, stored, 3, attempt=4, uid=UID) == newer
    assert attempts.find_checkpoint(tmp_path, tmp_path / "elsewhere" / stored.name, 3, attempt=4, uid=UID) == newer
    shutil.rmtree(stored.parent)
    assert attempts.find_checkpoint(tmp_path, stored, 3, attempt=4, uid=UID) is None


def test_the_last_attempt_that_wrote_a_checkpoint_is_resumed_even_if_it_stored_nothing(tmp_path):
    """It was killed while the database was away."""
    attempt(tmp_path, 1, 8, 9)  # of a worker that continued without its lease
    *_, newest = attempt(tmp_path, 2, 0, 1)
    attempts.fresh_attempt_folder(tmp_path, 3, UID).mkdir()  # killed before it wrote any
    attempt(tmp_path, 4, 5)  # of a time before the database was restored
    assert attempts.find_checkpoint(tmp_path, None, -1, attempt=4, uid=UID) == newest


def test_a_worker_of_a_deleted_study_of_the_same_name_is_not_resumed(tmp_path):
    attempt(tmp_path, 1, 0, 1, 2, uid="deadbeef")
    assert attempts.find_checkpoint(tmp_path, None, 1, attempt=4, uid=UID) is None
    [own] = attempt(tmp_path, 1, 0)
    assert attempts.find_checkpoint(tmp_path, own, 1, attempt=4, uid=UID) == own
    assert attempts.fresh_attempt_folder(tmp_path, 1, "deadbeef") != own.parent


@pytest.mark.parametrize(("stored", "uid"), [(json.dumps(UID), UID), (None, "")])
def test_a_checkpoint_of_version_0_1_is_resumed(tmp_path, stored, uid):
    assert Lease(1, 0, new_token(), attempt=2, stored_uid=stored).uid == uid
    *_, newest = attempt(tmp_path, 1, 0, 1, uid="")
    assert newest.parent.name == "attempt-1"
    assert attempts.find_checkpoint(tmp_path, None, 0, attempt=4, uid=uid) == newest


@pytest.mark.parametrize("uid", ["x/../../y", "../x", "/x"])
def test_a_uid_of_another_program_leads_to_no_other_folder_and_is_resumed(tmp_path, uid):
    trial = tmp_path / "trial-3"
    *_, newest = attempt(trial, 1, 0, 1, uid=uid)
    assert [*tmp_path.rglob("*.pt")] == [*trial.glob("attempt-1-*/*.pt")] != []
    assert attempts.find_checkpoint(trial, newest, 1, attempt=4, uid=uid) == newest


def test_without_an_intact_checkpoint_a_trial_starts_over(tmp_path):
    for path in attempt(tmp_path, 1, 0, 1):
        tear(path)
    assert attempts.find_checkpoint(tmp_path, None, 1, attempt=4, uid=UID) is None
    assert attempts.find_checkpoint(tmp_path / "no folder", None, 1, attempt=4, uid=UID) is None


def test_a_checkpoint_gives_the_value_of_every_epoch(tmp_path):
    *_, newest = attempt(tmp_path, 1, 0, 1, 2)
    assert {epoch: result["val_f1"] for epoch, result in checkpoint_results(newest).items()} == {
        epoch: value_at(X, epoch) for epoch in range(3)
    }


def test_a_pause_keeps_the_newest_and_what_a_later_attempt_wrote(tmp_path):
    attempt(tmp_path, 1, 0, 1)
    *_, newest = attempt(tmp_path, 2, 2, 3)
    later = attempt(tmp_path, 10, 0) + attempt(tmp_path, 1, 5, uid=OTHER)
    attempts.keep_newest_checkpoint(newest.parent, 4)  # whose checkpoint could not be written
    assert len([*tmp_path.rglob("*.pt")]) == 6
    attempts.keep_newest_checkpoint(newest.parent, 3)
    assert {*tmp_path.rglob("*.pt")} == {newest, *later}


def test_a_new_attempt_starts_in_an_empty_folder(tmp_path):
    folder = WorkFolder(tmp_path).trial_checkpoints("toy", 3)
    attempt(folder, 1, 0)
    attempt(folder, 2, 1)
    assert attempts.fresh_attempt_folder(folder, 2, UID) == folder / attempts.attempt_name(2, UID)
    assert [path.name for path in folder.rglob("*.pt")] == ["epoch-0000.pt"]


def test_a_finished_trial_leaves_no_checkpoint(tmp_path):
    attempt(WorkFolder(tmp_path).trial_checkpoints("toy", 3), 1, 0)
    attempt(WorkFolder(tmp_path).trial_checkpoints("toy", 4), 1, 0)
    other = attempt(WorkFolder(tmp_path).trial_checkpoints("toy", 3), 1, 0, uid=OTHER)
    attempts.remove_checkpoints(tmp_path, "toy", 3, UID)
    attempts.remove_checkpoints(tmp_path, "toy", 99, UID)
    assert [path.parent.parent.name for path in tmp_path.rglob("*.pt") if path not in other] == ["trial-4"]
    assert other[0].exists()
    attempts.remove_checkpoints(tmp_path, "toy", 3, OTHER)
    assert not other[0].parent.parent.exists()


def test_only_finished_trials_leave_no_checkpoint_of_a_killed_worker(study, tmp_path):
    study.add_trial(create_trial(state=TrialState.PRUNED))
    for number in range(2):
        attempt(WorkFolder(tmp_path).trial_checkpoints("toy", number), 1, 0)
    attempts.remove_leftover_checkpoints(tmp_path, study, UID)
    assert [path.parent.parent.name for path in tmp_path.rglob("*.pt")] == ["trial-0"]  # which is waiting


def test_where_no_checkpoint_is_left_no_trial_is_read(study, storage, tmp_path):
    with counted(storage.engine) as statements:
        attempts.remove_leftover_checkpoints(tmp_path, study, UID)
    assert statements == []


def test_all_checkpoints_of_a_study_are_those_of_its_trials_and_no_others(tmp_path):
    for number in (3, 4):
        attempt(WorkFolder(tmp_path).trial_checkpoints("toy", number), 1, 0)
    attempt(WorkFolder(tmp_path).trial_checkpoints("toy", 4), 1, 0, uid="")
    (other,) = attempt(WorkFolder(tmp_path).trial_checkpoints("toy", 3), 2, 0, uid=OTHER)
    attempts.remove_all_checkpoints(tmp_path, "toy", UID)
    assert [*tmp_path.rglob("*.pt")] == [other]
    attempts.remove_all_checkpoints(tmp_path, "toy", OTHER)
    attempts.remove_all_checkpoints(tmp_path, "toy", OTHER)
    assert [*(tmp_path / "checkpoints").iterdir()] == []
