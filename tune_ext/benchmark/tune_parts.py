"""What the comparison puts into Ray Tune: a trainable, a searcher, a scheduler, a stopper."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune_ext.benchmark._trainables import LookupTrainable, TaskTrainable, permits_of
from tune_ext.benchmark.history import plain
from tune_ext.benchmark.methods import Setup

__all__ = [
    "BudgetStopper",
    "LookupTrainable",
    "ScreeningScheduler",
    "StreamSearch",
    "TaskTrainable",
    "Watch",
    "permits_of",
]

_TELL_WAITING = 10.0
"""Seconds between two messages that trials wait for a node."""

_REASON_BYTES = 65536
"""Of a trial's error file, which can be long, this much of its end is read."""


class StreamSearch(Searcher):  # type: ignore[misc] # Ray's classes are untyped
    """Suggests the shared random configurations of a seed, one after another.

    Args:
        setup: Names the space and the seed.
        limit: Finish after this many; None goes on without end.
        fixed: Values that are suggested instead of those drawn.
        points: These are suggested instead of random ones, and no others.
    """

    def __init__(
        self,
        setup: Setup,
        limit: int | None = None,
        fixed: Mapping[str, Any] | None = None,
        points: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(metric=setup.task.metric, mode=setup.task.mode)
        self._fixed = dict(fixed or {})
        self._stream: Iterator[Mapping[str, Any]] = (
            setup.configurations() if points is None else iter(list(points))
        )
        self._suggested = 0
        self._limit = limit if points is None else len(points)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next configuration, or `FINISHED`."""
        if self._suggested == self._limit:
            finished: str = Searcher.FINISHED
            return finished
        self._suggested += 1
        return {**next(self._stream), **self._fixed}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Random search learns nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Write how far the stream was read."""
        Path(checkpoint_path).write_text(str(self._suggested), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Skip what had been read."""
        wanted = int(Path(checkpoint_path).read_text(encoding="utf-8"))
        for _ in itertools.islice(self._stream, wanted - self._suggested):
            self._suggested += 1


class NumberedSearch(Searcher):  # type: ignore[misc] # Ray's classes are untyped
    """Lets a searcher that knows no ordinals search their numbers.

    Args:
        searcher: What suggests whole numbers for the parameters in `values`.
        values: What these numbers stand for.
    """

    def __init__(self, searcher: Searcher, values: Mapping[str, Sequence[Any]]) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self.searcher, self._values = searcher, values

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The searcher's suggestion, of plain values and with those that the numbers mean."""
        config = self.searcher.suggest(trial_id)
        if not isinstance(config, dict):
            return config  # type: ignore[no-any-return] # nothing now, or nothing more
        values = {k: plain(v) for k, v in config.items()}
        return {k: self._values[k][v] if k in self._values else v for k, v in values.items()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Hand it on."""
        self.searcher.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hand it on."""
        self.searcher.on_trial_complete(trial_id, result=result, error=error)

    def on_pause(self, trial_id: str) -> None:
        """Hand it on."""
        self.searcher.on_pause(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """Hand it on."""
        self.searcher.on_unpause(trial_id)

    def get_state(self) -> dict[str, Any]:
        """Nothing of its own: Ray asks every wrapper, and saves the innermost searcher."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `get_state`."""

    def save(self, checkpoint_path: str) -> None:
        """Hand it on."""
        self.searcher.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Hand it on."""
        self.searcher.restore(checkpoint_path)


class ScreeningScheduler(FIFOScheduler):  # type: ignore[misc] # Ray's classes are untyped
    """Pauses every trial after its first epoch; then runs the best on, one after another.

    When a trial that was kept ends early, the next best takes its place, so that the whole
    budget is used. The runner ends trials at the full length and the run at the budget.

    Args:
        screened: How many trials are screened.
        metric: What ranks them; NaN, infinite and missing rank last.
        mode: "min" or "max".
    """

    supports_buffered_results = False

    def __init__(self, screened: int, metric: str, mode: str) -> None:
        super().__init__()
        self._screened = screened
        self._metric, self._sign = metric, 1.0 if mode == "min" else -1.0
        self._score: dict[Any, float] = {}
        self._new: deque[Any] = deque()
        self._ranked: list[tuple[float, int, Any]] = []
        self._resumed: Any = None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """One more to screen."""
        self._new.append(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Pause after the first epoch, otherwise go on."""
        if trial in self._score:
            return str(TrialScheduler.CONTINUE)
        self._note(trial, result)
        return str(TrialScheduler.PAUSE)

    def on_trial_complete(
        self, tune_controller: Any, trial: Any, result: Mapping[str, Any]
    ) -> None:
        """A trial that ended in its first epoch has been screened as well."""
        self._score.setdefault(trial, math.inf)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A trial that crashed is out."""
        self._score.setdefault(trial, math.inf)

    def _note(self, trial: Any, result: Mapping[str, Any]) -> None:
        value = result.get(self._metric)
        usable = isinstance(value, int | float) and math.isfinite(value)
        score = self._sign * float(value) if usable and value is not None else math.inf
        heapq.heappush(self._ranked, (score, len(self._score), trial))
        self._score[trial] = score

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """A trial not yet screened; when all are, the best of those that wait."""
        while self._new and self._new[0].status != "PENDING":
            self._new.popleft()
        if self._new:
            return self._new[0]
        if self._resumed is not None and self._resumed.status == "PENDING":
            return self._resumed
        return None if len(self._score) < self._screened else self._best_paused()

    def _best_paused(self) -> Any:
        """The trial with the best score that waits, if there is one.

        Ray asks several times before a trial runs, and pauses it some time after its result:
        a trial leaves the ranking when it runs again, or has ended.
        """
        early, best = [], None
        while self._ranked:
            trial = self._ranked[0][-1]
            if trial.status == "PAUSED":
                best = self._resumed = trial
                break
            entry = heapq.heappop(self._ranked)
            if trial.status == "RUNNING" and trial is not self._resumed:
                early.append(entry)
        for entry in early:
            heapq.heappush(self._ranked, entry)
        return best


class BudgetStopper(Stopper):  # type: ignore[misc] # Ray's classes are untyped
    """Ends the run when the budget is used, to the epoch.

    A result that would exceed the budget is not reported, and ends the run.

    Args:
        budget: Over all trials, in what `cost` counts.
        full_length: End a trial after this many epochs; None leaves that to the scheduler.
        report: Called with every result before anyone decides about it.
        give_up: Ends the run when it returns True.
        cost: What a result uses of the budget; one, for its epoch, by default.
        on_end: Called when the budget is used, with whether a result had no room in it. Ray
            tells the searcher of such a result all the same.
    """

    def __init__(
        self,
        budget: float,
        full_length: int | None,
        report: Callable[[str, dict[str, Any]], None],
        give_up: Callable[[], bool] = lambda: False,
        cost: Callable[[Mapping[str, Any]], float] = lambda result: 1,
        on_end: Callable[[bool], None] = lambda overran: None,
    ) -> None:
        self._budget, self._used, self._over = budget, 0.0, False
        self._full_length = full_length
        self._report, self._give_up, self._cost = report, give_up, cost
        self._on_end = on_end

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Count one epoch."""
        if result.get("over") or self._over:  # nothing was trained, or nothing is counted
            self._over = True
            return True
        used = self._used + self._cost(result)
        if used > self._budget * (1 + 1e-12):
            self._over = True
            self._on_end(True)
            return True
        self._used = used
        self._over = used >= self._budget
        if self._over:
            self._on_end(False)
        self._report(trial_id, result)
        at_end = self._full_length is not None and result["epoch"] >= self._full_length
        return at_end or self._over

    def stop_all(self) -> bool:
        """Whether the budget is used."""
        return self._over or self._give_up()


class Watch(Callback):  # type: ignore[misc] # Ray's classes are untyped
    """Notices crashed trials; too many in a row mean that nothing will ever train.

    Args:
        ledger: The actor that counts the epochs of trials on a cluster; told of lost trials.
        waiting: Called now and then while trials wait for a node and none runs.
        tolerance: Crashes in a row, without an epoch between, that end the run.
    """

    def __init__(
        self,
        ledger: Any = None,
        waiting: Callable[[str], None] | None = None,
        tolerance: int = 5,
    ) -> None:
        self.errors: list[str] = []
        self._in_a_row = 0
        self._tolerance = tolerance
        self._ledger, self._waiting, self._told = ledger, waiting, -math.inf

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Say so where a cluster has no room: it may take minutes until a node is there."""
        if self._waiting is None or time.monotonic() < self._told + _TELL_WAITING:
            return
        self._told = time.monotonic()
        states = {trial.status for trial in trials}
        if "PENDING" in states and "RUNNING" not in states:
            self._waiting("waiting for a node with room")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial was lost, and begins again from its checkpoint."""
        if self._ledger is not None:
            self._ledger.lose.remote(trial.trial_id)

    @property
    def hopeless(self) -> bool:
        """Whether to end the run."""
        return self._in_a_row >= self._tolerance

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch was trained, or a configuration cannot be: that is no crash."""
        self._in_a_row = 0
        if "invalid" in result:
            self.errors.append(str(result["invalid"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial crashed."""
        self._in_a_row += 1
        if self._ledger is not None:
            self._ledger.lose.remote(trial.trial_id)
        self.errors.append(_reason(getattr(trial, "error_file", None)))


def _reason(path: str | None) -> str:
    """The last line of a trial's error file, which is text; the pickle beside it is not read."""
    if not path or not os.path.exists(path):
        return "unknown"
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _REASON_BYTES))
        lines = file.read(_REASON_BYTES).decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else "unknown"
