from __future__ import annotations

import json

import pytest
import torch

from csi_job.cache.dataset import Cache
from csi_job.errors import ConfigurationError, CsiJobError
from csi_job.evaluation.run import run_evaluation
from tests.unit.evaluation.conftest import write_model_file

CPU = torch.device("cpu")


def test_numbers_and_figures_are_written_and_open_without_a_network(cache_folder, model_file, tmp_path, quick):
    run = run_evaluation(tmp_path, Cache.open(cache_folder), model_file, quick, CPU)
    folder = tmp_path / "models" / "evaluation"
    assert run.files == (folder / "small.json", folder / "small_plots.html")
    assert json.loads(run.files[0].read_text())["model"] == "small.safetensors"
    page = run.files[1].read_text()
    assert "Plotly.newPlot" in page
    assert "<script src=" not in page
    assert run.comparison is None
    assert run.evaluation.warnings == tuple(w for w in run.evaluation.warnings if "trained on a different" not in w)


def test_a_baseline_is_evaluated_and_compared_on_the_same_images(cache_folder, model_file, tmp_path, quick):
    baseline = write_model_file(tmp_path / "base.safetensors", seed=3)
    run = run_evaluation(tmp_path, Cache.open(cache_folder), model_file, quick, CPU, baseline_path=baseline)
    names = [path.name for path in run.files]
    assert names == [
        "small.json",
        "small_plots.html",
        "base.json",
        "base_plots.html",
        "comparison.json",
        "comparison_plots.html",
    ]
    content = json.loads(run.files[4].read_text())
    assert content["metrics"]["f1_macro"]["model"] == run.evaluation.metrics["f1_macro"].value
    assert "small.safetensors compared with base.safetensors" in run.files[5].read_text()


def test_two_models_with_the_same_name_do_not_overwrite_each_other(cache_folder, model_file, tmp_path, quick):
    baseline = write_model_file(tmp_path / "small.safetensors", seed=3)
    run = run_evaluation(tmp_path, Cache.open(cache_folder), model_file, quick, CPU, baseline_path=baseline)
    assert [path.name for path in run.files[:4:2]] == ["small.json", "small_as_baseline.json"]


def test_a_model_from_another_cache_gives_a_warning(cache_folder, tmp_path, quick):
    path = write_model_file(tmp_path / "m.safetensors", data={"cache": "f" * 16})
    run = run_evaluation(tmp_path, Cache.open(cache_folder), path, quick, CPU)
    assert "may have been among its training patients" in run.evaluation.warnings[0]


def test_a_model_for_another_image_size_is_rejected(cache_folder, tmp_path, quick):
    path = write_model_file(tmp_path / "m.safetensors", image_size_px=64)
    with pytest.raises(ConfigurationError, match="64 px, the cache holds 32 px"):
        run_evaluation(tmp_path, Cache.open(cache_folder), path, quick, CPU)


def test_a_read_only_folder_is_a_one_line_error(cache_folder, model_file, tmp_path, quick):
    (tmp_path / "models").touch()
    with pytest.raises(CsiJobError, match="evaluation cannot be written"):
        run_evaluation(tmp_path, Cache.open(cache_folder), model_file, quick, CPU)
