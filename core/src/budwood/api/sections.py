"""Configuration sections, and what their validators may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

FIRST_PASS = {"first_pass": True}


class Config(BaseModel):
    """Base of every configuration section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def first_pass(info: ValidationInfo) -> bool:
    """Whether a validator should leave what takes an import of seconds to the second pass.

    A run's configuration is validated twice, so that a misspelt key is told at once.
    """
    return bool((info.context or {}).get("first_pass"))


def refuse(problems: Sequence[tuple[tuple[str, ...], str]], given: Any = None) -> NoReturn:
    """Inside a validator: every problem at its own place, the keys that lead to it from the section on.

    :raises pydantic.ValidationError: always.
    """
    raise ValidationError.from_exception_data(
        "section",
        [
            InitErrorDetails(type=PydanticCustomError("value_error", "{error}", {"error": text}), loc=keys, input=given)
            for keys, text in problems
        ],
    )
