"""The base of every settings section: frozen, unknown keys refused, a docstring under each field."""

import os
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError


class Section(BaseModel):
    """One frozen section of the settings tree; the docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_before_conversion(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[str(info.field_name)].annotation
        kinds = {kind, *get_args(kind)}
        if isinstance(value, bool) and int in kinds:
            raise PydanticKnownError("int_type")
        if isinstance(value, bool) and float in kinds:
            raise PydanticKnownError("float_type")
        if value == "" and Path in kinds:  # such as an unset variable of a shell, which would mean the current folder
            raise PydanticKnownError("string_too_short", {"min_length": 1})
        return os.path.expanduser(value) if isinstance(value, str) and Path in kinds else value  # noqa: PTH111 - raises nothing
