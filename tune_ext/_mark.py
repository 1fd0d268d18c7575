"""One process at a time in a place that knows no locks, such as a bucket: a file there is renewed.

The process that holds a place is named in a file, its mark, which it writes anew now and then.
One that finds the name of a process that is gone, or a mark that does not change any more, takes
over; one that is taken over, as its machine had slept, is told so. Whether a mark changes is
measured by the clock of the one who looks: clocks of two machines are never compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

from tune_ext._process import this_process
from tune_ext.errors import StateError

__all__ = ["Mark", "MarkFile"]

_LOOK = 1.0
"""Seconds between two looks at another's mark."""

logger = logging.getLogger(__name__)


class MarkFile(Protocol):
    """Where a mark is kept, and what is known of one that is found there."""

    @property
    def path(self) -> str:
        """What messages call the place."""

    def read(self) -> dict[str, Any] | None:
        """What the mark says; None where there is none. It may raise OSError."""

    def write(self, told: dict[str, Any]) -> None:
        """Replace the mark. It may raise OSError."""

    def is_held(self, found: dict[str, Any]) -> bool | None:
        """Whether who left this mark holds the place; None if that has to be watched."""

    def taken(self, found: dict[str, Any]) -> StateError:
        """The error for a process that finds this mark."""


class Mark:
    """The mark of this process.

    Args:
        file: Where it is kept.
        every: Seconds between two renewals.
        watch: Seconds for which another's mark is watched for a renewal.
        by: The holder's name, where a process may have several; without one it is the process.
        clock: Seconds.
        sleep: Called to wait.
    """

    def __init__(
        self,
        file: MarkFile,
        *,
        every: float,
        watch: float,
        by: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self._file, self._every, self._watch, self._by = file, every, watch, by
        self._clock, self._sleep = clock, sleep
        self._count = 0
        self._next = 0.0

    def take(self) -> None:
        """Begin to hold the place.

        Raises:
            StateError: Another process holds it.
            OSError: It cannot be read or written.
        """
        found = self._file.read()
        if self._is_others(found) and self._holds(found):
            raise self._file.taken(found)
        self._write()
        self._check()  # of two that come at once, the file names one

    def renew(self) -> None:
        """Say that this process is there, now and then.

        Raises:
            StateError: Another process has taken over.
        """
        if self._clock() < self._next:
            return
        try:
            self._check()
            self._write()
        except OSError:  # the place is away; nobody else can take over meanwhile
            self._next = self._clock() + 1.0

    def is_ours(self) -> bool:
        """Whether the file names this holder; it may raise OSError."""
        found = self._file.read()
        return found is not None and not self._is_others(found)

    def _check(self) -> None:
        found = self._file.read()
        if self._is_others(found):
            raise self._file.taken(found)

    def _is_others(self, found: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
        if found is None:
            return False
        if self._by is not None:
            return found.get("by") != self._by
        return found.get("process") != this_process()

    def _holds(self, found: dict[str, Any]) -> bool:
        """Whether who left this mark still holds the place."""
        known = self._file.is_held(found)
        if known is not None:
            return known
        logger.warning(
            "A process on %s used %s: waiting %g s to see whether it still does.",
            found.get("process", {}).get("host"),
            self._file.path,
            self._watch,
        )
        before: dict[str, Any] | None = found
        end = self._clock() + self._watch
        while self._clock() < end:
            self._sleep(_LOOK)
            now = self._file.read()
            if self._is_others(now) and now != found:
                return True
            if now is None and before is None:  # removed, and not just being replaced
                return False
            before = now
        return False

    def _write(self) -> None:
        self._count += 1
        by = {} if self._by is None else {"by": self._by}
        self._file.write({**by, "process": this_process(), "count": self._count})
        self._next = self._clock() + self._every
