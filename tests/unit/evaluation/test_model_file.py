import json
import pickle
import re
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from csi_job.errors import ConfigurationError, ModelFileError
from csi_job.evaluation.model_file import FORMAT, load_model, predict_probabilities
from csi_job.files import digest_file
from csi_job.trial.model import build_model
from csi_job.trial.pretrained import find_weights
from tests.support.bomb import Bomb
from tests.unit.evaluation.conftest import write_model_file

CPU = torch.device("cpu")
FORM = {"architecture": "Custom_1", "image_size_px": 32, "normalisation": "medical"}


def bare(path, model=None):
    torch.save((model or build_model("Custom_1")).state_dict(), path)
    return path


def refused(path, **options) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_model(path, CPU, **options)
    return str(caught.value)


def test_safetensors_describe_themselves(model_file):
    loaded = load_model(model_file, CPU, image_size_px=64, normalisation="imagenet")
    assert (loaded.architecture, loaded.image_size_px, loaded.normalisation) == ("Custom_1", 32, "medical")
    assert not loaded.model.training


@pytest.mark.parametrize(
    ("card", "setting", "used"),
    [
        ({}, "auto", "auto"),
        ({"training": {"precision": "bf16"}}, "auto", "bf16"),
        ({"training": {"precision": "bf16"}}, "fp32", "fp32"),
        ({"training": {"precision": ["bf64"]}}, "auto", "auto"),
        ({"training": "bf16"}, "auto", "auto"),
    ],
)
def test_a_model_predicts_in_the_precision_that_is_set_or_else_that_its_card_names(tmp_path, card, setting, used):
    path = write_model_file(tmp_path / "m.safetensors", **card)
    assert load_model(path, CPU, precision=setting).precision == used


def test_a_state_dict_makes_the_same_predictions_as_the_safetensors(model_file, tmp_path):
    torch.save(load_file(model_file), tmp_path / "same.pth")
    images = torch.randint(0, 256, (5, 32, 32), dtype=torch.uint8)
    ours = predict_probabilities(load_model(model_file, CPU), images, 2)
    theirs = predict_probabilities(load_model(tmp_path / "same.pth", CPU, **FORM), images, 5)
    assert ours.shape == (5, 6, 5)
    assert ours == pytest.approx(theirs, abs=1e-6)


def with_old_names(name):
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.", r"\1.\2.", name)


@pytest.mark.parametrize(
    ("arch", "wrap", "rename"),
    [
        ("Custom_1", lambda state: state, lambda name: name.removeprefix("backbone.")),
        ("Custom_1", lambda state: {"epoch": 7, "model": state}, lambda name: f"module.{name}"),
        ("Custom_1", lambda state: {"state_dict": state, "lr": 0.1}, lambda name: f"model.{name}"),
        ("Custom_1", lambda state: {"model_state_dict": state}, lambda name: f"_orig_mod.module.{name}"),
        ("Custom_1", lambda state: {"net": state, "optimizer": {"state": {}}}, lambda name: f"net.{name}"),
        ("CheXNet", lambda state: {"state_dict": state}, lambda name: f"module.densenet121.{with_old_names(name)[9:]}"),
    ],
)
def test_a_training_checkpoint_predicts_like_the_bare_weights(arch, wrap, rename, tmp_path):
    torch.manual_seed(0)
    model, form = build_model(arch).eval(), FORM | {"architecture": arch}
    path, images = tmp_path / "checkpoint.ckpt", torch.randint(0, 256, (2, 32, 32), dtype=torch.uint8)
    torch.save(wrap({rename(name): tensor for name, tensor in model.state_dict().items()}), path)
    expected = predict_probabilities(load_model(bare(tmp_path / "bare.pth", model), CPU, **form), images, 2)
    assert (predict_probabilities(load_model(path, CPU, **form), images, 2) == expected).all()


def test_a_state_dict_finds_its_card_beside_it(tmp_path):
    path = bare(tmp_path / "m.pth")
    card = {"architecture": "Custom_1", "image_size_px": 48, "normalisation": "imagenet"}
    card["files"] = {"m.pth": {"sha256": digest_file(path)}}
    path.with_suffix(".json").write_text(json.dumps(card))
    loaded = load_model(path, CPU)
    assert (loaded.image_size_px, loaded.normalisation) == (48, "imagenet")


def test_weights_are_not_paired_with_the_card_of_those_that_replace_them(tmp_path, monkeypatch):
    path = bare(tmp_path / "m.pth")

    def find_and_replace(loaded):
        bare(path)
        card = {"architecture": "ResNet50", "files": {"m.pth": {"sha256": digest_file(path)}}}
        path.with_suffix(".json").write_text(json.dumps(card))
        return find_weights(loaded)

    monkeypatch.setattr("csi_job.evaluation.model_file.find_weights", find_and_replace)
    assert load_model(path, CPU, **FORM).card == {}


def test_a_card_of_another_file_is_ignored(tmp_path, caplog):
    path = bare(tmp_path / "m.pth")
    card = {"architecture": "ResNet50", "image_size_px": 48, "files": {"m.pth": {"sha256": "0" * 64}}}
    path.with_suffix(".json").write_text(json.dumps(card))
    assert load_model(path, CPU, **FORM).architecture == "Custom_1"
    assert "describes another file" in caplog.text


def test_a_bare_state_dict_needs_its_form_from_the_caller(tmp_path):
    path = bare(tmp_path / "m.pth")
    assert "has no card with its image_size_px and normalisation" in refused(path, architecture="Custom_1")
    message = refused(path, **{**FORM, "architecture": None})
    assert "no card that names its architecture" in message
    assert "--model-arch" in message


