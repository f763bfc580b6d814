"""The base of every settings section: frozen, unknown keys refused, a docstring under each field."""

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
    def _refuse_bool_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[str(info.field_name)].annotation
        kinds = {kind, *get_args(kind)} if isinstance(value, bool) else set()
        if int in kinds:
            raise PydanticKnownError("int_type")
        if float in kinds:
            raise PydanticKnownError("float_type")
        return value
