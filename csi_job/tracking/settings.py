"""Settings of experiment tracking."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import field_validator

from csi_job.errors import ConfigurationError
from csi_job.settings import Section

WandbMode = Literal["online", "offline", "disabled"]
MODES: Final[dict[str, WandbMode]] = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "run": "online",  # older names
    "dryrun": "offline",
}
FALSE_WORDS: Final = ("", "0", "false", "no", "off")


class TrackingSettings(Section):
    """Experiment tracking with Weights & Biases; off unless a project is given."""

    wandb_project: str | None = None
    """Weights & Biases project; without one, nothing is tracked."""
    wandb_entity: str | None = None
    """Weights & Biases team or user."""
    wandb_mode: Literal["online", "offline"] = "online"
    """`offline` stores the runs in `<work>/wandb` for a later `wandb sync`. Without this setting, WANDB_MODE applies,
    or online; with it, a different WANDB_MODE is an error."""
    wandb_api_key_file: Path | None = None
    """File containing the API key; default: WANDB_API_KEY, or the key stored by `wandb login`."""

    @field_validator("wandb_project")
    @classmethod
    def _empty_is_none(cls, project: str | None) -> str | None:
        """Track nothing: studies were stored with an empty project, and an unset variable may become one."""
        return project or None


def wandb_mode(settings: TrackingSettings, environment: Mapping[str, str] = os.environ) -> WandbMode:
    """Return the mode that applies: the environment's, which WANDB_MODE or WANDB_DISABLED gives, or the setting.

    Raises:
        ConfigurationError: the variable has no valid value, or a mode that was set contradicts it.
    """
    variable, text = "WANDB_MODE", environment.get("WANDB_MODE", "").strip().lower()
    if environment.get("WANDB_DISABLED", "").strip().lower() not in FALSE_WORDS:
        variable, text = "WANDB_DISABLED", "disabled"
    if not text:
        return settings.wandb_mode
    mode = MODES.get(text)
    if mode is None:
        raise ConfigurationError(f"{variable} has no valid value", got=text, allowed=tuple(MODES))
    if "wandb_mode" in settings.model_fields_set and mode != settings.wandb_mode:
        what = f"tracking.wandb_mode is {settings.wandb_mode}, but the environment says {mode} ({variable})"
        raise ConfigurationError(what, hint="change one of them")
    return mode
