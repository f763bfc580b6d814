"""The networks: backbones with random weights and outputs for six zones by five classes."""

import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor, nn

from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES
from csi_job.trial.architectures import check_architecture, torchvision_name

NUM_OUTPUTS = NUM_ZONES * NUM_CLASSES
CUSTOM_1_CHANNELS = (32, 64, 128, 256, 256)


class ZoneClassifier(nn.Module):
    """A backbone with 30 outputs, reshaped to six zones by five classes."""

    def __init__(self, arch: str, backbone: nn.Module) -> None:
        super().__init__()
        self.arch = arch
        self.backbone = backbone

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return `logits_BZK`."""
        logits_BZK: Tensor = self.backbone(image_BCHW).unflatten(1, (NUM_ZONES, NUM_CLASSES))
        return logits_BZK


class Custom1(nn.Sequential):
    """Five convolutions with batch norm, pooled to 3 x 2 (the layout of the zones), and one linear layer.

    Unlike global pooling, the grid keeps where in the chest a feature is, which helps a small network.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        num_in = 1
        for index, num_out in enumerate(CUSTOM_1_CHANNELS):
            layers += [
                nn.Conv2d(num_in, num_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(num_out),
                nn.ReLU(inplace=True),
            ]
            if index < len(CUSTOM_1_CHANNELS) - 1:
                layers.append(nn.MaxPool2d(2))
            num_in = num_out
        super().__init__(*layers, nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(num_in * 6, NUM_OUTPUTS))


def random_model(arch: str) -> ZoneClassifier:
    """Build a model with random weights; raise `ConfigurationError` if there is no such architecture."""
    name = torchvision_name(check_architecture(arch))
    return ZoneClassifier(arch, Custom1() if name is None else _torchvision_backbone(name))


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


def _torchvision_backbone(name: str) -> nn.Module:
    models = torchvision_models()
    options: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    backbone: nn.Module = models.get_model(name, weights=None, num_classes=NUM_OUTPUTS, **options)
    # Replace the first convolution, which takes RGB, by one that takes a grey channel.
    path, stem = next((path, module) for path, module in backbone.named_modules() if isinstance(module, nn.Conv2d))
    grey = nn.Conv2d(
        1,
        stem.out_channels,
        kernel_size=stem.kernel_size,  # type: ignore[arg-type] # two numbers, typed as a tuple of any length
        stride=stem.stride,  # type: ignore[arg-type]
        padding=stem.padding,  # type: ignore[arg-type]
        bias=stem.bias is not None,
    )
    with torch.no_grad():
        grey.weight.copy_(stem.weight.sum(dim=1, keepdim=True))  # equivalent to repeating grey three times
        if stem.bias is not None and grey.bias is not None:
            grey.bias.copy_(stem.bias)
    backbone.set_submodule(path, grey)
    return backbone
