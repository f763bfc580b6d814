"""Random changes to a batch of training images, on the device they lie on.

Every image draws its own flip, rotation, shift, scale, brightness, contrast and noise. The draws come from one
generator, so a seed gives the same images on the same device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from csi_job.radiographs.zones import FLIPPED_ZONES

if TYPE_CHECKING:
    from csi_job.trial.settings import AugmentSettings

FULL_RANGE = 255.0


def augment_batch(
    image_BHW: Tensor, zones_BZ: Tensor, settings: AugmentSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Change a batch at random.

    Args:
        image_BHW: uint8 0-255, or float 0-1.
        zones_BZ: classes of the six zones; those of a flipped image swap sides.
        settings: how much of each change.
        generator: of the same device as the images; it moves on by the same amount whatever is drawn.

    Returns:
        the images as float32 0-1, and their zones.

    """
    image_BHW = to_unit(image_BHW)
    draw = _Draw(len(image_BHW), image_BHW.device, generator)
    flip_B = draw.uniform(0, 1) < settings.flip
    image_BHW = _move(image_BHW, _affine(draw, flip_B, settings))
    swapped_BZ = torch.stack(
        [zones_BZ[:, zone] for zone in FLIPPED_ZONES], dim=1
    )  # slices: no index goes to the device
    zones_BZ = torch.where(flip_B[:, None], swapped_BZ, zones_BZ)
    return _expose(image_BHW, draw, settings), zones_BZ


def to_unit(image_BHW: Tensor) -> Tensor:
    """Return images as float32 from 0 to 1."""
    return image_BHW if image_BHW.is_floating_point() else image_BHW.float().div_(FULL_RANGE)


class _Draw:
    """Random numbers, one an image."""

    def __init__(self, num_images: int, device: torch.device, generator: torch.Generator) -> None:
        self.num_images, self.device, self.generator = num_images, device, generator

    def uniform(self, low: float, high: float) -> Tensor:
        return torch.rand(self.num_images, device=self.device, generator=self.generator) * (high - low) + low

    def either_way(self, most: float) -> Tensor:
        return self.uniform(-most, most)


def _affine(draw: _Draw, flip_B: Tensor, settings: AugmentSettings) -> Tensor:
    """Return `theta_B23`, which takes a place in the new image to its place in the old one, in units of half sides."""
    angle_B = draw.either_way(math.radians(settings.rotation_deg))
    zoom_B = 1 / (1 + draw.either_way(settings.scale))
    x_B, y_B = draw.either_way(2 * settings.shift), draw.either_way(2 * settings.shift)
    mirror_B = torch.where(flip_B, -1.0, 1.0)
    cos_B, sin_B = zoom_B * angle_B.cos(), zoom_B * angle_B.sin()
    row_x_B3 = torch.stack([mirror_B * cos_B, -mirror_B * sin_B, mirror_B * x_B], dim=1)
    row_y_B3 = torch.stack([sin_B, cos_B, y_B], dim=1)
    return torch.stack([row_x_B3, row_y_B3], dim=1)


def _move(image_BHW: Tensor, theta_B23: Tensor) -> Tensor:
    """Resample the images once, for all geometric changes; what comes from outside is black."""
    image_BCHW = image_BHW.unsqueeze(1)
    grid_BHW2 = functional.affine_grid(theta_B23, list(image_BCHW.shape), align_corners=False)
    return functional.grid_sample(image_BCHW, grid_BHW2, align_corners=False).squeeze(1)


def _expose(image_BHW: Tensor, draw: _Draw, settings: AugmentSettings) -> Tensor:
    """Change contrast about the image's mean, then brightness, then add noise; the result stays within 0-1."""
    mean_B11 = image_BHW.mean(dim=(1, 2), keepdim=True)
    contrast_B = 1 + draw.either_way(settings.contrast)
    brightness_B = draw.either_way(settings.brightness)
    deviation_B = draw.uniform(0, settings.noise)
    changed_BHW = torch.lerp(mean_B11, image_BHW, contrast_B[:, None, None]) + brightness_B[:, None, None]
    noise_BHW = torch.randn(image_BHW.shape, device=image_BHW.device, generator=draw.generator)
    return (changed_BHW + noise_BHW * deviation_B[:, None, None]).clamp_(0, 1)
