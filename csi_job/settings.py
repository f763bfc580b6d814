"""The base of every settings section: frozen, unknown keys refused, a docstring under each field."""

import ast
import inspect
import os
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

MAX_SEED: Final = 2**32 - 1  # of NumPy's and scikit-learn's random states


class Section(BaseModel):
    """One frozen section of the settings tree; the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Describe the fields, as `use_attribute_docstrings` would in three times the time."""
        undescribed = {name: field for name, field in cls.model_fields.items() if not field.description}
        if undescribed:
            for statement, below in pairwise(_class_bodies(cls.__module__).get(cls.__name__, ())):
                match statement, below:
                    case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(docstring))) if name in undescribed:
                        undescribed[name].description = inspect.cleandoc(docstring)

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
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
