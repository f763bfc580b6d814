"""The base of every settings section: frozen, unknown keys refused, a docstring under each field."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One frozen section of the settings tree; the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
