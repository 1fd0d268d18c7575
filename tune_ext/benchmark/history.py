"""What a search did, epoch by epoch, and what it would have recommended at each of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["History", "Incumbents", "anytime", "best_trial", "finite", "plain"]


@dataclass
class History:
    """Every training epoch of a cell's search, in the order in which it was trained.

    The columns have one entry an epoch; `configs[i]` is the configuration of trial i,
    numbered in the order in which the trials first reported, and `ended` are the trials that
    ended by themselves before their full length, as there was nothing more to gain.
    """

    configs: list[dict[str, Any]] = field(default_factory=list)
    trial: list[int] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    validation_error: list[float | None] = field(default_factory=list)
    validation_loss: list[float | None] = field(default_factory=list)
    response_mean: list[float | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    train_seconds: list[float | None] = field(default_factory=list)
    cpu_seconds: list[float | None] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.trial)

    def add(
        self, trial_id: str, config: Mapping[str, Any], result: Mapping[str, Any], seconds: float
    ) -> None:
        """Add one epoch: `result` has epoch and whatever metrics there are.

        What training it cost is `train_seconds` on the clock and `cpu_seconds` of the processor.

        A trial's configuration is that of its last epoch: one that finds its own learning rate
        tries several.
        """
        if trial_id not in self._numbers:
            self._numbers[trial_id] = len(self.configs)
            self.configs.append({})
        self.configs[self._numbers[trial_id]] = {k: plain(v) for k, v in config.items()}
        self.trial.append(self._numbers[trial_id])
        self.epoch.append(int(result["epoch"]))
        self.validation_error.append(finite(result.get("validation_error")))
        self.validation_loss.append(finite(result.get("validation_loss")))
        self.response_mean.append(finite(result.get("response_mean")))
        self.seconds.append(round(float(seconds), 3))
        for column, name in (
            (self.train_seconds, "train_seconds"),
            (self.cpu_seconds, "cpu_seconds"),
        ):
            cost = finite(result.get(name))
            column.append(None if cost is None else round(cost, 4))
        if result.get("ended"):
            self.ended.append(self._numbers[trial_id])

    def trials(self) -> list[dict[str, Any]]:
        """One summary a trial: its configuration and its last epoch.

        Where epochs tell what they cost, it says what the trial did: `train_seconds` and
        `cpu_seconds`, the sums over its epochs. Where any has, it says whether it `ended`.
        """
        last = {trial: row for row, trial in enumerate(self.trial)}
        more = [self._costs("train_seconds"), self._costs("cpu_seconds")]
        ended = set(self.ended)
        if ended:
            more.append({trial: {"ended": trial in ended} for trial in last})
        return [
            {
                "trial": trial,
                "config": self.configs[trial],
                "epochs": self.epoch[row],
                "validation_error": self.validation_error[row],
                "validation_loss": self.validation_loss[row],
                "response_mean": self.response_mean[row],
                **{k: v for known in more for k, v in known.get(trial, {}).items()},
            }
            for trial, row in sorted(last.items())
        ]

    def total(self, name: str) -> float | None:
        """The sum of `train_seconds` or `cpu_seconds`; None where not every epoch tells it."""
        known = [cost for cost in getattr(self, name) if cost is not None]
        return round(sum(known), 3) if known and len(known) == len(self.trial) else None

    def _costs(self, name: str) -> dict[int, dict[str, float]]:
        """Trial → {name: sum over its epochs}; empty where not every epoch tells it."""
        column: list[float | None] = getattr(self, name)
        sums: dict[int, float] = {}
        for trial, cost in zip(self.trial, column, strict=True):
            if cost is None:
                return {}
            sums[trial] = sums.get(trial, 0.0) + cost
        return {trial: {name: round(cost, 4)} for trial, cost in sums.items()}

    def to_json(self) -> dict[str, Any]:
        """The columns as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}


def finite(value: object) -> float | None:
    """A finite number as a float; None for all else, also for True and False."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)  # type: ignore[arg-type] # anything that is a number will do
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """A numpy scalar as Python's own number."""
    return value.item() if hasattr(value, "item") else value


def best_trial(history: History, sizes: Sequence[int] = ()) -> dict[str, Any] | None:
    """The trial that a validation-based method recommends, or None.

    The rule, the same for every method that does not name an answer of its own: the
    lowest validation error at the last epoch that a trial reached, over all trials however
    long (what Ray's `get_best_result(scope="last")` does). Ties go to the trial that was
    trained longer, then to the lower validation loss, then to the earlier trial. A trial
    whose last validation error is missing, NaN or infinite is never chosen.

    Args:
        history: Of the search.
        sizes: The image sizes of its task, if it has any. Errors at two sizes do not compare:
            only trials of the largest size that has any are chosen from.
    """
    known = [t for t in history.trials() if t["validation_error"] is not None]
    if sizes:
        at = {t["trial"]: t["config"].get("image_size", sizes[-1]) for t in known}
        known = [t for t in known if at[t["trial"]] == max(at.values())]
    return min(
        known,
        key=lambda t: _rank(t["trial"], t["epochs"], t["validation_error"], t["validation_loss"]),
        default=None,
    )


_Rank = tuple[float, int, float, int]


def _rank(trial: int, epochs: int, error: float, loss: float | None) -> _Rank:
    return (error, -epochs, math.inf if loss is None else loss, trial)


def anytime(history: History) -> list[tuple[int, float]]:
    """Where the best validation error so far improved: (epochs used, error)."""
    curve: list[tuple[int, float]] = []
    for used, error in enumerate(history.validation_error, start=1):
        if error is not None and (not curve or error < curve[-1][1]):
            curve.append((used, error))
    return curve


class Incumbents:
    """`best_trial` after every epoch, without looking at every trial every time.

    Each trial's last epoch waits in a heap; what a later epoch has replaced is thrown out
    when it comes to the top. An epoch costs the logarithm of their number, amortised.

    >>> seen = Incumbents()
    >>> [seen.add(*row) for row in [(0, 1, 0.3, None), (1, 1, 0.2, None), (1, 2, 0.4, None)]]
    [0, 1, 0]
    """

    def __init__(self) -> None:
        self._last: dict[int, _Rank] = {}
        self._heap: list[_Rank] = []

    def add(self, trial: int, epoch: int, error: float | None, loss: float | None) -> int | None:
        """Take one epoch.

        Args:
            trial: The trial's number.
            epoch: How long it has been trained.
            error: Its validation error, None where there is none that is finite.
            loss: Its validation loss, likewise.

        Returns:
            The number of the trial that would be recommended now, or None.
        """
        self._last.pop(trial, None)
        if error is not None:
            rank = self._last[trial] = _rank(trial, epoch, error, loss)
            heapq.heappush(self._heap, rank)
        while self._heap and self._last.get(self._heap[0][-1]) != self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][-1] if self._heap else None
