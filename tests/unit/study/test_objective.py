import os
import socket

import numpy as np
import pytest
import torch
from optuna.trial import TrialState

from csi_job.cache.dataset import SplitData
from csi_job.errors import DataError
from csi_job.storage.settings import StorageSettings
from csi_job.storage.storage import open_storage
from csi_job.study.definition import Definition, define_study
from csi_job.study.objective import F1StandardError, training_objective
from csi_job.study.settings import StudySettings
from csi_job.study.worker import WorkerOptions, run_worker
from csi_job.trial.metrics import confusion, mean_f1
from csi_job.trial.settings import TrialSettings
from csi_job.trial.space import SearchSpace

SPACE = SearchSpace.model_validate(
    {"model_arch": {"choices": ["Custom_1", "resnet18"]}, "batch_size": {"value": 8}, "optimizer": {"value": "adam"}}
)
BASELINE = {"model_arch": "Custom_1", "learning_rate": 1e-3}


def split(num_images, seed):
    generator = torch.Generator().manual_seed(seed)
    zones_NZ = torch.randint(0, 5, (num_images, 6), generator=generator)
    images_NHW = torch.randint(0, 256, (num_images, 32, 32), generator=generator, dtype=torch.uint8)
    return SplitData(images_NHW, zones_NZ, torch.arange(num_images) // 2, tuple(map(str, range(num_images))), "medical")


def objective():
    return training_objective(split(16, 0), split(8, 1), TrialSettings(device="cpu"))


def define(work, **settings):
    given = StudySettings(**{"num_trials": 1, "max_epochs": 3, "pruner": "none", **settings})
    storage = open_storage(StorageSettings(lease_s=30), work, create=True)
    return define_study(storage, Definition.of(given, SPACE, BASELINE, cache_key="k")), given


def work_on(study, settings, work, run=None):
    options = WorkerOptions(own_process=False)
    return run_worker(study, run or objective(), suggest=SPACE.suggest, settings=settings, work=work, options=options)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_a_trial_trains_and_stores_what_the_report_needs(tmp_path):
    study, settings = define(tmp_path)
    work_on(study, settings, tmp_path)
    [trial] = study.trials
    assert trial.state is TrialState.COMPLETE
    assert trial.value == max(trial.intermediate_values.values())
    assert sorted(trial.intermediate_values) == [0, 1, 2]
    attributes = trial.user_attrs
    assert attributes["best_epoch"] == max(trial.intermediate_values, key=trial.intermediate_values.get)
    assert attributes["gflops"] > 0
    assert attributes["num_parameters"] > 1000
    assert attributes["micro_batch"] == 8
    assert attributes["images_per_s"] > 0
    assert 0 < attributes["f1_se"] < 0.5
    assert [epoch for epoch, train_loss, val_loss in attributes["losses"] if min(train_loss, val_loss) > 0] == [0, 1, 2]
    assert attributes["worker"] == f"{socket.gethostname()}:{os.getpid()}"
    assert not list(tmp_path.rglob("*.pt"))


def test_a_resumed_trial_equals_an_uncut_one_bit_for_bit(tmp_path):
    uncut, settings = define(tmp_path / "uncut", max_epochs=4)
    work_on(uncut, settings, tmp_path / "uncut")
    cut, settings = define(tmp_path / "cut", max_epochs=4)
    resumed_from = []

    def stopped(running):
        if running.attempt == 1:
            epoch_done = running.epoch_done

            def stop_after_two(result, checkpoint):
                epoch_done(result, checkpoint)
                if result.epoch == 1:
                    raise DataError("stop here")

            running.epoch_done = stop_after_two
        else:
            resumed_from.append(running.resume_from.name if running.resume_from else "")
        return list(objective()(running))

    with pytest.raises(DataError):
        work_on(cut, settings, tmp_path / "cut", stopped)
    work_on(cut, settings, tmp_path / "cut", stopped)
    assert resumed_from == ["epoch-0001.pt"]
    assert cut.trials[0].intermediate_values == uncut.trials[0].intermediate_values
    for name in ("f1_se", "losses"):
        assert cut.trials[0].user_attrs[name] == uncut.trials[0].user_attrs[name]


def test_training_continues_without_room_for_checkpoints(tmp_path, caplog):
    uncut, settings = define(tmp_path / "uncut")
    work_on(uncut, settings, tmp_path / "uncut")
    study, settings = define(tmp_path / "full")
    (tmp_path / "full" / "checkpoints").write_text("no folder, so no checkpoint can be written")
    work_on(study, settings, tmp_path / "full")
    assert "continues without checkpoints" in caplog.text
    assert study.trials[0].intermediate_values == uncut.trials[0].intermediate_values


def test_two_objectives_are_f1_and_the_cost_of_an_image(tmp_path):
    study, settings = define(tmp_path, objective="f1-and-cost", num_trials=3, max_epochs=1)
    work_on(study, settings, tmp_path)
    for trial in study.trials:
        f1, gflops = trial.values
        assert trial.user_attrs["curve"] == [[0, f1]]
        assert gflops == trial.user_attrs["gflops"]
    costs = {trial.params["model_arch"]: trial.values[1] for trial in study.trials}
    assert len(set(costs.values())) == len(costs)


def f1_standard_error(pred_NZ, true_NZ, patients, average="macro"):
    return F1StandardError(true_NZ, torch.as_tensor(patients), average)(pred_NZ)


def predictions(num_images, seed, accuracy=0.6):
    generator = torch.Generator().manual_seed(seed)
    true_NZ = torch.randint(0, 4, (num_images, 6), generator=generator)
    wrong_NZ = torch.randint(0, 4, (num_images, 6), generator=generator)
    is_right_NZ = torch.rand(num_images, 6, generator=generator) < accuracy
    return torch.where(is_right_NZ, true_NZ, wrong_NZ), true_NZ


def test_the_standard_error_is_close_to_the_std_over_new_patients():
    f1s = [mean_f1(confusion(*predictions(60, seed))) for seed in range(200)]
    errors = [f1_standard_error(*predictions(60, seed), range(60)) for seed in range(300, 310)]
    assert 0.7 < np.mean(errors) / np.std(f1s) < 1.4


def test_images_of_one_patient_are_resampled_together():
    pred_NZ, true_NZ = predictions(20, seed=1)
    three_times = torch.cat([pred_NZ] * 3), torch.cat([true_NZ] * 3)
    alone = f1_standard_error(pred_NZ, true_NZ, range(20))
    together = f1_standard_error(*three_times, np.tile(np.arange(20), 3))
    assert np.isclose(alone, together)
    assert f1_standard_error(*three_times, range(60)) < 0.8 * alone


def test_a_perfect_model_and_unknown_zones_give_finite_errors():
    _, true_NZ = predictions(20, seed=2)
    assert f1_standard_error(true_NZ, true_NZ, range(20), "weighted") == 0
    true_NZ[:, 1:] = 4
    assert np.isfinite(f1_standard_error(predictions(20, seed=3)[0], true_NZ, range(20)))


def test_one_patient_with_graded_zones_shows_no_standard_error():
    pred_NZ, true_NZ = predictions(8, seed=4)
    assert f1_standard_error(pred_NZ, true_NZ, [0] * 8) is None
    true_NZ[4:] = 4
    assert f1_standard_error(pred_NZ, true_NZ, [0] * 4 + [1] * 4) is None


def test_resamples_without_a_graded_zone_do_not_count_as_an_f1_of_zero():
    true_NZ = torch.tensor([[0] * 6, [0] * 6, [4] * 6])
    assert f1_standard_error(torch.zeros_like(true_NZ), true_NZ, range(3)) == 0  # 0.25 in all others
