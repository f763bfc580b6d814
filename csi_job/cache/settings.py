"""Settings of the cache."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from csi_job.settings import Section

Normalisation = Literal["medical", "imagenet"]


class CacheSettings(Section):
    """The size and normalisation of the cached images."""

    image_size_px: int = Field(default=224, ge=32, le=2048)
    """Side of the square images that the model sees."""
    normalisation: Normalisation = "medical"
    """`medical`: mean 0.5, deviation 0.5; `imagenet`: the channel statistics of ImageNet."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that decode images; 0 means one a core."""
