"""A cell in progress as the runner sees it: pure state, no processes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from tune_ext._checks import as_number
from tune_ext.benchmark.history import History, anytime, best_trial
from tune_ext.benchmark.methods import METHODS
from tune_ext.benchmark.provenance import provenance
from tune_ext.benchmark.records import CellRecord
from tune_ext.benchmark.study import Cell, Study
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["NO_RESULT", "CellRun", "Phase", "Place"]

NO_RESULT = "no finite result: the default was evaluated instead"
"""The failure of a search that found nothing to recommend."""


class Phase(Enum):
    """Where a cell stands."""

    SEARCH = "search"
    EVALUATE = "evaluate"
    DONE = "done"


@dataclass(frozen=True)
class Place:
    """Where trials are trained; those of simulated tasks need no place.

    Args:
        address: Of a Ray cluster that runs already; None starts a small Ray for every job.
        storage: A path that every node of the cluster reaches, for what trials save. What is
            left there after a cell is removed.
        cpus_per_trial: Processors that a trial is given.
        gpus_per_trial: Devices that a trial is given; fractions share one.
    """

    address: str | None = None
    storage: str | os.PathLike[str] | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0

    def __post_init__(self) -> None:
        if self.address is not None and self.storage is None:
            raise InvalidValueError(
                "a cluster needs a storage: give --storage, a path that every node reaches"
            )
        if isinstance(self.storage, os.PathLike):
            object.__setattr__(self, "storage", os.fspath(self.storage))
        for name in ("address", "storage"):
            if not isinstance(getattr(self, name), str | None):
                raise InvalidTypeError(f"{name} must be text, got {getattr(self, name)!r}")
        if self.address is not None and self.address.strip() in ("", "local"):
            raise InvalidValueError(
                f"{self.address!r} is no address of a Ray cluster that runs: give auto, or "
                "HOST:PORT of its head; or none for a Ray on this machine"
            )
        for name, least in (("cpus_per_trial", 0.0), ("gpus_per_trial", 0.0)):
            value = as_number(name, getattr(self, name))
            if not (math.isfinite(value) and value >= least):
                raise InvalidValueError(f"{name} must not be negative, got {value!r}")
        if self.gpus_per_trial > 1 and self.gpus_per_trial != int(self.gpus_per_trial):
            raise InvalidValueError(
                f"gpus_per_trial above 1 must be a whole number, got {self.gpus_per_trial!r}"
            )


@dataclass
class CellRun:
    """A cell in progress.

    Args:
        cell: What runs.
        study: The study that it belongs to.
        clock: Seconds, for durations and deadlines.
        place: Where trials are trained.
    """

    cell: Cell
    study: Study
    clock: Callable[[], float] = time.monotonic
    place: Place = field(default_factory=Place)
    phase: Phase = Phase.SEARCH
    history: History = field(default_factory=History)
    trained_finally: int = 0
    tests: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    recommendation: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    incumbents: list[list[float]] = field(default_factory=list)
    makespan: float | None = None
    busy_seconds: float | None = None
    journaled: int = 0
    trained: int = 0

    def __post_init__(self) -> None:
        self.task = self.cell.task.create()
        self.started = self.last_progress = self.phase_started = self.clock()
        self._seconds = {Phase.SEARCH: 0.0, Phase.EVALUATE: 0.0}
        self._answer: dict[str, Any] | None = None
        self._schedule: list[Any] | None = None
        self._again = False
        if METHODS[self.cell.method].build is None:
            self._recommend()

    @property
    def best(self) -> float | None:
        """The best validation error of the search so far."""
        curve = anytime(self.history)
        return curve[-1][1] if curve else None

    @property
    def epochs_used(self) -> int:
        """Epochs that the search has trained, every one counted.

        Those that were trained and never reported are in the journal, or told by the
        simulation. What a budget in seconds had no room for was cut off, and is none.
        """
        trained = 0 if self.study.unit == "seconds" else max(self.journaled, self.trained)
        return max(len(self.history), trained)

    def request(self, journal: Path | None) -> tuple[str, dict[str, Any]]:
        """The message that starts the present phase."""
        task = self.cell.task.to_json()
        if self.phase is Phase.SEARCH:
            return "search", {
                "task": task,
                "method": self.cell.method,
                "seed": self.cell.seed,
                "budget": self.study.budget_of(self.cell.task),
                "unit": self.study.unit,
                "workers": self.study.workers,
                "place": asdict(self.place),
                "journal": None if journal is None else str(journal),
            }
        return "evaluate", {
            "task": task,
            "config": self.recommendation["config"],
            "schedule": self.recommendation.get("schedule"),
            "seeds": self.study.evaluation_seeds(self.cell.seed),
            "place": asdict(self.place),
        }

    def handle(self, kind: str, payload: Any) -> None:
        """Take a message from the worker; may move on to the next phase."""
        self.last_progress = self.clock()
        if kind == "epoch":
            self.history.add(
                payload["trial_id"], payload["config"], payload["result"], payload["seconds"]
            )
            self._add_incumbent(payload.get("incumbent"))
        elif kind == "history":
            self.history, self.incumbents = payload["history"], payload["incumbents"]
        elif kind == "searched":
            self._end_search(payload)
        elif kind == "final":
            self.trained_finally += 1
        elif kind == "evaluated":
            self.tests = payload
            if any(t["test_error"] is None for t in payload):
                self.failures.append("the recommendation diverged at full length")
            self._enter(Phase.DONE)
        elif kind == "error":
            self.fail(payload)
        elif kind == "failed":
            self.fail(payload, again=False)

    def _add_incumbent(self, point: list[float] | None) -> None:
        if point is not None:
            self.incumbents.append(point)

    def _end_search(self, payload: dict[str, Any]) -> None:
        self._answer, self._schedule = payload["answer"], payload.get("schedule")
        self.details = payload["details"]
        self.makespan, self.busy_seconds = payload.get("makespan"), payload.get("busy_seconds")
        self.trained = payload.get("epochs", 0)
        self._add_incumbent(payload.get("incumbent"))
        if payload["errors"]:
            count, last = len(payload["errors"]), payload["errors"][-1]
            self.failures.append(f"{count} of its trials crashed, the last with {last}")
        self._recommend()

    def overdue(self) -> str | None:
        """Why the watchdog should end the present phase, or None."""
        now = self.clock()
        if now - self.last_progress > self.study.stall_seconds:
            return f"no progress for {self.study.stall_seconds:g} s"
        if now - self.started > self.study.cell_seconds:
            return f"not finished within {self.study.cell_seconds:g} s"
        return None

    def fail(self, reason: str, *, again: bool = True) -> None:
        """The present phase failed; a failed search still has its best trial evaluated.

        A search that fails before its first epoch is tried once more, unless `again` is
        False: on a busy machine that is no fault of the method.
        """
        used = max(len(self.history), self.journaled)
        if again and self.phase is Phase.SEARCH and not used and not self._again:
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
        sizes = self.task.image_sizes
        best = best_trial(self.history, sizes)
        if self._answer is not None:
            self.recommendation = {"config": self._answer, "source": "method"}
            if self._schedule:
                self.recommendation["schedule"] = [list(step) for step in self._schedule]
        elif best is not None:
            if sizes:  # a search that was cut off, perhaps on small images
                best["config"] = {**best["config"], "image_size": sizes[-1]}
            self.recommendation = {**best, "source": "validation"}
        else:
            default = dict(self.task.default_config)
            self.recommendation = {"config": default, "source": "default"}
            if METHODS[self.cell.method].build is not None:
                self.failures.append(NO_RESULT)
        self._enter(Phase.EVALUATE)

    def record(self) -> CellRecord:
        """The finished cell."""
        task = self.task
        spec = self.cell.task
        return CellRecord(
            task={"name": spec.name, "options": dict(spec.options)},
            label=spec.label,
            method=self.cell.method,
            seed=self.cell.seed,
            budget=self.study.budget_of(spec),
            unit=self.study.unit,
            max_epochs=task.max_epochs,
            workers=self.study.workers,
            clock="simulated" if task.simulated else "wall",
            epochs_used=self.epochs_used,
            recommendation=self.recommendation,
            tests=self.tests,
            failures=self.failures,
            trials=self.history.trials(),
            history={} if task.simulated else self.history.to_json(),
            anytime=anytime(self.history),
            incumbents=self.incumbents,
            makespan=self.makespan,
            busy_seconds=self.busy_seconds,
            search_seconds=round(self._seconds[Phase.SEARCH], 3),
            evaluation_seconds=round(self._seconds[Phase.EVALUATE], 3),
            details=self.details,
            provenance=provenance(),
            worst_error=task.worst_error,
            percent=task.percent,
            error_name=task.error_name,
            regret_range=task.regret_range,
            cpu_seconds=self.history.total("cpu_seconds"),
        )
