"""How a study goes on, for whoever is watching: a live table, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.runner import CellRun, Phase
from tune_ext.benchmark.study import Study

__all__ = ["LiveProgress", "PlainProgress", "make_observer", "time_left"]


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


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _error(value: float | None) -> str:
    return "none yet" if value is None else f"{100 * value:.2f} %"


def _describe(run: CellRun) -> str:
    if run.phase is Phase.SEARCH:
        return f"search {len(run.history)} of {run.study.budget} epochs, best {_error(run.best)}"
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
            f"{_clock(time.monotonic() - self.started)} so far, about {_clock(left)} left"
        )


class PlainProgress:
    """One line when a cell is finished, and one now and then in between.

    Args:
        write: Takes a line.
        every: Seconds between the lines in between.
    """

    def __init__(self, write: Callable[[str], None] = print, every: float = 30.0) -> None:
        self._write, self._every = write, every
        self._count = _Count()
        self._next = time.monotonic() + every

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
        again = f"; {len(finished)} done before" if finished else ""
        self._write(f"{study.title}: {total} cells, {jobs} at once{again}")

    def unavailable(self, name: str, why: str) -> None:
        """Say what cannot run here."""
        self._write(f"NOT RUN: {name}: {why}")

    def tick(self, running: Sequence[CellRun]) -> None:
        """Say what is running, now and then."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        self._write(self._count.summary())
        for run in running:
            self._write(f"  {run.cell}: {_describe(run)}")

    def finish_cell(self, record: CellRecord) -> None:
        """Say what became of a cell."""
        self._count.add(record)
        self._write(f"[{self._count.done}/{self._count.total}] {outcome(record)}")
        sys.stdout.flush()


def outcome(record: CellRecord) -> str:
    """A finished cell in one line."""
    config = record.recommendation.get("config", {})
    chosen = ", ".join(f"{name} {value:.2g}" for name, value in config.items())
    failed = f"; FAILED: {'; '.join(record.failures)}" if record.failures else ""
    return (
        f"{record.task['name']} · {record.method} · seed {record.seed}: test error "
        f"{_error(record.test_error)} with {chosen}; {record.epochs_used} epochs, "
        f"{record.search_seconds:.0f} s{failed}"
    )


class LiveProgress:
    """A table that is redrawn in place, on a terminal."""

    def __init__(self) -> None:
        from rich.live import Live

        self._count = _Count()
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
        self._live.console.print(f"[bold]{study.title}[/bold]: {total} cells, {jobs} at once")

    def unavailable(self, name: str, why: str) -> None:
        """Say what cannot run here."""
        self._live.console.print(f"[bold]not run[/bold]: {name}: {why}")

    def tick(self, running: Sequence[CellRun]) -> None:
        """Remember what is running, for the next drawing."""
        self._running = list(running)

    def finish_cell(self, record: CellRecord) -> None:
        """Print the cell above the table."""
        self._count.add(record)
        self._live.console.print(outcome(record), highlight=False)

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table(show_header=True, header_style="bold", box=None)
        for column in ("running", "what", "best validation error so far", "for"):
            table.add_column(column)
        for run in self._running:
            table.add_row(
                str(run.cell),
                _describe(run),
                _error(run.best),
                _clock(time.monotonic() - run.started),
            )
        bar = ProgressBar(total=max(self._count.total, 1), completed=self._count.done, width=60)
        return Group(table, bar, self._count.summary())


def make_observer() -> LiveProgress | PlainProgress:
    """The live table on a terminal, plain lines elsewhere."""
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()
