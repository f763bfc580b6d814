import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.models import ResNet18_Weights

from csi_job.errors import ConfigurationError
from csi_job.trial.model import build_model, check_pretrained
from csi_job.trial.pretrained import as_ours, find_weights
from tests.support.bomb import Bomb


@pytest.fixture
def colour_resnet():
    torch.manual_seed(3)
    return models.resnet18(num_classes=30).eval()


def test_rgb_weights_give_the_same_result_on_a_grey_image(colour_resnet, tmp_path):
    torch.save(colour_resnet.state_dict(), tmp_path / "weights.pth")
    model = build_model("resnet18", str(tmp_path / "weights.pth")).eval()
    grey_BCHW = torch.randn(3, 1, 64, 64)
    theirs_BZK = colour_resnet(grey_BCHW.expand(-1, 3, -1, -1)).view(3, 6, 5)
    assert torch.allclose(model(grey_BCHW), theirs_BZK, atol=1e-4)


def test_a_head_of_another_size_stays_random_while_the_backbone_is_loaded(tmp_path):
    source = models.resnet18(num_classes=1000)
    torch.save({"epoch": 3, "state_dict": source.state_dict()}, tmp_path / "with a wrapper ä.pth")
    model = build_model("resnet18", str(tmp_path / "with a wrapper ä.pth"))
    assert torch.equal(model.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert torch.equal(model.backbone.bn1.running_var, source.bn1.running_var)
    assert model.backbone.fc.weight.shape == (30, 512)


def test_published_chexnet_weights_are_loaded(tmp_path):
    """DataParallel's `module.densenet121.`, layers named with dots, and a head for 14 findings."""
    source = models.densenet121(num_classes=14).state_dict()
    published = {}
    for name, tensor in source.items():
        old = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name)
        published["module.densenet121." + old.replace("classifier.", "classifier.0.")] = tensor
    assert "module.densenet121.features.denseblock1.denselayer1.norm.1.weight" in published
    torch.save({"state_dict": published}, tmp_path / "chexnet.pth.tar")
    model = build_model("CheXNet", str(tmp_path / "chexnet.pth.tar"))
    stem = source["features.conv0.weight"].sum(dim=1, keepdim=True)
    last = source["features.denseblock4.denselayer16.conv2.weight"]
    assert torch.equal(model.backbone.features.conv0.weight, stem)
    assert torch.equal(model.backbone.features.denseblock4.denselayer16.conv2.weight, last)


def test_torchxrayvision_weights_are_loaded(tmp_path):
    """Its DenseNet takes grey, has 18 findings and an extra tensor; its ResNet wraps torchvision's as `model`."""
    densenet = models.densenet121(num_classes=18)
    densenet.features.conv0 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    torch.save(densenet.state_dict() | {"op_threshs": torch.zeros(18)}, tmp_path / "densenet121.pt")
    model = build_model("CheXNet", str(tmp_path / "densenet121.pt"))
    assert torch.equal(model.backbone.features.conv0.weight, densenet.features.conv0.weight)
    assert torch.equal(model.backbone.features.norm5.weight, densenet.features.norm5.weight)
    resnet = models.resnet50(num_classes=18)
    resnet.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    wrapped = {f"model.{name}": tensor for name, tensor in resnet.state_dict().items()}
    torch.save(wrapped, tmp_path / "resnet50.pt")
    model = build_model("ResNet50", str(tmp_path / "resnet50.pt"))
    assert torch.equal(model.backbone.conv1.weight, resnet.conv1.weight)
    assert torch.equal(model.backbone.layer4[2].bn3.running_var, resnet.layer4[2].bn3.running_var)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.net.", "module.backbone.", "encoder.", "student."])
