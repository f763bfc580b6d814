"""The models: built with random or pretrained weights, and measured.

A model maps `image_BCHW` with one grey channel to `logits_BZK` (Z = 6 zones, K = 5 classes).
"""

import functools
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from csi_job.errors import ConfigurationError
from csi_job.trial.backbones import ZoneClassifier, random_model
from csi_job.trial.pretrained import load_pretrained

MIN_SIZE_FOR_ALL_PX: Final = 96  # accepted by every architecture, as a test confirms; Custom_1 accepts all sizes


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


def num_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


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
