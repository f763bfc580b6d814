"""Weights as others store them: within a checkpoint, under the prefixes of wrappers, with names of older versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")  # keys under which scripts store the weights
# Modules that networks are commonly wrapped in: by PyTorch (DataParallel, compile) and by training scripts.
PREFIX = re.compile(r"^(?:(?:module|_orig_mod|model|net|backbone|encoder|densenet121)\.)+")
# DenseNet weights of 2017, including CheXNet's, number layers with dots, which module names no longer may have.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


def find_weights(content: Any) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint; empty if there are none."""
    while isinstance(content, dict) and (wrapper := next((key for key in WRAPPERS if key in content), None)):
        content = content[wrapper]
    named = content.items() if isinstance(content, dict) else ()
    return {str(name): tensor for name, tensor in named if isinstance(tensor, Tensor)}


def as_ours(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to the names of our networks, and let a first convolution over RGB take grey."""
    modern = {PREFIX.sub("", OLD_DENSENET.sub(r"\1\2.", name)): tensor for name, tensor in source.items()}
    renamed = {f"backbone.{name}": tensor for name, tensor in modern.items()}
    return {name: _as_stem(tensor, target.get(name)) for name, tensor in renamed.items()}


def _as_stem(source: Tensor, target: Tensor | None) -> Tensor:
    """Sum a first convolution over RGB if the target takes grey, which stands for three equal channels."""
    if target is not None and source.ndim == target.ndim == 4 and (source.shape[1], target.shape[1]) == (3, 1):  # noqa: PLR2004
        return source.sum(dim=1, keepdim=True)
    return source
