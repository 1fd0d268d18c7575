"""How a study goes on, for whoever is watching: a live table, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from tune_ext._text import visible
from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.runner import CellRun, Phase
from tune_ext.benchmark.study import Study
from tune_ext.benchmark.tally import epochs_allowed

__all__ = ["LiveProgress", "PlainProgress", "make_observer", "time_left"]


_SLOW = 2.0
"""Seconds from which a cell of a simulated task gets a line of its own."""

_SAME_FAILURES = 3
"""How often the same failure of a method is printed."""

_SHOWN = 8
"""Tasks whose best method is shown in the live table."""


def time_left(seconds: Sequence[float], remaining: float, jobs: int) -> float | None:
    """Seconds until the end, from how long finished cells took; None when none has.

    Args:
        seconds: How long each finished cell took.
        remaining: Cells still to do; a cell under way counts in part.
        jobs: Cells at once.

    >>> time_left([60.0, 20.0], remaining=3, jobs=2)
    60.0
    """
    return sum(seconds) / len(seconds) * remaining / jobs if seconds else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _told(left: float | None) -> str:
    return "time left not known yet" if left is None else f"about {_clock(left)} left"


def _error(value: float | None, percent: bool = True) -> str:
    if value is None:
        return "none yet"
    return f"{100 * value:.2f} %" if percent else f"{value:.4g}"


def _describe(run: CellRun) -> str:
    if run.phase is Phase.SEARCH:
        budget = run.study.budget_of(run.cell.task)
        allowed = epochs_allowed(budget, run.study.unit, run.task.max_epochs)
        of = f"epochs of {budget} s" if allowed is None else f"of {allowed} epochs"
        if run.study.unit == "evaluations":
            of = f"epochs, evaluation {len(run.history.configs)} of {budget}"
        return f"search {len(run.history)} {of}, best {_error(run.best, run.task.percent)}"
    whole = run.study.final_seeds
    return f"evaluation, {whole} trainings, {run.trained_finally} epochs"


class _Count:
    """What every view needs: how many cells are done, and how long they took."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.jobs = 1
        self.seconds: list[float] = []
        self.started = time.monotonic()

    def begin(self, total: int, finished: Sequence[CellRecord], jobs: int) -> None:
        self.total, self.done, self.jobs = total, len(finished), jobs
        self.seconds = [r.search_seconds + r.evaluation_seconds for r in finished]
        self.started = time.monotonic()

    def add(self, record: CellRecord) -> None:
        self.done += 1
        self.seconds.append(record.search_seconds + record.evaluation_seconds)

    def summary(self) -> str:
        left = time_left(self.seconds, self.total - self.done, self.jobs)
        return (
            f"{self.done} of {self.total} cells done, "
            f"{_clock(time.monotonic() - self.started)} so far, {_told(left)}"
        )


class _Filter:
    """Which cells get a line of their own: slow ones, and failures that are not yet known."""

    def __init__(self) -> None:
        self._told: Counter[tuple[str, str]] = Counter()
        self.hidden = 0

    def lines(self, record: CellRecord) -> list[str]:
        """What to print of a finished cell; nothing of most that took milliseconds."""
        if record.failures:
            what = (record.method, record.failures[0])
            self._told[what] += 1
            if self._told[what] > _SAME_FAILURES:
                self.hidden += 1
                return []
            more = self._told[what] == _SAME_FAILURES
            end = "; more of these are counted and not printed" if more else ""
            return [outcome(record) + end]
        slow = record.search_seconds + record.evaluation_seconds > _SLOW
        if record.clock == "wall" or slow:
            return [outcome(record)]
        self.hidden += 1
        return []


