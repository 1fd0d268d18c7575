"""A bound on the time in which nothing is heard of a trial, for Ray Tune."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

from tune_ext._checks import check_positive

__all__ = ["StallGuard"]

logger = logging.getLogger(__name__)

_LONGEST_STEP = 5.0
"""Seconds that one step of Ray's loop counts at most: a driver that sleeps blames no trial."""


class StallGuard(Callback):
    """Ends the process of every trial that has not been heard of for some time.

    Ray waits for a trial that hangs for as long as it hangs, and ``time_budget_s`` ends the whole
    experiment. With this callback such a trial has failed, as if its process had died: Ray tries
    it again as often as ``max_failures`` says, from its last checkpoint, and the others go on.

    Heard of is a trial that starts, reports, saves or restores. Trials that wait for resources or
    are paused are not watched. The time is that of a monotonic clock, and only that in which the
    driver looks after its trials.

    Args:
        seconds: So long a trial may be silent. Give several times what an epoch takes.
        first: The same until its first result, while data is loaded; None is `seconds`.

    Raises:
        InvalidTypeError: An argument is not a number.
        InvalidValueError: An argument is not positive and finite.

    With Ray: ``tune.run(train, callbacks=[StallGuard(600)])``, or in ``RunConfig``.
    """

    def __init__(self, seconds: float, first: float | None = None) -> None:
        self._seconds = check_positive("seconds", seconds, below=math.inf)
        self._first = seconds if first is None else check_positive("first", first, below=math.inf)
        self._clock: Callable[[], float] = time.monotonic
        self._now = 0.0
        self._looked: float | None = None
        self._heard: dict[str, tuple[float, float]] = {}  # when, and how long it may be silent
        self.ended: list[str] = []
        """The ids of the trials whose process was ended, in order."""

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """Look for trials that are silent."""
        clock = self._clock()
        if self._looked is not None:
            self._now += min(max(clock - self._looked, 0.0), _LONGEST_STEP)
        self._looked = clock
        silent = []
        for trial in trials:
            heard = self._heard.get(trial.trial_id)
            if heard is None:
                continue
            if trial.status != Trial.RUNNING:
                del self._heard[trial.trial_id]
            elif self._now - heard[0] > heard[1]:
                silent.append(trial)
        for trial in silent:
            self._end(trial)

    def on_trial_start(
        self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any
    ) -> None:
        """It begins."""
        self._heard[trial.trial_id] = (self._now, self._first)

    def on_trial_restore(
        self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any
    ) -> None:
        """It goes on from a checkpoint."""
        self._heard[trial.trial_id] = (self._now, self._first)

    def on_trial_save(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """It has saved a checkpoint."""
        if trial.trial_id in self._heard:
            self._heard[trial.trial_id] = (self._now, self._heard[trial.trial_id][1])

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Any, **info: Any
    ) -> None:
        """It has reported."""
        self._heard[trial.trial_id] = (self._now, self._seconds)

    def _end(self, trial: Any) -> None:
        allowed = self._heard.pop(trial.trial_id)[1]
        actor = trial.temporary_state.ray_actor
        if actor is None:
            return
        logger.warning(
            "Nothing was heard of trial %s for %g s: its process is ended, and the trial has "
            "failed (FailureConfig(max_failures=...) says how often it is tried again)",
            trial.trial_id,
            allowed,
        )
        self.ended.append(trial.trial_id)
        ray.kill(actor)

    def __getstate__(self) -> dict[str, Any]:
        """Ray copies callbacks before a run, and in another process the clock is another."""
        return {**self.__dict__, "_looked": None, "_heard": {}, "_now": 0.0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
