"""What a study does while its disk is full, read-only or not there: it waits, and keeps all.

Records that cannot be written are held, and tried again. Meanwhile no other cell begins; those
that run are finished. A cell that failed for want of room is run again when there is some.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.errors import StateError

__all__ = ["PATIENCE", "Saver", "is_for_want_of_room"]

PATIENCE = 600.0
"""Seconds that a study waits for room on its disk, when nothing else is to be done."""

_EVERY = 1.0
"""Seconds between two attempts."""

_AGAIN = 3
"""How often a cell runs again that failed for want of room."""

_NO_ROOM = tuple(os.strerror(n) for n in (errno.ENOSPC, errno.EROFS, errno.EDQUOT))

logger = logging.getLogger(__name__)


def is_for_want_of_room(record: CellRecord) -> bool:
    """Whether a cell failed as something could not be written.

    >>> _NO_ROOM
    ('No space left on device', 'Read-only file system', 'Disk quota exceeded')
    """
    return any(said in failure for failure in record.failures for said in _NO_ROOM)


class Saver:
    """Writes the records of cells, now or when that is possible again.

    Args:
        store: Where to.
        patience: Seconds that `wait` allows in all.
        clock: Seconds.
        sleep: Called to wait.
    """

    def __init__(
        self,
        store: RecordStore,
        *,
        patience: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self._store, self._clock, self._sleep = store, clock, sleep
        self._patience = PATIENCE if patience is None else patience
        self._held: deque[CellRecord] = deque()
        self._again: Counter[tuple[str, str, int]] = Counter()
        self._why = ""
        self._next = 0.0
        self._idle_since: float | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether something could not be written, so that no other cell should begin."""
        return bool(self._why)

    def take(self, record: CellRecord) -> bool:
        """Take a finished cell; False where it failed for want of room and is to run again."""
        if is_for_want_of_room(record) and self._again[record.key] < _AGAIN:
            self._again[record.key] += 1
            self.wait_for(record.failures[0])
            return False
        self._held.append(record)
        return True

    def write(self) -> list[CellRecord]:
        """Write what is held, as far as that is possible; what was written."""
        written: list[CellRecord] = []
        if self._why and self._clock() < self._next:
            return written
        if not self._held and not self._why:
            return written
        try:
            if self._why:
                self._probe()
            while self._held:
                self._store.append(self._held[0])
                written.append(self._held.popleft())
        except OSError as error:
            self.wait_for(str(error))
            return written
        if self._why:
            logger.warning("Records are written again.")
        self._why = ""
        return written

    def _probe(self) -> None:
        """Write something to where records and workers write; OSError if that fails."""
        for directory in (self._store.directory, Path(tempfile.gettempdir())):
            with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
                if file.write(b"0" * 65536) != 65536:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))

    def wait_for(self, why: str) -> None:
        """Begin no other cell until something can be written again."""
        if not self._why:
            logger.warning(
                "Nothing can be written (%s). The study waits for room; %s finished cells are "
                "held, and what runs is finished.",
                why,
                len(self._held),
            )
        self._why, self._next = why, self._clock() + _EVERY

    def go_on(self) -> None:
        """Cells run: what was waited for until now does not count."""
        self._idle_since = None

    def wait(self) -> None:
        """Wait a little, when nothing else is to be done.

        Raises:
            StateError: It has been too long.
        """
        now = self._clock()
        self._idle_since = now if self._idle_since is None else self._idle_since
        if now - self._idle_since > self._patience:
            raise StateError(
                f"nothing could be written for {self._patience:g} s: {self._why}. The records in "
                f"{self._store.directory} are whole; make room, and the same command goes on"
            )
        self._sleep(min(_EVERY, self._patience))

    def close(self) -> None:
        """Write what is held; what cannot be written is left in a file elsewhere, and told."""
        self._next = 0.0
        self.write()
        if not self._held:
            return
        try:
            where = self._rescue()
        except OSError as error:
            logger.error("%s finished cells are lost: %s. They run again.", len(self._held), error)
            return
        logger.error(
            "%s finished cells are in %s. To keep them: cat %s >> %s",
            len(self._held),
            where,
            where,
            self._store.path,
        )

    def _rescue(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="tune-ext-records-"))
        rescued = RecordStore(folder)
        try:
            for record in self._held:
                rescued.append(record)
        finally:
            with contextlib.suppress(OSError):
                rescued.close()
        return rescued.path