class _Best:
    """The best method of each task so far, by the mean error of its recommendations."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, tuple[float, int]]] = {}
        self._percent: dict[str, bool] = {}

    def add(self, record: CellRecord) -> None:
        """Count a finished cell."""
        error = record.test_error
        if error is None:
            return
        methods = self._sums.setdefault(record.label, {})
        total, count = methods.get(record.method, (0.0, 0))
        methods[record.method] = (total + error, count + 1)
        self._percent[record.label] = record.percent

    def told(self, label: str) -> str:
        """The best method of a task and its error, in words; empty before there is one."""
        means = {m: total / count for m, (total, count) in self._sums.get(label, {}).items()}
        if not means:
            return ""
        name = min(means, key=lambda m: means[m])
        return f"{name}, {_error(means[name], self._percent[label])}"

    def labels(self) -> list[str]:
        """The tasks with a result."""
        return list(self._sums)


class PlainProgress:
    """A line when a cell is finished that took a while or failed, and some now and then.

    Args:
        write: Takes a line.
        every: Seconds between the lines in between.
        often: The same while cells finish without a line of their own.
    """

    def __init__(
        self,
        write: Callable[[str], None] = print,
        every: float = 30.0,
        often: float = 5.0,
    ) -> None:
        self._every, self._often = every, often
        self._write: Callable[[str], None] = lambda line: write(visible(line))
        self._count, self._best, self._filter = _Count(), _Best(), _Filter()
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        sys.stdout.flush()

    def begin(self, study: Study, total: int, finished: Sequence[CellRecord], jobs: int) -> None:
        """Say what is about to run."""
        self._count.begin(total, finished, jobs)
        for record in finished:
            self._best.add(record)
        again = f"; {len(finished)} done before" if finished else ""
        self._write(f"{study.title}: {total} cells, {jobs} at once{again}")

    def unavailable(self, name: str, why: str) -> None:
        """Say what cannot run here."""
        self._write(f"NOT RUN: {name}: {why}")

    def tick(self, running: Sequence[CellRun]) -> None:
        """Say what is running, now and then."""
        every = min(self._often, self._every) if self._filter.hidden else self._every
        if time.monotonic() - self._last < every:
            return
        self._last, self._filter.hidden = time.monotonic(), 0
        self._write(self._count.summary())
        for run in running:
            best = self._best.told(run.cell.task.label)
            so_far = f"; best method so far {best}" if best else ""
            self._write(f"  {run.cell}: {_describe(run)}{so_far}")
        sys.stdout.flush()

    def finish_cell(self, record: CellRecord) -> None:
        """Say what became of a cell, if it is worth a line."""
        self._count.add(record)
        self._best.add(record)
        for line in self._filter.lines(record):
            self._write(f"[{self._count.done}/{self._count.total}] {line}")
        if self._count.done == self._count.total and self._filter.hidden:
            self._write(self._count.summary())
        sys.stdout.flush()


def outcome(record: CellRecord) -> str:
    """A finished cell in one line."""
    config = record.recommendation.get("config", {})
    chosen = ", ".join(f"{name} {_short(value)}" for name, value in config.items())
    failed = f"; FAILED: {'; '.join(record.failures)}" if record.failures else ""
    return (
        f"{record.label} · {record.method} · seed {record.seed}: test error "
        f"{_error(record.test_error, record.percent)} with {chosen}; "
        f"{record.epochs_used} epochs, {record.search_seconds:.0f} s{failed}"
    )


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


class LiveProgress:
    """A table that is redrawn in place, on a terminal."""

    def __init__(self) -> None:
        from rich.live import Live

        self._count, self._best, self._filter = _Count(), _Best(), _Filter()
        self._running: list[CellRun] = []
        self._live: Any = Live(get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._live.stop()

    def begin(self, study: Study, total: int, finished: Sequence[CellRecord], jobs: int) -> None:
        """Show the title."""
        self._count.begin(total, finished, jobs)
        for record in finished:
            self._best.add(record)
        self._print((study.title, "bold"), f": {total} cells, {jobs} at once")

    def unavailable(self, name: str, why: str) -> None:
        """Say what cannot run here."""
        self._print(("not run", "bold"), f": {name}: {why}")

    def tick(self, running: Sequence[CellRun]) -> None:
        """Remember what is running, for the next drawing."""
        self._running = list(running)

    def finish_cell(self, record: CellRecord) -> None:
        """Print the cell above the table, if it is worth a line."""
        self._count.add(record)
        self._best.add(record)
        for line in self._filter.lines(record):
            self._print(line)

    def _print(self, *parts: str | tuple[str, str]) -> None:
        """A line above the table: text with styles, in which brackets are brackets."""
        from rich.text import Text

        told = [visible(p) if isinstance(p, str) else (visible(p[0]), p[1]) for p in parts]
        self._live.console.print(Text.assemble(*told))

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=True, header_style="bold", box=None)
        for column in ("running", "what", "best validation error so far", "for"):
            table.add_column(column)
        for run in self._running:
            table.add_row(
                Text(visible(str(run.cell))),
                Text(visible(_describe(run))),
                _error(run.best, run.task.percent),
                _clock(time.monotonic() - run.started),
            )
        bar = ProgressBar(total=max(self._count.total, 1), completed=self._count.done, width=60)
        best = [
            Text(visible(f"{label}: {self._best.told(label)}"))
            for label in self._best.labels()[-_SHOWN:]
        ]
        heading = ["best method so far, by mean test error"] if best else []
        return Group(table, bar, self._count.summary(), *heading, *best)


def make_observer() -> LiveProgress | PlainProgress:
    """The live table on a terminal, plain lines elsewhere."""
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()
