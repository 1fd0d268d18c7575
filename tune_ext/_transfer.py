"""How much a ranking at one image size says about the ranking at the next.

========  ============  ==================================================================
symbol    here          meaning
========  ============  ==================================================================
n         `pairs`       configurations evaluated at both sizes
ρ         `correlation` Spearman's rank correlation of their losses; a failure ranks last
w         `weight`      share of what could be carried that is: 0 nothing, 1 everything
========  ============  ==================================================================

w² = 1 - (1 - ρ²)(n - 1)/(n - 2), Ezekiel's adjustment of a squared correlation for few points
(Methods of Correlation Analysis, 1930, chapter 7), and w = 0 where that or ρ is negative: a
perfect agreement carries everything, and one that chance would explain carries nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_PAIRS", "Transfer", "measure_transfer", "translate_losses"]

MIN_PAIRS = 4
"""With fewer pairs nothing is known: three agree perfectly by chance once in six times."""

Pairs = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Transfer:
    """What is known of the agreement between two sizes.

    Attributes:
        pairs: Configurations evaluated at both.
        correlation: Of their ranks; None if there are fewer than `MIN_PAIRS`, or all are equal.
        weight: In [0, 1].
    """

    pairs: int
    correlation: float | None
    weight: float


def measure_transfer(pairs: Pairs) -> Transfer:
    """The agreement of losses at two sizes.

    Args:
        pairs: (loss at the smaller size, loss at the larger or None if it failed) for each
            configuration; lower is better.

    >>> measure_transfer([(1, 10), (2, 20), (3, 30), (4, 40)])
    Transfer(pairs=4, correlation=1.0, weight=1.0)
    >>> measure_transfer([(1, 40), (2, 30), (3, 20), (4, None)]).weight
    0.0
    """
    from scipy.stats import rankdata

    n = len(pairs)
    if n < MIN_PAIRS:
        return Transfer(n, None, 0.0)
    small = rankdata([small for small, _ in pairs])
    large = rankdata([math.inf if loss is None else loss for _, loss in pairs])
    if np.ptp(small) == 0 or np.ptp(large) == 0:
        return Transfer(n, None, 0.0)
    rho = float(np.clip(np.corrcoef(small, large)[0, 1], -1.0, 1.0))
    if rho > 1 - 1e-12:
        rho = 1.0
    squared = 1 - (1 - rho**2) * (n - 1) / (n - 2)
    return Transfer(n, rho, math.sqrt(squared) if rho > 0 and squared > 0 else 0.0)


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
