"""What growing images save, and at which error: from records to paired numbers.

Each searcher is compared with itself: the same number of evaluations, all at the full size, or most
of them on smaller images. Time is the processor's, of all trials of a search; seeds are paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from tune_ext.benchmark._cost import trains_on_cpu
from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.stats import Interval, bootstrap_iqm, interquartile_mean
from tune_ext.benchmark.study import recorded_task

SUFFIX = "+growth"
GOAL_SAVED, GOAL_WORSE = 0.30, 0.02
RESAMPLES = 2000

Cells = Mapping[tuple[str, str], Mapping[int, CellRecord]]
"""(task's label, method) → seed → record."""


@dataclass(frozen=True)
class Gain:
    """One searcher with and without growing images, on the seeds that both have.

    Attributes:
        task: Its label.
        method: Its name without growth.
        seeds: How many.
        seconds: Interquartile means of the CPU seconds, without and with.
        saved: Share of the time saved: the interquartile mean over seeds.
        errors: Interquartile means of the test errors, without and with.
        relative: (with - without) / without of these means; the interval is of paired resamples.
        at_equal_time: Medians of the best validation error at the full size: without, cut off
            when it had used the time of the one with; and with, whole.
        better: Seeds on which the error with growth is lower.
        worse: Seeds on which it is higher.
    """

    task: str
    method: str
    seeds: int
    seconds: tuple[float, float]
    saved: Interval
    errors: tuple[float, float]
    relative: Interval
    at_equal_time: tuple[float, float]
    better: int
    worse: int

    @property
    def verdict(self) -> str:
        """Against the goal: 30 % less time at no higher error, 2 % relative at the most."""
        if self.saved.value < GOAL_SAVED:
            return "too little time saved"
        if self.relative.value <= 0:
            return "met"
        return "error within 2 %" if self.relative.value <= GOAL_WORSE else "missed: the error"


@dataclass(frozen=True)
class Pooled:
    """All searchers of a task together, on the seeds that all have.

    Attributes:
        task: Its label.
        searchers: How many.
        seeds: How many.
        saved: Mean over searchers of the share of the time saved.
        relative: Mean over searchers of the relative change of the error.
    """

    task: str
    searchers: int
    seeds: int
    saved: Interval
    relative: Interval


def cells(records: Sequence[CellRecord]) -> Cells:
    """The records by task, method and seed."""
    found: dict[tuple[str, str], dict[int, CellRecord]] = {}
    for record in records:
        found.setdefault((record.label, record.method), {})[record.seed] = record
    return found


def gains(found: Cells) -> list[Gain]:
    """Every searcher that has both; the records' order."""
    return [_gain(*key, list(pairs.values())) for key, pairs in _pairs(found).items()]


def _pairs(found: Cells) -> dict[tuple[str, str], dict[int, tuple[CellRecord, CellRecord]]]:
    """(task, searcher) → seed → its records without and with growth, where both are whole."""
    made = {}
    for (task, method), grown in found.items():
        plain = found.get((task, method.removesuffix(SUFFIX)))
        if method.endswith(SUFFIX) and plain is not None:
            pairs = {s: (plain[s], grown[s]) for s in sorted(plain.keys() & grown.keys())}
            pairs = {s: pair for s, pair in pairs.items() if all(map(_whole, pair))}
            if pairs:
                made[task, method.removesuffix(SUFFIX)] = pairs
    return made


def pooled(found: Cells, seed: int = 0) -> list[Pooled]:
    """Every task with several searchers that have both, on at least one seed common to all.

    Args:
        found: The records.
        seed: Of the resamples: a seed's searches, which begin with the same configurations, are
            drawn together.
    """
    every, made = _pairs(found), []
    for task in dict.fromkeys(task for task, _ in every):
        own = [pairs for (of, _), pairs in every.items() if of == task]
        seeds = sorted(set.intersection(*(set(pairs) for pairs in own)))
        if len(own) < 2 or not seeds:
            continue
        rows = np.array([[[_of(r) for r in pairs[s]] for pairs in own] for s in seeds])
        rng = np.random.default_rng(seed)
        draws = [rng.integers(len(seeds), size=len(seeds)) for _ in range(RESAMPLES)]
        values = np.array([_changes(rows[draw]) for draw in draws])
        low, high = np.quantile(values, (0.025, 0.975), axis=0)
        if len(seeds) < 2:
            low = high = np.full(2, math.nan)
        value = _changes(rows)
        saved, relative = (
            Interval(*map(float, part)) for part in zip(value, low, high, strict=True)
        )
        made.append(Pooled(task, len(own), len(seeds), saved, relative))
    return made


def _of(record: CellRecord) -> tuple[float, float]:
    return _seconds(record), float(record.test_error or 0.0)


def _changes(rows: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Mean time saved and mean relative change; rows: seeds × searchers × 2 × (time, error)."""
    searchers = range(rows.shape[1])
    saved = [interquartile_mean(1 - rows[:, k, 1, 0] / rows[:, k, 0, 0]) for k in searchers]
    change = [np.divide(*_means(rows[:, k, ::-1, 1])) - 1 for k in searchers]
    return fmean(saved), fmean(change)


def _whole(record: CellRecord) -> bool:
    """Whether it has what is compared; a search that was ended before its time saved none."""
    cut = any(failure.startswith("search, after") for failure in record.failures)
    return not cut and record.test_error is not None and _seconds(record) > 0


def _seconds(record: CellRecord) -> float:
    """What its trials were trained: on the processor, or, where a GPU trains, on the clock."""
    known = record.cpu_seconds if _on_cpu(record) else None
    known = record.busy_seconds if known is None else known
    return math.nan if known is None else float(known)


def _cost(record: CellRecord, trial: Mapping[str, Any]) -> float:
    """What a trial of its was trained; not finite where that was not recorded."""
    name = "cpu_seconds" if _on_cpu(record) else "train_seconds"
    return float(trial.get(name, math.nan))


def _on_cpu(record: CellRecord) -> bool:
    return trains_on_cpu(recorded_task(record.task))


def _gain(task: str, method: str, pairs: Sequence[tuple[CellRecord, CellRecord]]) -> Gain:
    seconds = np.array([[_seconds(r) for r in pair] for pair in pairs])
    errors = np.array([[float(r.test_error or 0.0) for r in pair] for pair in pairs])
    equal = [_at_equal_time(*pair) for pair in pairs]
    return Gain(
        task=task,
        method=method,
        seeds=len(pairs),
        seconds=_means(seconds),
        saved=bootstrap_iqm([1 - seconds[:, 1] / seconds[:, 0]], RESAMPLES),
        errors=_means(errors),
        relative=relative_change(errors),
        at_equal_time=(median(e[0] for e in equal), median(e[1] for e in equal)),
        better=int((errors[:, 1] < errors[:, 0]).sum()),
        worse=int((errors[:, 1] > errors[:, 0]).sum()),
    )


def _means(table: np.ndarray[Any, Any]) -> tuple[float, float]:
    return interquartile_mean(table[:, 0]), interquartile_mean(table[:, 1])


def relative_change(errors: np.ndarray[Any, Any], seed: int = 0) -> Interval:
    """How much higher the second column's interquartile mean is, relative to the first's.

    Args:
        errors: Shape (seeds, 2); a seed's errors are drawn together.
        seed: Of the resamples.
    """

    def change(rows: np.ndarray[Any, Any]) -> float:
        first, second = _means(errors[rows])
        return second / first - 1

    value = change(np.arange(len(errors)))
    if len(errors) < 2:
        return Interval(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    draws = [change(rng.integers(len(errors), size=len(errors))) for _ in range(RESAMPLES)]
    return Interval(value, float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975)))


def _at_equal_time(plain: CellRecord, grown: CellRecord) -> tuple[float, float]:
    """Best validation errors at the full size; see `Gain.at_equal_time`."""
    left, full = _seconds(grown), full_size(grown)
    known = [math.inf]
    for trial in plain.trials:
        left -= _cost(plain, trial)
        if not left >= 0:
            break
        known.append(_error(trial))
    return min(known), min((_error(t) for t in trials_at(grown, full)), default=math.inf)


def _error(trial: Mapping[str, Any]) -> float:
    error = trial.get("validation_error")
    return math.inf if error is None else float(error)


def full_size(record: CellRecord) -> int:
    """The full image size of a record's task."""
    return int(recorded_task(record.task).image_sizes[-1])


def trials_at(record: CellRecord, size: int) -> list[dict[str, Any]]:
    """The trials of a size; those that say none have the full one."""
    usual = full_size(record)
    return [t for t in record.trials if t["config"].get("image_size", usual) == size]


def stages(found: Cells) -> Iterator[dict[str, Any]]:
    """What happened at each size, over the seeds of a grown search: one row a size."""
    for (task, method), group in found.items():
        records = [r for r in group.values() if r.details.get("stages")]
        if not method.endswith(SUFFIX) or not records:
            continue
        for place, size in enumerate(recorded_task(records[0].task).image_sizes):
            rows = [r.details["stages"][place] for r in records if len(r.details["stages"]) > place]
            costs = [_cost(r, t) for r in records for t in trials_at(r, size)]
            known = [row["correlation"] for row in rows if row.get("correlation") is not None]
            weights = [row["weight"] for row in rows if row.get("weight") is not None]
            yield {
                "task": task,
                "method": method,
                "size": size,
                "evaluations": median(row["evaluations"] for row in rows),
                "seconds": fmean(costs) if costs else math.nan,
                "correlation": median(known) if known else None,
                "lowest": min(known, default=None),
                "weight": fmean(weights) if weights else None,
                "failed": sum(row["failed"] for row in rows),
            }
