"""From stored pixels to model input, and from a model to logits."""

import functools
import logging
from typing import Final, Literal

import torch
from torch import Tensor, nn

from csi_job.cache.settings import Normalisation
from csi_job.radiographs.zones import NUM_CLASSES, NUM_ZONES
from csi_job.trial.augment import to_unit

# Mean and standard deviation of pixels from 0 to 1. ImageNet's are averaged over its three channels, since the stem of
# a pretrained model is summed over RGB to take grey.
NORMALISATIONS: Final[dict[str, tuple[float, float]]] = {"medical": (0.5, 0.5), "imagenet": (0.449, 0.226)}

Precision = Literal["fp32", "bf16", "fp16"]
HALF_TYPES: Final[dict[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}
BF16_CAPABILITY: Final = (8, 0)  # Ampere; older GPUs emulate bf16, slowly, and torch counts that as support
FP16_CAPABILITY: Final = (7, 0)  # Volta, the first with tensor cores

logger = logging.getLogger(__name__)


@functools.cache  # so that a worker logs it once
def choose_precision(wanted: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """Return what networks compute in: for `auto`, the fastest that the device has in hardware."""
    if device.type != "cuda":
        return "fp32" if wanted == "auto" else wanted
    capability = torch.cuda.get_device_capability(device)
    best: Precision = "bf16" if capability >= BF16_CAPABILITY else "fp16" if capability >= FP16_CAPABILITY else "fp32"
    chosen = best if wanted == "auto" else wanted
    details = {
        "bf16": "" if capability >= BF16_CAPABILITY else ", which this GPU emulates slowly",
        "fp16": " with loss scaling",
        "fp32": ", convolutions in TF32" if capability >= BF16_CAPABILITY and torch.backends.cudnn.allow_tf32 else "",
    }
    name, version = torch.cuda.get_device_name(device), ".".join(map(str, capability))
    logger.info("computing in %s%s on %s (compute capability %s)", chosen, details[chosen], name, version)
    return chosen


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
    precision: Precision = "fp32",
) -> Tensor:
    """Return `logits_NZK`, float32 on the CPU, of uint8 images on any device.

    The model must be on `device`; it is put into evaluation mode.
    """
    model.eval()
    with torch.autocast(torch.device(device).type, HALF_TYPES.get(precision), enabled=precision in HALF_TYPES):
        parts = [
            model(to_input(batch_BHW.to(device), normalisation)).float()
            for batch_BHW in torch.split(images_NHW, batch_size)
            if len(batch_BHW)
        ]
    return torch.cat(parts).cpu() if parts else torch.empty(0, NUM_ZONES, NUM_CLASSES)
