"""One driver at a time in an experiment's directory.

Ray lets two drivers run one experiment at once: each writes its state over the other's, and what
a restore finds is of both. Ours leave a mark in the directory. A second driver is told so before
it trains anything; one that another has taken over ends as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tune_ext._mark import Mark
from tune_ext._process import is_alive
from tune_ext.errors import StateError
from tune_ext.raytune._base import as_number
from tune_ext.raytune._records import JsonFile, beside, identity
from tune_ext.raytune._state_copy import StateCopy

__all__ = ["FILE_NAME", "Driver", "DriverMark"]

FILE_NAME = "tune_ext_driver.json"
_EVERY = 5.0
"""Seconds between two renewals."""
_WATCH = 15.0
"""Seconds for which another driver's file is watched for a renewal."""
_OLD = 60.0
"""Seconds after which nobody is expected to renew it on the same machine."""
_OLD_ELSEWHERE = 86400.0
"""The same for a file of another machine, whose clock may be wrong by hours."""


class _DriverFile:
    """The file in an experiment's directory; no scheduler learns of the end, so that it stays."""

    def __init__(self, file: JsonFile) -> None:
        self._file = file
        self.path = file.path

    def read(self) -> dict[str, Any] | None:
        found = self._file.read()
        whole = isinstance(found, dict) and isinstance(found.get("process"), dict)
        return found if whole else None

    def write(self, told: dict[str, Any]) -> None:
        self._file.write({**told, "time": time.time()})

    def is_held(self, found: dict[str, Any]) -> bool | None:
        alive = is_alive(found["process"])
        said = as_number(found.get("time")) or 0.0
        old = _OLD_ELSEWHERE if alive is None else _OLD
        return False if alive is False or time.time() - said > old else None

    def taken(self, found: dict[str, Any]) -> StateError:
        process = found["process"]
        return StateError(
            f"another driver (process {process.get('pid')} on {process.get('host')}) runs this "
            f"experiment, as {self.path} says. This one ends; what was reported is kept. Wait for "
            "the other, then Tuner.restore goes on, or give the experiment another name"
        )


class DriverMark:
    """The mark of this process in the directory of an experiment.

    Args:
        clock: Seconds.
        sleep: Called to wait.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._where: tuple[str, str] | None = None
        self._mark: Mark | None = None

    def hold(self, trial: Any) -> None:
        """Begin to drive an experiment, or go on.

        Args:
            trial: Any of its trials; one that is stored nowhere marks nothing.

        Raises:
            StateError: Another process drives it.
        """
        storage = getattr(trial, "storage", None)
        if storage is None or self._where == identity(storage):
            return
        file = _DriverFile(beside(storage, FILE_NAME))
        mark = Mark(file, every=_EVERY, watch=_WATCH, clock=self._clock, sleep=self._sleep)
        mark.take()
        self._where, self._mark = identity(storage), mark

    def renew(self) -> None:
        """Say that this process is there, now and then.

        Raises:
            StateError: Another process has taken over.
        """
        if self._mark is not None:
            self._mark.renew()


class Driver:
    """This process as it drives an experiment: alone, with a copy of Ray's state kept."""

    def __init__(self) -> None:
        self._mark, self._copy = DriverMark(), StateCopy()

    def hold(self, trial: Any) -> None:
        """Of every trial that is added; as `DriverMark.hold`."""
        self._mark.hold(trial)

    def step(self, tune_controller: Any) -> None:
        """At every step of Ray's loop, before anything trains.

        Raises:
            StateError: Another process has taken over, or Ray has begun again by mistake.
        """
        self._mark.renew()
        self._copy.step(tune_controller)
