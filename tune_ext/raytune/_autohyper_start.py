"""Where autoHyper starts in a search space, and how far it steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tune_ext.autohyper import Parameter
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune._space import NumericParameter, flatten

__all__ = ["check_constants", "check_mapping", "core_parameters", "initial_points"]

_CONSTANTS = ("establish_below", "plateau", "power", "shrink", "scale_tolerance", "reuse")

_LEARNING_RATES = ("lr", "learning_rate", "eta")
_WEIGHT_DECAYS = ("weight_decay", "wd")


def check_mapping(name: str, value: Any) -> dict[str, float]:
    """Return the argument `name` (parameter → number) as a dictionary."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTypeError(f"{name} must map parameters to numbers, got {value!r}")
    return dict(value)


def check_constants(constants: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the argument `constants`, or raise where it names something else."""
    if constants is not None and not isinstance(constants, Mapping):
        raise InvalidTypeError(f"constants must be a dictionary, got {constants!r}")
    unknown = sorted(set(constants or ()) - set(_CONSTANTS))
    if unknown:
        raise InvalidValueError(
            f"constants names {', '.join(unknown)}, but there are {', '.join(_CONSTANTS)}"
        )
    return dict(constants or {})


def core_parameters(
    space: Sequence[NumericParameter], start: Mapping[str, float], scale: Mapping[str, float]
) -> list[Parameter]:
    """Give every number of the space a start and a scale.

    Raises:
        InvalidValueError: The space is empty or has something that factors cannot search,
            or `start` or `scale` names something else or lies outside.
    """
    if not space:
        raise InvalidValueError(
            "the search space is empty: give at least one parameter a range, for example "
            "'lr': tune.loguniform(1e-6, 1)"
        )
    for what, given in (("start", start), ("scale", scale)):
        unknown = sorted(set(map(str, given)) - {parameter.name for parameter in space})
        if unknown:
            raise InvalidValueError(
                f"{what} names {', '.join(unknown)}, but the search space has "
                f"{', '.join(parameter.name for parameter in space)}"
            )
    return [_core_parameter(item, start.get(item.name), scale.get(item.name)) for item in space]


def _core_parameter(item: NumericParameter, start: float | None, scale: float | None) -> Parameter:
    if item.integer or item.step is not None:
        raise InvalidValueError(
            f"space parameter {item.name!r} is {'an integer' if item.integer else 'quantised'}: "
            "the trust region moves by ever smaller factors; use tune.uniform or "
            "tune.loguniform, or fix the parameter to one value"
        )
    kind = _kind(str(item.path[-1]))
    if start is None:
        start = min(max(_default_start(item, kind), item.lower), item.upper)
    if scale is None:
        scale = 2.0 if kind == "weight_decay" else 1.45
    return Parameter(item.name, start, scale, item.lower, item.upper, min(1e-7, item.upper))


def _kind(name: str) -> str:
    lowered = name.lower()
    for kind, names in (("learning_rate", _LEARNING_RATES), ("weight_decay", _WEIGHT_DECAYS)):
        if any(lowered == n or lowered.endswith(f"_{n}") for n in names):
            return kind
    return "other"


def _default_start(item: NumericParameter, kind: str) -> float:
    if kind == "learning_rate":
        return 1e-4
    if kind == "weight_decay":
        return 0.0
    if item.log:
        return math.sqrt(item.lower * item.upper)
    return (item.lower + item.upper) / 2


def initial_points(
    points: Sequence[Any], space: Sequence[NumericParameter]
) -> list[dict[str, float]]:
    """Translate the user's `points_to_evaluate`; constants in them are left out.

    Raises:
        InvalidTypeError: A point is not a dictionary.
    """
    translated = []
    for point in points:
        if not isinstance(point, Mapping):
            raise InvalidTypeError(f"points_to_evaluate must hold dictionaries, got {point!r}")
        flat = flatten(point) | {tuple(str(k).split("/")): v for k, v in point.items()}
        known = {item.name: flat[item.path] for item in space if item.path in flat}
        if not known:
            raise InvalidValueError(
                f"points_to_evaluate has {point!r}, which gives no parameter of the space "
                f"({', '.join(item.name for item in space)})"
            )
        translated.append(known)
    return translated
