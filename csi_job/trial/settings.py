"""Settings of one trial's training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from csi_job.settings import Section


class AugmentSettings(Section):
    """Random changes to the training images, drawn anew for each image and epoch."""

    enabled: bool = True
    """Augment the training images."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip, which swaps the labels of right and left zones."""
    rotation_deg: float = Field(default=7.0, ge=0, le=45)
    """Largest rotation either way."""
    shift: float = Field(default=0.05, ge=0, le=0.5)
    """Largest shift either way, as a share of the side."""
    scale: float = Field(default=0.1, ge=0, lt=1)
    """Largest change of scale either way, as a share."""
    brightness: float = Field(default=0.1, ge=0, lt=1)
    """Largest change of brightness either way, as a share of the full range."""
    contrast: float = Field(default=0.15, ge=0, lt=1)
    """Largest change of contrast either way, as a share."""
    noise: float = Field(default=0.02, ge=0, lt=1)
    """Largest standard deviation of added Gaussian noise, as a share of the full range."""


class TrialSettings(Section):
    """How one set of hyperparameters is trained."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes the GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast on GPUs that have it, else fp32."""
    compile: bool = False
    """Compile the model with torch.compile."""
    pretrained: str = "none"
    """Starting weights: `none`, `imagenet` (downloaded by torchvision), or the path of a weights file."""
    objective_average: Literal["macro", "weighted"] = "macro"
    """How `val_f1` averages the classes 0-3 of a zone."""
    class_balance: bool = False
    """Weight the classes of each zone by the inverse of their frequency in the training split."""
    augment: AugmentSettings = AugmentSettings()
    """Random changes to the training images."""
    stall_s: float = Field(default=1800.0, gt=0)
    """Seconds without a finished batch after which the worker gives up its trial and exits 1."""
