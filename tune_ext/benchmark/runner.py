"""Runs the cells of a study: several at once, watched, recorded as each one finishes.

A cell has two phases: the search, which spends the budget, and the evaluation, which
trains the recommendation at full length with the study's evaluation seeds, outside the
budget, and tests each training once. Both run in a worker process (`worker.py`). A worker
that makes no progress, or takes too long, or dies, is ended together with everything that
it started; that is a failure of the method, with the reason in its record, and the study
goes on: a search that was ended still has its best trial so far evaluated.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from tune_ext._checks import check_count
from tune_ext.benchmark.methods import METHODS, check_methods, missing, unsuited
from tune_ext.benchmark.processes import WorkerProcess
from tune_ext.benchmark.records import (
    CellRecord,
    History,
    RecordStore,
    anytime,
    best_trial,
    provenance,
)
from tune_ext.benchmark.study import Cell, Study
from tune_ext.errors import InvalidValueError, MissingDependencyError

__all__ = ["CellRun", "Observer", "Phase", "default_jobs", "run_study", "split_available"]

# What a worker needs before anything is imported in it. Torch takes its number of threads
# from OMP_NUM_THREADS, and Ray hands that on to the processes of its trials.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray gives trials a lower priority than anything else on the machine: a busy machine
    # would then slow down the searches and not the evaluations.
    "RAY_worker_niceness": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
}


class Phase(Enum):
    """Where a cell stands."""

    SEARCH = "search"
    EVALUATE = "evaluate"
    DONE = "done"


class Observer(Protocol):
    """Who wants to know how the study goes on; every method may do nothing."""

    def begin(self, study: Study, total: int, finished: Sequence[CellRecord], jobs: int) -> None:
        """The study begins; `finished` was done before."""

    def unavailable(self, name: str, why: str) -> None:
        """A method or task of the study cannot run here."""

    def tick(self, running: Sequence[CellRun]) -> None:
        """Called a few times a second."""

    def finish_cell(self, record: CellRecord) -> None:
        """A cell has been recorded."""


@dataclass
class CellRun:
    """A cell in progress, as the runner sees it: pure state, no processes.

    Args:
        cell: What runs.
        study: The study that it belongs to.
        clock: Seconds, for durations and deadlines.
    """

    cell: Cell
    study: Study
    clock: Callable[[], float] = time.monotonic
    phase: Phase = Phase.SEARCH
    history: History = field(default_factory=History)
    trained_finally: int = 0
    tests: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    recommendation: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    journaled: int = 0

    def __post_init__(self) -> None:
        self.started = self.last_progress = self.phase_started = self.clock()
        self._seconds = {Phase.SEARCH: 0.0, Phase.EVALUATE: 0.0}
        self._answer: dict[str, Any] | None = None
        self._again = False
        if METHODS[self.cell.method].build is None:
            self._recommend()

    @property
    def best(self) -> float | None:
        """The best validation error of the search so far."""
        curve = anytime(self.history)
        return curve[-1][1] if curve else None

    def request(self, journal: Path) -> tuple[str, dict[str, Any]]:
        """The message that starts the present phase."""
        task = self.cell.task.to_json()
        if self.phase is Phase.SEARCH:
            return "search", {
                "task": task,
                "method": self.cell.method,
                "seed": self.cell.seed,
                "budget": self.study.budget,
                "journal": str(journal),
            }
        return "evaluate", {
            "task": task,
            "config": self.recommendation["config"],
            "seeds": self.study.evaluation_seeds(self.cell.seed),
        }

    def handle(self, kind: str, payload: Any) -> None:
        """Take a message from the worker; may move on to the next phase."""
        self.last_progress = self.clock()
        if kind == "epoch":
            self.history.add(
                payload["trial_id"], payload["config"], payload["result"], payload["seconds"]
            )
        elif kind == "searched":
            self._answer = payload["answer"]
            self.details = payload["details"]
            if payload["errors"]:
                count, last = len(payload["errors"]), payload["errors"][-1]
                self.failures.append(f"{count} of its trials crashed, the last with {last}")
            self._recommend()
        elif kind == "final":
            self.trained_finally += 1
        elif kind == "evaluated":
            self.tests = payload
            if any(t["test_error"] is None for t in payload):
                self.failures.append("the recommendation diverged at full length")
            self._enter(Phase.DONE)
        elif kind == "error":
            self.fail(payload)

    def overdue(self) -> str | None:
        """Why the watchdog should end the present phase, or None."""
        now = self.clock()
        if now - self.last_progress > self.study.stall_seconds:
            return f"no progress for {self.study.stall_seconds:g} s"
        if now - self.started > self.study.cell_seconds:
            return f"not finished within {self.study.cell_seconds:g} s"
        return None

    def fail(self, reason: str) -> None:
        """The present phase failed; a failed search still has its best trial evaluated.

        A search that fails before its first epoch is tried once more: on a busy machine
        that is no fault of the method.
        """
        used = max(len(self.history), self.journaled)
        if self.phase is Phase.SEARCH and not used and not self._again:
            self._again = True
        elif self.phase is Phase.SEARCH:
            self.failures.append(f"search, after {used} epochs: {reason}")
            self._recommend()
        else:
            self.failures.append(f"evaluation: {reason}")
            self._enter(Phase.DONE)
        self.started = self.last_progress = self.clock()

    def _enter(self, phase: Phase) -> None:
        now = self.clock()
        self._seconds[self.phase] = now - self.phase_started
        self.phase, self.phase_started = phase, now

    def _recommend(self) -> None:
        best = best_trial(self.history)
        if self._answer is not None:
            self.recommendation = {"config": self._answer, "source": "method"}
        elif best is not None:
            self.recommendation = {**best, "source": "validation"}
        else:
            default = dict(self.cell.task.create().default_config)
            self.recommendation = {"config": default, "source": "default"}
            if METHODS[self.cell.method].build is not None:
                self.failures.append("no finite result: the default was evaluated instead")
        self._enter(Phase.EVALUATE)

    def record(self) -> CellRecord:
        """The finished cell."""
        return CellRecord(
            task=self.cell.task.to_json(),
            method=self.cell.method,
            seed=self.cell.seed,
            budget=self.study.budget,
            epochs_used=max(len(self.history), self.journaled),
            recommendation=self.recommendation,
            tests=self.tests,
            failures=self.failures,
            trials=self.history.trials(),
            history=self.history.to_json(),
            anytime=anytime(self.history),
            search_seconds=round(self._seconds[Phase.SEARCH], 3),
            evaluation_seconds=round(self._seconds[Phase.EVALUATE], 3),
            details=self.details,
            provenance=provenance(),
        )


class _Job:
    """A worker process and the cell that it runs."""

    def __init__(self, module: str, log: Path) -> None:
        self._module, self._log = module, log
        self._worker: WorkerProcess | None = None
        self.run: CellRun | None = None

    def _process(self) -> WorkerProcess:
        if self._worker is None:
            self._worker = WorkerProcess([self._module], _ENVIRONMENT, self._log)
        return self._worker

    @property
    def pipe(self) -> Any:
        """The pipe to wait on, or None."""
        return self._worker.pipe if self._worker is not None and self.run is not None else None

    def begin(self, run: CellRun) -> None:
        """Start a cell's present phase."""
        self.run = run
        worker = self._process()
        journal = worker.scratch / "journal.txt"
        if run.phase is Phase.SEARCH:
            journal.write_text("", encoding="utf-8")
        worker.send(*run.request(journal))

    def receive(self) -> None:
        """Handle what the worker has sent."""
        if self._worker is None or self.run is None:
            return
        phase = self.run.phase
        try:
            while self.run.phase is phase and self._worker.pipe.poll():
                kind, payload = self._worker.pipe.recv()
                if kind != "epoch":
                    self._count_epochs()
                self.run.handle(kind, payload)
                if kind == "error":
                    self._drop()
                    break
        except (EOFError, OSError):
            self._count_epochs()
            self.run.fail(self._worker.exit_reason())
            self._drop()
        self._go_on(phase)

    def _go_on(self, phase: Phase) -> None:
        """Start the next phase, or the same one again in a new worker."""
        if self.run is None or self.run.phase is Phase.DONE:
            return
        if self.run.phase is not phase or self._worker is None:
            self.begin(self.run)

    def check(self) -> None:
        """End a phase that hangs or takes too long."""
        reason = self.run.overdue() if self.run is not None else None
        if reason is None or self.run is None:
            return
        phase = self.run.phase
        self._count_epochs()
        self._drop()
        self.run.fail(reason)
        self._go_on(phase)

    def _count_epochs(self) -> None:
        if self._worker is None or self.run is None or self.run.phase is not Phase.SEARCH:
            return
        journal = self._worker.scratch / "journal.txt"
        if journal.exists():
            with journal.open(encoding="utf-8") as file:
                self.run.journaled = sum(1 for _ in file)

    def _drop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
        self._worker = None

    def close(self, *, kill: bool) -> None:
        """End the worker."""
        if self._worker is not None and not kill:
            self._worker.stop()
        self._drop()


