"""Small images first, around any searcher: a thin adapter over `tune_ext.image_growth`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ConfigSpace import ConfigurationSpace
from ray.tune.search import Searcher
from ray.tune.utils.util import merge_dicts

from tune_ext._explanation import Explanation
from tune_ext._random import check_seed, derive_seed
from tune_ext.errors import InvalidValueError
from tune_ext.image_growth import PAPER_SIZES, ImageGrowth, Turn
from tune_ext.raytune._base import Polls, StatefulSearcher, check_name, is_diverged, loss_of
from tune_ext.raytune._config_space import SearchedSpace, check_points
from tune_ext.raytune._growth_searchers import Factory, GrowthStage, StageSearcher, to_factory
from tune_ext.raytune._space import unflatten

__all__ = ["GrowthStage", "ImageGrowthSearch"]

_LOST_AFTER = 20
"""Ray asks once a second while it has nothing at all to run: then the trials awaited are lost."""


class ImageGrowthSearch(StatefulSearcher):
    """Searches at small image sizes first, and carries what was learned to larger ones.

    Each trial's configuration says its image size; a stage has a searcher of its own. At the
    change of size some configurations are evaluated again: they measure how far the ranking
    carries over. As far as it does, ranges are narrowed around the best, the best are evaluated
    again, and the next searcher is given what is known; where it hardly does, a
    `tune_ext.image_growth.TransferWarning` says so.

    It ends the run by itself, after the evaluations of all sizes: give Ray ``num_samples=-1``.

    A scheduler that compares trials compares those of different sizes. Use none, or put it into a
    `tune_ext.GroupedScheduler`.

    Args:
        searcher_factory: "random", "tpe", "gp", "nsga2" (Optuna's), "hyperopt", "bohb" or "smac";
            or a function from a `GrowthStage` to any Ray searcher. One that has no space is given
            the stage's as Tune domains.
        sizes: (pixels, evaluations) of each stage, sizes increasing; the published ones are the
            default.
        space: A ConfigSpace or nested Tune domains, without the image size; None takes the
            experiment's ``param_space``.
        metric: The result to optimise; None takes Ray's.
        mode: "min" or "max"; None takes Ray's.
        points_to_evaluate: Complete configurations with which the first stage begins.
        size_key: Where in the configuration the image size stands; ``"data/size"`` if nested.
        probes: As `tune_ext.image_growth.ImageGrowth`, like all that follow.
        best: See there.
        top: See there.
        floor: See there.
        enough: See there.
        transfer: See there.
        seed: None is another search every time.

    Raises:
        InvalidTypeError: An argument has the wrong type.
        InvalidValueError: An argument has an impossible value, or the space cannot be searched.
        MissingDependencyError: The searcher that was named is not installed.
    """

    def __init__(
        self,
        searcher_factory: str | Factory = "tpe",
        sizes: Sequence[tuple[int, int]] = PAPER_SIZES,
        *,
        space: ConfigurationSpace | Mapping[str, Any] | None = None,
        metric: str | None = None,
        mode: str | None = None,
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = None,
        size_key: str = "image_size",
        probes: int | None = None,
        best: int | None = None,
        top: float = 0.2,
        floor: float = 0.2,
        enough: float = 0.9,
        transfer: float | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(metric, mode)
        self._factory = to_factory(searcher_factory)
        check_name("size_key", size_key, "an entry of the configuration")
        self._size_key = size_key
        given = check_seed(seed)
        self._seed = secrets.randbits(31) if given is None else given
        self._options: dict[str, Any] = {
            "probes": probes,
            "best": best,
            "top": top,
            "floor": floor,
            "enough": enough,
            "transfer": transfer,
        }
        self._sizes = sizes
        ImageGrowth(ConfigurationSpace({"x": (0.0, 1.0)}), sizes, **self._options)  # their errors
        self._points = check_points(points_to_evaluate)
        self._own_space = space is not None
        self._space: SearchedSpace | None = None
        self._growth: ImageGrowth | None = None
        self._inner: StageSearcher | None = None
        self._paused: set[str] = set()
        self._most: int | None = None  # trials that run at a time
        self._polls = Polls()
        if space is not None:
            self._adopt(SearchedSpace.of(space, steps=True))

    def _adopt(self, space: SearchedSpace) -> None:
        if self._size_key in space.space:
            raise InvalidValueError(
                f"size_key={self._size_key!r} is in the search space: leave the image size out, "
                "the stages say it"
            )
        points = [space.plain(space.encode(point)) for point in self._points]
        self._growth = ImageGrowth(
            space.space, self._sizes, points=points, seed=self._seed, **self._options
        )
        self._space, self._inner = space, None

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

    # --- Ray's calls ----------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next configuration, None while results are awaited, or FINISHED."""
        self._check_ready(self._space is not None)
        growth = self._grown()
        if self._is_full() and not self._forget_lost(3 * _LOST_AFTER):  # slow steps are no sign yet
            return None
        while True:
            turn = growth.ask(trial_id)
            if turn is None and growth.issued:
                finished: str = Searcher.FINISHED
                return finished
            if turn is None:
                if not self._forget_lost():
                    return None
                continue
            config = turn.config if turn.config is not None else self._own(turn, trial_id)
            if isinstance(config, Mapping):
                return self._to_trial(config, turn.size)
            if config is None:
                return None

    def _own(self, turn: Turn, trial_id: str) -> dict[str, Any] | str | None:
        """A configuration of the stage's own searcher; FINISHED: ask for another turn."""
        growth, inner = self._grown(), self._inner_of(turn.stage)
        suggested = inner.suggest(trial_id)
        if isinstance(suggested, str):
            growth.withdraw(trial_id)
            growth.end_stage(turn.stage)
            return suggested
        if suggested is None:
            if growth.live:
                growth.withdraw(trial_id)
                return None
            # Ray would wait for ever for a searcher that waits for nothing.
            suggested = growth.draw(growth.carried(turn.stage).space, "instead", trial_id)
        assert self._space is not None
        config = self._space.plain(suggested)
        growth.accept(trial_id, config)
        return config

    def _inner_of(self, number: int) -> StageSearcher:
        """The searcher of a stage, made when it is needed first and told what is known."""
        if self._inner is None or self._inner.stage.number != number:
            inner = self._make(number)
            for config, loss in self._grown().carried(number).points:
                inner.tell(config, self._value(loss))
            for trial in self._grown().trials(number):
                if trial.loss is not None:
                    inner.tell(trial.config, self._value(trial.loss))
            self._inner = inner
        return self._inner

    def _make(self, number: int) -> StageSearcher:
        growth = self._grown()
        stage = GrowthStage(
            number=number,
            size=growth.sizes[number],
            evaluations=growth.own_evaluations(number),
            space=growth.carried(number).space,
            metric=str(self._metric),
            mode=str(self._mode),
            seed=derive_seed(self._seed, "stage", number) % 2**31,
        )
        return StageSearcher(self._factory, stage, growth.space)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Pass a finite result of its own trial on to the stage's searcher."""
        inner = self._inner
        if inner is None or not inner.knows(trial_id):
            return
        if loss_of(result, self._metric, self._mode) is not None:
            inner.on_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take a trial's last result, or that it has failed."""
        self._paused.discard(trial_id)
        if self._growth is None:
            return
        loss = None
        if result is not None and not error and not is_diverged(result, self._metric):
            loss = loss_of(result, self._metric, self._mode)
        self._end(trial_id, loss, result)

    def _end(self, trial_id: str, loss: float | None, result: Mapping[str, Any] | None) -> None:
        known = self._grown().tell(trial_id, loss)
        inner = self._inner
        if inner is None:
            return
        if inner.knows(trial_id):
            inner.on_complete(trial_id, None if loss is None else result)
        elif known is not None and known[0] == inner.stage.number and loss is not None:
            inner.tell(known[1], self._value(loss))

    def on_pause(self, trial_id: str) -> None:
        """A trial that waits does not count among those that run."""
        if self._growth is not None and trial_id in self._growth.live:
            self._paused.add(trial_id)
        if self._inner is not None:
            self._inner.hears_of("on_pause", trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """It does again."""
        self._paused.discard(trial_id)
        if self._inner is not None:
            self._inner.hears_of("on_unpause", trial_id)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Take over the work of a limiter, which would count trials that wait."""
        self._most = int(max_concurrent)
        return True

    # --- what came of it ------------------------------------------------------------------

    @property
    def best_config(self) -> dict[str, Any] | None:
        """The best at the largest size that has results, with that size; None without any."""
        best = None if self._growth is None else self._growth.best
        return None if best is None else self._to_trial(best[1], best[0])

    def explain(self) -> Explanation:
        """What happened at each size: evaluations, correlation, weight, narrowed ranges."""
        rows = () if self._growth is None else self._growth.rows()
        return Explanation(tuple({**row, "best": self._shown(row["best"])} for row in rows))

    def _shown(self, loss: float | None) -> float | None:
        return None if loss is None else self._value(loss)

    # --- helpers --------------------------------------------------------------------------

    def _grown(self) -> ImageGrowth:
        assert self._growth is not None
        return self._growth

    def _value(self, loss: float) -> float:
        return -loss if self._mode == "max" else loss

    def _to_trial(self, config: Mapping[str, Any], size: int) -> dict[str, Any]:
        assert self._space is not None
        ours = unflatten({tuple(self._size_key.split("/")): size})
        return dict(merge_dicts(self._space.decode(config), ours))

    def _is_full(self) -> bool:
        """Whether as many trials run as may."""
        running = set(self._grown().live) - self._paused
        return self._most is not None and len(running) >= self._most

    def _forget_lost(self, after: int = _LOST_AFTER) -> bool:
        """Take trials that no longer exist for failed, if Ray says that it runs nothing."""
        if self._polls.blocked() < after:
            return False
        for trial_id in self._grown().live:
            self._end(trial_id, None, None)
        self._polls = Polls()
        return True

    # --- state ----------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_polls": Polls()}

    def _state(self) -> dict[str, Any]:
        return {
            "metric": self._metric,
            "mode": self._mode,
            "seed": self._seed,
            "size_key": self._size_key,
            "points": self._points,
            "paused": sorted(self._paused),
            "own_space": self._own_space,
            "space": None if self._space is None else self._space.to_json(),
            "growth": None if self._growth is None else self._growth.to_json(),
            "inner": None if self._inner is None else self._inner.to_json(),
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        before = dict(self.__dict__)
        try:
            self._take(state)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)  # a damaged state leaves it as it was
            raise

    def _take(self, state: Mapping[str, Any]) -> None:
        self._set_metric(state["metric"])
        self._mode, self._seed = state["mode"], int(state["seed"])
        self._size_key, self._own_space = str(state["size_key"]), bool(state["own_space"])
        self._points = check_points(state["points"])
        self._paused = {str(trial_id) for trial_id in state["paused"]}
        self._inner, self._polls = None, Polls()
        if state["space"] is None:
            self._space = self._growth = None
            return
        self._space = SearchedSpace.from_json(state["space"], self._space)
        self._growth = ImageGrowth.from_json(state["growth"])
        if state["inner"] is not None:
            inner = self._make(int(state["inner"]["stage"]))
            if inner.load_json(state["inner"]):
                self._inner = inner
