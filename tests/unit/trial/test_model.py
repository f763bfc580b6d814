import re

import pytest
import torch
from torch.func import functional_call
from torchvision import models

from csi_job.errors import ConfigurationError
from csi_job.trial.architectures import ARCHITECTURES, OWN, TORCHVISION, check_architecture
from csi_job.trial.model import (
    CUSTOM_1_CHANNELS,
    MIN_SIZE_FOR_ALL_PX,
    build_model,
    check_architectures,
    gflops,
    model_to_load,
)

ONE_OF_EACH_FAMILY = [
    *OWN,
    *("alexnet", "convnext_tiny", "densenet169", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "resnet34", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "wide_resnet50_2"),
]


def test_the_names_are_torchvisions_except_those_with_a_fixed_image_size():
    assert len(set(ARCHITECTURES)) == len(ARCHITECTURES)
    theirs = set(models.list_models(module=models))
    assert set(TORCHVISION) <= theirs
    assert {name for name in theirs - set(TORCHVISION) if not name.startswith(("vit_", "maxvit_"))} == set()


def family(arch: str) -> str:
    """Networks of a family differ in depth and width, which do not decide the smallest image they accept."""
    return re.match(r"[a-z]+(_resnet|_v\d(?=_))?", arch)[0]


def test_each_family_has_its_architecture_below():
    assert {family(arch) for arch in TORCHVISION} == {family(arch) for arch in ONE_OF_EACH_FAMILY if arch not in OWN}


@pytest.mark.parametrize("arch", ONE_OF_EACH_FAMILY)
def test_an_architecture_of_each_family_gives_six_zones_by_five_classes_at_the_size_that_all_accept(arch):
    with torch.device("cpu" if arch.startswith(("regnet", "swin")) else "meta"):
        model = build_model(arch).eval()
    weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict().items()}
    logits_BZK = functional_call(
        model, weights, (torch.empty(2, 1, MIN_SIZE_FOR_ALL_PX, MIN_SIZE_FOR_ALL_PX, device="meta"),)
    )
    assert logits_BZK.shape == (2, 6, 5)
    assert sum(weight.numel() for weight in model.parameters()) > 100_000


@pytest.mark.parametrize("arch", ONE_OF_EACH_FAMILY)
def test_a_model_for_weights_from_a_file_draws_none(arch):
    before = torch.get_rng_state()
    names = model_to_load(arch).state_dict().keys()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("cpu" if arch.startswith(("regnet", "swin")) else "meta"):
        assert names == build_model(arch).state_dict().keys()


@pytest.mark.parametrize("arch", ["Custom_1", "resnet18", "densenet121"])
def test_gradients_reach_all_weights(arch):
    torch.manual_seed(0)
    model = build_model(arch)
    model(torch.randn(2, 1, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_custom_1_has_five_convolutions_and_the_hand_counted_cost():
    model = build_model("Custom_1")
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == 5
    channels = (1, *CUSTOM_1_CHANNELS)
    multiply_adds = sum((64 >> i) ** 2 * 9 * channels[i] * channels[i + 1] for i in range(5)) + 256 * 6 * 30
    assert gflops("Custom_1", 64) == 2 * multiply_adds / 1e9


def test_the_cost_of_resnet50_matches_the_paper_and_grows_with_the_image():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    cost = gflops("ResNet50", 224)
    # 4.09 billion multiply-adds (He et al.) in colour; grey takes two thirds off the first convolution's 0.118
    assert cost == pytest.approx(2 * (4.09 - 0.118 * 2 / 3), rel=0.01)
    assert gflops("ResNet50", 448) == pytest.approx(4 * cost, rel=0.01)
    assert torch.equal(torch.get_rng_state(), state)  # no weights were drawn


def test_images_too_small_for_an_architecture_are_refused_before_training():
    check_architectures(["ResNet50", "regnet_x_400mf", "Custom_1"], 64)
    with pytest.raises(ConfigurationError, match="images of 64 px are too small for inception_v3"):
        check_architectures(["ResNet50", "inception_v3"], 64)


@pytest.mark.parametrize(("name", "hint"), [("resnet", "did you mean"), ("", "allowed"), ("custom_1", "Custom_1")])
def test_an_unknown_name_is_rejected_with_suggestions(name, hint):
    with pytest.raises(ConfigurationError, match=hint):
        check_architecture(name)
    with pytest.raises(ConfigurationError):
        build_model(name)
