"""The models: a backbone with a head of six zones by five classes.

A model takes `image_BCHW` with one grey channel and gives `logits_BZK` (Z = 6 zones, K = 5 classes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from csi_job.errors import ConfigurationError
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES
from csi_job.trial.architectures import ARCHITECTURES, check_architecture, torchvision_name
from csi_job.trial.pretrained import load_pretrained

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NUM_OUTPUTS = NUM_ZONES * NUM_CLASSES
CUSTOM_1_CHANNELS = (32, 64, 128, 256, 256)


class ZoneClassifier(nn.Module):
    """The backbone of an architecture with 30 outputs, read as six zones by five classes."""

    def __init__(self, arch: str, backbone: nn.Module) -> None:
        super().__init__()
        self.arch = arch
        self.backbone = backbone

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return `logits_BZK`."""
        logits_BZK: Tensor = self.backbone(image_BCHW).unflatten(1, (NUM_ZONES, NUM_CLASSES))
        return logits_BZK


class Custom1(nn.Sequential):
    """Five convolutions with batch norm, pooled to a grid of 3 x 2, the layout of the zones, and one linear layer.

    The grid keeps where in the chest a feature lies, which a small network cannot learn through one global pool.
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


def build_model(arch: str, pretrained: str = "none") -> ZoneClassifier:
    """Build a model with random or pretrained weights.

    Args:
        arch: `ResNet50` (He et al. 2016), `CheXNet` (the DenseNet-121 of Rajpurkar et al. 2017), `Custom_1`, or the
            name of a torchvision backbone.
        pretrained: `none`, `imagenet`, or the path of a weights file.

    Raises:
        ConfigurationError: no such architecture, or weights that are missing or do not fit.

    """
    name = torchvision_name(check_architecture(arch))
    model = ZoneClassifier(arch, Custom1() if name is None else _torchvision_backbone(name))
    if pretrained != "none":
        load_pretrained(model, arch, pretrained)
    return model


def _torchvision_backbone(name: str) -> nn.Module:
    from torchvision import models

    options: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    backbone: nn.Module = models.get_model(name, weights=None, num_classes=NUM_OUTPUTS, **options)
    _take_one_channel(backbone)
    return backbone


def _take_one_channel(backbone: nn.Module) -> None:
    """Replace the first convolution, which takes red, green and blue, by one that takes grey."""
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
        grey.weight.copy_(stem.weight.sum(dim=1, keepdim=True))  # a grey image repeated three times gives the same
        if stem.bias is not None and grey.bias is not None:
            grey.bias.copy_(stem.bias)
    backbone.set_submodule(path, grey)


def num_parameters(model: nn.Module) -> int:
    """Return the number of trained numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def gflops(model: ZoneClassifier, image_size_px: int) -> float:
    """Return the cost of one image through the model, the same on every machine.

    Counted by shapes alone (nothing is computed), forward only, and one multiply-add as two operations: ResNet50 at
    224 px costs about 8.2.

    Raises:
        ConfigurationError: images of this size are too small for the model.

    """
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict().items()}
    image_BCHW = torch.empty(1, 1, image_size_px, image_size_px, device="meta")
    counter = FlopCounterMode(display=False)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), counter:
            functional_call(model, state, (image_BCHW,))
    except RuntimeError as error:
        message = f"images of {image_size_px} px are too small for {model.arch}"
        hint = f"raise cache.image_size_px or leave {model.arch} out of space.model_arch"
        raise ConfigurationError(message, hint=hint) from error
    finally:
        model.train(was_training)
    return float(counter.get_total_flops()) / 1e9


def check_architectures(archs: Iterable[str], image_size_px: int) -> None:
    """Raise `ConfigurationError` for an architecture that cannot take images of this size; costs no training."""
    for arch in dict.fromkeys(archs):
        with _NothingFilledIn():
            model = build_model(arch)
        gflops(model, image_size_px)


class _NothingFilledIn(TorchFunctionMode):
    """Makes weights without memory or values; what constructors compute with (RegNet's widths) stays real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def infer_architecture(state_dict: Mapping[str, Tensor]) -> str:
    """Return the architecture whose parameters have these names and shapes; raise `ConfigurationError` if none has."""
    shapes = {name: tensor.shape for name, tensor in state_dict.items()}
    for arch in ARCHITECTURES if all(name.startswith("backbone.") for name in shapes) else ():
        with _NothingFilledIn():
            model = build_model(arch)
        if {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes:
            return arch
    message = f"the weights ({len(shapes)} tensors) are those of no known architecture"
    raise ConfigurationError(message, hint="use a model file that csi-job wrote")
