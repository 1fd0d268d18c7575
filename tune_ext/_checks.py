"""Checks of arguments: each names the argument, the value, and what would do."""

from __future__ import annotations

import math
import numbers

from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["as_number", "check_choice", "check_positive"]


def as_number(name: str, value: object) -> float:
    """`value` as a float; an error that names it if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"{name} must be a number, got {value!r}")
    if math.isnan(value):
        raise InvalidValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """An error that names the choices, unless `value` is one of them."""
    if value not in choices:
        raise InvalidValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_positive(name: str, value: object, *, below: float) -> float:
    """`value` as a float above 0 and below a limit."""
    number = as_number(name, value)
    if not 0 < number < below:
        limit = "finite" if math.isinf(below) else f"below {below:g}"
        raise InvalidValueError(f"{name} must be positive and {limit}, got {number}")
    return number
