"""What searches within one image size: ready factories, and how one of Ray's searchers is driven.

A factory gets a `GrowthStage` and returns a Ray searcher. One that comes without a space is given
the stage's as Tune domains. What is known before it begins, or from trials that it did not
suggest, it is told through Ray's ``add_evaluated_point``, if it has that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ConfigSpace import (
    ConfigurationSpace,
    Constant,
)
from ConfigSpace.util import deactivate_inactive_hyperparameters
from ray.tune.search import Searcher

from tune_ext._narrowing import plain
from tune_ext._random import derive_seed
from tune_ext.errors import (
    InvalidTypeError,
    InvalidValueError,
    MissingDependencyError,
    StateError,
)
from tune_ext.raytune._base import StatefulSearcher
from tune_ext.raytune._replay import NotedSearcher
from tune_ext.raytune._space import flatten, from_config_space, unflatten
from tune_ext.raytune.bohb import BOHBSearch

__all__ = ["FACTORIES", "Factory", "GrowthStage", "StageSearcher", "to_factory"]

RANDOM_TRIALS = 10
"""Random trials before TPE and GP have a model: Optuna's default; what is carried counts."""

GENERATIONS = 5
"""NSGA-II's population is so small that a stage has so many generations; 50 at most."""


@dataclass(frozen=True)
class GrowthStage:
    """What a searcher for one image size is made from.

    Attributes:
        number: Of the stage, from 0.
        size: Its images' pixels.
        evaluations: How many trials the searcher is to suggest.
        space: What it is to search: narrowed. Names have slashes where the configuration is
            nested; the options of a ``tune.choice`` stand as their numbers.
        metric: The result to optimise.
        mode: "min" or "max".
        seed: Its own.
    """

    number: int
    size: int
    evaluations: int
    space: ConfigurationSpace
    metric: str
    mode: str
    seed: int

    def domains(self) -> dict[str, Any]:
        """The space as nested Tune domains, without its conditions.

        Inactive values of what is suggested are left out before a trial gets it, and a forbidden
        configuration counts as failed.
        """
        free = ConfigurationSpace()
        free.add(*self.space.values())
        flat = from_config_space(free)
        return unflatten({tuple(name.split("/")): domain for name, domain in flat.items()})


Factory = Callable[[GrowthStage], Searcher]


