"""Settings of the study, its storage and its tracking."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, field_validator

from csi_job.errors import ConfigurationError
from csi_job.settings import Section

Sampler = Literal["tpe", "random", "cmaes"]
Pruner = Literal["median", "successive_halving", "none"]
Objective = Literal["f1", "f1-and-cost"]
MAX_NAME_BYTES = 200  # of 255, to which file names add e.g. `_optimization_history.html`


class StudySettings(Section):
    """What is searched, how long, and with which sampler and pruner."""

    name: str = Field(
        default="csi_optimization", min_length=1, max_length=100, pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$"
    )
    """Name of the study; a study of this name in the storage is continued."""
    num_trials: int = Field(default=50, ge=1)
    """Total of finished trials of the study, shared by every worker."""
    max_epochs: int = Field(default=30, ge=1)
    """Epochs of one trial at most."""
    sampler: Sampler = "tpe"
    """How the next hyperparameters are chosen."""
    num_startup_trials: int = Field(default=10, ge=0)
    """Random trials before the TPE or CMA-ES sampler starts to learn."""
    pruner: Pruner = "median"
    """How unpromising trials are stopped early."""
    objective: Objective = "f1"
    """`f1`: validation F1 alone; `f1-and-cost`: F1 up and GFLOPs an image down."""
    seed: int = Field(default=42, ge=0)
    """Seed from which the random state of every trial is derived."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds after which no new trial is started by this worker."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts of a trial that may end without a finished epoch before it is told FAIL."""
    max_failed_trials: int = Field(default=10, ge=0)
    """Failed trials after which the study stops with an error."""
    report_every: int = Field(default=5, ge=1)
    """Finished trials between two refreshes of the plots under `models/hyperopt/`."""

    @field_validator("name")
    @classmethod
    def _fits_a_file_name(cls, name: str) -> str:
        if len(name.encode()) > MAX_NAME_BYTES:
            message = f"the name must fit into a file name: at most {MAX_NAME_BYTES} bytes, got {len(name.encode())}"
            raise ValueError(message)
        return name


def can_be_ours(name: str) -> bool:
    """Return whether a study of ours may have this name."""
    try:
        StudySettings(name=name)
    except ValidationError:
        return False
    return True


def checked_name(name: str) -> str:
    """Return a study's name that is no setting; raise `ConfigurationError` if no study of ours can have it."""
    if not can_be_ours(name):
        allowed = "up to 100 characters without slashes, not beginning with a dot"
        raise ConfigurationError("a study cannot have this name", got=name, allowed=allowed)
    return name
