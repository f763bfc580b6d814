import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csi_job.cache.dataset import Cache
from csi_job.cache.manifest import load_info
from csi_job.config import Settings
from csi_job.errors import CsiJobError, InfeasibleTrialError
from csi_job.evaluation.model_file import load_model, predict_probabilities
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.final_model.export import read_valid_card
from csi_job.final_model.seeds import SeedTrainer
from csi_job.final_model.train import FinalModel
from csi_job.pipeline import run_evaluate
from csi_job.study.record import StudyRecord
from csi_job.trial.hyperparameters import Hyperparameters
from csi_job.trial.metrics import confusion, mean_f1
from csi_job.work_folder import WorkFolder
from tests.support.processes import Process, preload, wait_until
from tests.unit.final_model.conftest import BASELINE, QUICK, SMALL, request_of, study_of, write_hyperparams

preload("tests.unit.final_model.test_train")

TRIALS = ((SMALL, 0.5), ({"learning_rate": 3e-3}, 0.4))


def final(work: Path, cache_folder: Path, study=None, uid=None, **changes) -> FinalModel:
    record = StudyRecord("s", {"fingerprint": {}, "settings": {}, "uid": uid})
    request = request_of(work, cache_folder, study, **changes)
    return replace(request, record=record, max_image_side_px=30_000).run()


