"""Settings of the evaluation."""

from pydantic import Field

from csi_job.settings import Section


class EvaluationSettings(Section):
    """How metrics and their confidence intervals are computed."""

    num_bootstrap: int = Field(default=2000, ge=100, le=1_000_000)
    """Bootstrap resamples (of patients) per confidence interval."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of the intervals."""
    seed: int = Field(default=42, ge=0)
    """Seed of the bootstrap."""
    batch_size: int = Field(default=64, ge=1)
    """Images per forward pass."""
