"""A task's space as other packages see it: a grid, numbered ordinals, Optuna's distributions."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from typing import Any

from ConfigSpace import (
    CategoricalHyperparameter,
    ConfigurationSpace,
    Constant,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)

from tune_ext.benchmark.history import plain
from tune_ext.errors import InvalidValueError

__all__ = [
    "grid",
    "listed_values",
    "not_floats",
    "number_ordinals",
    "optuna_distributions",
    "to_numbers",
    "unordered",
]


def grid(space: ConfigurationSpace, most: int) -> list[dict[str, Any]]:
    """The points of a grid over a space, at most so many.

    The parameters get levels in turn, in the order in which the space names them, as long as
    the grid stays small enough. The levels of a parameter are the middles of equal parts of its
    range, on its own scale (logarithmic where the space says so). A parameter for which there is
    one level only keeps its default.

    >>> space = ConfigurationSpace()
    >>> _ = space.add(UniformFloatHyperparameter("lr", 1e-4, 1.0, log=True))
    >>> [round(point["lr"], 4) for point in grid(space, 2)]
    [0.001, 0.1]
    """
    levels = dict.fromkeys(space, 1)
    while True:
        size = math.prod(levels.values())
        for name in sorted(levels, key=lambda n: levels[n]):
            more = size // levels[name] * (levels[name] + 1)
            if more <= most and levels[name] < space[name].size:
                levels[name] += 1
                break
        else:
            break
    values = [_levels(space[name], count) for name, count in levels.items()]
    return [dict(zip(levels, point, strict=True)) for point in itertools.product(*values)]


def _levels(parameter: Any, count: int) -> list[Any]:
    if count == 1:
        return [plain(parameter.default_value)]
    middles = [(i + 0.5) / count for i in range(count)]
    known = listed_values(parameter)
    if known is not None:
        return [known[int(middle * len(known))] for middle in middles]
    # Neighbouring middles of a range of integers may be the same one.
    return list(dict.fromkeys(plain(parameter.to_value(middle)) for middle in middles))


def listed_values(parameter: Any) -> list[Any] | None:
    """The values of a parameter that lists them, else None."""
    for kind, name in (
        (CategoricalHyperparameter, "choices"),
        (OrdinalHyperparameter, "sequence"),
    ):
        if isinstance(parameter, kind):
            return [plain(value) for value in getattr(parameter, name)]
    return None


def unordered(space: ConfigurationSpace) -> list[str]:
    """The names of the parameters whose values have no order."""
    return [n for n in space if isinstance(space[n], CategoricalHyperparameter)]


def not_floats(space: ConfigurationSpace) -> list[str]:
    """The names of the parameters that are not ranges of real numbers."""
    return [n for n in space if not isinstance(space[n], UniformFloatHyperparameter)]


def number_ordinals(
    space: ConfigurationSpace,
) -> tuple[ConfigurationSpace, dict[str, list[Any]]]:
    """A space in which ordinals are whole numbers from 0, and what these stand for.

    Ray's wrappers of other packages know no ordinals: they refuse them or forget their order.

    Raises:
        InvalidValueError: Beside ordinals there are conditions or forbidden clauses.
    """
    values = {
        name: [plain(value) for value in parameter.sequence]
        for name, parameter in space.items()
        if isinstance(parameter, OrdinalHyperparameter) and len(parameter.sequence) > 1
    }
    if not values:
        return copy.deepcopy(space), {}
    if space.conditions or space.forbidden_clauses:
        raise InvalidValueError(
            f"a space with conditions or forbidden clauses, and with the ordinals "
            f"{', '.join(values)}, cannot be searched with numbers in their place"
        )
    numbered = ConfigurationSpace()
    for name, parameter in space.items():
        if name in values:
            numbered.add(UniformIntegerHyperparameter(name, 0, len(values[name]) - 1))
        else:
            numbered.add(copy.deepcopy(parameter))
    return numbered, values


def optuna_distributions(space: ConfigurationSpace) -> dict[str, Any]:
    """The parameters of a space without conditions as Optuna's distributions.

    Raises:
        InvalidValueError: There is a kind of parameter that Optuna does not know.
    """
    from optuna import distributions

    made: dict[str, Any] = {}
    for name in space:
        item: Any = space[name]
        known = listed_values(item)
        if known is not None:
            made[name] = distributions.CategoricalDistribution(known)
        elif isinstance(item, Constant):
            made[name] = distributions.CategoricalDistribution([plain(item.value)])
        elif isinstance(item, UniformFloatHyperparameter):
            bounds = float(item.lower), float(item.upper)
            made[name] = distributions.FloatDistribution(*bounds, log=bool(item.log))
        elif isinstance(item, UniformIntegerHyperparameter):
            limits = int(item.lower), int(item.upper)
            made[name] = distributions.IntDistribution(*limits, log=bool(item.log))
        else:
            raise InvalidValueError(f"Optuna knows no {type(item).__name__} as {name!r}")
    return made


def to_numbers(config: Mapping[str, Any], values: Mapping[str, list[Any]]) -> dict[str, Any]:
    """A configuration with the numbers of `number_ordinals` in place of its ordinals."""
    return {k: values[k].index(v) if k in values else v for k, v in config.items()}
