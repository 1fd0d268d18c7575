"""What a study's records say, in numbers: the data behind the report, the page and the pictures.

Nothing here draws or writes. A search without any finite result recommends the default, as whoever
runs it would: it is judged by the default's error, and counted as a failure. A cell that has no
test result, because the final training failed, counts as the worst error that its task knows; a
method none of whose cells has a result on a task has no mean there. Methods are ordered by their
interquartile means, which a worst error that is thousands of times the others does not decide.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from tune_ext._text import plain_words
from tune_ext.benchmark._unavailable import grouped
from tune_ext.benchmark.cell_run import NO_RESULT
from tune_ext.benchmark.methods import METHODS
from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.stats import (
    CriticalDifference,
    Interval,
    PairTest,
    bootstrap_iqm,
    idle_share,
    standard_error,
    time_to_target,
)

__all__ = [
    "Across",
    "Analysis",
    "CellResult",
    "Curve",
    "MethodResult",
    "TaskAnalysis",
    "analyse",
    "cell_points",
    "is_ours",
    "median_curve",
    "used",
]

MAX_POINTS = 200
_ALL_POINTS = 14_000  # of all curves of a study together, so that the page stays small
_REFERENCE = "random"  # its final value is the target of "time to target"


@dataclass(frozen=True)
class CellResult:
    """One record, short: what every number of a report can be traced to.

    Args:
        seed: The search seed.
        error: Mean test error over the final trainings; None without a result.
        units: What the search used, in the study's unit.
        seconds: Duration of the search, on the study's clock.
        config: What it recommended.
        line: The line of records.jsonl; 0 if unknown.
        revision: The git revision that wrote it.
        failures: Reasons, in words.
    """

    seed: int
    error: float | None
    units: float
    seconds: float
    config: Mapping[str, Any]
    line: int
    revision: str
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """A method's best so far: the median over seeds and its interval, None before there is one.

    Args:
        x: Budget used, or seconds.
        value: Median over seeds.
        low: Lower end of the interval.
        high: Upper end.
        end: Where the median search ended by itself, if that is before the end of the axis.
        flat: Whether the method does not search and the curve is one value throughout.
    """

    x: tuple[float, ...]
    value: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    end: float | None = None
    flat: bool = False


@dataclass(frozen=True)
class MethodResult:
    """One method on one task.

    Args:
        method: Its name.
        cells: Its records, in the order of the seeds.
        scores: Seed → test error, a cell without result counted as the worst.
        mean: Mean of the scores, for information; NaN when no cell has a result.
        error: Standard error of the mean; NaN with fewer than two.
        iqm: Interquartile mean with its bootstrap interval; None without results.
        failed: How many cells have a failure.
        units: Median of what the search used.
        seconds: Median duration of the search.
        trained: Median of what the trials of a search cost in training, all together: seconds of
            the processor where it is what trains, else on the study's clock; None if unknown.
        idle: Mean share of the workers' time in which they had nothing to do; None if unknown.
        to_target: Median of the budget used when it reached the target; inf if it rarely did,
            None without a target.
        chosen: Parameter → what was recommended, in words.
    """

    method: str
    cells: tuple[CellResult, ...]
    scores: Mapping[int, float]
    mean: float
    error: float
    iqm: Interval | None
    failed: int
    units: float
    seconds: float
    trained: float | None
    idle: float | None
    to_target: float | None
    chosen: Mapping[str, str]

    @property
    def ours(self) -> bool:
        """Whether the method is this package's."""
        return is_ours(self.method)

    @property
    def middle(self) -> float:
        """The interquartile mean; NaN when no cell has a result."""
        return math.nan if self.iqm is None else self.iqm.value

    @property
    def fell_back(self) -> int:
        """How many searches had no finite result, so that the default was recommended."""
        return sum(NO_RESULT in cell.failures for cell in self.cells)


