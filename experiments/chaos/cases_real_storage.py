"""The disk that holds an experiment is full for a while, under a real `tune.run`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune import Callback

from experiments.chaos.cases_processes import _start
from experiments.chaos.cases_storage import full, small_disk
from experiments.chaos.outcome import Outcome, case
from experiments.chaos.real import OURS, RAYS, drive

AFTER = 12
"""Results before the disk is full."""
OUTAGE = 15.0
"""Seconds until there is room again."""


class FullForAWhile(Callback):  # type: ignore[misc]
    """Fills a disk when so many results are there, and makes room again later.

    Attributes:
        errors: Trials that failed from then on, each time.
    """

    def __init__(self, disk: Path) -> None:
        self._disk, self._left, self.errors = disk, AFTER, 0
        self._timer: threading.Timer | None = None

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """Count it."""
        self._left -= 1
        if self._left == 0:
            heal: Callable[[], Any] = full(self._disk)
            self._timer = threading.Timer(OUTAGE, heal)
            self._timer.start()

    def on_trial_error(self, *args: Any, **info: Any) -> None:
        """One could not save its checkpoint."""
        self.errors += self._timer is not None

    on_trial_recover = on_trial_error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_timer": None}


@case("storage of an experiment", "its disk is full for 15 s while trials save", seconds=900)
def storage_of_an_experiment(directory: Path, seed: int) -> Iterator[Outcome]:
    """Trials that cannot save a checkpoint fail, and are tried again until there is room."""
    _start()
    for system in (*OURS, RAYS[0]):
        where = directory / system.name.replace(" ", "-")
        with small_disk(where / "disk", "192m") as disk:
            fault = FullForAWhile(disk)
            found = drive(
                "storage of an experiment",
                system,
                where / "home",
                (),
                injected=lambda fault=fault: fault.errors,  # type: ignore[misc]
                callbacks=[fault],
                storage_path=str(disk),
                max_failures=-1,
            )
        told = f"{fault.errors} times a trial could not save and was tried again"
        yield replace(found, note="; ".join(filter(None, (told, found.note))))
