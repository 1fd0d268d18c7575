"""Who runs a study on a storage: one run at a time."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tune_ext._mark import Mark
from tune_ext._process import is_alive
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


class _Running:
    """The file on a storage; who ends removes it, so that a process that is there holds it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.path = storage.where

    def read(self) -> dict[str, Any] | None:
        data = self._storage.read(_NAME)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError:
            found = {}
        whole = isinstance(found, dict) and isinstance(found.get("process"), dict)
        return found if whole else {}

    def write(self, told: dict[str, Any]) -> None:
        self._storage.write(_NAME, json.dumps(told).encode())

    def is_held(self, found: dict[str, Any]) -> bool | None:
        return is_alive(found.get("process", {}))

    def taken(self, found: dict[str, Any]) -> StateError:
        process = found.get("process", {})
        return StateError(
            f"another run (process {process.get('pid')} on {process.get('host')}) keeps its "
            f"records in {self.path}: wait for it, or give another directory with --out. "
            "What this one has recorded is whole"
        )


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
        self._storage = storage
        self._mark = Mark(
            _Running(storage),
            every=_EVERY,
            watch=_STALE,
            by=uuid.uuid4().hex,
            clock=clock,
            sleep=sleep,
        )

    def take(self) -> None:
        """Begin to hold it.

        Raises:
            StateError: Another run holds it.
            OSError: The storage cannot be used.
        """
        self._mark.take()

    def renew(self) -> None:
        """Say that this run is there, now and then.

        Raises:
            StateError: Another run has taken over.
        """
        self._mark.renew()

    def release(self) -> None:
        """Hold it no longer."""
        try:
            if self._mark.is_ours():
                self._storage.remove(_NAME)
        except OSError as error:
            logger.warning("Cannot remove %s from the storage: %s", _NAME, error)
