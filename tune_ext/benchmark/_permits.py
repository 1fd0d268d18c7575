"""The epochs of a budget as permits: whoever is about to train one takes one first.

Several trials that train at the same time would otherwise begin epochs that end after the
budget: trained, and counted nowhere. The count is kept in a file, as the trials of a search
are processes; they run on one machine.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

__all__ = ["Permits"]


class Permits:
    """A number of permits, shared by all that name the same file.

    Args:
        path: The file; it holds one byte for every permit that was taken.
        number: How many there are.
        poll: Seconds between two looks while waiting.
        grace: Seconds for which results of the last epochs may be on their way.
    """

    def __init__(
        self, path: str | Path, number: int, *, poll: float = 0.02, grace: float = 2.0
    ) -> None:
        self._path, self._number = Path(path), number
        self._closed = self._path.with_name(self._path.name + ".closed")
        self._poll, self._grace = poll, grace

    def reset(self) -> None:
        """All permits are there."""
        self._closed.unlink(missing_ok=True)
        self._path.write_bytes(b"")

    def take(self) -> bool:
        """Take one, if there is one left."""
        return self._change(1)

    def give_back(self) -> None:
        """The epoch was not trained."""
        self._change(-1)

    def _change(self, by: int) -> bool:
        with self._path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            taken = os.fstat(file.fileno()).st_size + by
            if 0 <= taken <= self._number:
                file.truncate(taken)
                return True
            return False

    def close(self) -> None:
        """The search is over: nobody waits any longer."""
        self._closed.touch()

    def wait(self, journal: Path) -> bool:
        """Take one, or wait for the end of the search.

        Args:
            journal: A file with a line for every epoch that was trained. When all of them
                are there, and the search does not end, some result was never asked for.

        Returns:
            Whether there is one; False when the search is over.
        """
        full_since: float | None = None
        while not self.take():
            if self._closed.exists():
                return False
            if full_since is None and _lines(journal) >= self._number:
                full_since = time.monotonic()
            if full_since is not None and time.monotonic() - full_since > self._grace:
                return False
            time.sleep(self._poll)
        return True


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
