"""BOHB's searcher for Ray Tune: a thin adapter over `tune_ext.bohb`."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ConfigSpace import ConfigurationSpace

from tune_ext._bracket_table import CLOSE
from tune_ext._checks import check_positive
from tune_ext._random import check_seed
from tune_ext.bohb import BOHB
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune._base import StatefulSearcher, as_number, check_name, loss_of
from tune_ext.raytune._config_space import SearchedSpace, check_points
from tune_ext.raytune._space import unflatten
from tune_ext.raytune.brackets import BUDGET

__all__ = ["BOHBSearch"]


class BOHBSearch(StatefulSearcher):
    """Suggests configurations by BOHB's model of every budget at which trials were judged.

    Made for `tune_ext.HyperBand`, whose rungs, the last included, it learns from. Under any
    other scheduler, as ASHA, it learns from every result, at the budget that `time_attr` says. No
    two trials report at the same fraction of a second: it counts for the power of two below it,
    and of several results of a trial there the first one counts, or one that is not finite.

    Conditions, constants, ordered and quantised parameters and forbidden clauses are kept. A
    trial that fails, or reports no finite number, counts as worse than any other at the rung that
    it trained for, which `HyperBand` says.

    In a ``ConcurrencyLimiter``, and under ``max_concurrent_trials``, trials that `HyperBand` has
    paused do not count: a rung is filled although few trials run at a time.

    Source: Falkner, Klein, Hutter, "BOHB", ICML 2018 (arXiv 1807.01774).

    Args:
        space: A ConfigSpace or nested Tune domains; None takes the experiment's ``param_space``.
        metric: The result to optimise; None takes Ray's.
        mode: "min" or "max"; None takes Ray's.
        points_to_evaluate: Complete configurations that are suggested first.
        time_attr: The result that says how long a trial has trained.
        min_points: Observations that a model needs; None: one more than there are parameters.
        top: Share of the observations that count as good.
        samples: Candidates of a suggestion.
        random_fraction: Share of suggestions at random.
        budgets: Under another scheduler: results count for the largest of these that they have
            reached, and before the first one not at all. Give the scheduler's rungs, as
            ``[grace_period * reduction_factor**k for k in range(4)]`` of ASHA.
        seed: None is another search every time.

    Raises:
        InvalidTypeError: An argument has the wrong type.
        InvalidValueError: An argument has an impossible value, or the space cannot be searched.
    """

    def __init__(
        self,
        space: ConfigurationSpace | Mapping[str, Any] | None = None,
        metric: str | None = None,
        mode: str | None = None,
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = None,
        time_attr: str = "training_iteration",
        min_points: int | None = None,
        top: float = 0.15,
        samples: int = 64,
        random_fraction: float = 1 / 3,
        budgets: Sequence[float] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(metric, mode)
        check_name("time_attr", time_attr)
        self._budgets = _check_budgets(budgets)
        given = check_seed(seed)
        self._options: dict[str, Any] = {
            "min_points": min_points,
            "top": top,
            "samples": samples,
            "random_fraction": random_fraction,
            "seed": secrets.randbits(31) if given is None else given,
        }
        BOHB(ConfigurationSpace({"x": (0.0, 1.0)}), **self._options)  # says what is wrong with them
        self._time_attr = time_attr
        self._points = check_points(points_to_evaluate)
        self._next_point = 0
        self._queue: list[dict[str, Any]] = []  # the points, in terms of the space
        self._live: dict[str, dict[str, Any]] = {}
        self._paused: set[str] = set()
        self._most: int | None = None  # trials that run at a time
        self._rungs = False  # whether the scheduler says at which results trials are judged
        self._own_space = space is not None
        self._space: SearchedSpace | None = None
        self._model: BOHB | None = None
        if space is not None:
            self._adopt(SearchedSpace.of(space, steps=True))

    def _adopt(self, space: SearchedSpace) -> None:
        self._queue = [space.plain(space.encode(point)) for point in self._points]
        self._space, self._model = space, BOHB(space.space, **self._options)

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        """Take the space of the experiment, unless the constructor was given one."""
        self._fill_metric_and_mode(metric, mode)
        if self._own_space:
            return False
        space = SearchedSpace.of(config, steps=True)
        if self._space is None:
            self._adopt(space)
        return space == self._space

    @staticmethod
    def convert_search_space(spec: Mapping[str, Any]) -> ConfigurationSpace:
        """The ConfigSpace in which nested Tune domains are searched."""
        return SearchedSpace.of(spec, steps=True).space

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next configuration; None while as many trials run as may."""
        self._check_ready(self._space is not None)
        space, model = self._space, self._model
        assert space is not None
        assert model is not None
        if self._most is not None and len(self._live.keys() - self._paused) >= self._most:
            return None
        if self._next_point < len(self._queue):
            values = self._queue[self._next_point]
            self._next_point += 1
        else:
            values = space.plain(model.suggest().config)
        self._live[trial_id] = dict(values)
        return space.decode(values)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Learn from a result at which the trial was judged."""
        self._learn(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn from the last result, which Ray shows here alone; or that there is none."""
        failed = error
        if result is not None and not error:
            self._learn(trial_id, result)
            failed = loss_of(result, self._metric, self._mode) is None
        self._paused.discard(trial_id)
        config = self._live.pop(trial_id, None)
        if failed and config is not None and self._model:
            budget = self._failed_at(self._model, trial_id, error)
            if budget is not None:
                self._model.observe(config, budget, None, key=trial_id)

    def on_failure(self, trial_id: str, budget: float) -> None:
        """Learn that a trial has failed on its way to a rung; its completion says no more.

        Args:
            trial_id: Which.
            budget: Of the rung.
        """
        self._paused.discard(trial_id)
        config = self._live.pop(trial_id, None)
        if config is not None and self._model is not None:
            self._heed_rungs(self._model, budget)
            self._model.observe(config, budget, None, key=trial_id)

    def _heed_rungs(self, model: BOHB, budget: float) -> None:
        """From the first budget that a scheduler names, those that it names are all that count."""
        if not self._rungs:
            self._rungs = True
            model.rebase(budget)  # results before were at no rung

    def _failed_at(self, model: BOHB, trial_id: str, error: bool) -> float | None:
        """The budget that a trial was given when it failed; None where a result says it all.

        For schedulers that do not call `on_failure`: a guess from the budgets known so far.
        """
        given = self._budgets if self._budgets and not self._rungs else None
        budgets = given or list(model.counts())
        reached = [budget for budget in budgets if model.knows(trial_id, budget)]
        if not reached:
            return min(budgets, default=1.0)
        if not error or not (given or self._rungs):
            return None
        return min((budget for budget in budgets if budget > max(reached)), default=None)

    def add_evaluated_point(
        self,
        parameters: Mapping[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Learn from a configuration that was evaluated elsewhere.

        Args:
            parameters: The configuration, nested or with slashes.
            value: The metric, at the largest budget known so far.
            error: It failed.
            pruned: It did not reach that budget, and is left out.
            intermediate_values: Not used.

        Raises:
            InvalidValueError: It is not in the space, or there is none yet.
        """
        self._check_ready(self._space is not None)
        assert self._space is not None
        assert self._model is not None
        if pruned and not error:
            return
        nested = unflatten({tuple(str(key).split("/")): v for key, v in parameters.items()})
        config = self._space.plain(self._space.encode(nested))
        loss = None if error else loss_of({str(self._metric): value}, self._metric, self._mode)
        self._model.observe(config, max(self._model.counts(), default=1.0), loss)

    def on_pause(self, trial_id: str) -> None:
        """A trial that waits does not count among those that run."""
        if trial_id in self._live:
            self._paused.add(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """It does again."""
        self._paused.discard(trial_id)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Take over the work of a limiter, which would count trials that wait."""
        self._most = int(max_concurrent)
        return True

    def _learn(self, trial_id: str, result: Mapping[str, Any]) -> None:
        config = self._live.get(trial_id)
        if config is None or self._model is None:
            return
        if BUDGET in result:
            self._heed_rungs(self._model, float(result[BUDGET]))
        budget = as_number(result.get(BUDGET if self._rungs else self._time_attr))
        if budget is None:
            return
        loss = loss_of(result, self._metric, self._mode)
        if not self._rungs:
            reached = self._reached(budget)
            if reached is None:
                return
            later = reached != budget and self._model.knows(trial_id, reached)
            if later and loss is not None:
                return
            budget = reached
        self._model.observe(config, budget, loss, key=trial_id)

    def _reached(self, spent: float) -> float | None:
        """The budget for which a result counts where no scheduler says it."""
        if self._budgets is not None:
            return max((b for b in self._budgets if b <= spent * (1 + CLOSE)), default=None)
        if spent.is_integer() or spent <= 0:
            return spent
        return 2.0 ** math.floor(math.log2(spent))

    def _state(self) -> dict[str, Any]:
        return {
            "metric": self._metric,
            "mode": self._mode,
            "options": self._options,
            "time_attr": self._time_attr,
            "budgets": self._budgets,
            "points": self._queue,
            "next_point": self._next_point,
            "live": self._live,
            "paused": sorted(self._paused),
            "rungs": self._rungs,
            "own_space": self._own_space,
            "space": None if self._space is None else self._space.to_json(),
            "model": None if self._model is None else self._model.to_json(),
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        space = None
        if state["space"] is not None:
            space = SearchedSpace.from_json(state["space"], self._space)
        options, model = dict(state["options"]), None
        if space is not None:
            model = BOHB(space.space, **options)
            model.load_json(state["model"])
        queue, live, paused = check_points(state["points"]), dict(state["live"]), state["paused"]
        paused = {str(trial_id) for trial_id in paused}
        next_point, rungs = int(state["next_point"]), bool(state["rungs"])
        metric, mode, time_attr = state["metric"], state["mode"], str(state["time_attr"])
        own, budgets = bool(state["own_space"]), _check_budgets(state.get("budgets"))
        # Nothing above has changed the searcher: a damaged state leaves it as it was.
        self._set_metric(metric)
        self._mode, self._time_attr, self._own_space = mode, time_attr, own
        self._budgets = budgets
        self._space, self._model, self._options = space, model, options
        self._queue, self._next_point = queue, next_point
        self._live, self._paused, self._rungs = live, paused, rungs


def _check_budgets(budgets: Any) -> list[float] | None:
    if budgets is None:
        return None
    if isinstance(budgets, str) or not isinstance(budgets, Sequence):
        raise InvalidTypeError(f"budgets must be a list of numbers, got {budgets!r}")
    if not budgets:
        raise InvalidValueError("budgets must not be empty; None is for no rungs")
    return sorted(check_positive("budgets", budget, below=math.inf) for budget in budgets)
