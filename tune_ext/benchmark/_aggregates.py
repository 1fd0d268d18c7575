"""One number for many runs: interquartile mean, probability of improvement, regret, times.

Everywhere lower is better, and a missing value (NaN, None) is a run that failed: it counts
as +inf, worse than every number. Means over runs are interquartile, so that a few failures
do not hide what the other runs did; when more than a quarter of the runs fail, the mean is
inf and says so. Whoever knows the worst possible value puts it in before.

Intervals come from a bootstrap that is stratified: each resample draws the runs of every
task anew, with replacement, and never exchanges runs between tasks. They say what other
seeds would give on these same tasks, not what other tasks would.

Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical
precipice", NeurIPS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tune_ext._checks import as_number, as_numbers, check_count, check_list
from tune_ext.errors import InvalidValueError

__all__ = [
    "Interval",
    "bootstrap_iqm",
    "idle_share",
    "interquartile_mean",
    "normalised_regret",
    "probability_of_improvement",
    "time_to_target",
]

Runs = Sequence[float | None] | NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its interval; NaN on both sides where there is none."""

    value: float
    low: float
    high: float


def _runs(values: Runs) -> NDArray[np.float64]:
    """One task's runs, with what failed as +inf."""
    runs = as_numbers("the runs of one task", values)  # None becomes NaN
    if runs.ndim != 1:
        raise InvalidValueError(f"the runs of one task must be a list, got shape {runs.shape}")
    return np.where(np.isnan(runs), np.inf, runs)


def interquartile_mean(values: Runs) -> float:
    """Mean of the middle half: a quarter of the values, rounded down, is cut at each end.

    Args:
        values: Any number of runs; NaN and None count as +inf. NaN is returned for none.

    >>> interquartile_mean([1, 2, 3, 100])
    2.5
    >>> interquartile_mean([1, 2, 3, None]), interquartile_mean([1, 2, None, None])
    (2.5, inf)
    """
    runs = _runs(values)
    return float(_middle(runs[None, :])[0]) if len(runs) else math.nan


