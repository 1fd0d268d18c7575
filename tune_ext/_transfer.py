"""How much a ranking at one image size says about the ranking at the next.

========  ============  ==================================================================
symbol    here          meaning
========  ============  ==================================================================
n         `pairs`       configurations evaluated at both sizes
ρ         `correlation` Spearman's rank correlation of their losses; a failure ranks last
w         `weight`      share of what could be carried that is: 0 nothing, 1 everything
========  ============  ==================================================================

w is what is to be believed of the correlation after the pairs, 0 where that is negative. A few
pairs say little about a correlation: after four that agree perfectly it may be anything from .1 up.
So they are weighed against what is known of image sizes beforehand. On Fisher's scale z = atanh ρ,
which makes it nearly normal:

    before the pairs    z ~ N(atanh .6, .5²): ρ is between -.28 and .93 in 95 of 100 cases
    from n pairs        z has variance 1.06 / (n - 3)      (Fieller, Hartley and Pearson 1957)
    after them          the mean of both by their precisions; w = max(0, tanh z)

The expectation is deliberately below what was measured on Fashion-MNIST (.85 to .90 on 187
configurations from 14 to 28 pixels, `experiments/image_growth/`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXPECTED", "MIN_PAIRS", "Transfer", "believed", "measure_transfer", "translate_losses"]

MIN_PAIRS = 4
"""Fewer pairs say nothing: three agree perfectly by chance once in six times."""
EXPECTED = 0.6
"""The correlation that is expected before any pairs."""
SPREAD = 0.5
"""Standard deviation of that on Fisher's scale."""
_MOST = 0.99
"""A perfect agreement of few is no certainty: Fisher's scale would make it infinite."""

Pairs = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Transfer:
    """What is known of the agreement between two sizes.

    Attributes:
        pairs: Configurations evaluated at both.
        correlation: Of their ranks; None if there are fewer than `MIN_PAIRS`, or all are equal.
        weight: In [0, 1]: what is expected of any two sizes, corrected by the pairs.
    """

    pairs: int
    correlation: float | None
    weight: float


def measure_transfer(pairs: Pairs, expected: float = EXPECTED) -> Transfer:
    """The agreement of losses at two sizes.

    Args:
        pairs: (loss at the smaller size, loss at the larger or None if it failed) for each
            configuration; lower is better.
        expected: The correlation before any pairs.

    >>> measure_transfer([]).weight
    0.6
    >>> agreed = measure_transfer([(n, 10 * n) for n in range(1, 5)])
    >>> agreed.correlation, round(agreed.weight, 2)
    (1.0, 0.79)
    >>> round(measure_transfer([(n, 10 * n) for n in range(1, 21)]).weight, 2)
    0.98
    >>> round(measure_transfer([(n, -10 * n) for n in range(1, 21)]).weight, 2)
    0.0
    """
    from scipy.stats import rankdata

    n = len(pairs)
    if n and all(loss is None for _, loss in pairs):
        return Transfer(n, None, 0.0)
    if n < MIN_PAIRS:
        return Transfer(n, None, expected)
    small = rankdata([small for small, _ in pairs])
    large = rankdata([math.inf if loss is None else loss for _, loss in pairs])
    if np.ptp(small) == 0 or np.ptp(large) == 0:
        return Transfer(n, None, expected)
    rho = float(np.clip(np.corrcoef(small, large)[0, 1], -1.0, 1.0))
    if rho > 1 - 1e-12:
        rho = 1.0
    return Transfer(n, rho, believed(n, rho, expected))


def believed(pairs: int, correlation: float, expected: float = EXPECTED) -> float:
    """What is to be believed of a correlation of so many pairs, 0 where that is negative.

    Args:
        pairs: At least `MIN_PAIRS`.
        correlation: Theirs.
        expected: The correlation before any pairs.

    >>> [round(believed(n, 0.0), 2) for n in (4, 10, 40)]
    [0.51, 0.26, 0.07]
    """
    before, given = 1 / SPREAD**2, (pairs - 3) / 1.06
    seen = math.atanh(min(max(correlation, -_MOST), _MOST))
    return max(0.0, math.tanh((before * math.atanh(expected) + given * seen) / (before + given)))


def translate_losses(losses: Sequence[float], pairs: Pairs, weight: float) -> list[float]:
    """Losses at the smaller size as they would be at the larger: a guess, for a model to start on.

    An isotonic regression of the pairs, constant beyond them (nothing is guessed to be better
    than what was seen), drawn towards the pairs' median by 1 - `weight`.

    Args:
        losses: At the smaller size.
        pairs: As for `measure_transfer`; those that failed are left out.
        weight: Of the transfer.

    Returns:
        As many losses, or none where fewer than two pairs are finite.

    >>> translate_losses([1.5, 9.0], [(1, 10), (2, 20), (3, 30)], 1.0)
    [15.0, 30.0]
    """
    from scipy.optimize import isotonic_regression

    known = sorted((small, large) for small, large in pairs if large is not None)
    if len(known) < 2:
        return []
    small = np.array([pair[0] for pair in known], dtype=np.float64)
    large = np.array([pair[1] for pair in known], dtype=np.float64)
    fitted: NDArray[np.float64] = isotonic_regression(large).x
    middle = float(np.median(large))
    guessed = np.interp(np.asarray(losses, dtype=np.float64), small, fitted)
    return [float(value) for value in middle + weight * (guessed - middle)]
