"""Learning rates inside nested configurations: finding, replacing and undoing them."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping
from typing import Any

from ray.tune.search.sample import Domain

from tune_ext.errors import InvalidValueError
from tune_ext.raytune._space import flatten, iter_domains, unflatten

__all__ = [
    "at",
    "check_rate",
    "constants_of",
    "decoded",
    "encoded",
    "locate",
    "may_have",
    "replaced",
    "unscaled",
]

_NOTHING = object()


def check_rate(name: str, value: Any) -> float:
    """The learning rate as a float; an error that names it unless it is positive."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 < float(value) < math.inf:
        raise InvalidValueError(
            f"the learning rate {name!r} must be a positive number to be scaled, got {value!r}"
        )
    return float(value)


def unscaled(rate: Any, base: float, factor: Any) -> Any:
    """The base of a rate, exactly; where a scheduler has changed the rate, changed as much.

    >>> unscaled(0.1 * 0.3, 0.1, 0.3), unscaled(0.5, 0.1, 2.0)
    (0.1, 0.25)
    """
    if not isinstance(rate, numbers.Real) or not factor or rate == base * factor:
        return base
    return float(rate) / factor


def locate(config: Any, name: str) -> tuple[str, ...] | None:
    """Where a configuration has what a path with slashes names: nested, or as one key.

    >>> locate({"optimizer": {"lr": 1}}, "optimizer/lr"), locate({"optimizer/lr": 1}, "lr")
    (('optimizer', 'lr'), None)
    """
    path = tuple(name.split("/"))
    for known in ((name,), path):
        if at(config, known, _NOTHING) is not _NOTHING:
            return known
    return None


def at(config: Any, path: tuple[str, ...], default: Any) -> Any:
    """What is at the end of a path, or the default where there is nothing."""
    for key in path:
        if not isinstance(config, Mapping) or key not in config:
            return default
        config = config[key]
    return config


def replaced(config: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with another value there; what is not on the way is shared."""
    if not path:
        return dict(config)
    if len(path) == 1:
        return {**config, path[0]: value}
    return {**config, path[0]: replaced(config.get(path[0], {}), path[1:], value)}


def may_have(space: Any, name: str) -> bool:
    """Whether configurations of a space may have an entry: it, or a domain, is on the way."""
    if name in space:
        return True
    node = space
    for key in name.split("/"):
        if isinstance(node, Domain):
            return True
        if not isinstance(node, Mapping) or key not in node:
            return False
        node = node[key]
    return True


def constants_of(space: Mapping[str, Any]) -> dict[str, Any]:
    """What every configuration of a space has, nested as there."""
    searched = {path for path, _ in iter_domains(space)}
    return copy.deepcopy(
        unflatten(
            {
                path: value
                for path, value in flatten(space).items()
                if not any(found[: len(path)] == path for found in searched)
            }
        )
    )


def encoded(value: Any) -> Any:
    """The value as JSON has it, tuples told from lists; TypeError if it is not plain.

    >>> encoded((1, [2])), decoded(encoded((1, [2])))
    ({'tuple': [1, {'list': [2]}]}, (1, [2]))
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encoded(item) for item in value]}
    if isinstance(value, Mapping):
        return {"mapping": [[encoded(k), encoded(v)] for k, v in value.items()]}
    raise TypeError(f"{value!r} is no plain value")


def decoded(value: Any) -> Any:
    """What `encoded` was given."""
    if not isinstance(value, Mapping):
        return value
    ((kind, items),) = value.items()
    if kind == "mapping":
        return {decoded(k): decoded(v) for k, v in items}
    return {"list": list, "tuple": tuple}[kind](decoded(item) for item in items)
