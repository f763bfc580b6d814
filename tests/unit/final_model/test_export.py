from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from csi_job.cache.dataset import Cache
from csi_job.errors import CsiJobError
from csi_job.evaluation.evaluate import evaluate_model
from csi_job.evaluation.model_file import load_model
from csi_job.evaluation.settings import EvaluationSettings
from csi_job.final_model.candidates import Candidate, CandidateResult
from csi_job.final_model.card import CardContext, build_card
from csi_job.final_model.export import read_valid_card, record_test_metrics, remove_model, write_model
from csi_job.trial.model import build_model
from tests.unit.final_model.conftest import recipe
from tests.unit.final_model.test_candidates import kept

CPU, QUICK = torch.device("cpu"), EvaluationSettings(num_bootstrap=100)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return build_model("Custom_1").state_dict()


@pytest.fixture
def card(trainer, state, tmp_path):
    """A real card: of an untrained model, measured on the validation split."""
    context = CardContext(
        "optimized_model", "s", trainer, dict.fromkeys(("train", "validation", "test"), 9), ("odd",), "r1"
    )
    result = CandidateResult(Candidate(recipe(), 3, 0.5), (kept(1, 0.4), kept(2, 0.6)))
    probe = tmp_path / "probe.pth"
    torch.save(state, probe)
    loaded = load_model(probe, CPU, architecture="Custom_1", image_size_px=32, normalisation="medical")
    evaluation = evaluate_model(
        loaded, trainer.cache.validation, QUICK, split="validation", cache=trainer.cache.info.key
    )
    return build_card(context, result, evaluation)


@pytest.fixture
def path(tmp_path, state, card) -> Path:
    """A model with both file types and its card."""
    path = tmp_path / "models" / "m.safetensors"
    write_model(path, state, card, with_pth=True)
    return path


@pytest.fixture
def own_evaluation(path, cache_folder):
    """The model on its own test set."""
    cache = Cache.open(cache_folder)
    return evaluate_model(load_model(path, CPU), cache.split("test"), QUICK, split="test", cache=cache.info.key)


def test_both_file_types_load_as_the_model_with_its_card(tmp_path, state, card):
    path = tmp_path / "models" / "optimized_model.safetensors"
    written = write_model(path, state, card, with_pth=True)
    assert set(written["files"]) == {"optimized_model.safetensors", "optimized_model.pth"}
    assert read_valid_card(path) == json.loads(json.dumps(written))
    for suffix in (".safetensors", ".pth"):
        loaded = load_model(path.with_suffix(suffix), CPU)
        assert (loaded.architecture, loaded.image_size_px) == ("Custom_1", 32)
        assert loaded.card["params"] == card["params"]
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())


def test_the_state_dict_is_plain(path, state):
    plain = torch.load(path.with_suffix(".pth"), weights_only=True)
    assert plain.keys() == state.keys()


def test_the_card_has_every_section(tmp_path, state, card):
    path = tmp_path / "m.safetensors"
    write_model(path, state, card, with_pth=False)
    text = path.with_suffix(".md").read_text()
    for heading in (
        "Model details",
        "Intended use",
        "Training data",
        "Metrics on the validation set",
        "Metrics on the test set",
        "Ethical considerations",
        "Limits",
        "Licence",
        "Versions",
    ):
        assert f"## {heading}\n" in text
    assert card["data"]["cache"] in text
    assert "Not measured yet" in text
    assert "- odd" in text
    assert "0.5000, standard deviation 0.1414" in text
    assert (card["mean"], card["kept_seed"], card["test"]) == (0.5, 2, None)
    assert card["data"]["num_images"]["train"] == sum(map(sum, card["data"]["class_counts"]["train"])) / 6
    assert not path.with_suffix(".pth").exists()


def test_the_cards_page_escapes_what_it_shows_and_has_its_metrics(tmp_path, state, card):
    path = tmp_path / "m.safetensors"
    metric = card["validation"]["metrics"]["f1_macro"]
    write_model(path, state, card | {"study": "<b>s</b>"}, with_pth=False)
    text = path.with_suffix(".html").read_text()
    assert "&lt;b&gt;s&lt;/b&gt;, trial 3" in text
    assert "<b>" not in text
    assert f"{metric['value']:.3f} ({metric['interval'][0]:.3f} to {metric['interval'][1]:.3f})" in text
    assert "Not measured yet" in text
    assert "<script" not in text


class PulledPlugError(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("step", range(1, 9))
def test_a_kill_at_any_step_never_leaves_a_card_beside_weights_it_does_not_describe(
    path, state, card, monkeypatch, step
):
    newer = {name: tensor + 1 for name, tensor in state.items()}
    num_steps, real_replace, real_unlink = 0, Path.replace, Path.unlink

    def counted(real):
        def run(self, *arguments, **options):
            nonlocal num_steps
            num_steps += 1
            if num_steps == step:
                raise PulledPlugError
            return real(self, *arguments, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted(real_replace))
        patch.setattr(Path, "unlink", counted(real_unlink))
        with pytest.raises(PulledPlugError):
            write_model(path, newer, card | {"request": "r2"}, with_pth=True)
    load_model(path, CPU)  # old or new, but intact
    valid = read_valid_card(path)
    if valid is not None:
        first = next(iter(state))
        is_new = torch.equal(load_model(path, CPU).model.state_dict()[first], newer[first])
        assert valid["request"] == ("r2" if is_new else "r1")
    write_model(path, newer, card | {"request": "r2"}, with_pth=True)
    assert read_valid_card(path)["request"] == "r2"


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.json", "m.md"])
def test_a_card_is_invalid_once_one_of_its_files_is_missing_or_changed(path, name):
    if name == "m.safetensors":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    else:
        path.with_name(name).unlink()
    assert read_valid_card(path) is None


def test_test_metrics_are_filled_in_for_the_models_own_test_set(path, own_evaluation):
    before = read_valid_card(path)
    assert record_test_metrics(path.with_suffix(".pth"), own_evaluation)
    changed = read_valid_card(path)
    assert changed["test"]["metrics"]["f1_macro"]["value"] == own_evaluation.metrics["f1_macro"].value
    assert {**changed, "test": None} == before
    assert all("Not measured yet" not in path.with_suffix(end).read_text() for end in (".md", ".html"))


def test_a_card_of_version_0_1_is_read_with_todays_keys(path):
    written = path.with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(written.replace('"std":', '"spread":'))
    assert '"spread"' in path.with_suffix(".json").read_text()
    assert read_valid_card(path) == json.loads(written)


def test_other_data_splits_and_models_without_a_card_leave_cards_alone(path, state, card, own_evaluation):
    assert not record_test_metrics(path, replace(own_evaluation, cache="f" * 16))
    assert not record_test_metrics(path, replace(own_evaluation, split="validation"))
    write_model(path, state, card, with_pth=False)
    assert not record_test_metrics(path.with_suffix(".pth"), own_evaluation)
    assert read_valid_card(path)["test"] is None


def test_a_read_only_folder_is_a_one_line_error(tmp_path, state, card):
    (tmp_path / "models").touch()
    with pytest.raises(CsiJobError, match="the model cannot be written") as caught:
        write_model(tmp_path / "models" / "m.safetensors", state, card, with_pth=True)
    assert "\n" not in str(caught.value)


def test_a_model_is_removed_with_the_files_that_describe_it(path):
    remove_model(path)
    assert list(path.parent.iterdir()) == []
    remove_model(path)
