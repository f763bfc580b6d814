"""From stored pixels to model input, and from a model to logits."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from csi_job.cache.settings import Normalisation
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES
from csi_job.trial.augment import to_unit

# Mean and standard deviation of pixels from 0 to 1. ImageNet's are averaged over its three channels, since the stem of
# a pretrained model is summed over RGB to take grey.
NORMALISATIONS: Final[dict[str, tuple[float, float]]] = {"medical": (0.5, 0.5), "imagenet": (0.449, 0.226)}


def to_input(image_BHW: Tensor, normalisation: Normalisation | str) -> Tensor:
    """Return `image_BCHW`, one normalised float32 channel, from uint8 0-255 or float 0-1 pixels."""
    mean, std = NORMALISATIONS[normalisation]
    return to_unit(image_BHW).sub(mean).div_(std).unsqueeze(1)


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    images_NHW: Tensor,
    normalisation: Normalisation | str,
    batch_size: int,
    device: torch.device | str,
) -> Tensor:
    """Return `logits_NZK`, float32 on the CPU, of uint8 images on any device, computed in full precision.

    The model must be on `device`; it is put into evaluation mode.
    """
    model.eval()
    parts = [
        model(to_input(batch_BHW.to(device), normalisation)).float()
        for batch_BHW in torch.split(images_NHW, batch_size)
        if len(batch_BHW)
    ]
    return torch.cat(parts).cpu() if parts else torch.empty(0, NUM_ZONES, NUM_CLASSES)