class StageSearcher:
    """One of Ray's searchers at work on a stage, in flat configurations of the stage's space.

    Args:
        factory: Makes it.
        stage: What for.
        space: In which its suggestions must be legal.
    """

    def __init__(self, factory: Factory, stage: GrowthStage, space: ConfigurationSpace) -> None:
        self.stage, self._space = stage, space
        searcher = factory(stage)
        if not isinstance(searcher, Searcher):
            raise InvalidTypeError(f"searcher_factory must return a Ray searcher, got {searcher!r}")
        # Whether it searches our Tune domains, which have no conditions and no constants.
        self._domains = bool(
            searcher.set_search_properties(stage.metric, stage.mode, stage.domains())
        )
        self._noted = NotedSearcher(searcher)
        self._ids: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A legal configuration, or what the searcher says instead."""
        for attempt in range(_ATTEMPTS):
            inner_id = f"{trial_id}-{attempt}" if attempt else trial_id
            suggested = self._noted.suggest(inner_id)
            if not isinstance(suggested, Mapping):
                return suggested if suggested is None else str(suggested)
            config = self._legal(suggested)
            if config is not None:
                self._ids[trial_id] = inner_id
                return config
            self._noted.on_trial_complete(inner_id, None, error=True)
        return None

    def _legal(self, suggested: Mapping[str, Any]) -> dict[str, Any] | None:
        flat = {"/".join(map(str, path)): value for path, value in flatten(suggested).items()}
        values = {p.name: p.value for p in self._space.values() if isinstance(p, Constant)}
        values.update((name, flat[name]) for name in self._space if name in flat)
        try:
            config = deactivate_inactive_hyperparameters(values, self._space)
            config.check_valid_configuration()
        except Exception:  # ConfigSpace's errors have no common base
            return None
        return dict(plain(dict(config)))

    def knows(self, trial_id: str) -> bool:
        """Whether it suggested a trial that has not ended."""
        return trial_id in self._ids

    def on_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Pass on a finite result."""
        self._noted.on_trial_result(self._ids[trial_id], self._own(trial_id, result))

    def on_complete(self, trial_id: str, result: Mapping[str, Any] | None) -> None:
        """Pass on a finite last result; None is a failure."""
        last = None if result is None else self._own(trial_id, result)
        inner_id = self._ids.pop(trial_id)
        self._noted.on_trial_complete(inner_id, last, error=last is None)

    def _own(self, trial_id: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result as of the searcher's own trial; its configuration was in other terms."""
        kept = {k: v for k, v in result.items() if k != "config" and not k.startswith("config/")}
        return {**kept, "trial_id": self._ids[trial_id]}

    def tell(self, config: Mapping[str, Any], value: float) -> None:
        """Tell it what is known of a configuration; not if it takes no such thing.

        What lies outside the stage's space is not told: searchers refuse it.
        """
        space = self.stage.space
        if not all(space[name].legal_value(value) for name, value in config.items()):
            return
        told = dict(config)
        if self._domains:
            free = [p for p in space.values() if not isinstance(p, Constant)]
            told = {p.name: config.get(p.name, plain(p.default_value)) for p in free}
        try:
            self._noted.add_evaluated_point(told, value)
        except (NotImplementedError, AttributeError):
            return

    def hears_of(self, callback: str, trial_id: str) -> None:
        """Pass a pause on; a searcher that does not know pauses need not hear of them."""
        if trial_id in self._ids:
            self._noted.hears_of(callback, self._ids[trial_id])

    def to_json(self) -> dict[str, Any]:
        """Its state or its calls, and whose trials it knows."""
        return {"stage": self.stage.number, "ids": self._ids, **self._noted.to_json()}

    def load_json(self, state: Mapping[str, Any]) -> bool:
        """Go on from `to_json`; False where the searcher cannot, and has to be made again.

        Raises:
            StateError: It was written by an earlier tune_ext, is of another searcher, or damaged.
        """
        if "file" in state:
            raise StateError(
                "an earlier tune_ext has written the searcher of its stage as a pickle, which "
                "could run code and is not read any more; use the tune_ext that wrote it"
            )
        self._ids = {str(key): str(value) for key, value in state["ids"].items()}
        if not self._noted.load_json(state):
            self._ids = {}
            return False
        return True


_ATTEMPTS = 50
"""Suggestions that a space forbids are asked again so many times."""


class RandomSearch(StatefulSearcher):
    """Draws from a ConfigSpace: its weights, conditions and forbidden clauses count."""

    def __init__(self, stage: GrowthStage) -> None:
        super().__init__(stage.metric, stage.mode)
        self._space, self._seed, self._drawn = stage.space, stage.seed, 0

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next random configuration."""
        self._space.seed(derive_seed(self._seed, self._drawn) % 2**32)
        self._drawn += 1
        return dict(self._space.sample_configuration())

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Random search learns nothing."""

    def _state(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self._drawn = int(state["drawn"])


def _tpe(stage: GrowthStage) -> Searcher:
    from optuna.samplers import TPESampler

    return _optuna(stage, TPESampler(seed=stage.seed, n_startup_trials=RANDOM_TRIALS))


def _gp(stage: GrowthStage) -> Searcher:
    from optuna.samplers import GPSampler

    return _optuna(stage, GPSampler(seed=stage.seed, n_startup_trials=RANDOM_TRIALS))


def _nsga2(stage: GrowthStage) -> Searcher:
    from optuna.samplers import NSGAIISampler

    population = min(50, max(4, stage.evaluations // GENERATIONS))
    return _optuna(stage, NSGAIISampler(population_size=population, seed=stage.seed))


def _optuna(stage: GrowthStage, sampler: Any) -> Searcher:
    import optuna

    from tune_ext.raytune._growth_optuna import ConditionalOptuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return ConditionalOptuna(stage.space, stage.metric, stage.mode, sampler)


def _hyperopt(stage: GrowthStage) -> Searcher:
    from ray.tune.search.hyperopt import HyperOptSearch

    return HyperOptSearch(
        metric=stage.metric,
        mode=stage.mode,
        n_initial_points=RANDOM_TRIALS,
        random_state_seed=stage.seed,
    )


class _LastResult(BOHBSearch):
    """BOHB's model of the last results: trials that end by patience have no common budget."""

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial counts when it ends."""

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn from the last result as if all had trained as long."""
        last = None if result is None else {**result, self._time_attr: 1}
        super().on_trial_complete(trial_id, last, error)


def _bohb(stage: GrowthStage) -> Searcher:
    return _LastResult(stage.space, metric=stage.metric, mode=stage.mode, seed=stage.seed)


def _smac(stage: GrowthStage) -> Searcher:
    from tune_ext.raytune.smac import SMACSearch

    return SMACSearch(
        stage.space,
        metric=stage.metric,
        mode=stage.mode,
        n_trials=max(1, stage.evaluations),
        seed=stage.seed,
    )


FACTORIES: dict[str, tuple[Factory, str | None]] = {
    "random": (RandomSearch, None),
    "tpe": (_tpe, "optuna"),
    "gp": (_gp, "optuna"),
    "nsga2": (_nsga2, "optuna"),
    "hyperopt": (_hyperopt, "hyperopt"),
    "bohb": (_bohb, None),
    "smac": (_smac, "smac"),
}
"""The ready ones by name, with the package that each needs."""


def to_factory(factory: Any) -> Factory:
    """A factory by name, or as it is.

    Raises:
        InvalidTypeError: It is neither a name nor callable.
        InvalidValueError: There is none of this name.
        MissingDependencyError: What it needs is not installed.
    """
    if callable(factory):
        made: Factory = factory
        return made
    if not isinstance(factory, str):
        raise InvalidTypeError(
            f"searcher_factory must be a function from a GrowthStage to a Ray searcher, or one of "
            f"{', '.join(FACTORIES)}; got {factory!r}"
        )
    if factory not in FACTORIES:
        raise InvalidValueError(
            f"searcher_factory must be one of {', '.join(FACTORIES)}, got {factory!r}"
        )
    ready, needs = FACTORIES[factory]
    if needs is not None and importlib.util.find_spec(needs) is None:
        raise MissingDependencyError(f'searcher_factory="{factory}" needs: pip install {needs}')
    return ready
