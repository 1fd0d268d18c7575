"""How many configurations Hyperband's brackets start, and how long each rung trains them.

Source: Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar, "Hyperband: A Novel Bandit-Based Approach
to Hyperparameter Optimization", JMLR 18 (2018), algorithm 1 and table 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tune_ext._checks import LARGEST_COUNT, as_number, check_choice, check_flag, check_positive
from tune_ext.errors import InvalidValueError

__all__ = ["CLOSE", "Rounding", "Rung", "bracket_table"]

Rounding = Literal["formula", "published"]
CLOSE = 1e-9
"""R = 81 is η⁴ also where a logarithm says 3.9999999999999996."""
MOST_LEVELS = 100
"""A table has the square of it in rungs, and more would tell nothing apart."""


@dataclass(frozen=True)
class Rung:
    """How many configurations are compared, after how much training.

    Attributes:
        size: n_i, configurations.
        budget: r_i, in the unit of `max_budget`, counted from each one's start.
    """

    size: int
    budget: float


def bracket_table(
    max_budget: float,
    reduction_factor: float = 3,
    *,
    min_budget: float = 1,
    rounding: Rounding = "formula",
    whole: bool = False,
) -> tuple[tuple[Rung, ...], ...]:
    """Hyperband's brackets, from the one that starts most configurations to plain search.

    Args:
        max_budget: R, in any unit: epochs, seconds.
        reduction_factor: η > 1.
        min_budget: The least that a configuration is given; there are
            ⌊log_η(max_budget / min_budget)⌋ + 1 brackets.
        rounding: How many start in bracket s. "formula" is algorithm 1,
            ⌈(s_max + 1)·η^s / (s + 1)⌉; "published" is the paper's own table and what
            hpbandster runs, ⌊(s_max + 1) / (s + 1)⌋·η^s, which is never more.
        whole: Budgets are whole numbers, as epochs are: each is rounded down, to 1 at least.

    Returns:
        One tuple of rungs a bracket.

    Raises:
        InvalidTypeError: An argument is no number.
        InvalidValueError: An argument is impossible.

    Example:
        >>> for bracket in bracket_table(81, 3, rounding="published"):
        ...     print(*(f"{rung.size}/{rung.budget:g}" for rung in bracket))
        81/1 27/3 9/9 3/27 1/81
        27/3 9/9 3/27 1/81
        9/9 3/27 1/81
        6/27 2/81
        5/81
    """
    most = check_positive("max_budget", max_budget, below=math.inf)
    least = check_positive("min_budget", min_budget, below=math.inf)
    eta = as_number("reduction_factor", reduction_factor)
    check_choice("rounding", rounding, ("formula", "published"))
    check_flag("whole", whole)
    if not 1 < eta < math.inf:
        raise InvalidValueError(f"reduction_factor must be above 1 and finite, got {eta}")
    if least > most:
        raise InvalidValueError(f"min_budget {least:g} is above max_budget {most:g}")
    if (math.log(most) - math.log(least)) / math.log(eta) > MOST_LEVELS:
        raise InvalidValueError(
            f"budgets from {least:g} to {most:g} have more than {MOST_LEVELS} steps of {eta:g}: "
            "give a larger reduction_factor, or a larger min_budget"
        )
    levels = 0
    while least * eta ** (levels + 1) <= most * (1 + CLOSE):
        levels += 1
    if (levels + 1) * eta**levels > LARGEST_COUNT:
        raise InvalidValueError(
            f"budgets from {least:g} to {most:g} would need {eta**levels:.3g} configurations in a "
            "bracket: give a larger min_budget"
        )
    return tuple(_bracket(s, levels, most, eta, rounding, whole) for s in range(levels, -1, -1))


def _bracket(
    s: int, levels: int, most: float, eta: float, rounding: Rounding, whole: bool
) -> tuple[Rung, ...]:
    if rounding == "formula":
        size = math.ceil((levels + 1) * eta**s / (s + 1) * (1 - CLOSE))
    else:
        size = max(1, math.floor((levels + 1) // (s + 1) * eta**s * (1 + CLOSE)))
    rungs: list[Rung] = []
    for i in range(s + 1):
        budget = most if i == s else most * eta ** (i - s)
        if whole:
            budget = max(1, math.floor(budget * (1 + CLOSE)))
        if rungs and budget == rungs[-1].budget:
            rungs.pop()  # too small to tell apart: the larger rung starts with all of them
        else:
            size = size if not rungs else math.floor(rungs[-1].size / eta * (1 + CLOSE))
        rungs.append(Rung(max(1, size), budget))
    return tuple(rungs)