@pytest.mark.parametrize("name", ["m.PTH", "m.pth.tar", "m.SafeTensors"])
def test_the_type_of_a_file_is_known_in_any_case(tmp_path, name):
    model = build_model("Custom_1")
    (save_file if "Safe" in name else torch.save)(model.state_dict(), tmp_path / name)
    loaded = load_model(tmp_path / name, CPU, **FORM)
    assert all(torch.equal(tensor, loaded.model.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_empty_files_and_pointers_are_called_so(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    for content, words in ((b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`")):
        path.write_bytes(content)
        assert words in refused(path, **FORM)


def test_a_zip_bomb_is_rejected_before_it_expands(tmp_path):
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "plain.pth")
    with ZipFile(tmp_path / "plain.pth") as plain, ZipFile(tmp_path / "bomb.pth", "w", ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert "is damaged, or a compressed archive" in refused(tmp_path / "bomb.pth", **FORM)
    with pytest.raises(ConfigurationError, match=r"trial\.pretrained.* a compressed archive"):
        build_model("Custom_1", str(tmp_path / "bomb.pth"))


@pytest.mark.parametrize("protocol", [0, 2, 4, "archive"])
def test_a_malicious_file_is_rejected_and_never_executed(tmp_path, protocol):
    path, target = tmp_path / "evil.pth", tmp_path / "executed"
    if protocol == "archive":
        torch.save({"weight": torch.ones(2), "more": Bomb(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Bomb(target)}, protocol=protocol))
    assert "nothing in it was executed" in refused(path, **FORM)
    assert not target.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_a_one_line_error(model_file, tmp_path, share):
    for source in (model_file, bare(tmp_path / "intact.pth")):
        cut = tmp_path / f"cut{source.suffix}"
        cut.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
        assert "the model file" in refused(cut, **FORM)


@settings(max_examples=40)
@given(junk=st.binary(max_size=200), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_junk_is_a_one_line_error(tmp_path, junk, suffix):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(junk)
    refused(path, **FORM)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *[(content, "no state dict") for content in ([1, 2], {"weight": 3}, {}, torch.ones(2))],
        ({"layer.weight": torch.ones(3)}, "do not fit Custom_1 (28 weights are missing or unknown, such as backbone."),
        ({name: tensor * torch.nan for name, tensor in build_model("Custom_1").state_dict().items()}, "not finite"),
    ],
)
def test_a_file_without_the_weights_of_the_architecture_is_rejected(tmp_path, content, message):
    torch.save(content, tmp_path / "m.pth")
    assert message in refused(tmp_path / "m.pth", **FORM)


def test_shapes_that_differ_are_rejected(tmp_path, model_file):
    state = load_file(model_file)
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    state[name] = torch.ones(1)
    card = json.dumps(FORM)
    save_file(state, tmp_path / "m.safetensors", {"format": FORMAT, "card": card})
    assert "shapes differ" in refused(tmp_path / "m.safetensors")


@pytest.mark.parametrize("stem", ["expanded", "float8"])
def test_a_first_convolution_that_cannot_be_summed_is_rejected(tmp_path, stem):
    state = build_model("Custom_1").state_dict()
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    colour = state[name].expand(-1, 3, -1, -1)
    forms = {
        "expanded": lambda: torch.zeros(1).expand(10**6, 3, 10**4, 10**4),  # 4 bytes in the file
        "float8": lambda: colour.to(torch.float8_e4m3fn),
    }
    torch.save(state | {name: forms[stem]()}, tmp_path / "m.pth")
    assert "shapes differ" in refused(tmp_path / "m.pth", **FORM)
    with pytest.raises(ConfigurationError, match="31 of 32 keys match"):
        build_model("Custom_1", str(tmp_path / "m.pth"))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"architecture": "ResNet5000"}, "ResNet5000"),
        ({"architecture": "\x1b]0;title\x07\x9b2J"}, "got '?]0;title??2J'"),  # commands for the terminal
        ({"architecture": "resnet18"}, "do not fit resnet18"),
        ({"image_size_px": 1}, "is not allowed"),
        ({"image_size_px": "big"}, "is not allowed"),
        ({"normalisation": "none"}, "is not allowed"),
    ],
)
def test_a_card_that_does_not_describe_the_weights_is_rejected(tmp_path, card, message):
    assert message in refused(write_model_file(tmp_path / "m.safetensors", **card))


@pytest.mark.parametrize("card", ["", "[]", "{", "[" * 100_000])
def test_metadata_without_a_valid_card_is_rejected(tmp_path, model_file, card):
    save_file(load_file(model_file), tmp_path / "m.safetensors", {"format": FORMAT, "card": card})
    assert "card is not a JSON object" in refused(tmp_path / "m.safetensors")


def test_missing_files_folders_and_other_types_are_distinguished(tmp_path):
    assert "there is no such model file" in refused(tmp_path / "m.pth")
    assert "unknown type of model file" in refused(tmp_path / "m.onnx")
    (tmp_path / "folder.pth").mkdir()
    assert "there is no such model file" in refused(tmp_path / "folder.pth")


def test_output_that_is_not_finite_is_rejected(model_file):
    loaded = load_model(model_file, CPU)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1e30)
    with pytest.raises(ModelFileError, match="output is not finite"):
        predict_probabilities(loaded, torch.randint(0, 256, (2, 32, 32), dtype=torch.uint8), 2)
