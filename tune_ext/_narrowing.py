"""A search space narrowed around the best of what was tried in it.

All is done in a parameter's own unit scale (logarithmic where the space says so), towards the
range of the best configurations, by as much as a weight says:

=========================  ==================================================================
parameter                  narrowed
=========================  ==================================================================
float, integer, ordinal    from the least to the largest of the best, one mean gap between them
                           wider at each end, never below `floor` of the original width
categorical                the weights: the best counted beside as many pseudo-counts as there
                           are choices, never below `floor` of the original probability
constant                   stays
=========================  ==================================================================

A parameter that does not matter is spread over its whole range among the best, and so keeps it.
Conditions and forbidden clauses stay; the values that they name stay legal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ConfigSpace import (
    CategoricalHyperparameter,
    ConfigurationSpace,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)

from tune_ext.errors import InvalidValueError

__all__ = ["describe", "narrow", "plain", "read_space"]

Config = Mapping[str, Any]


def narrow(
    space: ConfigurationSpace, best: Sequence[Config], weight: float, *, floor: float = 0.2
) -> ConfigurationSpace:
    """A copy of a space, narrowed around configurations of it.

    Args:
        space: The original; it stays as it is.
        best: Active values of the best configurations, the best one first.
        weight: How far towards their range, in [0, 1]; 0 gives the original.
        floor: The least share of its original width that a range keeps, in (0, 1].

    Raises:
        InvalidValueError: `weight` or `floor` is out of its range.

    >>> space = ConfigurationSpace({"lr": (0.0, 1.0)})
    >>> narrow(space, [{"lr": 0.4}, {"lr": 0.5}, {"lr": 0.6}], 1.0)["lr"].upper
    0.7
    """
    if not 0 <= weight <= 1 or not 0 < floor <= 1:
        raise InvalidValueError(f"weight {weight} and floor {floor} must be in [0, 1] and (0, 1]")
    document = plain(space.to_serialized_dict())
    named = _named_values(document)
    for entry in document["hyperparameters"]:
        parameter: Any = space[entry["name"]]
        values = [config[parameter.name] for config in best if parameter.name in config]
        if not values or weight == 0:
            continue
        keep = [*values, *named.get(parameter.name, [])]
        if isinstance(parameter, CategoricalHyperparameter):
            entry["weights"] = _weights(parameter, values, weight, floor)
            entry["default_value"] = values[0]
        elif isinstance(parameter, OrdinalHyperparameter):
            entry["sequence"] = _levels(parameter, values, keep, weight, floor)
            entry["default_value"] = values[0]  # so that the best is the default configuration
        elif isinstance(parameter, UniformFloatHyperparameter | UniformIntegerHyperparameter):
            entry["lower"], entry["upper"] = _bounds(parameter, values, keep, weight, floor)
            entry["default_value"] = values[0]
    return read_space(document)


def describe(space: ConfigurationSpace, original: ConfigurationSpace) -> dict[str, Any]:
    """What is narrowed: the range, levels or probabilities of each parameter that differs."""
    told: dict[str, Any] = {}
    for name in space:
        new: Any = space[name]
        old: Any = original[name]
        if isinstance(new, CategoricalHyperparameter):
            if not np.allclose(new.probabilities, old.probabilities):
                shares = (round(float(p), 3) for p in new.probabilities)
                told[name] = dict(zip(map(str, new.choices), shares, strict=True))
        elif isinstance(new, OrdinalHyperparameter):
            if len(new.sequence) < len(old.sequence):
                told[name] = [plain(value) for value in new.sequence]
        elif hasattr(new, "lower") and (new.lower, new.upper) != (old.lower, old.upper):
            told[name] = [plain(new.lower), plain(new.upper)]
    return told


def read_space(document: Any) -> ConfigurationSpace:
    """What ``to_serialized_dict`` wrote as a space; ConfigSpace's reader empties its argument."""
    return ConfigurationSpace.from_serialized_dict(copy.deepcopy(dict(document)))


