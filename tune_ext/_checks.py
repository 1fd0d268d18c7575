"""Checks of arguments and saved states: each names what is wrong, the value, and what would do."""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = [
    "LARGEST_COUNT",
    "LARGEST_LAYER",
    "MOST_LAYERS",
    "as_number",
    "as_numbers",
    "check_choice",
    "check_count",
    "check_device",
    "check_flag",
    "check_folder",
    "check_list",
    "check_positive",
    "check_state",
    "check_texts",
]

LARGEST_COUNT = 2**53
"""The largest whole number below which every one is a float as well."""

LARGEST_LAYER = 2**24
"""Channels, features or classes: no memory holds a layer that is wider."""

MOST_LAYERS = 10_000
"""Blocks, branches, nodes: a network of more is never built."""


def as_number(name: str, value: object) -> float:
    """`value` as a float; an error that names it if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise InvalidValueError(f"{name} is larger than any floating-point number") from None
    if math.isnan(number):
        raise InvalidValueError(f"{name} must be a number, got {value!r}")
    return number


def as_numbers(name: str, values: object) -> NDArray[np.float64]:
    """`values` as an array of numbers of any shape, None as NaN; an error that names them."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTypeError(f"{name} must be numbers, got {values!r}: {error}") from None


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """An error that names the choices, unless `value` is one of them."""
    known = tuple(choices)
    # An array would be compared item by item.
    if not isinstance(value, Hashable) or value not in known:
        said = ", ".join(repr(choice) for choice in known)
        raise InvalidValueError(f"{name} must be one of {said}, got {value!r}")


def check_count(name: str, value: object, least: int = 1, most: int = LARGEST_COUNT) -> int:
    """`value` as an int; an error that names it unless it is a whole number in the range."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidTypeError(f"{name} must be a whole number, got {value!r}")
    count = int(value)  # configurations hold numpy's integers, which JSON does not know
    if count < least:
        raise InvalidValueError(f"{name} must be at least {least}, got {count}")
    if count > most:
        raise InvalidValueError(f"{name} must be at most {most}, got {count}")
    return count


def check_flag(name: str, value: object) -> bool:
    """`value`, which must be True or False: any text would be true."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidTypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_list(name: str, value: object, of: str = "values") -> list[Any]:
    """The items of a list or the like; an error that names it for what has no items in order.

    Args:
        name: Of the argument.
        value: It.
        of: What it is to hold, in words.
    """
    other = isinstance(value, str | bytes | Mapping | set | frozenset)
    if other or not isinstance(value, Collection) or getattr(value, "ndim", 1) == 0:
        raise InvalidTypeError(f"{name} must be a list of {of}, got {value!r}")
    return list(value)


def check_mappings(name: str, value: object) -> list[Mapping[Any, Any]]:
    """The items of a list of dictionaries; an error that names it for anything else."""
    items = check_list(name, value, "dictionaries")
    for item in items:
        if not isinstance(item, Mapping):
            raise InvalidTypeError(f"{name} must hold dictionaries, got {item!r}")
    return items


def check_positive(name: str, value: object, *, below: float) -> float:
    """`value` as a float above 0 and below a limit."""
    number = as_number(name, value)
    if not 0 < number < below:
        limit = "finite" if math.isinf(below) else f"below {below:g}"
        raise InvalidValueError(f"{name} must be positive and {limit}, got {number}")
    return number


def check_texts(name: str, values: object) -> list[str]:
    """`values` as a list of texts, of which one may stand alone.

    Args:
        name: Of the option.
        values: Its value.

    Raises:
        InvalidTypeError: It is neither text nor a list of texts.
    """
    texts = [values] if isinstance(values, str) else check_list(name, values, "names")
    for text in texts:
        if not isinstance(text, str):
            raise InvalidTypeError(f"{name} must be a list of names, got {text!r} in it")
    return texts


def check_device(device: object) -> str:
    """The name of a device; whether it is there is seen when something is trained.

    Raises:
        InvalidTypeError: It is not text.
        InvalidValueError: It names no device.
    """
    if not isinstance(device, str):
        raise InvalidTypeError(f"device must be text such as 'cpu' or 'cuda', got {device!r}")
    if not re.fullmatch(r"[a-z]+(:\d{1,3})?", device):
        raise InvalidValueError(f"device must be like 'cpu', 'cuda' or 'cuda:1', got {device!r}")
    return device


def check_folder(name: str, folder: object) -> str | None:
    """A folder's name as text, or None.

    Raises:
        InvalidTypeError: It is neither None, text nor a path.
        InvalidValueError: It is empty, or no file system has such names.
    """
    if folder is None:
        return None
    if not isinstance(folder, str | os.PathLike):
        raise InvalidTypeError(f"{name} must be a folder's name, got {folder!r}")
    text = str(os.fspath(folder))
    if not text or "\0" in text:
        raise InvalidValueError(f"{name} must be a folder's name, got {text!r}")
    return text


def check_state(state: object, kind: str, version: int, what: str) -> None:
    """An error unless `state` says that it is of this kind and version."""
    if not isinstance(state, Mapping) or state.get("kind") != kind:
        raise StateError(f"this is not the state of {what}")
    if state.get("version") != version:
        raise StateError(
            f"the state has version {state.get('version')!r}; this package reads {version}"
        )
