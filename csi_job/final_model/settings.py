"""Settings of the final model."""

from pydantic import Field

from csi_job.settings import MAX_SEED, Section


class FinalModelSettings(Section):
    """How the best trial is confirmed and the final model trained."""

    num_candidates: int = Field(default=3, ge=1)
    """Number of top trials to retrain with every seed before choosing the winner; 1 skips this step."""
    num_seeds: int = Field(default=3, ge=1, le=1000)
    """Number of seeds to train each candidate with."""
    seed: int = Field(default=1, ge=0, le=MAX_SEED)
    """First seed; the rest count up from it. Differs from the search's seed, under which the candidates were chosen."""
    max_epochs: int | None = Field(default=None, ge=1)
    """Maximum number of epochs; default: the `max_epochs` of the trial being retrained."""