def _middle(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interquartile mean of each row."""
    count = table.shape[1]
    cut = count // 4
    middle = np.sort(table, axis=1)[:, cut : count - cut]
    return np.asarray(middle.mean(axis=1), dtype=np.float64)


def bootstrap_iqm(
    groups: Sequence[Runs], resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interquartile mean over all runs of all tasks, with a stratified bootstrap interval.

    Args:
        groups: The runs of each task, on one scale (as `normalised_regret` makes them).
            Tasks need not have equally many; one with more weighs more.
        resamples: How often the runs are drawn anew.
        level: Of the percentile interval.
        seed: Of the draws; the same gives the same interval.

    Returns:
        The interval is NaN on both sides unless some task has two runs or more.

    Raises:
        InvalidValueError: `level` is not between 0 and 1, or `resamples` not positive.

    >>> bootstrap_iqm([[1.0, 2.0], [3.0, 4.0]])
    Interval(value=2.5, low=2.0, high=3.0)
    """
    low, high = _tails(resamples, level)
    seed = check_count("seed", seed, 0)
    tasks = check_list("groups", groups, "the runs of each task")
    runs = [group for values in tasks if len(group := _runs(values))]
    if not runs:
        return Interval(math.nan, math.nan, math.nan)
    value = interquartile_mean(np.concatenate(runs))
    if max(map(len, runs)) < 2:
        return Interval(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = [group[rng.integers(len(group), size=(resamples, len(group)))] for group in runs]
    return Interval(value, *_percentiles(_middle(np.concatenate(drawn, axis=1)), low, high))


def _tails(resamples: int, level: float) -> tuple[float, float]:
    check_count("resamples", resamples, 1, 10**7)
    share = as_number("level", level)
    if not 0 < share < 1:
        raise InvalidValueError(f"level must be between 0 and 1, got {level!r}")
    return (1 - share) / 2, (1 + share) / 2


def _percentiles(values: NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Outwards to a value that occurred, as a number between one and infinity is none."""
    return (
        float(np.quantile(values, low, method="lower")),
        float(np.quantile(values, high, method="higher")),
    )


def probability_of_improvement(
    a: Sequence[Runs],
    b: Sequence[Runs],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How probable it is that a run of `a` is better than one of `b`, on a task drawn evenly.

    On each task it is Mann and Whitney's U over all pairs of runs, divided by the number of
    pairs; a tie counts as half. The mean is over tasks. The bootstrap draws the runs of `a`
    and of `b` independently of each other.

    Args:
        a: The runs of each task, lower is better; NaN and None are worse than any number.
        b: Those of the other method, on the same tasks in the same order.
        resamples: How often the runs are drawn anew.
        level: Of the percentile interval.
        seed: Of the draws.

    Returns:
        Over the tasks on which both have runs; NaN without any. The interval is NaN on both
        sides if no task has two runs of either.

    Raises:
        InvalidValueError: `a` and `b` are of differently many tasks.

    >>> probability_of_improvement([[0.1, 0.1]], [[0.2, 0.3]])
    Interval(value=1.0, low=1.0, high=1.0)
    """
    low, high = _tails(resamples, level)
    if len(a) != len(b):
        raise InvalidValueError(f"a and b must be of the same tasks, got {len(a)} and {len(b)}")
    tasks = [(x, y) for x, y in zip(map(_runs, a), map(_runs, b), strict=True) if len(x) * len(y)]
    if not tasks:
        return Interval(math.nan, math.nan, math.nan)
    wins = [(x[:, None] < y) + 0.5 * (x[:, None] == y) for x, y in tasks]
    value = float(np.mean([table.mean() for table in wins]))
    if max(max(table.shape) for table in wins) < 2:
        return Interval(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for table in wins:
        rows, columns = (_draw_counts(rng, n, resamples) for n in table.shape)
        drawn += ((rows @ table) * columns).sum(axis=1) / table.size
    return Interval(value, *_percentiles(drawn / len(wins), low, high))


def _draw_counts(rng: np.random.Generator, n: int, resamples: int) -> NDArray[np.float64]:
    """How often each of `n` runs is in each resample: shape (resamples, n)."""
    drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * n)
    return counts.reshape(resamples, n).astype(np.float64)


@overload
def normalised_regret(error: float, best: float, reference: float) -> float: ...


@overload
def normalised_regret(error: ArrayLike, best: float, reference: float) -> NDArray[np.float64]: ...


def normalised_regret(
    error: ArrayLike, best: float, reference: float
) -> float | NDArray[np.float64]:
    """Regret in units of the reference's: 0 is the best possible, 1 is as the reference.

    Args:
        error: One error or an array of any shape; NaN stays NaN, inf stays inf.
        best: The lowest true error that there is. An error below it (noise) is negative.
        reference: What counts as 1, as the median configuration's true error.

    Raises:
        InvalidValueError: `best` and `reference` are not finite, or not in this order.

    >>> normalised_regret(0.25, best=0.0, reference=0.5)
    0.5
    """
    if not -math.inf < as_number("best", best) < as_number("reference", reference) < math.inf:
        raise InvalidValueError(
            f"best must be finite and below reference, got {best!r} and {reference!r}"
        )
    regret = (np.asarray(error, dtype=np.float64) - best) / (reference - best)
    return float(regret) if regret.ndim == 0 else regret


def time_to_target(points: Sequence[Sequence[float | None]], target: float) -> float:
    """When the target was first reached; inf if it never was.

    Args:
        points: In the order of time, each with the time first and the error last, as
            (epochs, error). An error that is None or NaN reaches nothing.
        target: An error; reached by one that is not higher.

    >>> time_to_target([(2, 0.5), (4, 0.3), (9, 0.1)], 0.3), time_to_target([(2, 0.5)], 0.3)
    (4.0, inf)
    """
    for point in points:
        time, error = point[0], point[-1]
        if time is not None and error is not None and error <= target:
            return float(time)
    return math.inf


def idle_share(busy: float, makespan: float, workers: int) -> float:
    """The share of the workers' time in which nothing was trained, in [0, 1].

    Args:
        busy: Seconds of work, all workers together.
        makespan: Seconds from the start of the search to its end.
        workers: How many there were; at least one.

    Returns:
        NaN if the search took no time. Work that exceeds what the workers had, by the
        resolution of clocks, gives 0.

    Raises:
        InvalidValueError: A time is negative, or there is no worker.

    >>> idle_share(busy=30, makespan=10, workers=4)
    0.25
    """
    check_count("workers", workers)
    if as_number("busy", busy) < 0 or as_number("makespan", makespan) < 0:
        raise InvalidValueError(f"busy and makespan must not be negative: {busy!r}, {makespan!r}")
    return max(0.0, 1 - busy / (makespan * workers)) if makespan > 0 else math.nan
