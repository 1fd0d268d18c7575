"""What growing images save, and at which error: tables and a picture from a study's records.

    python experiments/image_growth/report.py [RESULTS]     # a study's directory; default: results

Writes growth.md, growth.json, growth.png and growth.svg beside the records. Each searcher is
compared with itself: the same number of evaluations, all at the full size, or most of them on
smaller images. Time is the processor's, of all trials of a search; seeds are paired.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from tune_ext.benchmark._cost import trains_on_cpu
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.benchmark.stats import Interval, bootstrap_iqm, interquartile_mean
from tune_ext.benchmark.study import TaskSpec
from tune_ext.errors import StateError, TuneExtError

HERE = Path(__file__).parent
SUFFIX = "+growth"
PUBLISHED = (9, 42)
"""Per cent of time saved: the least and the most of the paper's experiments."""
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


def cells(records: Sequence[CellRecord]) -> Cells:
    """The records by task, method and seed."""
    found: dict[tuple[str, str], dict[int, CellRecord]] = {}
    for record in records:
        found.setdefault((record.label, record.method), {})[record.seed] = record
    return found


def gains(found: Cells) -> list[Gain]:
    """Every searcher that has both; the records' order."""
    made = []
    for (task, method), grown in found.items():
        plain = found.get((task, method.removesuffix(SUFFIX)))
        if method.endswith(SUFFIX) and plain is not None:
            pairs = [(plain[s], grown[s]) for s in sorted(plain.keys() & grown.keys())]
            pairs = [pair for pair in pairs if all(map(_whole, pair))]
            if pairs:
                made.append(_gain(task, method.removesuffix(SUFFIX), pairs))
    return made


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
    return trains_on_cpu(_task(record))


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
    return int(_task(record).image_sizes[-1])


def _task(record: CellRecord) -> Any:
    return TaskSpec(record.task["name"], record.task["options"]).create()


def trials_at(record: CellRecord, size: int) -> list[dict[str, Any]]:
    """The trials of a size; those that say none have the full one."""
    usual = full_size(record)
    return [t for t in record.trials if t["config"].get("image_size", usual) == size]


# Tables -------------------------------------------------------------------------------------


def stages(found: Cells) -> Iterator[dict[str, Any]]:
    """What happened at each size, over the seeds of a grown search: one row a size."""
    for (task, method), group in found.items():
        records = [r for r in group.values() if r.details.get("stages")]
        if not method.endswith(SUFFIX) or not records:
            continue
        for place, size in enumerate(_task(records[0]).image_sizes):
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


_GAINS = (
    "task | searcher | seeds | CPU s, full size | CPU s, growing | time saved, % | "
    "error, full size, % | error, growing, % | relative change, % | lower / higher | goal"
)
_STAGES = (
    "task | searcher | size | evaluations | CPU s a trial | rank correlation with the size before, "
    "median (lowest) | carried, mean weight | failed"
)
_EQUAL = "task | searcher | all at the full size, cut off | growing images, whole"


def page(title: str, made: Sequence[Gain], found: Cells) -> str:
    """The page in Markdown."""
    lines = [f"# What growing images save: {title}", "", *(f"* {s}" for s in sentences(made)), ""]
    lines += ["![Time and error with and without growing images](growth.svg)", ""]
    lines += _table(_GAINS, [_row(g) for g in made])
    lines += ["## At equal time", ""]
    lines += [
        "Best validation error at the full size, median over seeds, %. A search that is cut off "
        "chose among more evaluations at the full size than one that grew, so that its best is "
        "flattered more.",
        "",
    ]
    lines += _table(
        _EQUAL,
        [[g.task, g.method, *(f"{100 * e:.2f}" for e in g.at_equal_time)] for g in made],
    )
    lines += ["## The stages", "", *_table(_STAGES, [_stage_row(row) for row in stages(found)])]
    return "\n".join(lines).rstrip() + "\n"


