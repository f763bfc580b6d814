"""The models: networks with random or pretrained weights and outputs for six zones by five classes; what they cost.

A model maps `image_BCHW` with one grey channel to `logits_BZK` (Z = 6 zones, K = 5 classes).
"""

import functools
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from csi_job.errors import ConfigurationError
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES
from csi_job.trial.architectures import check_architecture, torchvision_models, torchvision_name
from csi_job.trial.pretrained import load_pretrained

NUM_OUTPUTS: Final = NUM_ZONES * NUM_CLASSES
CUSTOM_1_CHANNELS: Final = (32, 64, 128, 256, 256)
MIN_SIZE_FOR_ALL_PX: Final = 96  # accepted by every architecture, as a test confirms; Custom_1 accepts all sizes


class ZoneClassifier(nn.Module):
    """A backbone with 30 outputs, reshaped to six zones by five classes."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
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
    return ZoneClassifier(Custom1() if name is None else _torchvision_backbone(name))


def model_to_load(arch: str) -> ZoneClassifier:
    """Build a model for weights from a file: without random ones, which take most of the time to build it.

    Raises:
        ConfigurationError: there is no such architecture.
    """
    with _NothingRandom():
        return random_model(arch)


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


def build_model(arch: str, pretrained: str = "none") -> ZoneClassifier:
    """Build a model with random or pretrained weights.

    Args:
        arch: `ResNet50` (He et al. 2016), `CheXNet` (the DenseNet-121 of Rajpurkar et al. 2017), `Custom_1`, or the
            name of a torchvision backbone.
        pretrained: `none`, `imagenet`, or the path to a weights file.

    Raises:
        ConfigurationError: no such architecture, or weights that are missing or do not match it.
    """
    model = random_model(arch)
    if pretrained != "none":
        load_pretrained(model, arch, pretrained)
    return model


def check_pretrained(pretrained: str, archs: Iterable[str]) -> None:
    """Download or read the initial weights of every architecture, before any training.

    Raises:
        ConfigurationError: a download or file is missing, unreadable, or does not match an architecture.
    """
    if pretrained == "none":
        return
    for arch in dict.fromkeys(archs):
        load_pretrained(random_model(arch), arch, pretrained)


@functools.cache
def gflops(arch: str, image_size_px: int) -> float:
    """Return the cost of a forward pass of one image, the same on every machine; counted once per process.

    It is counted from shapes alone, with a multiply-add as two operations: 8.0 for ResNet50 at 224 px (8.2 in colour).

    Raises:
        ConfigurationError: no such architecture, or images of this size are too small for it.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    with _MetaInit():
        model = random_model(arch).to("meta").eval()
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model(torch.empty(1, 1, image_size_px, image_size_px, device="meta"))
    except RuntimeError as error:
        message = f"images of {image_size_px} px are too small for {arch}"
        hint = f"raise cache.image_size_px or leave {arch} out of space.model_arch"
        raise ConfigurationError(message, hint=hint) from error
    return float(counter.get_total_flops()) / 1e9


def check_architectures(archs: Iterable[str], image_size_px: int) -> None:
    """Raise `ConfigurationError` for an architecture that cannot take images of this size."""
    if image_size_px >= MIN_SIZE_FOR_ALL_PX:
        return
    for arch in dict.fromkeys(archs):
        if arch != "Custom_1":
            gflops(arch, image_size_px)


class _MetaInit(TorchFunctionMode):
    """Creates weights on the meta device; tensors that constructors compute with (RegNet's widths) stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _NothingRandom(TorchFunctionMode):
    """Zeroes weights instead of sampling them; uninitialised memory could keep `trunc_normal_` resampling forever."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            weight: Tensor = args[0] if args else kwargs["tensor"]
            weight.detach().zero_()
            return weight
        return func(*args, **kwargs)
