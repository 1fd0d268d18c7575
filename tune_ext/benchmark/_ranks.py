"""Methods compared over tasks by their ranks: Friedman, Nemenyi, Wilcoxon with Holm.

| here | in the papers | meaning |
| --- | --- | --- |
| tasks | N | rows of the scores: each task is one observation |
| methods | k | columns of the scores |
| `average_ranks` | R_j | mean over tasks of the rank, 1 is best |
| `friedman_p` | from χ²_F | all methods are equal: their ranks are shuffled |
| `cd` | CD | average ranks that differ by as much differ at the level `alpha` |

A score is lower for the better. A missing score (NaN) and +inf say that the method failed
there: it ranks last on that task, equal with the others that failed there. So a failure
counts, and no task is dropped because of one.

Sources: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7,
2006; Holm, "A simple sequentially rejective multiple test procedure", 1979.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tune_ext._checks import as_number, as_numbers, check_list
from tune_ext.errors import InvalidValueError

__all__ = [
    "CriticalDifference",
    "PairTest",
    "average_ranks",
    "critical_difference",
    "holm",
    "wilcoxon_holm",
]


@dataclass(frozen=True)
class CriticalDifference:
    """What a critical-difference diagram shows.

    The groups tell differences only if `friedman_p` is below `alpha`: Nemenyi's test is
    read after Friedman's has found that the methods differ at all (see `differ`).

    Args:
        ranks: Method → average rank, the best first; 1 is the best that there can be.
        friedman_p: Friedman's test that all methods are equal (chi-squared, corrected for
            ties). With few tasks it errs on the side of finding no difference.
        cd: Nemenyi's critical difference of two average ranks.
        groups: The largest sets of methods that are not told apart, each with the best
            first; methods that are told apart from all others are in none.
        alpha: The level of both tests.
    """

    ranks: Mapping[str, float]
    friedman_p: float
    cd: float
    groups: tuple[tuple[str, ...], ...]
    alpha: float = 0.05

    @property
    def differ(self) -> bool:
        """Whether Friedman's test finds that not all methods are equal."""
        return self.friedman_p < self.alpha


@dataclass(frozen=True)
class PairTest:
    """Wilcoxon's signed-rank test of two methods over tasks, two-sided.

    Args:
        a: A method.
        b: Another.
        statistic: The smaller of the two sums of signed ranks.
        p: As if this were the only pair.
        p_holm: Adjusted by Holm for all pairs that were tested: below 5 % for any true
            null hypothesis in at most 5 % of the studies.
        wins: Tasks on which `a` is better than `b`.
        losses: Tasks on which it is worse.
        ties: Tasks on which they are equal, or both failed.
    """

    a: str
    b: str
    statistic: float
    p: float
    p_holm: float
    wins: int
    losses: int
    ties: int


