import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from markupsafe import escape
from sklearn.metrics import f1_score

from csi_job.cache.dataset import Cache
from csi_job.errors import ConfigurationError, CsiJobError
from csi_job.evaluation.run import OTHER_DATA, run_evaluation
from csi_job.html.render import PLOTLY
from csi_job.trial.settings import TrialSettings
from csi_job.work_folder import ModelFolder
from tests.unit.evaluation.conftest import write_model_file


@pytest.fixture
def run(cache_folder, tmp_path, quick):
    """Return `run(model, …)`, which evaluates on the phantoms' test set and writes below `tmp_path`."""

    def run(model, **options):
        folder, cache = ModelFolder(tmp_path), Cache.open(cache_folder)
        return run_evaluation(folder, cache, model, quick, TrialSettings(), **options)

    return run


def test_numbers_and_figures_are_written_and_open_without_a_network(run, model_file, tmp_path):
    done = run(model_file)
    folder = tmp_path / "evaluation"
    assert done.files == tuple(folder / f"small{end}" for end in (".json", "_predictions.csv", "_plots.html"))
    assert json.loads(done.files[0].read_text())["model"] == "small.safetensors"
    page = done.files[2].read_text()
    assert "Plotly.newPlot" in page
    assert re.findall(r'<script src="([^"]*)"', page) == [PLOTLY]
    assert (folder / PLOTLY).is_file()
    assert done.comparison is None
    assert not any("training patients" in warning for warning in done.evaluation.warnings)


def test_a_baseline_is_evaluated_and_compared_on_the_same_images(run, model_file, tmp_path):
    baseline = write_model_file(tmp_path / "base.safetensors", seed=3)
    done = run(model_file, baseline_path=baseline)
    ends = (".json", "_predictions.csv", "_plots.html")
    names = [f"{stem}{end}" for stem in ("small", "base") for end in ends]
    assert [path.name for path in done.files] == [*names, "comparison.json", "comparison_plots.html"]
    content = json.loads(done.files[6].read_text())
    assert content["metrics"]["f1_macro"]["model"] == done.evaluation.metrics["f1_macro"].value
    assert content["outcome"] == f"{done.decision.action}. {done.decision.evidence}"
    page = done.files[7].read_text()
    assert "small.safetensors compared with base.safetensors" in page
    assert escape(done.decision.evidence) in page


def test_two_models_with_the_same_name_do_not_overwrite_each_other(run, model_file, tmp_path):
    baseline = write_model_file(tmp_path / "small.safetensors", seed=3)
    done = run(model_file, baseline_path=baseline)
    assert [path.name for path in done.files[:6:3]] == ["small.json", "small_as_baseline.json"]


@pytest.mark.parametrize("data", [{"cache": "f" * 16}, None])
def test_patients_that_a_baseline_may_have_seen_are_not_called_unseen(run, model_file, tmp_path, data):
    assert "whom neither model has seen" in run(model_file, baseline_path=model_file).decision.evidence
    path = write_model_file(tmp_path / "base.safetensors", data=data)
    done = run(model_file, baseline_path=path)
    assert "seen" not in done.decision.evidence
    warning = done.comparison.baseline.warnings[0]
    assert warning.startswith("base.safetensors")
    assert "may have been among its training patients" in warning
    assert warning in done.files[7].read_text()
    assert run(path).evaluation.warnings[0] == warning


def test_patients_that_the_hyperparameters_may_have_been_chosen_on_are_not_called_unseen(run, cache_folder, tmp_path):
    data = {"cache": Cache.open(cache_folder).info.key, "warnings": [OTHER_DATA]}
    path = write_model_file(tmp_path / "more.safetensors", data=data)
    evaluation = run(path).evaluation
    assert evaluation.warnings[0].startswith(
        "the hyperparameters of more.safetensors were searched on a different cache"
    )
    assert not evaluation.is_unseen


@pytest.mark.parametrize(
    "warning", ["2 image files are in several splits, as copies", "no PatientID: …in several splits"]
)
def test_patients_whose_images_may_be_in_several_splits_are_not_called_unseen(
    warning, model_file, cache_folder, tmp_path, quick
):
    cache = Cache.open(cache_folder)
    leaking = replace(cache, info=replace(cache.info, warnings=("3 images look doubtful", warning)))
    done = run_evaluation(ModelFolder(tmp_path), leaking, model_file, quick, TrialSettings(), baseline_path=model_file)
    assert done.evaluation.warnings[0] == warning
    assert not done.evaluation.is_unseen
    assert "seen" not in done.decision.evidence


def test_a_model_for_another_image_size_is_rejected(run, tmp_path):
    path = write_model_file(tmp_path / "m.safetensors", image_size_px=64)
    with pytest.raises(ConfigurationError, match="64 px, the cache holds 32 px"):
        run(path)


def test_a_read_only_folder_is_a_one_line_error(run, model_file, tmp_path):
    (tmp_path / "evaluation").touch()
    with pytest.raises(CsiJobError, match="evaluation cannot be written"):
        run(model_file)


def test_the_predictions_kept_give_the_metrics_again_and_name_pseudonyms_only(run, model_file, cache_folder):
    done = run(model_file)
    rows = list(csv.DictReader(done.files[1].open()))
    data = Cache.open(cache_folder).split("test")
    assert [row["image"] for row in rows] == list(data.pseudonyms)
    assert len({row["patient"] for row in rows}) == done.evaluation.predictions.num_patients
    known = [row for row in rows if row["true_csi"]]
    error = np.mean([abs(float(row["true_csi"]) - float(row["csi"])) for row in known])
    assert error == pytest.approx(done.evaluation.metrics["csi_mae"].value, abs=1e-5)
    graded = [row for row in rows if row["true_left_mid"] != "unknown"]
    truth, predicted = ([row[name] for row in graded] for name in ("true_left_mid", "left_mid"))
    f1 = f1_score(truth, predicted, labels=["0", "1", "2", "3"], average="macro", zero_division=0)
    assert f1 == pytest.approx(done.evaluation.metrics["left_mid.f1_macro"].value)
