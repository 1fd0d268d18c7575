"""What a search has used and found so far, counted result by result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tune_ext.benchmark.history import History, Incumbents
from tune_ext.benchmark.tasks import Task

__all__ = ["Tally", "epochs_allowed"]


def epochs_allowed(budget: int, unit: str, max_epochs: int) -> int | None:
    """A budget in training epochs, at most; None for one in seconds.

    >>> epochs_allowed(5, "trainings", 12), epochs_allowed(5, "epochs", 12)
    (60, 5)
    """
    if unit == "seconds":
        return None
    return budget * max_epochs if unit in ("trainings", "evaluations") else budget


class Tally:
    """The history of one search, and what it would recommend after each of its epochs.

    Args:
        task: What is trained.
        unit: In which the incumbents are told; see `study.UNITS`.
        answer: The method's own recommendation at this moment, None to leave it to
            `best_trial`'s rule.
    """

    def __init__(
        self,
        task: Task,
        unit: str = "epochs",
        answer: Callable[[], Mapping[str, Any] | None] = lambda: None,
    ) -> None:
        self.history = History()
        self.incumbents: list[list[float]] = []
        self.cost = 0.0
        self._task, self._unit, self._answer = task, unit, answer
        self._names = {*task.space, *task.default_config}
        self._seen = Incumbents()
        self._best: int | None = None
        self._errors: dict[int, float | None] = {}
        self._by_config: dict[str, float | None] = {}
        self._configs: dict[int, dict[str, Any]] = {}
        self._keys: dict[int, tuple[str, str]] = {}
        self._known: dict[str, float | None] = {}

    def config_of(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The hyper-parameters of a result, with what the trial has found by itself."""
        config = {k: v for k, v in result["config"].items() if k in self._names}
        return {**config, **result.get("found", {})}

    def add(
        self, trial_id: str, result: Mapping[str, Any], seconds: float, cost: float
    ) -> list[float] | None:
        """Count an epoch.

        Args:
            trial_id: Whose epoch it is.
            result: With "config", "epoch" and metrics.
            seconds: On the clock.
            cost: Seconds of training that it took.

        Returns:
            The incumbent if it changed: [used, seconds, error].
        """
        config = self.config_of(result)
        self.history.add(trial_id, config, result, seconds)
        self.cost += cost
        trial = self.history.trial[-1]
        error = self.history.validation_error[-1]
        self._errors[trial] = error
        if self._configs.get(trial) != config:
            self._configs[trial] = config
            self._keys[trial] = _key(config), _key(self.history.configs[trial])
        self._by_config[self._keys[trial][0]] = error
        self._best = self._seen.add(
            trial, self.history.epoch[-1], error, self.history.validation_loss[-1]
        )
        return self.look(seconds)

    def look(self, seconds: float) -> list[float] | None:
        """The incumbent if it is another than before; see `add`."""
        error = self._error()
        if error is None or (self.incumbents and self.incumbents[-1][2] == error):
            return None
        self.incumbents.append([self.used, round(seconds, 3), error])
        return self.incumbents[-1]

    @property
    def used(self) -> float:
        """How much of the budget is used, in the unit."""
        if self._unit == "seconds":
            return round(self.cost, 6)
        if self._unit == "evaluations":
            return len(self.history.configs)
        epochs = len(self.history)
        return epochs / self._task.max_epochs if self._unit == "trainings" else epochs

    def _error(self) -> float | None:
        answer = self._answer()
        if answer is None and self._best is None:
            return None
        if answer is None and self._best is not None:
            config: Mapping[str, Any] = self.history.configs[self._best]
            error, key = self._errors[self._best], self._keys[self._best][1]
        else:
            config = answer or {}
            key = _key(config)
            error = self._by_config.get(key)
        if not self._task.simulated:
            return error
        if key not in self._known:
            self._known[key] = self._task.true_error(config)
        known = self._known[key]
        return error if known is None else known


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)
