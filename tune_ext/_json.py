"""JSON that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["loads"]


def loads(text: str | bytes, *, strict: bool = False) -> Any:
    """What a text says.

    Args:
        text: JSON.
        strict: Whether NaN and infinities, which JSON does not know, are refused.

    Raises:
        ValueError: It is no JSON, or nested too deeply, or has a number with too many digits.

    >>> loads("[" * 100_000)
    Traceback (most recent call last):
    ValueError: it is nested too deeply
    """
    try:
        return json.loads(text, parse_constant=_refuse if strict else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")