def average_ranks(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean rank of each method over the tasks; ties share the mean of their ranks.

    Args:
        scores: Shape (tasks, methods), lower is better; NaN ranks last on its task.

    Returns:
        Shape (methods,), between 1 and the number of methods.

    Raises:
        InvalidValueError: `scores` has another shape, or no entry.

    >>> average_ranks([[0.1, 0.2, 0.3], [0.2, 0.2, float("nan")]]).tolist()
    [1.25, 1.75, 3.0]
    """
    return np.asarray(_ranks(_table(scores)).mean(axis=0), dtype=np.float64)


def _table(scores: ArrayLike) -> NDArray[np.float64]:
    """The scores with what is missing as +inf."""
    table = as_numbers("scores", scores)
    if table.ndim != 2 or table.size == 0:
        raise InvalidValueError(
            f"scores must have one row a task and one column a method, got shape {table.shape}"
        )
    return np.where(np.isnan(table), np.inf, table)


def _named(scores: ArrayLike, methods: Sequence[str]) -> tuple[NDArray[np.float64], list[str]]:
    """The table, and the names of its columns."""
    table = _table(scores)
    letters = isinstance(methods, str)  # "ab" are two names of one letter
    names = [str(name) for name in (methods if letters else check_list("methods", methods))]
    if (len(names), len(set(names))) != (table.shape[1],) * 2:
        raise InvalidValueError(
            f"methods must name the {table.shape[1]} columns of the scores, each by another "
            f"name, got {names!r}"
        )
    return table, names


def _ranks(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(stats.rankdata(table, axis=1), dtype=np.float64)


def critical_difference(
    scores: ArrayLike, methods: Sequence[str], *, alpha: float = 0.05
) -> CriticalDifference:
    """Friedman's test and Nemenyi's critical difference (Demšar 2006, section 3.2.2).

    The critical difference is q_α √(k (k + 1) / 6 N), where q_α is the studentised range
    of k groups and infinite degrees of freedom, divided by √2.

    Args:
        scores: Shape (tasks, methods), lower is better; NaN ranks last on its task.
        methods: The names of the columns; two or more.
        alpha: The level of the tests.

    Raises:
        InvalidValueError: The shapes do not fit, there is but one method, or `alpha` is not
            between 0 and 1.

    >>> found = critical_difference([[1, 2, 3]] * 12, ["a", "b", "c"])
    >>> round(found.cd, 3), found.groups, found.differ
    (0.957, (), True)
    """
    table, names = _named(scores, methods)
    tasks, k = table.shape
    if k < 2:
        raise InvalidValueError(f"methods must be two or more to be compared, got {k}")
    if not 0 < as_number("alpha", alpha) < 1:
        raise InvalidValueError(f"alpha must be between 0 and 1, got {alpha!r}")
    ranks = _ranks(table)
    average = ranks.mean(axis=0)
    q = float(stats.studentized_range.isf(alpha, k, math.inf)) / math.sqrt(2)
    cd = q * math.sqrt(k * (k + 1) / (6 * tasks))
    order = np.argsort(average, kind="stable")
    return CriticalDifference(
        ranks={names[j]: float(average[j]) for j in order},
        friedman_p=_friedman(ranks),
        cd=cd,
        groups=_groups([names[j] for j in order], average[order], cd),
        alpha=float(alpha),
    )


def _friedman(ranks: NDArray[np.float64]) -> float:
    """P-value of Friedman's test; unlike SciPy's it takes two methods, and only ties."""
    tasks, k = ranks.shape
    middle = (k + 1) / 2
    spread = float(((ranks - middle) ** 2).sum()) / (tasks * (k - 1))
    if spread == 0:
        return 1.0
    distance = float(((ranks.mean(axis=0) - middle) ** 2).sum())
    return float(stats.chi2.sf(tasks * distance / spread, k - 1))


def _groups(
    methods: Sequence[str], ranks: NDArray[np.float64], cd: float
) -> tuple[tuple[str, ...], ...]:
    """Runs of two or more methods, sorted by rank, that are inside `cd`; none in another."""
    groups: list[tuple[str, ...]] = []
    reached = 0
    for start in range(len(methods)):
        end = int(np.count_nonzero(ranks - ranks[start] < cd))
        if end > max(reached, start + 1):
            groups.append(tuple(methods[start:end]))
            reached = end
    return tuple(groups)


def wilcoxon_holm(scores: ArrayLike, methods: Sequence[str]) -> list[PairTest]:
    """Wilcoxon's signed-rank test of every pair of methods over tasks, with Holm's correction.

    Unlike ranks among all methods, the test of a pair does not depend on which others took
    part. Tasks with no difference are split between both sides (Demšar 2006, section
    3.1.3). A failure (NaN) loses by more than any two numbers differ. The p-value is exact,
    with ties and zeros too, given which these are; SciPy's is the same where it is exact.
    With 5 tasks or fewer no p-value can be below 5 %.

    Args:
        scores: Shape (tasks, methods), lower is better.
        methods: The names of the columns.

    Returns:
        One test a pair, in the order of the columns.

    Raises:
        InvalidValueError: The shapes do not fit.

    >>> (test,) = wilcoxon_holm([[.1, .2], [.3, .5], [.2, .4], [.1, .6], [.2, .8], [.1, .9]], "ab")
    >>> test.wins, test.losses, test.ties, test.statistic, test.p
    (6, 0, 0, 0.0, 0.03125)
    """
    table, names = _named(scores, methods)
    pairs = list(combinations(range(len(names)), 2))
    found = [_wilcoxon(table[:, i], table[:, j]) for i, j in pairs]
    adjusted = holm([p for _, p in found])
    tests = []
    for (i, j), (statistic, p), p_holm in zip(pairs, found, adjusted, strict=True):
        a, b = table[:, i], table[:, j]
        counts = (int(c.sum()) for c in (a < b, a > b, a == b))
        tests.append(PairTest(names[i], names[j], statistic, p, float(p_holm), *counts))
    return tests


def _wilcoxon(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    equal = a == b  # also where both failed: inf - inf is no number
    differences = np.subtract(a, b, out=np.zeros(len(a)), where=~equal)
    # Twice the ranks: whole numbers also where ties share a mean.
    ranks = np.rint(2 * stats.rankdata(np.abs(differences))).astype(np.int64)
    plus, minus = (int(ranks[side].sum()) for side in (differences > 0, differences < 0))
    halved = int(ranks[equal].sum()) / 2
    statistic = (min(plus, minus) + halved) / 2
    return statistic, _sign_flips(ranks[~equal], min(plus, minus))


def _sign_flips(ranks: NDArray[np.int64], smaller: int) -> float:
    """Two-sided p-value of a sum of ranks when every sign is as probable as the other.

    The distribution of the sum is built up rank by rank, so it is exact also with ties,
    where tables and formulas are not.
    """
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1.0
    for rank in ranks:
        chances *= 0.5
        chances[rank:] += chances[:-rank].copy()
    return min(1.0, 2 * float(chances[: smaller + 1].sum()))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values adjusted by Holm's step-down method, in the order in which they came.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
