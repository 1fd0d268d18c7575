"""Several tasks together: regret on one scale, ranks, pairs of methods.

The scale of a task runs from its best configuration (0) to its median one (1) where both are
known. Where they are not, from the lowest test error of any cell to the median over all cells:
then a number says how methods compare within this study, and nothing beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tune_ext.benchmark.analysis import Across, Curve, TaskAnalysis, cell_points
from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.stats import (
    Interval,
    bootstrap_iqm,
    critical_difference,
    interquartile_mean,
    normalised_regret,
    probability_of_improvement,
    wilcoxon_holm,
)

__all__ = ["compare_tasks", "regret_scale"]

_GRID = 60
_CURVE_RESAMPLES = 200
_PAIR_RESAMPLES = 500


def regret_scale(task: TaskAnalysis) -> tuple[float, float] | None:
    """The errors that count as 0 and as 1; None where all cells are equal."""
    if task.regret_range is not None:
        return task.regret_range
    errors = [e for m in task.methods for e in m.scores.values()]
    if not errors:
        return None
    best, middle = min(errors), float(np.median(errors))
    reference = middle if middle > best else max(errors)
    return (best, reference) if reference > best else None


def compare_tasks(
    tasks: Sequence[TaskAnalysis], groups: Mapping[str, Sequence[CellRecord]]
) -> Across | None:
    """Compare the methods that ran on every task; None where fewer than two did.

    Args:
        tasks: Of one study.
        groups: Label of a task → its records.
    """
    scales = {t.label: s for t in tasks if (s := regret_scale(t)) is not None}
    tasks = [t for t in tasks if t.label in scales]
    names = list(dict.fromkeys(m.method for t in tasks for m in t.methods))
    left_out = {n: why for n in names if (why := _left_out(n, tasks))}
    names = [n for n in names if n not in left_out]
    if len(names) < 2 or len(tasks) < 2:
        return None
    seeds = {t.label: _common_seeds(t, names) for t in tasks}
    runs = {
        name: [_regrets(t, name, scales[t.label], seeds[t.label]) for t in tasks] for name in names
    }
    regret = {name: bootstrap_iqm(runs[name]) for name in names}
    names.sort(key=lambda n: regret[n].value)
    table = np.array([[interquartile_mean(runs[n][i]) for n in names] for i in range(len(tasks))])
    places = rankdata(table, axis=1)
    labels = [t.label for t in tasks]
    known = all(t.regret_range is not None for t in tasks)
    return Across(
        methods=tuple(names),
        tasks=tuple(labels),
        regret={n: regret[n] for n in names},
        means=_nested(labels, names, table),
        places=_nested(labels, names, places),
        ranks=critical_difference(table, names) if len(names) > 2 else None,
        pairs=tuple(wilcoxon_holm(table, names)),
        improvement=_improvement(names, runs),
        curves=_curves(names, tasks, groups, scales) if known else {},
        left_out=left_out,
        known=known,
    )


def _left_out(name: str, tasks: Sequence[TaskAnalysis]) -> str | None:
    """Why a method cannot be compared over all tasks."""
    lacking = [t.label for t in tasks if name not in {m.method for m in t.methods}]
    return f"no records for {', '.join(lacking)}" if lacking else None


def _nested(
    rows: Sequence[str], columns: Sequence[str], table: NDArray[np.float64]
) -> dict[str, dict[str, float]]:
    return {
        row: {name: float(table[i, j]) for j, name in enumerate(columns)}
        for i, row in enumerate(rows)
    }


def _common_seeds(task: TaskAnalysis, names: Sequence[str]) -> set[int]:
    """The seeds that all methods have; where there is none, those of any.

    A study that is not finished has more seeds of some methods than of others.
    """
    sets = [{c.seed for c in m.cells} for m in task.methods if m.method in names]
    return set.intersection(*sets) or set.union(*sets)


def _regrets(
    task: TaskAnalysis, name: str, scale: tuple[float, float], seeds: set[int]
) -> list[float]:
    """One number a seed; a method without any result has the worst error on each."""
    [result] = [m for m in task.methods if m.method == name]
    own = [c.seed for c in result.cells if c.seed in seeds]
    scores = [result.scores.get(seed, task.worst) for seed in own]
    return [float(normalised_regret(s, *scale)) for s in scores]


def _improvement(
    names: Sequence[str], runs: Mapping[str, list[list[float]]]
) -> dict[str, dict[str, Interval]]:
    found: dict[str, dict[str, Interval]] = {n: {} for n in names}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            p = probability_of_improvement(runs[a], runs[b], resamples=_PAIR_RESAMPLES)
            found[a][b] = p
            found[b][a] = Interval(1 - p.value, 1 - p.high, 1 - p.low)
    return found


def _curves(
    names: Sequence[str],
    tasks: Sequence[TaskAnalysis],
    groups: Mapping[str, Sequence[CellRecord]],
    scales: Mapping[str, tuple[float, float]],
) -> dict[str, Curve]:
    """Normalised regret of what would be recommended, against the share of the budget."""
    grid = np.linspace(1 / _GRID, 1, _GRID)
    found = {}
    for name in names:
        tables = []
        for task in tasks:
            records = [r for r in groups[task.label] if r.method == name]
            shares = [_steps(r, grid, task.budget, scales[task.label]) for r in records]
            tables.append(np.stack(shares))
        curve = _aggregate(tables, grid)
        if curve is not None:
            found[name] = curve
    return found


def _steps(
    record: CellRecord, grid: NDArray[np.float64], budget: float, scale: tuple[float, float]
) -> NDArray[np.float64]:
    row = np.full(len(grid), np.inf)
    points = cell_points(record)
    if not points and record.test_error is not None:
        row[:] = normalised_regret(record.test_error, *scale)
    for used, _, error in points:
        row[np.searchsorted(grid, used / budget - 1e-9) :] = normalised_regret(error, *scale)
    return row


def _aggregate(tables: Sequence[NDArray[np.float64]], grid: NDArray[np.float64]) -> Curve | None:
    """Interquartile mean over all seeds of all tasks at each point, tasks resampled apart."""
    whole = np.concatenate(tables)
    value = [interquartile_mean(column) for column in whole.T]
    if not any(map(math.isfinite, value)):
        return None
    rng = np.random.default_rng(0)
    drawn = np.empty((_CURVE_RESAMPLES, len(grid)))
    cut = len(whole) // 4
    for row in drawn:
        sample = np.concatenate([t[rng.integers(len(t), size=len(t))] for t in tables])
        middle = np.partition(sample, [cut, len(sample) - cut - 1], axis=0)
        row[:] = middle[cut : len(sample) - cut].mean(axis=0)
    low = np.quantile(drawn, 0.025, axis=0, method="lower")
    high = np.quantile(drawn, 0.975, axis=0, method="higher")
    return Curve(tuple(map(float, grid)), _known(value), _known(low), _known(high))


def _known(values: Sequence[float] | NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(float(v) if math.isfinite(v) else None for v in values)
