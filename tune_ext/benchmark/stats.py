"""What the records of a study say, in numbers: pure functions.

Differences on paired seeds are here; re-exported are `_aggregates` (interquartile means,
intervals, regret, times) and `_ranks` (methods compared over tasks).

A search seed gives one number per method: the mean test error of its final trainings. Means
and standard errors are over search seeds; methods are compared by their differences on the
same seed, because seeds are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from tune_ext.benchmark._aggregates import (
    Interval,
    bootstrap_iqm,
    idle_share,
    interquartile_mean,
    normalised_regret,
    probability_of_improvement,
    time_to_target,
)
from tune_ext.benchmark._ranks import (
    CriticalDifference,
    PairTest,
    average_ranks,
    critical_difference,
    holm,
    wilcoxon_holm,
)

__all__ = [
    "CriticalDifference",
    "Interval",
    "PairTest",
    "PairedDifference",
    "average_ranks",
    "bootstrap_iqm",
    "critical_difference",
    "holm",
    "idle_share",
    "interquartile_mean",
    "normalised_regret",
    "paired_difference",
    "probability_of_improvement",
    "standard_error",
    "time_to_target",
    "wilcoxon_holm",
]


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; NaN with fewer than two values.

    >>> round(standard_error([1.0, 2.0, 3.0]), 4)
    0.5774
    """
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class PairedDifference:
    """The mean of a − b over the seeds that both have, with a 95 % interval.

    The interval is Student's t; NaN on both sides with fewer than two seeds.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def exceeds_noise(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> PairedDifference:
    """Compare two methods' test errors seed by seed.

    >>> d = paired_difference({0: .3, 1: .5, 2: .4}, {0: .2, 1: .3, 2: .1})
    >>> round(d.mean, 3), round(d.low, 3), round(d.high, 3), d.exceeds_noise
    (0.2, -0.048, 0.448, False)
    """
    common = sorted(a.keys() & b.keys())
    differences = [a[s] - b[s] for s in common]
    if not differences:
        return PairedDifference(math.nan, math.nan, math.nan, 0)
    mean = fmean(differences)
    if len(differences) < 2:
        return PairedDifference(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * standard_error(differences)
    return PairedDifference(mean, mean - half, mean + half, len(differences))