@dataclass(frozen=True)
class TaskAnalysis:
    """One task of a study: lowest interquartile mean first, those without results last."""

    label: str
    name: str
    options: Mapping[str, Any]
    error_name: str
    percent: bool
    simulated: bool
    workers: int
    budget: float
    methods: tuple[MethodResult, ...]
    by_budget: Mapping[str, Curve]
    by_seconds: Mapping[str, Curve]
    target: float | None
    seeds: tuple[int, ...]
    regret_range: tuple[float, float] | None
    worst: float
    sentences: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """What errors are multiplied with for people."""
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        """What follows an error for people."""
        return " %" if self.percent else ""

    def told(self, error: float) -> str:
        """An error as people read it."""
        if not math.isfinite(error):
            return "none"
        return f"{100 * error:.2f} %" if self.percent else f"{error:.3g}"


@dataclass(frozen=True)
class Across:
    """Several tasks together.

    Args:
        methods: Those with results on every task, lowest interquartile mean first.
        tasks: Labels.
        regret: Method → interquartile mean of normalised regret, stratified over tasks.
        means: Task → method → interquartile mean over seeds of the normalised regret: what is
            ranked and tested. Seeds are those that all methods have on the task.
        places: Task → method → rank, 1 the best.
        ranks: Average ranks and what may be told apart; None with fewer than three methods.
        pairs: Wilcoxon's test of each pair, with Holm's correction.
        improvement: Method → method → probability that the first is better.
        curves: Method → normalised regret against the share of the budget; where known.
        left_out: Method → why it is not compared across tasks.
        known: Whether the best and the median configuration of every task are known.
    """

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    regret: Mapping[str, Interval]
    means: Mapping[str, Mapping[str, float]]
    places: Mapping[str, Mapping[str, float]]
    ranks: CriticalDifference | None
    pairs: tuple[PairTest, ...]
    improvement: Mapping[str, Mapping[str, Interval]]
    curves: Mapping[str, Curve]
    left_out: Mapping[str, str]
    known: bool


@dataclass(frozen=True)
class Analysis:
    """A study: what its report, its page and its pictures show."""

    title: str
    description: str
    budget_unit: str
    tasks: tuple[TaskAnalysis, ...]
    methods: tuple[str, ...]
    sentences: tuple[str, ...] = ()
    across: Across | None = None
    not_run: tuple[tuple[str, str], ...] = ()
    conditions: tuple[str, ...] = ()
    versions: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite is None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def is_ours(method: str) -> bool:
    """Whether a method is this package's."""
    return method in METHODS and METHODS[method].ours