def split_available(study: Study) -> tuple[Study, dict[str, str]]:
    """What of a study can run here, and why the rest cannot.

    Returns:
        The study with what can run, and the rest: name → what is missing, and
        "METHOD on TASK" → why the one cannot search the other.

    Raises:
        InvalidValueError: A task or method is unknown, or no method can search any task.
        MissingDependencyError: Nothing is left.
    """
    check_methods(study.methods)
    problems = {m: why for m in study.methods if (why := missing(m))}
    problems |= {t.name: why for t in study.tasks if (why := t.create().missing())}
    methods = tuple(m for m in study.methods if m not in problems)
    tasks = tuple(t for t in study.tasks if t.name not in problems)
    if not methods or not tasks:
        raise MissingDependencyError("; ".join(f"{n}: {why}" for n, why in problems.items()))
    cells = replace(study, methods=methods, tasks=tasks).cells()
    pairs = {
        f"{c.method} on {c.task.name}": why for c in cells if (why := unsuited_cell(c)) is not None
    }
    if len(pairs) == len(methods) * len(tasks):
        raise InvalidValueError("; ".join(f"{n}: {why}" for n, why in pairs.items()))
    return replace(study, methods=methods, tasks=tasks), problems | pairs


def unsuited_cell(cell: Cell) -> str | None:
    """Why the cell's method cannot search its task; None if it can."""
    return unsuited(cell.method, cell.task.create())


