"""One driver at a time in an experiment's directory.

Ray lets two drivers run one experiment at once: each writes its state over the other's, and what
a restore finds is of both. Ours name their driver in a file of the directory and renew that now
and then. A second driver is told so before it trains anything; one that another has taken over,
as its machine had slept, ends as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tune_ext._process import is_alive, this_process
from tune_ext.errors import StateError
from tune_ext.raytune._base import as_number
from tune_ext.raytune._records import JsonFile, beside, identity

__all__ = ["FILE_NAME", "DriverMark"]

FILE_NAME = "tune_ext_driver.json"
_EVERY = 5.0
"""Seconds between two renewals."""
_WATCH = 15.0
"""Seconds for which another driver's file is watched for a renewal."""
_OLD = 60.0
"""Seconds after which nobody is expected to renew it."""


class DriverMark:
    """The mark of this process in the directory of an experiment.

    Args:
        sleep: Called to wait.
    """

    def __init__(self, sleep: Callable[[float], Any] = time.sleep) -> None:
        self._sleep = sleep
        self._where: tuple[str, str] | None = None
        self._file: JsonFile | None = None
        self._count = 0
        self._next = 0.0

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
        file = beside(storage, FILE_NAME)
        found = file.read()
        if _is_others(found) and self._renews(file, found):
            raise _told(found, file.path)
        self._where, self._file = identity(storage), file
        self._write()

    def renew(self) -> None:
        """Say that this process is there, now and then.

        Raises:
            StateError: Another process has taken over.
        """
        if self._file is None or time.monotonic() < self._next:
            return
        found = self._file.read()
        if _is_others(found):
            raise _told(found, self._file.path)
        self._write()

    def _write(self) -> None:
        self._count += 1
        told = {"process": this_process(), "count": self._count, "time": time.time()}
        if self._file is not None:
            self._file.write(told)
        self._next = time.monotonic() + _EVERY

    def _renews(self, file: JsonFile, found: dict[str, Any]) -> bool:
        """Whether the other driver still says that it is there."""
        said = as_number(found.get("time")) or 0.0
        if is_alive(found["process"]) is False or time.time() - said > _OLD:
            return False
        end = time.monotonic() + _WATCH
        while time.monotonic() < end:
            self._sleep(0.5)
            now = file.read()
            if now != found and _is_others(now):
                return True
        return False


def _is_others(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("process"), dict):
        return False
    return bool(found["process"] != this_process())


def _told(found: dict[str, Any], path: str) -> StateError:
    process = found["process"]
    return StateError(
        f"another driver (process {process.get('pid')} on {process.get('host')}) runs this "
        f"experiment, as {path} says. This one ends; what was reported is kept. Wait for the "
        "other, then Tuner.restore goes on, or give the experiment another name"
    )