def test_the_prefixes_of_common_wrappers_are_removed(prefix, tmp_path):
    source = models.resnet18()
    torch.save({prefix + name: tensor for name, tensor in source.state_dict().items()}, tmp_path / "wrapped.pth")
    model = build_model("resnet18", str(tmp_path / "wrapped.pth"))
    assert torch.equal(model.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_the_weights_of_a_checkpoint_are_found_under_any_key():
    model = build_model("Custom_1")
    weights = model.state_dict()
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    beside = {"epoch": 3, "optimizer": optimizer.state_dict(), "settings": {"lr": 0.1}}
    forms = [{"ema": weights}, {"checkpoint": {"params": weights}}, {"model": weights, "ema": {}}, {"teacher": weights}]
    forms += [{"model": "resnet18", "params": weights}, {"net": None, "ema": weights}]
    forms += [{"model": weights, "ema": weights}]  # the usual key
    forms += [{"model": weights, "optim_state": {str(number): torch.ones(1) for number in range(999)}}]
    forms += [{"loss": torch.ones(1), "params": weights}, {"weights": {"ce": torch.ones(5)}, "params": weights}]
    for form in forms:
        assert find_weights(beside | form).keys() == weights.keys()
    assert find_weights(beside | {"teacher": weights, "student": weights}) == {}  # which one is not known
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    assert as_ours(averaged, weights).keys() == weights.keys()


def test_a_checkpoint_that_holds_itself_has_no_weights():
    cycle: dict[str, object] = {}
    cycle |= {"model": cycle}
    assert find_weights(cycle) == {}
    many: dict[str, object] = {}
    many |= {f"part{number}": many for number in range(1000)}
    assert find_weights(many) == {}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".SafeTensors"])
def test_our_own_models_are_loaded_with_their_head(tmp_path, suffix):
    source = build_model("Custom_1").state_dict()
    path = tmp_path / f"model{suffix}"
    torch.save(source, path) if suffix == ".pth" else save_file(source, path)
    model = build_model("Custom_1", str(path))
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_architecture_are_rejected_with_the_number_of_matching_keys(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(models.resnet18().state_dict(), path)
    check_pretrained(str(path), ["resnet18"])
    with pytest.raises(ConfigurationError, match=r"does not match resnet34: 120 of 218 keys match"):
        check_pretrained(str(path), ["resnet18", "resnet34"])
    with pytest.raises(ConfigurationError, match=r"does not match Custom_1: \d of 32 keys"):
        check_pretrained(str(path), ["Custom_1"])


def test_files_other_than_weights_are_rejected_in_one_line_and_never_executed(tmp_path, tmp_path_factory):
    written = tmp_path_factory.mktemp("bomb") / "written"
    contents = {"junk": b"junk", "empty": b"", "bomb": pickle.dumps(Bomb(written)), "zip": b"PK\x03\x04" + b"0" * 50}
    for name, content in contents.items():
        for suffix in (".pth", ".safetensors"):
            (tmp_path / f"{name}{suffix}").write_bytes(content)
    torch.save({"state_dict": {"lr": 3}}, tmp_path / "no tensors.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    for path in [*tmp_path.iterdir(), tmp_path, tmp_path / "missing.pth"]:
        with pytest.raises(ConfigurationError, match=r"trial\.pretrained"):
            check_pretrained(str(path), ["Custom_1"])
    assert not written.exists()


def test_sparse_weights_are_rejected_in_one_line(tmp_path):
    state = {name: tensor.to_sparse() for name, tensor in build_model("Custom_1").state_dict().items()}
    torch.save(state, tmp_path / "sparse.pth")
    with pytest.raises(ConfigurationError, match="quantized or sparse"):
        build_model("Custom_1", str(tmp_path / "sparse.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_empty_files_and_pointers_are_called_so(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    for content, words in ((b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`")):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=rf"trial\.pretrained.*{words}"):
            check_pretrained(str(path), ["Custom_1"])


def test_imagenet_weights_come_from_torchs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    cached.parent.mkdir(parents=True)
    source = models.resnet18()
    torch.save(source.state_dict(), cached)
    model = build_model("resnet18", "imagenet")
    assert torch.equal(model.backbone.conv1.weight, source.conv1.weight.sum(dim=1, keepdim=True))


def test_a_failed_download_is_one_line_that_names_the_file_to_provide(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # which keeps the proxies of its first use
    with pytest.raises(ConfigurationError, match="could not be downloaded") as caught:
        check_pretrained("imagenet", ["Custom_1", "resnet18"])
    assert ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1] in str(caught.value)


def test_an_architecture_without_imagenet_weights_warns_and_starts_at_random(caplog):
    check_pretrained("imagenet", ["Custom_1"])
    assert "Custom_1 has no ImageNet weights" in caplog.text
