"""Settings of the radiographs: where they are, what counts as unknown, and how they are split."""

import math
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from csi_job.settings import Section


class SplitSettings(Section):
    """How patients are divided into training, validation and test sets."""

    train: float = Field(default=0.70, gt=0, lt=1)
    """Fraction of patients for training."""
    validation: float = Field(default=0.15, gt=0, lt=1)
    """Fraction of patients for early stopping and for choosing hyperparameters."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Fraction of patients held out for the final evaluation."""
    seed: int = Field(default=42, ge=0)
    """Random seed of the split; the same seed and label table give the same split."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"train + validation + test must add up to 1, got {total:g}")
        return self


class RadiographsSettings(Section):
    """Where the radiographs and their label table are, and how they are read."""

    labels: Path | None = None
    """Label table (CSV): FileID, six zone scores and optionally PatientID; separator and encoding are detected."""
    images: Path | None = None
    """Folder of images named by FileID (DICOM, NIfTI, PNG, JPEG, TIFF, WebP, BMP, GIF or JPEG 2000)."""
    unknown_values: tuple[str, ...] = ("", "nan", "na", "unknown", "?")
    """Labels that mean an ungraded zone (class 4), case-insensitive; 4 always does."""
    max_corrupt_fraction: float = Field(default=0.01, ge=0, le=1)
    """Fraction of images that may be unreadable; these are listed and skipped. Above it, the build stops."""
    max_image_side_px: int = Field(default=20_000, ge=64)
    """Maximum width or height to decode; larger images are rejected as decompression bombs."""
    split: SplitSettings = SplitSettings()
    """How patients are divided into training, validation and test sets."""
