"""Settings of the cache."""

from typing import Final, Literal

from pydantic import Field

from csi_job.settings import Section

NODE_ONLY: Final = {"num_workers", "local_copy_gib"}  # no part of what a cache contains
Normalisation = Literal["medical", "imagenet"]


class CacheSettings(Section):
    """The size and normalisation of the images.

    The cache stores raw uint8 pixels, normalised only on the device; `normalisation` is nevertheless part of its key.
    """

    image_size_px: int = Field(default=224, ge=32, le=2048)
    """Width and height of the model's input images, in pixels."""
    normalisation: Normalisation = "medical"
    """Pixel normalisation; `medical`: mean 0.5, std 0.5; `imagenet`: ImageNet's mean and std."""
    num_workers: int = Field(default=0, ge=0, le=1024)
    """Image-decoding processes; 0: one per core."""
    local_copy_gib: float = Field(default=0.0, ge=0)
    """GiB that a copy of the training and validation images may take in the node's temporary folder (TMPDIR); 0: no
    copy. It saves reading them over the network in every epoch if they fit neither the GPU nor memory."""
