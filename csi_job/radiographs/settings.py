"""Settings of the radiographs: where they are, what counts as unknown, how they are split."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field, model_validator

from csi_job.settings import Section


class SplitSettings(Section):
    """How patients are divided into the three splits."""

    train: float = Field(default=0.70, gt=0, lt=1)
    """Share of the patients used for training."""
    validation: float = Field(default=0.15, gt=0, lt=1)
    """Share of the patients used for early stopping and for choosing hyperparameters."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of the patients kept for the final evaluation."""
    seed: int = Field(default=42, ge=0)
    """Seed of the split; the same seed and table give the same split."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> SplitSettings:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1, abs_tol=1e-6):
            message = f"train + validation + test must be 1, got {total:g}"
            raise ValueError(message)
        return self


class RadiographsSettings(Section):
    """Where the radiographs and their label table are, and how they are read."""

    labels: Path | None = None
    """Label table: FileID, optional PatientID, and six zone scores (CSV; separator and encoding are detected)."""
    images: Path | None = None
    """Folder of the images named by FileID (NIfTI, DICOM, PNG, JPEG)."""
    unknown_values: tuple[str, ...] = ("", "nan", "na", "unknown", "?")
    """Words that mean an ungraded zone (class 4), compared without case; 4 always does."""
    max_corrupt_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unreadable images that are listed and skipped; past it the build stops."""
    max_image_side_px: int = Field(default=20_000, ge=64)
    """Largest width or height decoded; larger images are refused as decompression bombs."""
    split: SplitSettings = SplitSettings()
    """How patients are divided into train, validation and test."""
