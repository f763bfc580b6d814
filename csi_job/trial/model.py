"""The models: built with random or pretrained weights, measured, and recognised by their weights.

A model takes `image_BCHW` with one grey channel and gives `logits_BZK` (Z = 6 zones, K = 5 classes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from csi_job.errors import ConfigurationError
from csi_job.trial.architectures import ARCHITECTURES
from csi_job.trial.backbones import ZoneClassifier, random_model
from csi_job.trial.pretrained import load_pretrained

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TAKEN_BY_ALL_PX: Final = 96  # a test tries every architecture; Custom_1 takes the smallest images that there are


def build_model(arch: str, pretrained: str = "none") -> ZoneClassifier:
    """Build a model with random or pretrained weights.

    Args:
        arch: `ResNet50` (He et al. 2016), `CheXNet` (the DenseNet-121 of Rajpurkar et al. 2017), `Custom_1`, or the
            name of a torchvision backbone.
        pretrained: `none`, `imagenet`, or the path of a weights file.

    Raises:
        ConfigurationError: no such architecture, or weights that are missing or do not fit.

    """
    model = random_model(arch)
    if pretrained != "none":
        load_pretrained(model, arch, pretrained)
    return model


def num_parameters(model: nn.Module) -> int:
    """Return the number of trained numbers of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def gflops(model: ZoneClassifier, image_size_px: int) -> float:
    """Return the cost of one image through the model, the same on every machine.

    Counted by shapes alone (nothing is computed), forward only, and one multiply-add as two operations: ResNet50 at
    224 px costs about 8.0 (8.2 in colour).

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
    doubtful = [] if image_size_px >= TAKEN_BY_ALL_PX else [arch for arch in dict.fromkeys(archs) if arch != "Custom_1"]
    for arch in doubtful:
        with _NothingFilledIn():
            model = random_model(arch)
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
            model = random_model(arch)
        if {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes:
            return arch
    message = f"the weights ({len(shapes)} tensors) are those of no known architecture"
    raise ConfigurationError(message, hint="use a model file that csi-job wrote")
