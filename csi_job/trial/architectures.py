"""The architectures by name, apart from torch, so that settings can be checked without importing it."""

import difflib
import importlib
import sys
from types import ModuleType
from typing import Final

from csi_job.errors import ConfigurationError

OWN: Final = ("ResNet50", "CheXNet", "Custom_1")

# Convolutional and windowed classification networks of torchvision (BSD-3-Clause), without those that accept a single
# image size (vit_*, maxvit_t), since the size is a setting here. Importing torchvision takes seconds, so the list is
# written out; a test compares it with torchvision's own.
TORCHVISION: Final = tuple(
    """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 mnasnet0_5 mnasnet0_75
    mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf regnet_x_32gf
    regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf
    regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50
    resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
    shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn
    vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn wide_resnet101_2 wide_resnet50_2
    """.split()  # noqa: SIM905 - one per line would be 76 lines
)
ARCHITECTURES: Final = OWN + TORCHVISION
TORCHVISION_NAMES: Final = {"ResNet50": "resnet50", "CheXNet": "densenet121"}


def torchvision_name(arch: str) -> str | None:
    """Return the torchvision network behind an architecture, or None if the network is this package's own."""
    return TORCHVISION_NAMES.get(arch, arch if arch in TORCHVISION else None)


def check_architecture(arch: str) -> str:
    """Return the name unchanged; raise `ConfigurationError`, with the nearest name, if there is no such network."""
    if arch in ARCHITECTURES:
        return arch
    near = difflib.get_close_matches(arch, ARCHITECTURES, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else ""
    allowed = f"{', '.join(OWN)}, or a torchvision backbone such as resnet18, resnet34, densenet169, efficientnet_b0"
    raise ConfigurationError("no such architecture", got=arch, allowed=allowed, hint=hint)


def torchvision_models() -> ModuleType:
    """Import torchvision's models without torch's compiler (5 s of CPU), of which it asks one function for detection.

    Training imports the compiler anyway; predicting and evaluating do not.
    """
    compiler = "torch._dynamo.utils"
    if compiler in sys.modules:
        return importlib.import_module("torchvision.models")
    stand_in = ModuleType(compiler)
    stand_in.is_compile_supported = lambda device: (  # type: ignore[attr-defined]
        importlib.import_module(compiler).is_compile_supported(device)
    )
    sys.modules[compiler] = stand_in
    try:
        return importlib.import_module("torchvision.models")
    finally:
        del sys.modules[compiler]