def analyse(
    records: Sequence[CellRecord],
    study: Mapping[str, Any],
    lines: Mapping[tuple[str, str, int], int] | None = None,
) -> Analysis:
    """Everything that a report shows.

    Args:
        records: Of one study, one a cell.
        study: What study.json holds.
        lines: The key of a record → its line in records.jsonl.
    """
    from tune_ext.benchmark import findings
    from tune_ext.benchmark.across import compare_tasks

    groups: dict[str, list[CellRecord]] = {}
    for record in records:
        groups.setdefault(record.key[0], []).append(record)
    methods = _method_order(records, study)
    points = max(24, min(MAX_POINTS, _ALL_POINTS // max(1, len(groups) * len(methods))))
    tasks = tuple(
        _task(label, group, methods, lines or {}, points) for label, group in groups.items()
    )
    across = compare_tasks(tasks, groups) if len(tasks) > 1 else None
    return findings.tell(
        Analysis(
            title=str(study["title"]),
            description=str(study.get("description", "")).strip(),
            budget_unit=plain_words(str(study["settings"].get("budget_unit", "epochs"))),
            tasks=tasks,
            methods=methods,
            across=across,
            not_run=_not_run(study),
        ),
        records,
        study,
    )


def _method_order(records: Sequence[CellRecord], study: Mapping[str, Any]) -> tuple[str, ...]:
    """The methods that have records, in the study's order."""
    present = dict.fromkeys(r.method for r in records)
    named = [m for m in study.get("methods", ()) if m in present]
    return tuple(dict.fromkeys([*named, *present]))


def _not_run(study: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Methods and tasks that could not run, with the reasons, as study.json tells them."""
    return tuple(grouped(study.get("unavailable", {})))


def _task(
    label: str,
    records: Sequence[CellRecord],
    methods: Sequence[str],
    lines: Mapping[tuple[str, str, int], int],
    points: int,
) -> TaskAnalysis:
    first = records[0]
    groups = {m: sorted((r for r in records if r.method == m), key=_seed) for m in methods}
    groups = {m: g for m, g in groups.items() if g}
    known = [e for r in records if (e := r.test_error) is not None]
    worst = first.worst_error
    worst = max([worst, *known]) if worst is not None else max(known, default=math.nan)
    curves = {m: [cell_points(r) for r in g] for m, g in groups.items()}
    budget = float(max(r.budget for r in records))
    budget = max([budget, *(p[0] for c in curves.values() for s in c for p in s)])
    target = _target(curves)
    results = [_result(m, g, curves[m], worst, target, lines) for m, g in groups.items()]
    results.sort(key=lambda r: math.inf if r.iqm is None else r.iqm.value)
    seconds = max((r.seconds for r in results), default=0.0)
    return TaskAnalysis(
        label=label,
        name=first.task["name"],
        options=dict(first.task.get("options", {})),
        error_name=plain_words(first.error_name),
        percent=first.percent,
        simulated=first.clock == "simulated",
        workers=first.workers,
        budget=budget,
        methods=tuple(results),
        by_budget=_curves(groups, curves, 0, budget, points),
        by_seconds=_curves(groups, curves, 1, seconds, points),
        target=target,
        seeds=tuple(sorted({r.seed for r in records})),
        regret_range=first.regret_range,
        worst=worst,
    )


def _seed(record: CellRecord) -> int:
    return record.seed


def used(record: CellRecord) -> float:
    """What a search used, in the study's unit."""
    if record.unit == "trainings" and record.max_epochs:
        return record.epochs_used / record.max_epochs
    if record.unit == "evaluations":
        return float(len(record.trials))
    if record.unit == "seconds":
        return float(record.busy_seconds or record.search_seconds)
    return float(record.epochs_used)


def cell_points(record: CellRecord) -> list[tuple[float, float, float]]:
    """(budget used, seconds, error) wherever the best so far changed."""
    return [(float(u), float(s), float(e)) for u, s, e in record.incumbents if e is not None]


def _target(curves: Mapping[str, list[list[tuple[float, float, float]]]]) -> float | None:
    """What the reference reaches at the end, the median over seeds."""
    ends = [s[-1][2] for s in curves.get(_REFERENCE, []) if s]
    return median(ends) if ends else None


def _result(
    method: str,
    group: Sequence[CellRecord],
    curves: Sequence[Sequence[tuple[float, float, float]]],
    worst: float,
    target: float | None,
    lines: Mapping[tuple[str, str, int], int],
) -> MethodResult:
    errors = [r.test_error for r in group]
    whole = any(e is not None for e in errors)
    scores = {r.seed: worst if e is None else e for r, e in zip(group, errors, strict=True)}
    values = list(scores.values()) if whole else []
    reached = [time_to_target([(u, e) for u, _, e in s], target or 0.0) for s in curves]
    idle = [i for r in group if (i := _idle(r)) is not None]
    return MethodResult(
        method=method,
        cells=tuple(_cell(r, lines.get(r.key, 0)) for r in group),
        scores=scores if whole else {},
        mean=fmean(values) if values else math.nan,
        error=standard_error(values),
        iqm=bootstrap_iqm([values]) if values else None,
        failed=sum(bool(r.failures) for r in group),
        units=median(used(r) for r in group),
        seconds=median(_seconds(r) for r in group),
        trained=median(trained) if (trained := _trained(group)) else None,
        idle=fmean(idle) if idle else None,
        to_target=None if target is None or not any(curves) else median(reached),
        chosen=_chosen(group),
    )


def _seconds(record: CellRecord) -> float:
    return float(record.makespan if record.makespan is not None else record.search_seconds)


def _trained(group: Sequence[CellRecord]) -> list[float]:
    costs = (r.cpu_seconds if r.busy_seconds is None else r.busy_seconds for r in group)
    return [float(cost) for cost in costs if cost is not None]


def _idle(record: CellRecord) -> float | None:
    if not record.makespan or record.busy_seconds is None:
        return None
    # A processor's seconds are fewer than those on the clock where other work takes turns.
    clocked = sum(trial.get("train_seconds", 0.0) for trial in record.trials)
    return idle_share(max(record.busy_seconds, clocked), record.makespan, record.workers)


def _cell(record: CellRecord, line: int) -> CellResult:
    return CellResult(
        seed=record.seed,
        error=record.test_error,
        units=used(record),
        seconds=_seconds(record),
        config=dict(record.recommendation.get("config") or {}),
        line=line,
        revision=str(record.provenance.get("git") or "unknown"),
        failures=tuple(record.failures),
    )


def _chosen(group: Sequence[CellRecord]) -> dict[str, str]:
    """Parameter → median and range of its values, or the most frequent one, in words."""
    values: dict[str, list[Any]] = {}
    for record in group:
        for name, value in (record.recommendation.get("config") or {}).items():
            values.setdefault(name, []).append(value)
    return {name: _spread(v) for name, v in values.items()}


def _spread(values: Sequence[Any]) -> str:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        middle, low, high = f"{median(values):.2g}", min(values), max(values)
        return middle if low == high else f"{middle} ({low:.2g} to {high:.2g})"
    [(value, count)] = Counter(map(str, values)).most_common(1)
    return value if count == len(values) else f"{value} ({count} of {len(values)})"


def _curves(
    groups: Mapping[str, Sequence[CellRecord]],
    curves: Mapping[str, list[list[tuple[float, float, float]]]],
    axis: int,
    end: float,
    points: int,
) -> dict[str, Curve]:
    if not end > 0:
        return {}
    whole = axis == 0 and end <= points
    grid = np.arange(1, int(end) + 1) if whole else np.linspace(end / points, end, points)
    found = {}
    for method, group in groups.items():
        if any(curves[method]):
            ended = median(used(r) if axis == 0 else _seconds(r) for r in group)
            steps = [[(p[axis], p[2]) for p in seed] for seed in curves[method]]
            found[method] = median_curve(steps, grid, ended if ended < 0.999 * end else None)
        elif flat := _flat(group, grid):
            found[method] = flat
    return found


def _flat(group: Sequence[CellRecord], grid: NDArray[Any]) -> Curve | None:
    """A method without a search has the validation error of its final trainings."""
    errors = [t.get("validation_error") for r in group for t in r.tests]
    known = [float(e) for e in errors if e is not None]
    if not known:
        return None
    x, value = (float(grid[0]), float(grid[-1])), (median(known),) * 2
    return Curve(x, value, value, value, flat=True)


def median_curve(
    seeds: Sequence[Sequence[tuple[float, float]]], grid: NDArray[Any], end: float | None = None
) -> Curve:
    """The median over seeds on a grid, with a distribution-free 95 % interval.

    The interval runs between the order statistics that the binomial distribution gives; with
    fewer than six seeds that is the range of all. A seed without a value counts as infinite.

    Args:
        seeds: Each seed's (x, value from there on), x ascending.
        grid: Where the curve is wanted, ascending.
        end: Passed on.
    """
    table = np.full((len(seeds), len(grid)), np.inf)
    for row, points in zip(table, seeds, strict=True):
        for x, value in points:
            row[np.searchsorted(grid, x) :] = value
    table.sort(axis=0)
    n = len(table)
    k = max(int(binom.ppf(0.025, n, 0.5)), 0)  # P(fewer than k below the median) <= 2.5 %
    return Curve(
        x=tuple(float(v) for v in grid),
        value=_finite(np.median(table, axis=0)),
        low=_finite(table[max(k - 1, 0)]),
        high=_finite(table[n - max(k, 1)]),
        end=end,
    )


def _finite(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(float(v) if math.isfinite(v) else None for v in values)
