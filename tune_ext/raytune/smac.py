"""SMAC3 as a Ray Tune searcher.

SMAC (https://jmlr.org/papers/v23/21-0888.html) models the metric by a random forest and suggests
what promises the largest expected improvement. Ray has no searcher for it. This one drives
SMAC's ``HyperparameterOptimizationFacade`` by ask and tell; SMAC itself is an optional
requirement: ``pip install smac``.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ConfigSpace import Configuration, ConfigurationSpace
from ray.tune.search import Searcher

from tune_ext._checks import check_count
from tune_ext._random import check_seed
from tune_ext.errors import StateError
from tune_ext.raytune._base import StatefulSearcher, is_diverged, loss_of
from tune_ext.raytune._config_space import SearchedSpace, check_points
from tune_ext.raytune._space import unflatten

__all__ = ["SMACSearch"]

_USUAL_TRIALS = 100
"""SMAC's own default of how many trials there will be."""


class SMACSearch(StatefulSearcher):
    """Suggests configurations by SMAC3, version 2.

    A trial counts when it ends, by its last result. NaN, infinite, missing and None metrics and
    crashes count as crashes, at the worst value seen: they are never taken for good. The saved
    state is the list of what was asked and told, from which SMAC is built again; to restore n
    trials takes about as long as their suggestions took.

    SMAC suggests nothing twice: in a finite space the run ends when all of it was tried.

    Args:
        space: A ConfigSpace (conditions and forbidden clauses too) or nested Tune domains; None
            takes the experiment's ``param_space``.
        metric: The result to optimise; None takes Ray's.
        mode: "min" or "max"; None takes Ray's.
        points_to_evaluate: Complete configurations that are suggested first.
        n_trials: How many trials are expected: at most a quarter of them, and ten a parameter,
            are SMAC's initial design. It limits nothing.
        seed: None is another search every time.

    Raises:
        InvalidTypeError: An argument has the wrong type.
        InvalidValueError: An argument has an impossible value, or the space cannot be searched.
        ModuleNotFoundError: SMAC is not installed.
    """

    def __init__(
        self,
        space: ConfigurationSpace | Mapping[str, Any] | None = None,
        metric: str | None = None,
        mode: str | None = None,
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = None,
        n_trials: int = _USUAL_TRIALS,
        seed: int | None = None,
    ) -> None:
        super().__init__(metric, mode)
        if importlib.util.find_spec("smac") is None:
            raise ModuleNotFoundError("SMACSearch needs SMAC: pip install smac")
        self._n_trials = check_count("n_trials", n_trials)
        given = check_seed(seed)
        self._seed = secrets.randbits(31) if given is None else given
        self._points = check_points(points_to_evaluate)
        self._events: list[list[Any]] = []
        self._engine: _Engine | None = None
        self._own_space = space is not None
        self._space = None if space is None else self._adopt(space)

    def _adopt(self, space: ConfigurationSpace | Mapping[str, Any]) -> SearchedSpace:
        made = SearchedSpace.of(space)
        for point in self._points:
            made.encode(point)
        return made

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        """Take the space of the experiment, unless the constructor was given one."""
        self._fill_metric_and_mode(metric, mode)
        if self._own_space:
            return False
        space = self._adopt(config)
        if self._events and space != self._space:
            return False
        self._space = space
        return True

    @staticmethod
    def convert_search_space(spec: Mapping[str, Any]) -> ConfigurationSpace:
        """The ConfigSpace in which nested Tune domains are searched."""
        return SearchedSpace.of(spec).space

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next configuration, or `Searcher.FINISHED` when all were tried."""
        self._check_ready(self._space is not None)
        config = self._do(["ask", trial_id])
        if config is None:
            finished: str = Searcher.FINISHED
            return finished
        assert self._space is not None
        return self._space.decode(config)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial counts when it ends."""

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell SMAC the trial's last value, or that it has failed."""
        if self._space is None or not self._built().is_open(trial_id):
            return
        cost = None
        if result is not None and not error and not is_diverged(result, self._metric):
            cost = loss_of(result, self._metric, self._mode)
        self._do(["tell", trial_id, cost])

    def add_evaluated_point(
        self,
        parameters: Mapping[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Tell SMAC of a configuration that was evaluated elsewhere; it is not suggested again.

        Args:
            parameters: The configuration, nested or with slashes.
            value: The metric.
            error: It failed, as does any value that is not finite.
            pruned: It was not trained to the end, and is left out.
            intermediate_values: Not used.

        Raises:
            InvalidValueError: It is not in the space, or there is none yet.
        """
        self._check_ready(self._space is not None)
        if pruned and not error:
            return
        assert self._space is not None
        nested = unflatten({tuple(str(key).split("/")): v for key, v in parameters.items()})
        config = self._space.plain(self._space.encode(nested))
        cost = None if error else loss_of({str(self._metric): value}, self._metric, self._mode)
        self._do(["known", config, cost])

    def on_pause(self, trial_id: str) -> None:
        """A pause changes nothing."""

    def on_unpause(self, trial_id: str) -> None:
        """Nor does its end."""

    def _do(self, event: list[Any]) -> Configuration | None:
        """Apply an event and keep it; what SMAC has not taken is not kept."""
        answer = self._built().apply(event)
        self._events.append(event)
        return answer

    def _built(self) -> _Engine:
        """SMAC, built again from what was asked and told if need be."""
        if self._engine is None:
            assert self._space is not None
            points = [self._space.encode(point) for point in self._points]
            engine = _Engine(self._space.space, points, self._seed, self._n_trials)
            for event in self._events:
                engine.apply(event)
            self._engine = engine
        return self._engine

    def __getstate__(self) -> dict[str, Any]:
        """SMAC's generators do not pickle; what was asked and told does."""
        return {**self.__dict__, "_engine": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)

    def _state(self) -> dict[str, Any]:
        return {
            "metric": self._metric,
            "mode": self._mode,
            "seed": self._seed,
            "n_trials": self._n_trials,
            "points": self._points,
            "own_space": self._own_space,
            "space": None if self._space is None else self._space.to_json(),
            "events": self._events,
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        space = (
            None if state["space"] is None else SearchedSpace.from_json(state["space"], self._space)
        )
        events = [_check_event(event) for event in state["events"]]
        seed, n_trials = int(state["seed"]), int(state["n_trials"])
        points, own = check_points(state["points"]), bool(state["own_space"])
        metric, mode = state["metric"], state["mode"]
        # Nothing above has changed the searcher: a damaged state leaves it as it was.
        self._set_metric(metric)
        self._mode = mode
        self._space, self._own_space, self._points = space, own, points
        self._seed, self._n_trials, self._events = seed, n_trials, events
        self._engine = None


def _check_event(event: Any) -> list[Any]:
    kind, what, *cost = event
    legal = kind == "ask" and not cost
    legal = legal or (
        kind in ("tell", "known") and len(cost) == 1 and isinstance(cost[0], float | None)
    )
    if not legal or not isinstance(what, Mapping if kind == "known" else str):
        raise StateError(f"the searcher's state has an impossible event: {event!r}")
    return list(event)


class _Engine:
    """SMAC by ask and tell; the same events give the same suggestions.

    Args:
        space: What is searched.
        points: What is suggested first.
        seed: Of everything random.
        n_trials: How many trials SMAC expects.
    """

    def __init__(
        self, space: ConfigurationSpace, points: list[Configuration], seed: int, n_trials: int
    ) -> None:
        self._space, self._facade = space, _make_facade(space, seed, n_trials)
        self._points = points
        self._open: dict[str, Any] = {}
        self._failed: list[Any] = []
        self._best: float | None = None
        self._worst: float | None = None
        self._exhausted = False

    def is_open(self, trial_id: str) -> bool:
        """Whether a trial was suggested and has not ended."""
        return trial_id in self._open

    def apply(self, event: list[Any]) -> Configuration | None:
        """Apply ["ask", trial], ["tell", trial, cost] or ["known", config, cost].

        A cost is None for a failure. An ask has an answer.
        """
        from smac.runhistory.dataclasses import TrialInfo

        kind, what, *cost = event
        if kind == "ask":
            return self._ask(what)
        if kind == "known":
            config = Configuration(self._space, values=what)
            self._tell(TrialInfo(config, seed=0), cost[0])
        else:
            self._tell(self._open.pop(what), cost[0])
        return None

    def _ask(self, trial_id: str) -> Configuration | None:
        import joblib  # type: ignore[import-untyped]
        from smac.main.exceptions import ConfigurationSpaceExhaustedException
        from smac.runhistory.dataclasses import TrialInfo

        if self._points:
            info = TrialInfo(self._points.pop(0), seed=0)
            self._facade.runhistory.add_running_trial(info)
        elif self._exhausted:
            return None
        else:
            try:
                # Ten small trees are fitted sooner than threads are started for them.
                with joblib.parallel_config(backend="sequential"):
                    info = self._facade.ask()
            except (StopIteration, ConfigurationSpaceExhaustedException):
                self._exhausted = True
                return None
        self._open[trial_id] = info
        return info.config

    def _tell(self, info: Any, cost: float | None) -> None:
        """Tell a value; failures wait until it is known what is bad."""
        from smac.runhistory import StatusType, TrialValue

        if cost is None:
            self._failed.append(info)
        else:
            self._facade.tell(info, TrialValue(cost), save=False)
            self._best = cost if self._best is None else min(cost, self._best)
            self._worst = cost if self._worst is None else max(cost, self._worst)
        if self._best is None or self._worst is None or not self._best < self._worst:
            return
        for failed in self._failed:
            value = TrialValue(self._worst, status=StatusType.CRASHED)
            self._facade.tell(failed, value, save=False)
        self._failed = []


def _make_facade(space: ConfigurationSpace, seed: int, n_trials: int) -> Any:
    """SMAC for a deterministic function, quiet, and with nothing left on the disk."""
    from smac import HyperparameterOptimizationFacade, Scenario

    logger = logging.getLogger("smac")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    # It writes a description of itself when it is built, and nothing after that.
    with tempfile.TemporaryDirectory(prefix="tune_ext_smac_") as folder:
        scenario = Scenario(
            copy.deepcopy(space),
            output_directory=Path(folder),
            deterministic=True,
            n_trials=n_trials,
            seed=seed % 2**32,
        )
        return HyperparameterOptimizationFacade(scenario, overwrite=True, logging_level=False)