def run_study(
    study: Study,
    store: RecordStore,
    observer: Observer,
    *,
    jobs: int = 1,
    worker: str = "tune_ext.benchmark.worker",
) -> list[CellRecord]:
    """Run every cell that has no record yet, and return the records of all cells.

    A method or task that cannot run here is told to the observer and noted in the
    directory, and the others run.

    Args:
        study: What to run.
        store: Where the records are; finished cells are not run again.
        observer: Told how it goes on.
        jobs: How many cells run at once, each on one core.
        worker: The module that runs as a worker process.

    Raises:
        InvalidValueError: The directory holds another study; a name is unknown.
        MissingDependencyError: No task or no method can run here.
        StateError: The records are damaged, or another process is writing them.
    """
    check_count("jobs", jobs)
    runnable, unavailable = split_available(study)
    with store.locked():
        finished = {r.key: r for r in store.open(study, unavailable)}
        cells = [c for c in runnable.cells() if unsuited_cell(c) is None]
        before = [finished[c.key] for c in cells if c.key in finished]
        waiting = deque(c for c in cells if c.key not in finished)
        observer.begin(study, len(cells), before, jobs)
        for name, why in unavailable.items():
            observer.unavailable(name, why)
        logs = store.directory / "logs"
        if waiting:
            logs.mkdir(exist_ok=True)
        crew = [_Job(worker, logs / f"job-{n}.log") for n in range(min(jobs, len(waiting)))]
        ended = False
        try:
            for record in _work(study, crew, waiting, observer):
                store.append(record)
                finished[record.key] = record
                observer.finish_cell(record)
            ended = True
        finally:
            for job in crew:
                job.close(kill=not ended)
    return [finished[c.key] for c in cells]


def _work(
    study: Study, crew: list[_Job], waiting: deque[Cell], observer: Observer
) -> Iterator[CellRecord]:
    """Yield a record whenever a cell is finished."""
    while True:
        for job in crew:
            if job.run is None and waiting:
                job.begin(CellRun(waiting.popleft(), study))
        running = [job for job in crew if job.run is not None]
        if not running:
            return
        ready = wait([job.pipe for job in running], timeout=0.25)
        for job in running:
            if job.pipe in ready:
                job.receive()
            job.check()
            if job.run is not None and job.run.phase is Phase.DONE:
                run, job.run = job.run, None
                yield run.record()
        observer.tick([job.run for job in running if job.run is not None])


def default_jobs() -> int:
    """As many cells at once as this process has cores, but at most 8: each needs a Ray."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)
