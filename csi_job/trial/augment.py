"""Random changes to a batch of training images, on the device they are on.

Each image gets its own flip, rotation, shift, scale, brightness, contrast and noise, all from one generator: the same
seed gives the same images on the same device.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from csi_job.radiographs.zones import FLIPPED_ZONES
from csi_job.trial.settings import AugmentSettings

FULL_RANGE = 255.0


def augment_batch(
    image_BHW: Tensor, zones_BZ: Tensor, settings: AugmentSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Change a batch of images (uint8 0-255, or float 0-1) at random.

    The generator is on the images' device, and advances by the same amount whatever is sampled.

    Returns:
        the images as float32 0-1, and their zones, with sides swapped where an image was flipped.
    """
    image_BHW = to_unit(image_BHW)
    random = _Random(len(image_BHW), image_BHW.device, generator)
    flip_B = random.uniform(0, 1) < settings.flip
    image_BCHW = image_BHW.unsqueeze(1)  # resampled once for all geometric changes; black outside the old image
    grid_BHW2 = functional.affine_grid(_affine(random, flip_B, settings), list(image_BCHW.shape), align_corners=False)
    image_BHW = functional.grid_sample(image_BCHW, grid_BHW2, align_corners=False).squeeze(1)
    # Slices rather than an index tensor, which would have to be copied to the device.
    swapped_BZ = torch.stack([zones_BZ[:, zone] for zone in FLIPPED_ZONES], dim=1)
    zones_BZ = torch.where(flip_B[:, None], swapped_BZ, zones_BZ)
    # The contrast about each image's mean, then the brightness, then noise.
    mean_B11 = image_BHW.mean(dim=(1, 2), keepdim=True)
    contrast_B = 1 + random.symmetric(settings.contrast)
    brightness_B = random.symmetric(settings.brightness)
    std_B = random.uniform(0, settings.noise)
    changed_BHW = torch.lerp(mean_B11, image_BHW, contrast_B[:, None, None]) + brightness_B[:, None, None]
    noise_BHW = torch.randn(image_BHW.shape, device=image_BHW.device, generator=generator)
    return (changed_BHW + noise_BHW * std_B[:, None, None]).clamp_(0, 1), zones_BZ


def to_unit(image_BHW: Tensor) -> Tensor:
    """Return images as float32 from 0 to 1."""
    return image_BHW if image_BHW.is_floating_point() else image_BHW.float().div_(FULL_RANGE)


class _Random:
    """Random numbers, one per image."""

    def __init__(self, num_images: int, device: torch.device, generator: torch.Generator) -> None:
        self.num_images, self.device, self.generator = num_images, device, generator

    def uniform(self, low: float, high: float) -> Tensor:
        return torch.rand(self.num_images, device=self.device, generator=self.generator) * (high - low) + low

    def symmetric(self, limit: float) -> Tensor:
        return self.uniform(-limit, limit)


def _affine(random: _Random, flip_B: Tensor, settings: AugmentSettings) -> Tensor:
    """Return `theta_B23`, which maps positions in the new image to the old one, in units of half the image's side."""
    angle_B = random.symmetric(math.radians(settings.rotation_deg))
    zoom_B = 1 / (1 + random.symmetric(settings.scale))
    x_B, y_B = random.symmetric(2 * settings.shift), random.symmetric(2 * settings.shift)
    mirror_B = torch.where(flip_B, -1.0, 1.0)
    cos_B, sin_B = zoom_B * angle_B.cos(), zoom_B * angle_B.sin()
    row_x_B3 = torch.stack([mirror_B * cos_B, -mirror_B * sin_B, mirror_B * x_B], dim=1)
    row_y_B3 = torch.stack([sin_B, cos_B, y_B], dim=1)
    return torch.stack([row_x_B3, row_y_B3], dim=1)
