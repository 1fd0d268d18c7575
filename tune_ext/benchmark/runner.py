"""Runs the cells of a study: several at once, watched, recorded as each one finishes.

A cell has two phases: the search, which spends the budget, and the evaluation, which
trains the recommendation at full length with the study's evaluation seeds, outside the
budget, and tests each training once. Both run in a worker process (`worker.py`). A worker
that makes no progress, or takes too long, or dies, is ended together with everything that
it started; that is a failure of the method, with the reason in its record, and the study
goes on: a search that was ended still has its best trial so far evaluated.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from tune_ext._checks import check_count
from tune_ext.benchmark._saving import Saver
from tune_ext.benchmark._storage import Mirror
from tune_ext.benchmark._unavailable import grouped, pair
from tune_ext.benchmark.cell_run import CellRun, Phase, Place
from tune_ext.benchmark.methods import check_methods, missing, unsuited
from tune_ext.benchmark.processes import WorkerProcess
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.benchmark.study import Cell, Study, TaskSpec
from tune_ext.errors import InvalidValueError, MissingDependencyError

__all__ = [
    "CellRun",
    "Observer",
    "Phase",
    "Place",
    "default_jobs",
    "run_study",
    "split_available",
]

# What a worker needs before anything is imported in it. Torch takes its number of threads
# from OMP_NUM_THREADS, and Ray hands that on to the processes of its trials.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # SMAC goes through sets of strings: without this a seed would not repeat its search.
    "PYTHONHASHSEED": "0",
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


class _Job:
    """A worker process and the cell that it runs."""

    def __init__(self, module: str, log: Path, place: Place) -> None:
        self._module, self._log, self._place = module, log, place
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
        journal = self._journal
        if journal is not None and run.phase is Phase.SEARCH:
            journal.write_text("", encoding="utf-8")
        worker.send(*run.request(journal))

    def try_to_begin(self, run: CellRun, saver: Saver) -> bool:
        """Start a cell, if there is room for the files of a worker."""
        try:
            self.begin(run)
        except OSError as error:
            self.run = None
            self._drop()
            saver.wait_for(str(error))
        return self.run is not None

    @property
    def _journal(self) -> Path | None:
        """Where trials count their epochs; nowhere on a cluster or where nothing is trained."""
        if self._worker is None or self.run is None or self.run.task.simulated:
            return None
        return None if self._place.address else self._worker.scratch / "journal.txt"

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
        if self.run is None or (self.run.phase is phase and self._worker is not None):
            return
        while self.run.phase is not Phase.DONE:
            try:
                self.begin(self.run)
                return
            except OSError as error:  # no room for the files of a new worker
                self._drop()
                self.run.fail(str(error), again=False)

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
        journal = self._journal
        if journal is None or self.run is None or self.run.phase is not Phase.SEARCH:
            return
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
    problems |= {t.label: why for t in study.tasks if (why := t.create().missing())}
    methods = tuple(m for m in study.methods if m not in problems)
    tasks = tuple(t for t in study.tasks if t.label not in problems)
    if not methods or not tasks:
        raise MissingDependencyError("; ".join(f"{n}: {why}" for n, why in problems.items()))
    pairs = {
        pair(method, task.label): why
        for task in tasks
        for method in methods
        if (why := _left_out(method, task) or unsuited(method, task.create(), study.unit))
    }
    if len(pairs) == len(methods) * len(tasks):
        raise InvalidValueError("; ".join(f"{n}: {why}" for n, why in pairs.items()))
    return replace(study, methods=methods, tasks=tasks), problems | pairs


def _left_out(method: str, task: TaskSpec) -> str | None:
    asked = task.methods is None or method in task.methods
    return None if asked else "the study does not ask for it"


def run_study(
    study: Study,
    store: RecordStore,
    observer: Observer,
    *,
    jobs: int = 1,
    place: Place | None = None,
    mirror: Mirror | None = None,
    worker: str = "tune_ext.benchmark.worker",
) -> list[CellRecord]:
    """Run every cell that has no record yet, and return the records of all cells.

    A method or task that cannot run here is told to the observer and noted in the
    directory, and the others run.

    Args:
        study: What to run.
        store: Where the records are; finished cells are not run again.
        observer: Told how it goes on.
        jobs: How many cells run at once.
        place: Where trials are trained; by default each job has a small Ray of its own.
        mirror: Where else the records are kept; what is there is finished as well.
        worker: The module that runs as a worker process.

    Raises:
        InvalidValueError: The directory holds another study; a name is unknown.
        MissingDependencyError: No task or no method can run here.
        StateError: The records are damaged, or another process is writing them.
    """
    check_count("jobs", jobs, 1, 10_000)
    runnable, unavailable = split_available(study)
    with store.locked(), contextlib.nullcontext() if mirror is None else mirror.held():
        if mirror is not None:
            mirror.fetch()
        finished = {r.key: r for r in store.open(study, unavailable)}
        cells = [c for c in runnable.cells() if pair(c.method, c.task.label) not in unavailable]
        before = [finished[c.key] for c in cells if c.key in finished]
        waiting = deque(c for c in cells if c.key not in finished)
        observer.begin(study, len(cells), before, jobs)
        for name, why in grouped(unavailable):
            observer.unavailable(name, why)
        logs = store.directory / "logs"
        if waiting:
            logs.mkdir(exist_ok=True)
        place = place or Place()
        crew = [_Job(worker, logs / f"job-{n}.log", place) for n in range(min(jobs, len(waiting)))]
        saver = Saver(store)
        ended = False
        try:
            for record in _work(study, crew, waiting, observer, place, mirror, saver):
                finished[record.key] = record
                observer.finish_cell(record)
            ended = True
        finally:
            saver.close()
            store.close()
            if mirror is not None:
                mirror.put(now=True)
            for job in crew:
                job.close(kill=not ended)
    return [finished[c.key] for c in cells]


def _work(
    study: Study,
    crew: list[_Job],
    waiting: deque[Cell],
    observer: Observer,
    place: Place,
    mirror: Mirror | None,
    saver: Saver,
) -> Iterator[CellRecord]:
    """Yield a record whenever a finished cell was written."""
    while True:
        yield from saver.write()
        _begin(study, crew, waiting, place, saver)
        running = [job for job in crew if job.run is not None]
        if not running:
            if not saver.is_waiting:
                return
            saver.wait()
            if mirror is not None:
                mirror.renew()
            observer.tick([])
            continue
        saver.go_on()
        ready = wait([job.pipe for job in running], timeout=0.25)
        for job in running:
            if job.pipe in ready:
                job.receive()
            job.check()
            if job.run is not None and job.run.phase is Phase.DONE:
                run, job.run = job.run, None
                if not saver.take(run.record()):
                    waiting.appendleft(run.cell)
        if mirror is not None:
            mirror.renew()
            mirror.put()
        observer.tick([job.run for job in running if job.run is not None])


def _begin(
    study: Study, crew: list[_Job], waiting: deque[Cell], place: Place, saver: Saver
) -> None:
    """Give those a cell that have none."""
    for job in crew:
        if job.run is None and waiting and not saver.is_waiting:
            cell = waiting.popleft()
            if not job.try_to_begin(CellRun(cell, study, place=place), saver):
                waiting.appendleft(cell)


def default_jobs() -> int:
    """As many cells at once as this process has cores, but at most 8: each needs a Ray."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)
