"""Settings of experiment tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from csi_job.settings import Section


class TrackingSettings(Section):
    """Experiment tracking with Weights & Biases; off unless a project is given."""

    wandb_project: str | None = None
    """Weights & Biases project; without one, nothing is tracked."""
    wandb_entity: str | None = None
    """Weights & Biases team or user."""
    wandb_mode: Literal["online", "offline"] = "online"
    """`offline` stores the runs in `<work>/wandb` for a later `wandb sync`."""
    wandb_api_key_file: Path | None = None
    """File containing the API key; default: WANDB_API_KEY, or the key stored by `wandb login`."""
