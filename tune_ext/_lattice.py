"""The values that a trust region can reach: one lattice for each hyper-parameter.

A value is an anchor times whole numbers of steps of each size that the search has had. It is
kept as these whole numbers, so that going up and down again leads to the same point and not to
one that differs in its last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tune_ext._checks import as_number
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["Axis", "Coordinate", "Parameter", "Point"]

_SNAP = 1e-12  # relative rounding error within which a value is on its bound
_LARGEST = 1e300  # what an infinite upper bound means: no step leads to infinity

Coordinate = tuple[float, tuple[int, ...]]
"""An anchor and how many steps of each level lie between it and the value: no rounding
error can make one point two, however often the search goes up and down again."""
Point = tuple[Coordinate, ...]


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter of the search: where it starts, how far a step goes, its bounds.

    Steps are multiplications, so values are never negative.

    Args:
        name: Its key in every point.
        start: The first value; 0 is allowed where `lower` is 0.
        scale: A step up multiplies by this, a step down divides by it; more than 1.
        lower: No smaller value is probed. At 0, a step down from `step_from_zero` or from
            near it leads to 0 itself.
        upper: No larger value is probed; may be infinite.
        step_from_zero: What a step up from 0 leads to.

    Raises:
        InvalidValueError: A value that cannot work; the message names it.
        InvalidTypeError: A value that is not a number.
    """

    name: str
    start: float
    scale: float
    lower: float = 0.0
    upper: float = math.inf
    step_from_zero: float = 1e-7

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InvalidTypeError(f"a parameter's name must be a string, got {self.name!r}")
        if not self.name:
            raise InvalidValueError("a parameter's name must not be empty")
        for key in ("start", "scale", "lower", "upper", "step_from_zero"):
            value = as_number(f"{key} of parameter {self.name!r}", getattr(self, key))
            object.__setattr__(self, key, value)
        self._check()

    def _check(self) -> None:
        who = f"of parameter {self.name!r}"
        if not 1 < self.scale < math.inf:
            raise InvalidValueError(f"scale {who} must be finite and above 1, got {self.scale}")
        if not 0 <= self.lower < math.inf:
            raise InvalidValueError(
                f"lower {who} must be finite and not negative, got {self.lower}: steps multiply, "
                "so a parameter that can be negative has to be searched in another form"
            )
        if not self.lower < self.upper:
            raise InvalidValueError(
                f"upper {who} must be above lower = {self.lower}, got {self.upper}"
            )
        if not self.lower <= self.start <= self.upper or math.isinf(self.start):
            raise InvalidValueError(
                f"start {who} must lie within its bounds [{self.lower}, {self.upper}], "
                f"got {self.start}"
            )
        if self.lower == 0 and not 0 < self.step_from_zero <= min(self.upper, _LARGEST):
            raise InvalidValueError(
                f"step_from_zero {who} must be above 0 and at most upper = {self.upper}, "
                f"got {self.step_from_zero}"
            )

    @classmethod
    def learning_rate(
        cls,
        name: str = "lr",
        *,
        start: float = 1e-4,
        scale: float = 1.45,
        lower: float = 1e-6,
        upper: float = math.inf,
    ) -> Parameter:
        """A learning rate with the published start, scale and minimum."""
        return cls(name, start, scale, lower, upper)

    @classmethod
    def weight_decay(
        cls,
        name: str = "weight_decay",
        *,
        start: float = 0.0,
        scale: float = 2.0,
        lower: float = 0.0,
        upper: float = math.inf,
        step_from_zero: float = 1e-7,
    ) -> Parameter:
        """A weight decay with the published start (0), scale and first step."""
        return cls(name, start, scale, lower, upper, step_from_zero)


class Axis:
    """The lattice of one parameter.

    Args:
        parameter: Start, scale and bounds.
        shrink: Each level has the scale (s − 1)·e^{−shrink} + 1 of the one before.
        zero_below: Where `lower` is 0, a step down that would lead to `step_from_zero` over
            this, or lower, leads to 0. The scale (default) makes a step from 0 and one back
            each other's opposite; infinity would halve a weight decay for ever.
    """

    def __init__(
        self, parameter: Parameter, *, shrink: float, zero_below: float | None = None
    ) -> None:
        self.parameter = parameter
        self._shrink = shrink
        self._upper = min(parameter.upper, _LARGEST)
        self._values: dict[Coordinate, float] = {}  # every value is needed many times
        self._positions: dict[Coordinate, float] = {}
        self._floor = 0.0
        if parameter.lower == 0:
            self._floor = parameter.step_from_zero / (zero_below or parameter.scale) * (1 + _SNAP)

    def scale(self, level: int) -> float:
        """The scale after `level` plateaus."""
        return (self.parameter.scale - 1) * math.exp(-self._shrink * level) + 1

    def value(self, coordinate: Coordinate) -> float:
        """The number that a coordinate stands for."""
        if coordinate not in self._values:
            self._values[coordinate] = self._compute(coordinate)
        return self._values[coordinate]

    def _compute(self, coordinate: Coordinate) -> float:
        anchor, steps = coordinate
        exponent = sum(math.log(self.scale(i)) * n for i, n in enumerate(steps) if n)
        if not exponent:
            return anchor
        if math.log(anchor) + exponent > math.log(_LARGEST):
            return math.inf
        return anchor * math.exp(exponent)

    def position(self, coordinate: Coordinate) -> float:
        """Where a coordinate lies, in first-level steps; 0 is one step below the first."""
        if coordinate not in self._positions:
            value, step = self.value(coordinate), math.log(self.parameter.scale)
            zero = math.log(self.parameter.step_from_zero) / step - 1
            self._positions[coordinate] = math.log(value) / step if value > 0 else zero
        return self._positions[coordinate]

    def step(self, coordinate: Coordinate, level: int, direction: int) -> Coordinate:
        """One step down (-1) or up (+1) at a level, stopped by the bounds."""
        if direction == 0:
            return coordinate
        anchor, steps = coordinate
        if anchor == 0:
            return (self.parameter.step_from_zero, ()) if direction > 0 else coordinate
        counts = list(steps) + [0] * (level + 1 - len(steps))
        counts[level] += direction
        while counts and counts[-1] == 0:
            counts.pop()
        return self._bounded((anchor, tuple(counts)), direction)

    def _bounded(self, coordinate: Coordinate, direction: int) -> Coordinate:
        value = self.value(coordinate)
        lower = self.parameter.lower
        if value >= self._upper * (1 - _SNAP):
            return (self._upper, ())
        if direction < 0 and value <= self._floor:
            return (0.0, ())
        if value <= lower * (1 + _SNAP):
            return (lower, ())
        return coordinate
