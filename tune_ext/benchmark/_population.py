"""Ray's PopulationBasedTraining, made repeatable, within bounds, and able to tell its schedule."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from tune_ext.benchmark._method import Setup
from tune_ext.benchmark._spaces import listed_values

__all__ = ["Population"]


class Population(PopulationBasedTraining):  # type: ignore[misc] # Ray's classes are untyped
    """Population based training of a task; every decision is Ray's.

    What is added to `PopulationBasedTraining`:

    * The same seed makes the same decisions: Ray draws them from the global generators of
      `random` and numpy, which get states of our own for as long as it draws.
    * A perturbed number stays within the range of the task's space.
    * The first configurations come from a searcher, which learns nothing; Ray refuses searchers
      because their model would not know of the perturbations.
    * It remembers which configurations a trial's weights were trained with.

    Args:
        setup: The task, and the seed.
        interval: Epochs between perturbations.
    """

    def __init__(self, setup: Setup, interval: int) -> None:
        self._space = setup.task.space
        super().__init__(
            time_attr="training_iteration",
            metric=setup.task.metric,
            mode=setup.task.mode,
            perturbation_interval=interval,
            hyperparam_mutations={name: _mutation(self._space[name]) for name in self._space},
            custom_explore_fn=self._within_bounds,
            log_config=False,
        )
        seed = setup.derived_seed("pbt")
        self._states = (
            random.Random(seed).getstate(),
            np.random.RandomState(seed).get_state(),
        )
        self._lineages: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
        self._last: dict[Any, tuple[float, int]] = {}

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Ray's draws from the global generators are ours, and leave no trace there."""
        outside = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])  # noqa: NPY002
        try:
            yield
        finally:
            self._states = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.setstate(outside[0])
            np.random.set_state(outside[1])  # noqa: NPY002

    def _within_bounds(self, config: dict[str, Any]) -> dict[str, Any]:
        for name in self._space:
            parameter: Any = self._space[name]
            if listed_values(parameter) is None:
                value = min(max(config[name], parameter.lower), parameter.upper)
                config[name] = type(config[name])(value)
        return config

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A new member of the population."""
        with self._own_randomness():
            super().on_trial_add(SimpleNamespace(search_alg=None), trial)
        self._lineages[trial] = [(0, self._values(trial.config))]

    def _values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {name: config[name] for name in self._space}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide as Ray does."""
        self._note(trial, result)
        with self._own_randomness():
            return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The last result of a trial counts as well."""
        self._note(trial, result)
        super().on_trial_complete(tune_controller, trial, result)

    def _note(self, trial: Any, result: Mapping[str, Any]) -> None:
        value = result.get(self._metric)
        usable = isinstance(value, int | float) and math.isfinite(value)
        score = -self._metric_op * float(value) if usable and value is not None else math.inf
        self._last[trial] = (score, -int(result[self._time_attr]))

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        source = self._trial_state[trial_to_clone].last_result
        epoch = int(source[self._time_attr])
        before = [step for step in self._lineages[trial_to_clone] if step[0] < epoch]
        self._lineages[trial] = [*before, (epoch, self._values(trial.config))]

    def schedule(self) -> list[tuple[int, dict[str, Any]]]:
        """How the best trial's weights were trained: (epochs before, configuration) pairs.

        The best is the one whose last value is best, the one that was trained longer among
        equals; nothing if no trial has a finite value.
        """
        finite = {t: last for t, last in self._last.items() if math.isfinite(last[0])}
        if not finite:
            return []
        return list(self._lineages[min(finite, key=lambda trial: finite[trial])])

    def answer(self) -> dict[str, Any] | None:
        """The configuration with which the best trial ended."""
        steps = self.schedule()
        return dict(steps[-1][1]) if steps else None

    def details(self) -> dict[str, Any]:
        """How often weights were handed on."""
        return {"perturbations": self._num_perturbations, "checkpoints": self._num_checkpoints}


def _mutation(parameter: Any) -> Any:
    """What Ray mutates a parameter by: the list of its values, or its range."""
    known = listed_values(parameter)
    if known is not None:
        return known
    if isinstance(parameter.default_value, int):
        build: Any = tune.lograndint if parameter.log else tune.randint
        return build(int(parameter.lower), int(parameter.upper) + 1)
    build = tune.loguniform if parameter.log else tune.uniform
    return build(float(parameter.lower), float(parameter.upper))