def trained_files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def done(cache_folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("done ü")
    return work, final(work, cache_folder, study_of(*TRIALS))


@pytest.fixture
def copied(done, tmp_path):
    """A work folder in which everything is done already, free to be spoiled."""
    return Path(shutil.copytree(done[0], tmp_path / "copy", copy_function=shutil.copy2))


def test_the_kept_model_is_the_best_seed_of_the_best_mean_with_its_own_validation_f1(done, cache_folder):
    _, model = done
    chosen = json.loads(model.optimized_params.read_text())
    best = max(chosen["candidates"], key=lambda row: row["mean"])
    assert best["winner"]
    assert model.card["params"] == best["params"]
    assert model.card["seeds"] == best["seeds"]
    assert model.card["max_image_side_px"] == 30_000
    kept = max(best["seeds"], key=lambda row: row["val_f1"])
    assert model.card["kept_seed"] == kept["seed"]
    loaded, data = load_model(model.path, torch.device("cpu")), Cache.open(cache_folder).split("validation")
    predicted = predict_probabilities(loaded, data.images_NHW, 8).argmax(axis=2)
    measured = mean_f1(confusion(torch.from_numpy(predicted), data.zones_NZ))
    assert measured == pytest.approx(kept["val_f1"], abs=1e-9)
    assert model.card["validation"]["metrics"]["f1_macro"]["value"] == pytest.approx(measured, abs=1e-9)


def test_the_baseline_is_trained_the_same_way(done):
    work, model = done
    assert model.baseline_card["params"] == BASELINE.to_params()
    assert [row["seed"] for row in model.baseline_card["seeds"]] == [row["seed"] for row in model.card["seeds"]]
    assert model.baseline_card["max_epochs"] == model.card["max_epochs"]
    assert model.baseline_card["training"] == model.card["training"]
    assert WorkFolder(work).final("s").baseline_model.is_file()


def test_the_card_names_the_data_and_counts_patients_and_leaves_the_test_set_alone(done, cache_folder):
    card, info = done[1].card, load_info(cache_folder)
    assert card["data"]["cache"] == info.key
    assert sum(card["data"]["num_patients"].values()) == info.num_patients
    assert card["test"] is None
    assert card["data"]["warnings"][: len(info.warnings)] == list(info.warnings)


def test_running_again_does_nothing(done, copied, cache_folder):
    before = trained_files(copied)
    again = final(copied, cache_folder, study_of(*TRIALS))
    assert (done[1].is_new, again.is_new) == (True, False)
    assert again.card == done[1].card
    assert trained_files(copied) == before


def test_a_finished_model_needs_no_stored_trainings(copied, cache_folder):
    shutil.rmtree(copied / "models" / "candidates")
    assert not final(copied, cache_folder, study_of(*TRIALS)).is_new


@pytest.mark.parametrize(("folder", "is_new"), [("models", False), ("models/final/s", True)])
def test_a_corrupt_file_is_restored_without_training(copied, cache_folder, folder, is_new):
    candidates = trained_files(copied / "models" / "candidates")
    weights = copied / folder / "optimized_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    if is_new:
        (copied / "models" / "optimized_model.json").unlink()  # else the latest model is what restores it
    again = final(copied, cache_folder, study_of(*TRIALS))
    assert again.is_new is is_new
    for path in (weights, copied / "models" / "optimized_model.safetensors"):
        assert load_model(path, torch.device("cpu")).architecture == "Custom_1"
    assert trained_files(copied / "models" / "candidates") == candidates


def test_a_final_model_of_version_0_1_is_up_to_date_and_gets_the_folder_of_its_study(copied, cache_folder):
    shutil.rmtree(copied / "models" / "final")
    again = final(copied, cache_folder, study_of(*TRIALS))
    assert not again.is_new
    assert read_valid_card(copied / "models" / "final" / "s" / "optimized_model.safetensors") == again.card


def test_a_study_created_again_does_not_take_the_model_of_the_deleted_one_for_its_own(copied, cache_folder):
    assert not final(copied, cache_folder, study_of(*TRIALS), uid="a").is_new  # version 0.1 did not store whose it is
    candidates = trained_files(copied / "models" / "candidates")
    for path in copied.rglob("optimized_model.json"):
        path.unlink()
    assert [final(copied, cache_folder, study_of(*TRIALS), uid="a").is_new for _ in range(2)] == [True, False]
    again = final(copied, cache_folder, study_of(*TRIALS), uid="b")
    assert (again.is_new, again.card["study_uid"], again.baseline_card["study_uid"]) == (True, "b", "b")
    assert json.loads(again.optimized_params.read_text())["study_uid"] == "b"
    assert read_valid_card(WorkFolder(copied).latest.optimized_model) == again.card
    assert trained_files(copied / "models" / "candidates").items() >= candidates.items()


def test_each_study_keeps_its_model_and_the_latest_is_that_of_the_last_training(copied, cache_folder):
    shutil.copytree(cache_folder, copied / "cache" / cache_folder.name)
    first = final(copied, cache_folder, study_of(*TRIALS))
    write_hyperparams(copied / "b.json", study="other")
    second = final(copied, cache_folder, num_seeds=1, max_epochs=1)
    assert (first.card["study"], second.card["study"]) == ("s", "other")
    latest = WorkFolder(copied).latest
    assert read_valid_card(latest.optimized_model) == second.card
    settings = Settings(work=copied, cache={"image_size_px": 32}, evaluation=QUICK, trial={"device": "cpu"})

    run = run_evaluate(settings, first.path)  # the other's is the latest
    assert (
        read_valid_card(first.path)["test"]["metrics"]["f1_macro"]["value"] == run.evaluation.metrics["f1_macro"].value
    )
    assert {path.parent for path in run.files} == {copied / "models" / "final" / "s" / "evaluation"}
    assert run.comparison.baseline.card["request"] == first.card["request"]
    assert not latest.evaluations.exists()

    write_hyperparams(copied / "b.json")
    again = final(copied, cache_folder, study_of(*TRIALS))
    assert not again.is_new
    assert read_valid_card(latest.optimized_model) == again.card
    assert again.card["test"] is not None
    assert {path.name for path in latest.evaluations.iterdir()} >= {path.name for path in run.files}

    run_evaluate(settings, latest.optimized_model, second.path)
    comparison = json.loads((latest.evaluations / "comparison.json").read_text())
    assert comparison == json.loads((copied / "models/final/s/evaluation/comparison.json").read_text())


def test_a_baseline_of_another_training_is_not_compared_with(copied, cache_folder):
    shutil.copytree(cache_folder, copied / "cache" / cache_folder.name)
    settings = Settings(work=copied, cache={"image_size_px": 32}, evaluation=QUICK, trial={"device": "cpu"})
    baseline = copied / "models" / "final" / "s" / "baseline_model.json"
    baseline.write_text(baseline.read_text().replace('"request": "', '"request": "x'))  # killed before the model's
    assert run_evaluate(settings, copied / "models" / "optimized_model.safetensors").comparison is None


@pytest.mark.parametrize(
    "changes", [{"num_candidates": 1}, {"num_seeds": 1}, {"evaluation": EvaluationSettings(num_bootstrap=101)}]
)
def test_fewer_candidates_or_seeds_or_other_metrics_reuse_every_training(copied, cache_folder, changes):
    candidates = trained_files(copied / "models" / "candidates")
    assert final(copied, cache_folder, study_of(*TRIALS), **changes).is_new
    assert trained_files(copied / "models" / "candidates") == candidates


def test_another_seed_trains_again(copied, cache_folder):
    other = final(copied, cache_folder, study_of(*TRIALS), seed=50, num_seeds=1, num_candidates=1)
    assert [row["seed"] for row in other.card["seeds"]] == [50]


def test_confirmed_parameters_keep_the_table_of_the_candidates_they_came_from(copied, cache_folder):
    path = copied / "models" / "hyperopt" / "s_optimized_params.json"
    before = path.read_bytes()
    (copied / "b.json").write_bytes(before)
    model = final(copied, cache_folder, study_of(*TRIALS))
    assert model.card["params"] == json.loads(before)["params"]
    assert path.read_bytes() == before


def test_hyperparameters_of_other_data_are_noted_in_the_card(tmp_path, cache_folder):
    write_hyperparams(tmp_path / "b.json", fingerprint={"cache": "0" * 16})
    model = final(tmp_path, cache_folder, num_seeds=1, max_epochs=1)
    assert any("searched on a different cache" in warning for warning in model.card["data"]["warnings"])
    assert not any("searched on" in warning for warning in model.baseline_card["data"]["warnings"])  # it was not


def test_a_baseline_that_cannot_be_trained_leaves_the_model_and_no_old_baseline(copied, cache_folder, monkeypatch):
    real = SeedTrainer.run

    def run(self, recipe, seed, advance=lambda _: None):
        if recipe.params.learning_rate == 1e-5:  # a baseline too large for this device, without such a device
            message = "out of memory with a micro-batch of one image"
            raise InfeasibleTrialError(message)
        return real(self, recipe, seed, advance)

    monkeypatch.setattr(SeedTrainer, "run", run)
    too_large = Hyperparameters.from_params(SMALL | {"learning_rate": 1e-5})
    model = final(copied, cache_folder, study_of(*TRIALS), baseline=too_large)
    assert model.baseline_card is None
    assert model.path.is_file()
    assert not list((copied / "models").rglob("baseline_model.*"))
    assert "no baseline to compare it with: out of memory with a micro-batch of one image" in model.card["limits"][-1]
    again = final(copied, cache_folder, study_of(*TRIALS), baseline=too_large)
    assert (again.is_new, again.card, again.baseline_card) == (False, model.card, None)


def test_a_read_only_work_folder_is_a_one_line_error(tmp_path, cache_folder):
    (tmp_path / "models").touch()
    with pytest.raises(CsiJobError, match="work folder cannot be written"):
        final(tmp_path, cache_folder)


def train(work: Path, cache_folder: Path) -> FinalModel:
    return final(work, cache_folder, num_seeds=1, max_epochs=4)


@pytest.fixture(scope="module")
def uninterrupted(cache_folder, tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"), cache_folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 1)])
def test_a_killed_training_resumes_from_its_last_epoch_and_ends_the_same(
    tmp_path, cache_folder, uninterrupted, number, code
):
    work = tmp_path / "killed"
    work.mkdir()
    process = Process(train, work, cache_folder)
    wait_until(lambda: list(work.rglob("epoch-*.pt")) or process.returncode is not None)
    process.send_signal(number)
    assert process.join(120) == code
    assert not (work / "models" / "optimized_model.json").exists()
    resumed = train(work, cache_folder)
    assert resumed.card["seeds"] == uninterrupted.card["seeds"]
    ours, theirs = (
        load_model(model.path, torch.device("cpu")).model.state_dict() for model in (resumed, uninterrupted)
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
