"""The base of every settings section: frozen, unknown keys refused, a docstring under each field."""

import ast
import inspect
import os
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, ValidationInfo, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError

MAX_SEED: Final = 2**32 - 1  # of NumPy's and scikit-learn's random states


class Section(BaseModel):
    """One frozen section of the settings tree; the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the fields, as `use_attribute_docstrings` would, but only once a schema is asked for."""
        schema = handler(core_schema)
        for name, field in handler.resolve_ref_schema(schema).get("properties", {}).items():
            field.setdefault("description", help_of(cls, name))
        return schema

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


@cache
def help_of(section: type[BaseModel], name: str) -> str:
    """Return the help text of a setting; reading the docstrings takes tens of milliseconds, so do it late."""
    if description := section.model_fields[name].description:
        return description
    for statement, below in pairwise(_class_bodies(section.__module__).get(section.__name__, ())):
        match statement, below:
            case ast.AnnAssign(ast.Name(field)), ast.Expr(ast.Constant(str(docstring))) if field == name:
                return inspect.cleandoc(docstring)
    return ""


@cache
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def beyond_bounds(error: ValidationError) -> Iterator[tuple[tuple[int | str, ...], Any, Any]]:
    """Yield the place, the value and the bound of each value that is above a maximum or below a minimum.

    An exclusive bound (`lt`, `gt`) is no value to move to, so what is beyond one stays refused.
    """
    for one in error.errors():
        bounds = one.get("ctx", {})
        if (bound := bounds.get("le", bounds.get("ge"))) is not None:
            yield one["loc"], one["input"], bound
