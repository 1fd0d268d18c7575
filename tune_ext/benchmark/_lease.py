"""Who runs a study on a storage: one run at a time.

No storage knows locks, but all keep files. The run that holds one is named in a file, which it
writes anew now and then. A run that finds the name of a process that is gone, or a file that does
not change any more, takes over; one that is taken over, as its machine had slept, is told so.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tune_ext._process import is_alive, this_process
from tune_ext.errors import StateError

if TYPE_CHECKING:
    from tune_ext.benchmark._storage import Storage

__all__ = ["Lease"]

_NAME = "running.json"
_EVERY = 10.0
"""Seconds between two renewals."""
_STALE = 45.0
"""Seconds without a renewal after which a run on another machine counts as gone."""

logger = logging.getLogger(__name__)


class Lease:
    """The right to run a study on a storage.

    Args:
        storage: Where the study is kept.
        clock: Seconds.
        sleep: Called to wait.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self._storage, self._clock, self._sleep = storage, clock, sleep
        self._by = uuid.uuid4().hex
        self._count = 0
        self._next = 0.0

    def take(self) -> None:
        """Begin to hold it.

        Raises:
            StateError: Another run holds it.
            OSError: The storage cannot be used.
        """
        found = self._read()
        if found is not None and self._is_running(found):
            raise self._taken(found)
        self._write()
        found = self._read()
        if found is None or found.get("by") != self._by:
            raise self._taken(found or {})

    def renew(self) -> None:
        """Say that this run is there, now and then.

        Raises:
            StateError: Another run has taken over.
        """
        if self._clock() < self._next:
            return
        try:
            found = self._read()
            if found is not None and found.get("by") != self._by:
                raise self._taken(found)
            self._write()
        except OSError:  # the storage is away; nobody else can take over meanwhile
            self._next = self._clock() + 1.0

    def release(self) -> None:
        """Hold it no longer."""
        try:
            found = self._read()
            if found is not None and found.get("by") == self._by:
                self._storage.remove(_NAME)
        except OSError as error:
            logger.warning("Cannot remove %s from the storage: %s", _NAME, error)

    def _is_running(self, found: dict[str, Any]) -> bool:
        alive = is_alive(found.get("process", {}))
        if alive is not None:
            return alive
        logger.warning(
            "A run on %s used the storage %s: waiting %g s to see whether it still does.",
            found.get("process", {}).get("host"),
            self._storage.where,
            _STALE,
        )
        end = self._clock() + _STALE
        while self._clock() < end:
            self._sleep(1.0)
            now = self._read()
            if now != found:
                return now is not None
        return False

    def _read(self) -> dict[str, Any] | None:
        data = self._storage.read(_NAME)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError:
            found = {}
        whole = isinstance(found, dict) and isinstance(found.get("process"), dict)
        return found if whole else {}

    def _write(self) -> None:
        self._count += 1
        told = {"by": self._by, "process": this_process(), "count": self._count}
        self._storage.write(_NAME, json.dumps(told).encode())
        self._next = self._clock() + _EVERY

    def _taken(self, found: dict[str, Any]) -> StateError:
        process = found.get("process", {})
        return StateError(
            f"another run (process {process.get('pid')} on {process.get('host')}) keeps its "
            f"records in {self._storage.where}: wait for it, or give another directory with --out. "
            "What this one has recorded is whole"
        )
