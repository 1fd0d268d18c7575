"""Ray's OptunaSearch over a ConfigSpace with conditions, which takes evaluated points."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ConfigSpace import (
    AndConjunction,
    CategoricalHyperparameter,
    ConfigurationSpace,
    Constant,
    OrConjunction,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from optuna import distributions
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.trial import create_trial
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search.optuna import OptunaSearch

from tune_ext._narrowing import plain
from tune_ext.errors import InvalidValueError

__all__ = ["ConditionalOptuna"]


class _DefineByRun:
    """Asks Optuna for the active parameters of a ConfigSpace, parents first.

    Ordinals are their places, in order.
    """

    def __init__(self, space: ConfigurationSpace) -> None:
        self.space = space
        self.distributions = {
            name: _distribution(item)
            for name, item in space.items()
            if not isinstance(item, Constant)
        }

    def __call__(self, trial: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, item in self.space.items():  # in ConfigSpace's order parents come first
            if not self._is_active(name, values):
                continue
            if isinstance(item, Constant):
                values[name] = plain(item.value)
                continue
            drawn = _suggest(trial, name, self.distributions[name])
            if isinstance(item, OrdinalHyperparameter):
                drawn = plain(item.sequence[drawn])
            values[name] = drawn
        return values

    def _is_active(self, name: str, values: Mapping[str, Any]) -> bool:
        return all(_holds(c, values) for c in self.space.parent_conditions_of[name])

    def to_optuna(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The active values in Optuna's terms."""
        told = {}
        for name in self.distributions.keys() & config.keys():
            item: Any = self.space[name]
            ordinal = isinstance(item, OrdinalHyperparameter)
            told[name] = list(item.sequence).index(config[name]) if ordinal else config[name]
        return told


class ConditionalOptuna(OptunaSearch):
    """OptunaSearch by define-by-run.

    Args:
        space: What is searched.
        metric: The result to optimise.
        mode: "min" or "max".
        sampler: Optuna's.
    """

    def __init__(
        self, space: ConfigurationSpace, metric: str, mode: str, sampler: BaseSampler
    ) -> None:
        self._asked = _DefineByRun(space)
        self.reads = frozenset((metric, TRAINING_ITERATION))  # of a result, for `NotedSearcher`
        super().__init__(self._asked, metric=metric, mode=mode, sampler=sampler)

    def suggest(self, trial_id: str) -> Any:
        """The next configuration."""
        with warnings.catch_warnings():
            # Ray takes the time that a model needs for time spent in the definition of the space.
            warnings.filterwarnings(
                "ignore", message="Define-by-run function", category=UserWarning
            )
            return super().suggest(trial_id)

    def add_evaluated_point(
        self,
        parameters: Mapping[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Add a finished trial; to a genetic algorithm, one of the first generation."""
        params = self._asked.to_optuna(parameters)
        known = {name: self._asked.distributions[name] for name in params}
        attributes = {}
        if isinstance(self._sampler, NSGAIISampler):
            attributes[type(self._sampler)._get_generation_key()] = 0
        trial = create_trial(
            value=value, params=params, distributions=known, system_attrs=attributes
        )
        self._ot_study.add_trial(trial)


def _holds(condition: Any, values: Mapping[str, Any]) -> bool:
    """Whether a condition is met; one on a parameter that is inactive is not."""
    if isinstance(condition, OrConjunction):
        return any(_holds(part, values) for part in condition.components)
    if isinstance(condition, AndConjunction):
        return all(_holds(part, values) for part in condition.components)
    met = condition.parent.name in values and condition.satisfied_by_value(dict(values))
    return bool(met)


def _distribution(item: Any) -> Any:
    if isinstance(item, CategoricalHyperparameter):
        return distributions.CategoricalDistribution([plain(choice) for choice in item.choices])
    if isinstance(item, OrdinalHyperparameter):
        return distributions.IntDistribution(0, len(item.sequence) - 1)
    if isinstance(item, UniformFloatHyperparameter):
        bounds = float(item.lower), float(item.upper)
        return distributions.FloatDistribution(*bounds, log=bool(item.log))
    if isinstance(item, UniformIntegerHyperparameter):
        limits = int(item.lower), int(item.upper)
        return distributions.IntDistribution(*limits, log=bool(item.log))
    raise InvalidValueError(f"Optuna knows no {type(item).__name__} as {item.name!r}")


def _suggest(trial: Any, name: str, distribution: Any) -> Any:
    if isinstance(distribution, distributions.CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    low, high, log = distribution.low, distribution.high, distribution.log
    if isinstance(distribution, distributions.IntDistribution):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)
