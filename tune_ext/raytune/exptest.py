"""ExpTest for Ray Tune: a searcher and a scheduler over `tune_ext.exptest`.

The searcher runs the rungs of a ladder as trials, and then the full-length trials with the rate
that it chose. The scheduler ends rungs, cancels those that nobody needs any more, and tunes the
rate of the trials that go on. They share nothing but the key ``tune_ext`` of every suggested
configuration, and the results that trials report (`tune_ext.LossMonitor`)::

    {"role": "rung" or "final", "rung": -2, "steps": 60, "lr": "optimizer/lr",
     "ladder": the arguments of the `tune_ext.Ladder`, "continue_from": None}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ConfigSpace import ConfigurationSpace
from ray.tune.result import TRAINING_ITERATION

from tune_ext._checks import check_choice, check_positive
from tune_ext._loss_monitor import REPORT_KEY, read_statistics
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.exptest import Ladder, Rung, learning_rate_bound
from tune_ext.raytune._base import RESERVED_KEY, check_name, reported_names
from tune_ext.raytune._probing import Core, Ledger, ProbingSearch
from tune_ext.raytune._space import (
    NumericParameter,
    flatten,
    from_config_space,
    iter_domains,
    to_parameters,
    unflatten,
)
from tune_ext.raytune._trial_ladder import TrialLadder
from tune_ext.raytune.exptest_scheduler import ExpTestScheduler

__all__ = ["ExpTestScheduler", "ExpTestSearch"]

START = 0.1
"""Rung 0 where nothing is known of the inputs: a usual rate, from which the ladder moves both
ways. The answer depends on it by less than one rung as long as the end losses have one minimum."""


class ExpTestSearch(ProbingSearch):
    """Find a learning rate by short runs whose losses are tested for exponential decay.

    The rungs of a ladder of rates (`tune_ext.Ladder`, arXiv 2411.16975) are trials. The one
    that the next decision waits for is suggested first; workers that would stand idle get
    those that will most probably be needed next, and the answer depends on neither. When the
    ladder has ended, `final_trials` trials train with its rate, and the search ends the run by
    itself; give ``num_samples=-1``. With a finite number its last trials are the final ones,
    and no rung is tried ahead.

    A trainable collects its losses with a `tune_ext.LossMonitor` and merges its report into
    every result. The rungs compare rates, so they must start from the same initial weights and
    the same batches: seed the training. Use it with `ExpTestScheduler`, which ends rungs,
    cancels those that were tried ahead in vain, and tunes the rate of the final trials. Without
    it, a rung has to end by itself, when `LossMonitor.step` returns True.

    A rung that crashes, diverges, ends before its last step, or reports nothing that can be
    read has failed: it is never chosen.

    Args:
        space: Nested dictionary of Tune domains, or a ConfigSpace, with one range: that of the
            learning rate. What is not a domain is a constant. None: the ``param_space`` of the
            experiment.
        metric: Accepted as by every searcher. The ladder reads the reports of `LossMonitor`,
            whatever the experiment's metric is.
        mode: Accepted likewise: of losses, the smaller is better.
        lr: The learning rate's name in the space, nested names separated by slashes.
        bound: Where the ladder starts, moved into the range of the space. A number; or batches
            of inputs (arrays, tensors, or a DataLoader), of which
            `tune_ext.learning_rate_bound` is taken; None for 0.1. The ladder moves both ways.
        loss: "mse" or "cross_entropy": what is trained with, for a bound from batches.
        steps: Training steps of a rung.
        alpha: Level of the tests.
        beta: The rates of neighbouring rungs differ by this factor.
        max_concurrent: Most rungs at a time; idle workers try rungs ahead up to this number.
            None: what the cluster has room for.
        final_trials: How many trials train with the chosen rate; 0 for none.
        seed: Accepted as everywhere; the search draws no random numbers.
        points_to_evaluate: At most one configuration; its learning rate is where the ladder
            starts, instead of `bound`.
        time_attr: Accepted as by the other searchers; rungs count their own steps.
        max_rungs: The ladder ends when it would need more.

    Raises:
        InvalidValueError: An argument, or the space, cannot work; the message says which.
        InvalidTypeError: An argument of the wrong type.

    >>> from ray import tune
    >>> search = ExpTestSearch({"lr": tune.loguniform(1e-6, 1.0), "batch": 32}, bound=0.3)
    >>> config = search.suggest("first")
    >>> config["lr"], config["batch"], config["tune_ext"]["role"]
    (0.3, 32, 'rung')
    """

    ROLE = "rung"
    WHAT = "rungs"

    def __init__(
        self,
        space: Mapping[str, Any] | ConfigurationSpace | Sequence[NumericParameter] | None = None,
        metric: str | None = None,
        mode: str | None = None,
        *,
        lr: str = "lr",
        bound: float | Iterable[Any] | None = None,
        loss: Literal["mse", "cross_entropy"] = "mse",
        steps: int = 60,
        alpha: float = 0.05,
        beta: float = 0.33,
        max_concurrent: int | None = None,
        final_trials: int = 1,
        seed: int | None = None,
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = None,
        time_attr: str = "training_iteration",
        max_rungs: int = 25,
    ) -> None:
        super().__init__(
            metric,
            mode,
            max_concurrent=max_concurrent,
            final_trials=final_trials,
            seed=seed,
            time_attr=time_attr,
        )
        check_name("lr", lr, "the learning rate in the space")
        check_choice("loss", loss, ("mse", "cross_entropy"))
        self.lr = lr
        start = _start(bound, loss, points_to_evaluate, lr)
        checked = Ladder(start, steps=steps, alpha=alpha, beta=beta, max_rungs=max_rungs)
        self._bound = checked.bound
        self._options: dict[str, Any] = {
            "steps": checked.steps,
            "alpha": checked.alpha,
            "beta": checked.beta,
            "max_rungs": checked.max_rungs,
        }
        self._path: tuple[Any, ...] = ()
        self._constants: dict[str, Any] = {}
        self._core: TrialLadder | None = None
        self._own_space = space is not None
        if space is not None:
            self._build(space)
            self._constants = _constants(space)

    @staticmethod
    def convert_search_space(spec: Mapping[str, Any]) -> list[NumericParameter]:
        """List what is searched in a dictionary of Tune domains; usable as `space`."""
        return to_parameters(spec)

    @property
    def best_config(self) -> dict[str, Any] | None:
        """The chosen rate, nested as in the space; before the end, the best so far.

        None while no rung has passed.
        """
        rate = None if self._core is None else self._core.lr
        return None if rate is None else unflatten({self._path: rate})

    def _take_space(self, space: Mapping[str, Any]) -> bool:
        if self._core is not None:
            return _rate_range(space, self.lr).path == self._path
        self._build(space)
        return True

    def _build(
        self, space: Mapping[str, Any] | ConfigurationSpace | Sequence[NumericParameter]
    ) -> None:
        rate = _rate_range(space, self.lr)
        bounds = {"lower": rate.lower, "upper": rate.upper}
        self._core = TrialLadder(self._bound, **bounds, **self._options)
        self._path = rate.path

    def _short(self, item: Rung) -> tuple[int, dict[str, Any]]:
        return item.index, self._configuration("rung", item)

    def _long(self) -> dict[str, Any] | None:
        best = None if self._core is None else self._core.best
        return None if best is None else self._configuration("final", best)

    def _configuration(self, role: str, rung: Rung) -> dict[str, Any]:
        assert self._core is not None  # there are rungs
        ladder = self._core.arguments
        ours = {
            "role": role,
            "rung": rung.index,
            "steps": ladder["steps"],
            "lr": self.lr,
            "ladder": ladder,
            "continue_from": None,
        }
        config: dict[str, Any] = unflatten({**flatten(self._constants), self._path: rung.lr})
        return {**config, RESERVED_KEY: ours}

    def _observe(self, trial: Ledger, result: Mapping[str, Any]) -> None:
        """Read a rung's result as soon as it is complete."""
        if self._core is None or trial.probe is None or trial.told:
            return
        self._read(self._core, trial, trial.probe, result)

    def _read(
        self,
        core: TrialLadder,
        trial: Ledger,
        rung: int,
        result: Mapping[str, Any],
        last: bool = False,
    ) -> None:
        trial.told = core.reported(rung, result)
        fault = None if trial.told else _fault(result)
        if fault is None:
            self._seen = True
        elif last or result.get(TRAINING_ITERATION) != 1:
            # One such result may be an accident, or the first of two kinds that the loop reports
            # in turns; two, and no other, are a mistake.
            self._unread += 1
            self._problem = fault

    def _conclude(self, trial: Ledger, result: Mapping[str, Any] | None, error: bool) -> None:
        """Read the last result; without a complete one, the rung failed if the ladder needs it."""
        if self._core is None or trial.probe is None or trial.told:
            return
        if error:
            self._core.failed(trial.probe)
        elif result:
            self._read(self._core, trial, trial.probe, result, last=True)
        if not error and not trial.told:
            self._core.ended(trial.probe, result)
        trial.told = True

    def _pending(self) -> list[int]:
        return [] if self._core is None else [rung.index for rung in self._core.pending]

    def _load_core(self, state: Mapping[str, Any]) -> Core:
        return TrialLadder.from_state_dict(state)

    def _state(self) -> dict[str, Any]:
        return {
            **super()._state(),
            "lr": self.lr,
            "bound": self._bound,
            "options": dict(self._options),
            "path": list(self._path),
            "constants": self._constants,
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        lr, path, constants = str(state["lr"]), tuple(state["path"]), dict(state["constants"])
        bound, options = float(state["bound"]), dict(state["options"])
        Ladder(bound, **options)
        super()._load_state(state)
        self.lr, self._path, self._constants = lr, path, constants
        self._bound, self._options = bound, options


def _start(
    bound: float | Iterable[Any] | None,
    loss: Literal["mse", "cross_entropy"],
    points: Sequence[Mapping[str, Any]] | None,
    lr: str,
) -> float:
    """The rate of rung 0, before it is moved into the range of the space."""
    points = list(points or ())
    if points and (bound is not None or len(points) > 1):
        raise InvalidValueError(
            "a ladder has one start: give either bound or one configuration in "
            f"points_to_evaluate, got bound={bound!r} and {len(points)} configurations"
        )
    if points:
        return _rate_of(points[0], lr)
    if bound is None:
        return START
    if isinstance(bound, Iterable) and not isinstance(bound, str | bytes):
        return learning_rate_bound(bound, loss=loss)
    return bound  # type: ignore[return-value]  # the Ladder checks it


def _rate_of(point: Any, lr: str) -> float:
    if not isinstance(point, Mapping):
        raise InvalidTypeError(f"points_to_evaluate must hold dictionaries, got {point!r}")
    named = {"/".join(map(str, path)): value for path, value in flatten(point).items()}
    if lr not in named:
        raise InvalidValueError(
            f"points_to_evaluate has {point!r}, which gives no learning rate under {lr!r}"
        )
    name = f"the learning rate {lr!r} of points_to_evaluate"
    return check_positive(name, named[lr], below=math.inf)


def _rate_range(
    space: Mapping[str, Any] | ConfigurationSpace | Sequence[NumericParameter], lr: str
) -> NumericParameter:
    """The range of the learning rate, which has to be the only one in the space."""
    if isinstance(space, ConfigurationSpace):
        space = from_config_space(space)
    if isinstance(space, Mapping):
        domains = dict(iter_domains(space))
        named = {"/".join(map(str, path)): path for path in domains}
    else:
        named = {item.name: item.path for item in to_parameters(space)}
    if lr not in named:
        there = f" (there are ranges for {', '.join(sorted(named))})" if named else ""
        raise InvalidValueError(
            f"the search space has no range for the learning rate {lr!r}{there}: give it one, "
            f"for example {lr!r}: tune.loguniform(1e-6, 10), or name it with lr=..."
        )
    others = sorted(set(named) - {lr})
    if others:
        raise InvalidValueError(
            f"the search space also searches {', '.join(others)}, but rungs can only be compared "
            "with everything else fixed. Fix it; or search it with another searcher, leave the "
            f'rate to the trials with {lr!r}: "exptest", and find it there with '
            "LossMonitor(config).resolve(resolve_lr, model, loss_fn, loader)"
        )
    if isinstance(space, Mapping):
        space = to_parameters(unflatten({named[lr]: domains[named[lr]]}))
    rate = space[0]
    if rate.integer or rate.step is not None or rate.lower < 0 or rate.upper <= 0:
        kind = "an integer" if rate.integer else "quantised" if rate.step else "negative"
        raise InvalidValueError(
            f"the learning rate {lr!r} is {kind} in the space; a ladder moves by factors: use "
            "tune.loguniform, or tune.uniform from 0"
        )
    return rate


def _constants(
    space: Mapping[str, Any] | ConfigurationSpace | Sequence[NumericParameter],
) -> dict[str, Any]:
    """What a space of the searcher's own fixes; Ray knows only that of the experiment."""
    if isinstance(space, ConfigurationSpace):
        space = from_config_space(space)
    if not isinstance(space, Mapping):
        return {}
    searched = {path for path, _ in iter_domains(space)}
    fixed = {path: value for path, value in flatten(space).items() if path not in searched}
    try:
        json.dumps(list(fixed.values()))
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(
            f"a constant of space cannot be saved as JSON ({error}): put it into param_space"
        ) from None
    return unflatten(fixed)


def _fault(result: Mapping[str, Any]) -> str | None:
    """What to tell the user if no rung reports like this; None if one may."""
    if read_statistics(result) is not None:
        return (
            "the trial of a rung reports its losses as any other trial would. Make its monitor "
            "with the whole configuration that the trial was given, LossMonitor(config): the key "
            f"{RESERVED_KEY!r} in it says that it is a rung, and how long"
        )
    if any(key.split("/")[0] == REPORT_KEY for key in result):
        return None
    return (
        f"there is nothing of {REPORT_KEY!r} among the reported results "
        f"({', '.join(reported_names(result))}). Make one monitor = LossMonitor(config) before "
        "training, call monitor.step(loss) after every training step until it returns True, and "
        "tune.report({**monitor.report(), ...})"
    )
