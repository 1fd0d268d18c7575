"""What the records of a study say, in numbers: pure functions.

Of records: summaries, differences on paired seeds, curves. Of numbers, and re-exported
here: `_aggregates` (interquartile means, intervals, regret, times) and `_ranks` (methods
compared over tasks).

Errors are fractions in [0, 1]. A search seed gives one number per method: the mean test
error of its final trainings. Means and standard errors are over search seeds; methods are
compared by their differences on the same seed, because seeds are paired.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
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
from tune_ext.benchmark.records import CellRecord

__all__ = [
    "CriticalDifference",
    "Interval",
    "MethodSummary",
    "PairTest",
    "PairedDifference",
    "average_ranks",
    "bootstrap_iqm",
    "critical_difference",
    "holm",
    "idle_share",
    "interquartile_mean",
    "mean_curve",
    "normalised_regret",
    "paired_difference",
    "probability_of_improvement",
    "standard_error",
    "step_curve",
    "summarize",
    "time_to_target",
    "verdict",
    "wilcoxon_holm",
]


@dataclass(frozen=True)
class MethodSummary:
    """One method on one task, over all its seeds.

    Args:
        method: The method's name.
        cells: How many cells are recorded.
        test_error: Search seed → mean test error of the final trainings.
        epochs: Median of the epochs that the search used.
        seconds: Median wall-clock of the search.
        chosen: Parameter → the recommended values, in the order of the seeds.
        failures: "seed s: reason", in the order of the seeds.
        failed_cells: How many cells have a failure.
    """

    method: str
    cells: int
    test_error: Mapping[int, float]
    epochs: float
    seconds: float
    chosen: Mapping[str, list[float]]
    failures: tuple[str, ...]
    failed_cells: int

    @property
    def mean(self) -> float:
        """Mean test error over seeds; NaN when nothing was evaluated."""
        return fmean(self.test_error.values()) if self.test_error else math.nan

    @property
    def error(self) -> float:
        """Standard error of `mean` over seeds; NaN with fewer than two."""
        return standard_error(list(self.test_error.values()))


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; NaN with fewer than two values.

    >>> round(standard_error([1.0, 2.0, 3.0]), 4)
    0.5774
    """
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def summarize(records: Iterable[CellRecord]) -> list[MethodSummary]:
    """Summaries of one task's records, in the order in which the methods appear."""
    groups: dict[str, list[CellRecord]] = {}
    for record in records:
        groups.setdefault(record.method, []).append(record)
    return [
        _summary(method, sorted(group, key=lambda r: r.seed)) for method, group in groups.items()
    ]


def _summary(method: str, group: list[CellRecord]) -> MethodSummary:
    chosen: dict[str, list[float]] = {}
    for record in group:
        for name, value in record.recommendation.get("config", {}).items():
            chosen.setdefault(name, []).append(value)
    return MethodSummary(
        method=method,
        cells=len(group),
        test_error={r.seed: e for r in group if (e := r.test_error) is not None},
        epochs=median(r.epochs_used for r in group),
        seconds=median(r.search_seconds for r in group),
        chosen=chosen,
        failures=tuple(f"seed {r.seed}: {why}" for r in group for why in r.failures),
        failed_cells=sum(bool(r.failures) for r in group),
    )


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


def verdict(summaries: Sequence[MethodSummary], ours: Collection[str] = ()) -> list[str]:
    """Sentences that say who is best, and how sure that is; losses as plainly as wins.

    Args:
        summaries: Of one task.
        ours: The methods whose place is told even when they are not the best.
    """
    ranked = sorted((s for s in summaries if s.test_error), key=lambda s: s.mean)
    if not ranked:
        return ["No method has a test result."]
    best = ranked[0]
    if len(ranked) == 1:
        return [f"Only {best.method} has test results: {_percent(best.mean)} test error."]
    sentences = [
        f"Lowest mean test error: {best.method}, {_percent(best.mean)}; "
        f"next is {ranked[1].method} with {_percent(ranked[1].mean)}. "
        + _told(paired_difference(ranked[1].test_error, best.test_error))
    ]
    for place, own in enumerate(ranked[1:], start=1):
        if own.method not in ours:
            continue
        difference = paired_difference(own.test_error, best.test_error)
        sentences.append(
            f"{own.method} is number {place + 1} of {len(ranked)}, {_percent(own.mean)}, "
            f"behind {', '.join(s.method for s in ranked[:place])}. "
            f"{_told(difference, against=best.method)}"
        )
    return sentences


def _told(d: PairedDifference, against: str = "") -> str:
    to = f" to {against}" if against else ""
    points = f"The difference{to}, {100 * abs(d.mean):.2f} points"
    if d.seeds < 2:
        return f"{points}, is of one seed: it says nothing about noise."
    interval = f"95 % interval {100 * d.low:+.2f} to {100 * d.high:+.2f}, {d.seeds} paired seeds"
    outcome = "exceeds the noise" if d.exceeds_noise else "does not exceed the noise"
    return f"{points} ({interval}), {outcome}."


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def step_curve(points: Sequence[Sequence[float]], budget: int) -> NDArray[np.float64]:
    """A best-so-far curve on the epochs 1 … budget; NaN before its first point.

    Args:
        points: (epochs used, best value from there on), as `records.anytime` gives.
        budget: The length. A method that ended early keeps its value.
    """
    curve = np.full(budget, np.nan)
    for used, value in points:
        curve[max(int(used) - 1, 0) :] = value
    return curve


def mean_curve(
    records: Iterable[CellRecord], budget: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard error over seeds of one method's best-so-far curves.

    NaN where some seed has no value yet; the standard error is 0 with one seed.
    """
    curves: list[Any] = [step_curve(r.anytime, budget) for r in records]
    if not curves:
        return np.full(budget, np.nan), np.full(budget, np.nan)
    table = np.stack(curves)
    spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(budget)
    return table.mean(axis=0), spread / math.sqrt(len(table))