def plain(value: Any) -> Any:
    """A copy without numpy's scalars, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def _interval(
    units: Sequence[float], spacing: float, weight: float, floor: float
) -> tuple[float, float]:
    """The narrowed part of [0, 1]; `spacing` is the least distance of two values."""
    low, high = min(units), max(units)
    # Of k uniform draws the ends are on average one mean gap inside the range they come from.
    gap = (high - low) / (len(units) - 1) if len(units) > 1 else 0.0
    low, high = max(0.0, low - gap), min(1.0, high + gap)
    short = max(floor, spacing) - (high - low)
    if short > 0:
        low, high = low - short / 2, high + short / 2
    # What sticks out at one end is given at the other, so that the floor holds.
    low, high = low - max(0.0, high - 1), high + max(0.0, -low)
    low, high = max(0.0, low), min(1.0, high)
    return weight * low, weight * high + (1 - weight)


def _bounds(
    parameter: Any, values: Sequence[Any], keep: Sequence[Any], weight: float, floor: float
) -> tuple[Any, Any]:
    lower, upper = plain(parameter.lower), plain(parameter.upper)
    whole = isinstance(parameter, UniformIntegerHyperparameter)
    scale, back = (math.log, math.exp) if parameter.log else (float, float)
    start, width = scale(lower), scale(upper) - scale(lower)
    units = [(scale(value) - start) / width for value in values]
    low, high = _interval(units, 0.0, weight, floor)
    least, most = back(start + low * width), back(start + high * width)
    if low == 0:
        least = lower
    if high == 1:
        most = upper
    if whole:
        least, most = math.floor(least + 1e-9), math.ceil(most - 1e-9)
    least, most = max(lower, min(least, *keep)), min(upper, max(most, *keep))
    if least == most:  # of whole numbers, a range needs two
        least, most = max(lower, least - 1), min(upper, most + 1)
    return plain(least), plain(most)


def _levels(
    parameter: OrdinalHyperparameter,
    values: Sequence[Any],
    keep: Sequence[Any],
    weight: float,
    floor: float,
) -> list[Any]:
    sequence = [plain(value) for value in parameter.sequence]
    last = len(sequence) - 1
    if last < 2:
        return sequence
    places = [sequence.index(value) for value in values]
    low, high = _interval([place / last for place in places], 1 / last, weight, floor)
    kept = [sequence.index(value) for value in keep]
    first, end = math.floor(low * last + 1e-9), math.ceil(high * last - 1e-9)
    return sequence[min(first, *kept) : max(end, *kept) + 1]


def _weights(
    parameter: CategoricalHyperparameter, values: Sequence[Any], weight: float, floor: float
) -> list[float]:
    before = np.asarray(parameter.probabilities, dtype=np.float64)
    choices = [plain(choice) for choice in parameter.choices]
    counts = np.zeros(len(choices))
    for value in values:
        counts[_place(choices, value)] += 1
    told = (counts + len(choices) * before) / (len(values) + len(choices))
    mixed = np.maximum((1 - weight) * before + weight * told, floor * before)
    return [float(share) for share in mixed / mixed.sum()]


def _place(choices: Sequence[Any], value: Any) -> int:
    """Where a value is; True is not 1."""
    for number, choice in enumerate(choices):
        if type(choice) is type(value) and choice == value:
            return number
    return choices.index(value)


def _named_values(document: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each parameter that conditions and forbidden clauses name."""
    named: dict[str, list[Any]] = {}
    for clause in _clauses([*document["conditions"], *document["forbiddens"]]):
        name = clause.get("parent", clause.get("name"))
        values = clause["values"] if "values" in clause else [clause.get("value")]
        named.setdefault(str(name), []).extend(values)
    return named


def _clauses(items: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for item in items:
        inner = item.get("conditions", item.get("clauses"))
        if inner is None:
            yield item
        else:
            yield from _clauses(inner)
