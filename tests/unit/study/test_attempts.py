from optuna.trial import TrialState, create_trial

from csi_job.study import attempts
from csi_job.work_folder import WorkFolder
from tests.support.studies import write_checkpoint

X, UID, OTHER = 0.5, "1a2b3c4d", "5e6f7a8b"  # the other study has the same name in another database


def attempt(folder, number, *epochs, uid=UID):
    return [write_checkpoint(folder / attempts.attempt_name(number, uid), epoch, X) for epoch in epochs]


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
