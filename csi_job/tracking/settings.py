"""Settings of experiment tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from csi_job.settings import Section


class TrackingSettings(Section):
    """Experiment tracking with Weights & Biases; off unless a project is named."""

    wandb_project: str | None = None
    """Weights & Biases project; none: no tracking."""
    wandb_entity: str | None = None
    """Weights & Biases team or user."""
    wandb_mode: Literal["online", "offline"] = "online"
    """`offline` keeps the runs under `<work>/wandb` for a later `wandb sync`."""
    wandb_api_key_file: Path | None = None
    """File that holds the key; none: WANDB_API_KEY or what `wandb login` keeps."""
