"""Cosine learning rates with warm restarts whose cycles end where budgets end.

The rate falls along a cosine and is then set back (SGDR: Loshchilov and Hutter, ICLR 2017,
equation 5). Between two restarts a network is worse than at the end of a cycle, so a run is only
compared fairly where a cycle ends. Zela et al. (arXiv 1807.06906) therefore change the first cycle
with the budget, and train from scratch for each; where a promoted run continues, the past cannot
be changed, and each further piece of its training gets whole cycles of its own.

Positions and lengths are numbers in one unit, epochs or seconds of training.

    B    a budget                       T    the first cycle that was asked for
    m    what cycles grow by, m ≥ 1     k    how many cycles there are
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from tune_ext._checks import as_number, check_positive
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["CosineRestarts", "check_budgets", "whole_cycles"]

_ROUNDING = 1e-9
"""Relative differences that come from rounding alone."""


def whole_cycles(length: float, first: float, multiplier: float = 2) -> tuple[float, ...]:
    """Fill a length with whole cycles that grow by a multiplier.

    There are k = max(1, ⌊log_m(B(m − 1)/T + 1)⌋) of them, the first of B(m − 1)/(mᵏ − 1); for
    m = 1 there are ⌊B/T⌋ equal ones.

    Args:
        length: B, all of them together.
        first: T, what the first one takes at least; one that is longer than `length` is cut.
        multiplier: m.

    Returns:
        The length of each, in order.

    Raises:
        InvalidValueError: A number is not positive and finite, or `multiplier` is below 1.

    As published, for one, three and nine, and twenty-seven times 400 seconds:

    >>> [round(whole_cycles(budget, 400)[0], 2) for budget in (400, 1200, 3600, 10800)]
    [400.0, 400.0, 514.29, 720.0]
    """
    length = check_positive("length", length, below=math.inf)
    first = check_positive("first", first, below=math.inf)
    multiplier = _check_multiplier(multiplier)
    if multiplier == 1:
        count = max(1, math.floor(length / first * (1 + _ROUNDING)))
        return (length / count,) * count
    growth = [1.0]  # 1, m, m², …: their sum is (mᵏ − 1)/(m − 1)
    while first * (sum(growth) + growth[-1] * multiplier) <= length * (1 + _ROUNDING):
        growth.append(growth[-1] * multiplier)
    start = length / sum(growth)
    return tuple(start * factor for factor in growth)


def check_budgets(budgets: Sequence[float]) -> tuple[float, ...]:
    """A ladder of budgets, each above the one before.

    Raises:
        InvalidTypeError: It is not a sequence of numbers, or empty.
        InvalidValueError: A budget is not positive and finite, or not above the one before.

    >>> check_budgets([1, 3, 9])
    (1.0, 3.0, 9.0)
    """
    if isinstance(budgets, str) or not isinstance(budgets, Sequence) or not budgets:
        raise InvalidTypeError(f"budgets must be a sequence of numbers, got {budgets!r}")
    ladder = tuple(check_positive("a budget", budget, below=math.inf) for budget in budgets)
    if any(after <= before for before, after in pairwise(ladder)):
        raise InvalidValueError(f"budgets must increase, got {list(budgets)!r}")
    return ladder


@dataclass(frozen=True)
class CosineRestarts:
    """A cosine from 1 to 0 in each cycle.

    Attributes:
        cycles: The length of each cycle.

    Raises:
        InvalidTypeError: There are no cycles.
        InvalidValueError: A length is not positive and finite.

    >>> schedule = CosineRestarts((1, 2))
    >>> [round(schedule.rate_factor(position), 3) for position in (0, 0.5, 1, 2, 3)]
    [1.0, 0.5, 1.0, 0.5, 0.0]
    """

    cycles: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.cycles:
            raise InvalidTypeError("cycles must have at least one length, got none")
        for length in self.cycles:
            check_positive("a cycle's length", length, below=math.inf)

    @classmethod
    def from_scratch(cls, budget: float, first: float, multiplier: float = 2) -> CosineRestarts:
        """The schedule of a run that is trained from scratch to one budget, as published.

        Args:
            budget: Where the last cycle ends.
            first: The first cycle that is asked for; see `whole_cycles`.
            multiplier: What cycles grow by.
        """
        return cls(whole_cycles(budget, first, multiplier))

    @classmethod
    def through(
        cls, budgets: Sequence[float], first: float | None = None, multiplier: float = 2
    ) -> CosineRestarts:
        """The schedule of a run that may be judged, and promoted, at each of several budgets.

        What lies between two budgets is filled with whole cycles that are no shorter than the
        last one before, as far as there is room: so every budget is the end of a cycle. With
        one budget it is `from_scratch`.

        Args:
            budgets: In increasing order.
            first: The first cycle that is asked for; None: all of the first budget.
            multiplier: What cycles grow by.

        >>> CosineRestarts.through([400, 1200, 3600, 10800]).cycles
        (400.0, 800.0, 800.0, 1600.0, 2400.0, 4800.0)
        """
        ladder = check_budgets(budgets)
        last = ladder[0] if first is None else first
        cycles: list[float] = []
        for before, after in pairwise((0.0, *ladder)):
            cycles += whole_cycles(after - before, last, multiplier)
            last = cycles[-1]
        return cls(tuple(cycles))

    @cached_property
    def boundaries(self) -> tuple[float, ...]:
        """Where the cycles end, each a restart but the last."""
        return tuple(accumulate(self.cycles))

    def rate_factor(self, position: float) -> float:
        """What the first learning rate is multiplied by, in [0, 1].

        Args:
            position: How long the run has been trained; where a cycle ends the next one
                begins, and after the last one the factor stays 0.

        Raises:
            InvalidValueError: The position is negative or no number.
        """
        position = as_number("position", position)
        if position < 0:
            raise InvalidValueError(f"position must not be negative, got {position!r}")
        ends = self.boundaries
        cycle = bisect_right(ends, position * (1 + _ROUNDING))
        if cycle == len(ends):
            return 0.0
        start = ends[cycle - 1] if cycle else 0.0
        done = min(max((position - start) / self.cycles[cycle], 0.0), 1.0)
        return 0.5 * (1 + math.cos(math.pi * done))

    def next_boundary(self, position: float) -> float:
        """Where the cycle ends that a position lies in; infinite after the last one."""
        cycle = bisect_right(self.boundaries, position * (1 + _ROUNDING))
        return self.boundaries[cycle] if cycle < len(self.boundaries) else math.inf


def _check_multiplier(multiplier: float) -> float:
    number = check_positive("multiplier", multiplier, below=math.inf)
    if number < 1:
        raise InvalidValueError(f"multiplier must be at least 1, got {number}")
    return number
