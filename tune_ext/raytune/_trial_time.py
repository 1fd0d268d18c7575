"""How long trials have trained, where the clock of the machine may be set back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.result import TRAINING_ITERATION

from tune_ext.raytune._base import as_number

__all__ = ["TrialTime"]


class TrialTime:
    """Reads the result that counts a trial's time; it goes forward only.

    Ray takes ``time_total_s`` from the clock on the wall. When that is set back by an hour while
    a trial trains, the trial would be given an hour more, and whoever waits for it would wait. So
    a time that falls although the trial has come further goes on from where it was. One that is
    set forward cannot be told from long training: it ends a trial early.

    Args:
        attribute: The result that counts time.

    >>> time = TrialTime("time_total_s")
    >>> results = [(1, 10.0), (2, 20.0), (3, -3570.0), (4, -3560.0)]
    >>> [time.read("a", {"training_iteration": i, "time_total_s": t}) for i, t in results]
    [10.0, 20.0, 20.0, 30.0]
    """

    def __init__(self, attribute: str) -> None:
        self._attribute = attribute
        self._last: dict[str, tuple[float, float, float]] = {}  # iteration, time, what was lost

    def read(self, trial_id: str, result: Mapping[str, Any]) -> float | None:
        """The time that a trial has had; None if the result has no such number."""
        time = as_number(result.get(self._attribute))
        iteration = as_number(result.get(TRAINING_ITERATION))
        if time is None or iteration is None or self._attribute == TRAINING_ITERATION:
            return time
        before, last, lost = self._last.get(trial_id, (iteration, time, 0.0))
        if iteration < before:  # it goes on from an earlier checkpoint
            lost = 0.0
        elif iteration > before and time < last:
            lost += last - time
        self._last[trial_id] = iteration, time, lost
        return time + lost

    def forget(self, trial_id: str) -> None:
        """The trial has ended, or begins again."""
        self._last.pop(trial_id, None)
