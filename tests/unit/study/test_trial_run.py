import pytest
import sqlalchemy as sa

from csi_job.errors import CsiJobError, DataError, Problem, StorageUnavailableError
from csi_job.storage.attributes import LOSSES, curve_of, rows_of
from csi_job.storage.optuna_private import frozen_trial_of
from csi_job.storage.tables import LEASES
from csi_job.study.sampling import derived_seed
from csi_job.study.worker import check_device, failure_reason
from csi_job.trial.schedule import EpochResult
from tests.support.studies import define, objective, value_at, work_on, write_checkpoint

X = 0.5
"""The baseline's `unknown_weight`."""
SPEED = {"learning_rate": 0.1, "images_per_s": 10.0, "seconds": 1.0}


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
def test_the_message_is_kept_without_identities(error, reason):
    text = failure_reason(error)
    assert reason in text
    assert "PAT0042" not in text
    assert "\n" not in text
    assert type(error).__name__ in text or isinstance(error, CsiJobError)


def test_the_place_in_this_package_is_named_and_a_long_reason_cut():
    with pytest.raises(ValueError, match="seed") as caught:
        derived_seed("no number", 1)
    assert failure_reason(caught.value).startswith("ValueError in study/sampling.py:")
    assert len(failure_reason(ValueError("word " * 500))) == 200


def test_only_a_lost_gpu_ends_the_worker():
    check_device(RuntimeError("CUDA out of memory"))
    check_device(ValueError("CUDA error"))
    with pytest.raises(CsiJobError, match="GPU is lost"):
        check_device(RuntimeError("CUDA error: device-side assert triggered"))


def test_an_attempt_makes_progress_once_its_checkpoint_is_stored_and_passes_no_epoch_twice(
    storage, tmp_path, monkeypatch
):
    study = define(storage, num_trials=1)
    num_epochs = []

    def report(running, epoch, checkpoint=None):
        running.epoch_done(EpochResult(epoch, train_loss=1.0, val_loss=2.0, val_f1=0.1, **SPEED), checkpoint)
        query = sa.select(LEASES.c.num_epochs)
        num_epochs.append(storage.read(lambda connection: connection.execute(query).scalar_one()))

    def unreachable(*_, **__):
        raise StorageUnavailableError("the database is away")

    def first_attempt(running):
        assert running.checkpoint_folder.name == f"attempt-1-{study.user_attrs['uid']}"
        running.saves_checkpoints = True
        report(running, 0)
        report(running, 1, write_checkpoint(running.checkpoint_folder, 0, 0.1))
        report(running, 2)
        raise DataError("stop here")

    def second_attempt(running):
        report(running, 1)
        raise DataError("stop here, too")

    def third_attempt(running):
        assert running.resume_from.name == "epoch-0000.pt"
        for epoch in (1, 2):
            report(running, epoch)
        with monkeypatch.context() as outage:  # in which nothing is known of the others
            outage.setattr(storage, "write_trial", unreachable)
            running.epoch_done(EpochResult(3, train_loss=1.0, val_loss=2.0, val_f1=0.1, **SPEED), None)
        report(running, 4)
        raise AssertionError("not pruned at epoch 4")

    for attempt in (first_attempt, second_attempt):
        with pytest.raises(DataError):
            work_on(study, tmp_path, attempt, num_trials=1)
        monkeypatch.setattr("csi_job.study.trial_run.should_prune", lambda *_: True)
    assert work_on(study, tmp_path, third_attempt, num_trials=1).outcomes == {"pruned": 1}
    assert num_epochs == [0, 1, 1, 1, 1, 2]
    assert sorted(study.trials[0].intermediate_values) == [0, 1, 2, 3, 4]
    assert study.trials[0].user_attrs["reason"] == "below the median at epoch 5"


@pytest.mark.parametrize("objective_name", ["f1", "f1-and-cost"])
@pytest.mark.parametrize(
    ("num_stored", "intact", "first"), [(3, (0, 1, 2), 3), (2, (0, 1, 2), 3), (3, (0,), 1), (3, (), 0)]
)
def test_a_resumed_trial_has_the_epochs_up_to_its_checkpoint(
    objective_name, num_stored, intact, first, storage, tmp_path, logged
):
    study = define(storage, num_trials=1, objective=objective_name)

    def left(running):
        for epoch in range(3):
            checkpoint = write_checkpoint(running.checkpoint_folder, epoch, X)
            if epoch < num_stored:
                result = EpochResult(epoch, train_loss=1.0, val_loss=2.0, val_f1=value_at(X, epoch), **SPEED)
                running.epoch_done(result, checkpoint)
            if epoch not in intact:
                checkpoint.unlink()
        raise DataError("the cache is damaged")

    with pytest.raises(DataError):
        work_on(study, tmp_path, left)

    def resumed(running):
        curve = [(epoch, value_at(X, epoch)) for epoch in range(first)]
        assert (sorted(running.curve.items()), curve_of(study.trials[0])) == (curve, curve)
        for_pruners = [] if objective_name == "f1-and-cost" else curve
        assert sorted(frozen_trial_of(running.trial).intermediate_values.items()) == for_pruners
        losses = dict.fromkeys(range(max(num_stored, first)), (1.0, 2.0))
        stored = {epoch: both for epoch, *both in rows_of(study.trials[0], LOSSES, int, float, float)}
        assert (running.losses, stored) == (losses, {epoch: [*both] for epoch, both in losses.items()})
        assert (running.resume_from and running.resume_from.name) == (f"epoch-{first - 1:04}.pt" if first else None)
        promoted = storage.read(lambda connection: connection.execute(sa.select(LEASES.c.checkpoint)).scalar_one())
        assert promoted == (running.resume_from and running.resume_from.relative_to(tmp_path).as_posix())
        return objective(running)

    assert work_on(study, tmp_path, resumed).outcomes == {"complete": 1}
    assert ("are computed again" in logged.text) == (first < num_stored)
    assert f"trial 0 resumes at epoch {first + 1} (attempt 2)" in logged.messages
    assert (tmp_path / "computed.log").read_text().split() == [word for n in range(first, 4) for word in ("0", str(n))]
    assert curve_of(study.trials[0]) == [(epoch, value_at(X, epoch)) for epoch in range(4)]
