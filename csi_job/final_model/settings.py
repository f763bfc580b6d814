"""Settings of the final model."""

from __future__ import annotations

from pydantic import Field

from csi_job.settings import Section


class FinalModelSettings(Section):
    """How the winner is confirmed and the final model trained."""

    num_candidates: int = Field(default=3, ge=1)
    """Best trials that are trained again over all seeds to find the honest winner; 1 skips this."""
    num_seeds: int = Field(default=3, ge=1)
    """Seeds each candidate is trained with."""
    seed: int = Field(default=1, ge=0)
    """First seed; the others follow it. Not the search's seed, whose luck chose the candidates."""
    max_epochs: int | None = Field(default=None, ge=1)
    """Epochs at most; default: the `max_epochs` of the trial that is trained again."""
