"""The parameters of the joint search as plain values: names, ranges, defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tune_ext._checks import as_number, check_choice, check_count
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["BRANCHES", "PARAMETERS", "Part", "Range", "death_rate_depends_on", "ranges"]

Part = Literal["joint", "architecture", "hyperparameters"]


@dataclass(frozen=True)
class Range:
    """A parameter's range of numbers.

    Args:
        name: The parameter.
        lower: Smallest value.
        upper: Largest value.
        default: What it is where it is not searched.
        log: Whether it is searched on a logarithmic scale.
        integer: Whether it is a whole number.
        architecture: Whether it says what is built; else how it is trained.
        least: No limits may go below.
        most: No limits may go above.
    """

    name: str
    lower: float
    upper: float
    default: float
    log: bool = False
    integer: bool = False
    architecture: bool = False
    least: float = 0
    most: float = math.inf

    def within(self, limits: object) -> Range:
        """This range between other limits, the default moved into them."""
        if not isinstance(limits, tuple | list) or len(limits) != 2:
            raise InvalidTypeError(
                f"limits of {self.name} must be a pair of numbers (lower, upper), got {limits!r}"
            )
        name = f"limits of {self.name}"
        least = int(self.least)
        lower, upper = (
            check_count(name, limit, least) if self.integer else as_number(name, limit)
            for limit in limits
        )
        lowest = math.nextafter(0, 1) if self.log and not self.integer else self.least
        if not max(lowest, self.least) <= lower <= upper <= self.most or math.isinf(upper):
            raise InvalidValueError(
                f"limits of {self.name} must be a lower and an upper number, "
                f"{'above' if self.log else 'from'} {self.least:g}"
                f"{'' if math.isinf(self.most) else f' to {self.most:g}'}, got {limits!r}"
            )
        return replace(self, lower=lower, upper=upper, default=min(max(self.default, lower), upper))


def _architecture(name: str, lower: float, upper: float, default: float, **more: Any) -> Range:
    return Range(name, lower, upper, default, architecture=True, **more)


_COUNT: dict[str, Any] = {"integer": True, "least": 1}
BRANCHES = ("res_branches_1", "res_branches_2", "res_branches_3")

PARAMETERS: tuple[Range, ...] = (
    *(_architecture(f"nr_residual_blocks_{i}", 1, 16, 2, log=True, **_COUNT) for i in range(1, 4)),
    _architecture("initial_filters", 8, 32, 16, log=True, **_COUNT),
    _architecture("widen_factor_1", 0.5, 8.0, 4.0, log=True),
    _architecture("widen_factor_2", 0.5, 4.0, 2.0, log=True),
    _architecture("widen_factor_3", 0.5, 4.0, 2.0, log=True),
    *(_architecture(name, 1, 5, 1, **_COUNT) for name in BRANCHES),
    Range("learning_rate", 1e-3, 1.0, 0.1, log=True),
    Range("batch_size", 32, 128, 128, log=True, **_COUNT),
    Range("weight_decay", 1e-5, 1e-3, 5e-4, log=True),
    Range("momentum", 1e-3, 0.99, 0.9, most=1),
    Range("alpha", 0.0, 1.0, 0.2),
    Range("length", 0, 20, 16, integer=True),
    _architecture("death_rate", 0.0, 1.0, 0.0, most=1),
)
"""As published (arXiv 1807.06906 and its code); the defaults are ours."""


def ranges(limits: Mapping[str, Any] | None, part: str = "joint") -> list[Range]:
    """The ranges of a part of the parameters, between other limits where these are given.

    Args:
        limits: Lower and upper limits by parameter; None are the published ones.
        part: "joint", "architecture" or "hyperparameters".

    Raises:
        InvalidTypeError: Limits are not pairs of numbers.
        InvalidValueError: A parameter does not exist, limits are impossible, or the part is
            unknown.
    """
    check_choice("part", part, ("joint", "architecture", "hyperparameters"))
    if limits is not None and not isinstance(limits, Mapping):
        raise InvalidTypeError(f"limits must be pairs by parameter, got {limits!r}")
    given = dict(limits or {})
    names = [parameter.name for parameter in PARAMETERS]
    for name in given:
        check_choice("a parameter in limits", name, names)
    return [
        parameter.within(given[parameter.name]) if parameter.name in given else parameter
        for parameter in PARAMETERS
        if part == "joint" or parameter.architecture == (part == "architecture")
    ]


def death_rate_depends_on(searched: list[Range]) -> list[str] | None:
    """The numbers of branches that can be one, for death_rate to have an effect.

    Returns:
        None if one of them is always one: the effect is always there. An empty list if
        none of them ever is.
    """
    branches = [parameter for parameter in searched if parameter.name in BRANCHES]
    if any(parameter.upper == 1 for parameter in branches):
        return None
    return [parameter.name for parameter in branches if parameter.lower == 1]