def sentences(made: Sequence[Gain]) -> list[str]:
    """What came out against the goal and the published numbers."""
    if not made:
        return ["No searcher has finished both ways yet."]
    saved = [100 * g.saved.value for g in made]
    told = [
        f"Time saved: {min(saved):.0f} to {max(saved):.0f} % (published: {PUBLISHED[0]} to "
        f"{PUBLISHED[1]} %).",
    ]
    for task in dict.fromkeys(g.task for g in made):
        own = [g for g in made if g.task == task]
        relative = np.array([g.relative.value for g in own])
        worst = max(own, key=lambda g: g.relative.value)
        told.append(
            f"{task}: error {100 * relative.mean():+.1f} % relative on average over "
            f"{len(own)} searchers, {100 * worst.relative.value:+.1f} % at worst ({worst.method}); "
            + "; ".join(f"{g.method}: {g.verdict}" for g in own)
            + "."
        )
    met = sum(g.verdict == "met" for g in made)
    told.append(
        f"The goal, {100 * GOAL_SAVED:.0f} % less time at no higher error, is met by {met} of "
        f"{len(made)}; {sum(g.relative.value > GOAL_WORSE for g in made)} are more than "
        f"{100 * GOAL_WORSE:.0f} % relative worse."
    )
    return told


def _row(g: Gain) -> list[str]:
    return [
        g.task,
        g.method,
        str(g.seeds),
        *(f"{s:.1f}" for s in g.seconds),
        _percent(g.saved),
        *(f"{100 * e:.2f}" for e in g.errors),
        _percent(g.relative, sign="+"),
        f"{g.better} / {g.worse}",
        g.verdict,
    ]


def _percent(interval: Interval, sign: str = "") -> str:
    value, low, high = (format(100 * part, f"{sign}.1f") for part in interval)
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def _stage_row(row: Mapping[str, Any]) -> list[str]:
    rank, weight = row["correlation"], row["weight"]
    return [
        row["task"],
        row["method"],
        str(row["size"]),
        f"{row['evaluations']:g}",
        f"{row['seconds']:.2f}",
        "" if rank is None else f"{rank:.2f} ({row['lowest']:.2f})",
        "" if weight is None else f"{weight:.2f}",
        str(row["failed"]),
    ]


def _table(columns: str, rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|" + " --- |" * (columns.count("|") + 1)
    return [f"| {columns} |", rule, *(f"| {' | '.join(row)} |" for row in rows), ""]


# The picture --------------------------------------------------------------------------------


def draw(made: Sequence[Gain], path: Path) -> list[Path]:
    """An arrow a searcher from all evaluations at the full size to growing images."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(g.task for g in made))
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    with mpl.rc_context({"svg.hashsalt": "tune-ext", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.6 * max(1, len(tasks)), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for place, task in enumerate(tasks):
            axes = figure.add_subplot(1, len(tasks), place + 1)
            for colour, g in zip(colours, (g for g in made if g.task == task), strict=False):
                (x, u), (y, v) = g.seconds, (100 * e for e in g.errors)
                arrow = {"arrowstyle": "->", "color": colour, "lw": 1.6}
                axes.annotate("", (u, v), (x, y), arrowprops=arrow)
                axes.scatter([x, u], [y, v], s=(18, 32), color=colour, label=g.method)
            axes.set_xlim(left=0)
            axes.set_title(f"{task}: full size → growing", fontsize=10)
            axes.set_xlabel("CPU seconds of a search's trials")
            axes.set_ylabel("test error, %, interquartile mean")
            axes.grid(alpha=0.25)
            axes.legend(fontsize=8)
        written = []
        for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
            written.append(path.with_suffix(suffix))
            figure.savefig(written[-1], dpi=130, metadata=metadata)
    return written


def write(directory: Path) -> list[Path]:
    """Write everything beside a study's records; returns the files, the page first.

    Raises:
        StateError: There is no searcher with and without growth yet, or no study.
    """
    store = RecordStore(directory)
    title = store.load_settings()["title"]
    found = cells(store.load())
    made = gains(found)
    if not made:
        raise StateError(f"{directory} has no searcher that finished with and without growth yet")
    written = [directory / "growth.md", directory / "growth.json"]
    written[0].write_text(page(title, made, found), encoding="utf-8")
    data = {"gains": [asdict(g) | {"verdict": g.verdict} for g in made], "stages": [*stages(found)]}
    written[1].write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return written + draw(made, directory / "growth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("results", nargs="?", type=Path, default=HERE / "results")
    try:
        for path in write(parser.parse_args(arguments).results):
            print(path)
    except TuneExtError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
