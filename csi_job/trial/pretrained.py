"""Weights from elsewhere: initial ones, torchvision's own for ImageNet or a file, and the forms they are stored in."""

import logging
import math
import re
import socket
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from csi_job.errors import ConfigurationError, CsiJobError
from csi_job.radiographs.content import GIT_LFS_MAGIC
from csi_job.trial.architectures import torchvision_models, torchvision_name

DOWNLOAD_TIMEOUT_S = 30.0  # for one read without data; a black-holed download would otherwise never end
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")  # keys under which scripts store the weights
# Modules that networks are commonly wrapped in: by PyTorch (DataParallel, compile) and by training scripts.
PREFIX = re.compile(r"^(?:(?:module|_orig_mod|model|ema_model|net|network|student|backbone|encoder|densenet121)\.)+")
AVERAGED = "n_averaged"  # PyTorch's AveragedModel counts beside the weights
_ZIP_MAGIC = b"PK\3\4"  # of what torch.save writes
_MAX_NESTING, _MAX_NESTED = 4, 16  # of dictionaries in a checkpoint, and in each of them
# DenseNet weights of 2017, including CheXNet's, number layers with dots, which module names no longer may have.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")

logger = logging.getLogger(__name__)


def load_pretrained(model: nn.Module, arch: str, pretrained: str) -> None:
    """Load initial weights into a new model; the head stays random unless the weights have one of the same shape.

    `pretrained` is `imagenet` or the path to a weights file (`.safetensors`, or a PyTorch file of weights only).

    Raises:
        ConfigurationError: a download or file is missing, unreadable, or does not match the architecture.
    """
    if pretrained != "imagenet":
        _copy(_read_file(Path(pretrained)), model, arch, f"the weights file {Path(pretrained).name}")
    elif torchvision_name(arch) is None:
        logger.warning("%s has no ImageNet weights; starting from random weights", arch)
    else:
        _copy(_imagenet(arch), model, arch, "the ImageNet weights")


def find_weights(content: Any, max_nesting: int = _MAX_NESTING) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint; empty if there are none, or several sets of them.

    Only sets with more than half as many tensors as the largest one count. Of several, that under a usual key is taken.
    """
    if not isinstance(content, dict) or max_nesting == 0:
        return {}
    # The optimizer's state has tensors as large as the weights.
    named = {key: value for key, value in content.items() if not str(key).lower().startswith("optim")}
    nested = {key: value for key, value in named.items() if isinstance(value, dict)}
    if len(nested) > _MAX_NESTED:
        nested = {key: nested[key] for key in WRAPPERS if key in nested}
    sets = {key: find_weights(value, max_nesting - 1) for key, value in nested.items()}
    sets[None] = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    largest = max(map(len, sets.values()))
    large = {key: weights for key, weights in sets.items() if len(weights) > largest / 2}
    usual = [large[key] for key in WRAPPERS if key in large]
    if usual:
        return usual[0]
    return next(iter(large.values())) if len(large) == 1 else {}


def refuse_without_weights(path: Path, what: str, kind: type[CsiJobError]) -> None:
    """Refuse what a copy may leave instead of a file of weights, which the error calls `what`, and a zip bomb."""
    with path.open("rb") as file:
        start = file.read(len(GIT_LFS_MAGIC))
        if start.startswith(_ZIP_MAGIC) and _inflated_bytes(file) > path.stat().st_size:
            hint = "save it with torch.save, which does not compress"
            raise kind(f"{what} is damaged, or a compressed archive", got=str(path), hint=hint)
    if not start:
        raise kind(f"{what} is empty", got=str(path), hint="copy or train it again")
    if start == GIT_LFS_MAGIC:
        raise kind(f"{what} is a Git LFS pointer", got=str(path), hint="run `git lfs pull`")


def _inflated_bytes(archive: IO[bytes]) -> float:
    """Return how many bytes a zip archive unpacks to; infinity if that is not clear, as PyTorch may yet read it."""
    try:
        return sum(entry.file_size for entry in zipfile.ZipFile(archive).infolist())
    except Exception:  # noqa: BLE001 - damaged content raises nearly anything
        return math.inf


def as_ours(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to the names of our networks, and let a first convolution over RGB take grey."""
    modern = {PREFIX.sub("", OLD_DENSENET.sub(r"\1\2.", name)): tensor for name, tensor in source.items()}
    renamed = {f"backbone.{name}": tensor for name, tensor in modern.items() if name != AVERAGED}
    return {name: _as_stem(tensor, target.get(name)) for name, tensor in renamed.items()}


def _as_stem(source: Tensor, target: Tensor | None) -> Tensor:
    """Sum a first convolution over RGB if the target takes grey, which stands for three equal channels."""
    if target is not None and target.ndim == 4 and source.shape == (len(target), 3, *target.shape[2:]):  # noqa: PLR2004
        with suppress(RuntimeError):  # of numbers without a sum, such as float8; they do not fit then
            return source.sum(dim=1, keepdim=True)
    return source


def _imagenet(arch: str) -> dict[str, Tensor]:
    weights = torchvision_models().get_model_weights(torchvision_name(arch)).DEFAULT
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torch.hub has no timeout setting
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        message = f"the ImageNet weights of {arch} could not be downloaded ({_first_line(error)})"
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        hint = f"put {weights.url.rsplit('/', 1)[-1]} into {folder}, or set trial.pretrained to none or a file"
        raise ConfigurationError(message, hint=hint) from error
    finally:
        socket.setdefaulttimeout(before)
    return state


def _read_file(path: Path) -> dict[str, Tensor]:
    is_safetensors = path.suffix.lower() == ".safetensors"
    try:
        refuse_without_weights(path, "trial.pretrained: the weights file", ConfigurationError)
        content = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        message = "trial.pretrained: no such weights file"
        raise ConfigurationError(message, got=str(path), allowed="none, imagenet, or the path to a file") from None
    except ConfigurationError:
        raise
    except Exception as error:  # torch's reader raises nearly anything on junk
        message = f"trial.pretrained: {path.name} does not contain weights only ({_first_line(error)})"
        raise ConfigurationError(message, hint="save a state dict with torch.save or safetensors") from error
    tensors = find_weights(content)
    if not tensors:
        message = f"trial.pretrained: {path.name} contains no named tensors, or several sets of them"
        raise ConfigurationError(message, hint="save a state dict with torch.save or safetensors")
    return tensors


def _copy(source: Mapping[str, Tensor], model: nn.Module, arch: str, what: str) -> None:
    """Copy the weights that match by name and shape; all must, except the head's."""
    target = model.state_dict()
    found = {name: tensor for name, tensor in as_ours(source, target).items() if name in target}
    matching = {name: tensor for name, tensor in found.items() if tensor.shape == target[name].shape}
    last = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    optional = {name for name in target if name.endswith("num_batches_tracked")} | {f"{last}.weight", f"{last}.bias"}
    missing = [name for name in target if name not in matching and name not in optional]
    if missing:
        message = f"trial.pretrained: {what} does not match {arch}: {len(matching)} of {len(target)} keys match"
        hint = f"first missing key: {missing[0]}; restrict space.model_arch to the architecture of the weights"
        raise ConfigurationError(message, hint=hint)
    try:
        model.load_state_dict(target | matching)
    except RuntimeError:
        message = f"trial.pretrained: {what} holds tensors that are no plain numbers, such as quantized or sparse ones"
        raise ConfigurationError(message, hint="save a state dict of a model in float32") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:150]
