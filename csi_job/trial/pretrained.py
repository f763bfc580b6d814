"""Pretrained starting weights: torchvision's own for ImageNet, or a file."""

from __future__ import annotations

import re
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from csi_job.errors import ConfigurationError
from csi_job.logs import get_logger
from csi_job.trial.architectures import torchvision_name
from csi_job.trial.backbones import random_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

DOWNLOAD_TIMEOUT_S = 30.0  # of one silent read; without it a black-holed download never ends
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts keep the weights
# DenseNet weights of 2017, CheXNet's among them, number layers with dots that attribute names cannot have today.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")

_log = get_logger(__name__)


def check_pretrained(pretrained: str, archs: Iterable[str]) -> None:
    """Download or read the starting weights of every architecture, before any training.

    Raises:
        ConfigurationError: a download or file that is missing, unreadable, or does not fit an architecture.

    """
    if pretrained == "none":
        return
    for arch in dict.fromkeys(archs):
        load_pretrained(random_model(arch), arch, pretrained)


def load_pretrained(model: nn.Module, arch: str, pretrained: str) -> None:
    """Load starting weights into a new model; the head stays random unless the file has one of the same shape.

    Args:
        model: the new model.
        arch: its name, for messages.
        pretrained: `imagenet` or the path of a weights file (`.safetensors`, or a PyTorch file of weights only).

    Raises:
        ConfigurationError: as for `check_pretrained`.

    """
    if pretrained != "imagenet":
        _fit(model, arch, _read_file(Path(pretrained)), f"the weights file {Path(pretrained).name}")
    elif torchvision_name(arch) is None:
        _log.warning("%s has no ImageNet weights; it starts from random ones.", arch)
    else:
        _fit(model, arch, _imagenet(arch), "the ImageNet weights")


def _imagenet(arch: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(torchvision_name(arch)).DEFAULT
    try:
        with _download_timeout():
            state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        message = f"the ImageNet weights of {arch} could not be downloaded ({_first_line(error)})"
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        hint = f"put {weights.url.rsplit('/', 1)[-1]} into {folder}, or set trial.pretrained to none or to a file"
        raise ConfigurationError(message, hint=hint) from error
    return state


@contextmanager
def _download_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torch.hub offers no timeout of its own
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_file(path: Path) -> dict[str, Tensor]:
    is_safetensors = path.suffix == ".safetensors"
    try:
        content = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        message = "trial.pretrained: no such weights file"
        raise ConfigurationError(message, got=str(path), allowed="none, imagenet, or the path of a file") from None
    except Exception as error:  # torch raises whatever junk makes its reader stumble over
        message = f"trial.pretrained: {path.name} is not a file of weights only ({_first_line(error)})"
        raise ConfigurationError(message, hint="save a state dict with torch.save or safetensors") from error
    return _tensors(content, path)


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict) and (wrapper := next((key for key in WRAPPERS if key in content), None)):
        content = content[wrapper]
    tensors = content if isinstance(content, dict) else {}
    tensors = {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    if not tensors:
        message = f"trial.pretrained: {path.name} holds no tensors by name"
        raise ConfigurationError(message, hint="save a state dict with torch.save or safetensors")
    return tensors


def _fit(model: nn.Module, arch: str, source: Mapping[str, Tensor], what: str) -> None:
    """Copy the weights whose names and shapes fit; all but the head's must."""
    target = model.state_dict()
    found = {name: _as_stem(tensor, target[name]) for name, tensor in _renamed(source, target).items()}
    fitting = {name: tensor for name, tensor in found.items() if tensor.shape == target[name].shape}
    optional = {name for name in target if name.endswith("num_batches_tracked")} | _head(model)
    missing = [name for name in target if name not in fitting and name not in optional]
    if missing:
        message = f"trial.pretrained: {what} does not fit {arch}: {len(fitting)} of {len(target)} keys fit"
        hint = f"first one missing: {missing[0]}; narrow space.model_arch to the architecture of the weights"
        raise ConfigurationError(message, hint=hint)
    model.load_state_dict(target | fitting)


def _renamed(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the source's tensors under the target's names: wrappers' prefixes differ (`module.densenet121.`)."""
    modern = {OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in source.items()}
    prefixes = {name[:end] for name in modern for end in _dotted_ends(name)}
    best: dict[str, Tensor] = {}
    for old in sorted(prefixes, key=len):
        for new in ("", "backbone."):
            renamed = {new + name.removeprefix(old): tensor for name, tensor in modern.items() if name.startswith(old)}
            known = {name: tensor for name, tensor in renamed.items() if name in target}
            best = max(best, known, key=len)
    return best


def _dotted_ends(name: str) -> list[int]:
    ends = [match.end() for match in re.finditer(r"\.", name)]
    return [0, *ends[:3]]  # wrappers are at most three deep


def _as_stem(source: Tensor, target: Tensor) -> Tensor:
    """Sum a first convolution over red, green and blue where the target takes grey, which is those three alike."""
    if source.ndim == 4 and source.shape[1] == 3 and target.ndim == 4 and target.shape[1] == 1:  # noqa: PLR2004
        return source.sum(dim=1, keepdim=True)
    return source


def _head(model: nn.Module) -> set[str]:
    last = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    return {f"{last}.weight", f"{last}.bias"}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:150]
