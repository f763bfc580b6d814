"""Settings for training one trial."""

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from csi_job.files import digest_file, is_file
from csi_job.settings import Section

SPEED_ONLY: Final = {"device", "cuda_graphs", "compile", "stall_s"}


class AugmentSettings(Section):
    """Random changes to the training images, sampled for each image in each epoch."""

    enabled: bool = True
    """Augment the training images."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip, which also swaps the labels of the right and left zones."""
    rotation_deg: float = Field(default=7.0, ge=0, le=45)
    """Maximum rotation in either direction, in degrees."""
    shift: float = Field(default=0.05, ge=0, le=0.5)
    """Maximum shift in either direction, as a fraction of the image size."""
    scale: float = Field(default=0.1, ge=0, lt=1)
    """Maximum zoom in or out, as a fraction."""
    brightness: float = Field(default=0.1, ge=0, lt=1)
    """Maximum brightness change in either direction, as a fraction of the full range."""
    contrast: float = Field(default=0.15, ge=0, lt=1)
    """Maximum contrast change in either direction, as a fraction."""
    noise: float = Field(default=0.02, ge=0, lt=1)
    """Maximum std of the added Gaussian noise, as a fraction of the full range."""


class TrialSettings(Section):
    """How each trial is trained."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to run on; `auto`: the GPU if there is one, otherwise the CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What networks compute in. `auto`: bf16 on GPUs that have it in hardware (compute capability 8.0 or higher), fp16
    with loss scaling on older ones with tensor cores (7.0), otherwise fp32."""
    cuda_graphs: bool = True
    """Launch each training step on a GPU as one CUDA graph: the same results, with less work for the CPU."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the model with torch.compile, which changes results by rounding. `auto`: only Custom_1 on a GPU, if
    there are enough training images to pay for it: 50,600 of 224 px, or fewer larger ones."""
    pretrained: str = "none"
    """Initial weights: `none` (random), `imagenet` (downloaded by torchvision) or the path to a weights file."""
    objective_average: Literal["macro", "weighted"] = "macro"
    """How `val_f1` averages over scores 0-3 within a zone."""
    class_balance: bool = False
    """Weight each zone's classes by their inverse frequency in the training set."""
    augment: AugmentSettings = AugmentSettings()
    """Random changes to the training images."""
    stall_s: float = Field(default=1800.0, gt=0)
    """Seconds without a finished batch after which the worker exits with code 1; another worker resumes the trial when
    its lease expires."""

    @field_validator("compile", mode="before")
    @classmethod
    def _is_auto_or_a_switch(cls, value: object) -> object:
        try:
            return value if value == "auto" else TypeAdapter(bool).validate_python(value)
        except ValidationError:
            raise ValueError(f"must be auto, true or false, got {value!r}") from None

    @property
    def is_weights_file(self) -> bool:
        """Whether the initial weights are a file of the user's."""
        return self.pretrained not in ("none", "imagenet")

    def results_only(self) -> dict[str, Any]:
        """Return the settings that decide a training's result as JSON-able values, a weights file by its digest."""
        settings = self.model_dump(mode="json", exclude=SPEED_ONLY)
        weights = Path(self.pretrained)
        if self.is_weights_file and is_file(weights):
            settings["pretrained"] = digest_file(weights)
        return settings
