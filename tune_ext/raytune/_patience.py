"""Early stop of trials that gain nothing more, for Ray Tune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune import Callback, Stopper

from tune_ext._checks import check_choice
from tune_ext._patience import NoGain
from tune_ext.errors import StateError
from tune_ext.raytune._base import as_number, check_name

__all__ = ["NoGainStopper"]

_VERSION = 1


class NoGainStopper(Stopper, Callback):
    """Ends each trial whose metric has not improved for some iterations.

    Hinz et al. (arXiv 1807.07362) so end a training when the validation does not improve for 5
    epochs. Every trial is watched by itself; one that goes back to a checkpoint is watched from
    there. NaN, infinite and None are never an improvement. A result that lacks the metric, where
    not every iteration validates, ends nothing.

    Ray saves the state of callbacks, not of stoppers: give it to both, and a restored experiment
    goes on as if it had not been interrupted.

    Args:
        metric: The result to watch; "a/b" is b in a.
        mode: "min" or "max": what is better.
        patience: Iterations without improvement that end a trial.
        min_gain: Less than this is no improvement.
        grace_period: No trial ends before so many iterations.
        time_attr: The result that counts iterations.

    Raises:
        InvalidTypeError: An argument is not of its type.
        InvalidValueError: An argument has an impossible value.

    >>> stopper = NoGainStopper("error", patience=2)
    >>> errors = [0.5, 0.4, 0.4, float("nan")]
    >>> [stopper("a", {"error": e, "training_iteration": i}) for i, e in enumerate(errors, 1)]
    [False, False, False, True]

    With Ray: ``tune.run(train, stop=stopper, callbacks=[stopper])``, or
    ``RunConfig(stop=stopper, callbacks=[stopper])``.
    """

    def __init__(
        self,
        metric: str,
        mode: str = "min",
        patience: int = 5,
        min_gain: float = 0.0,
        grace_period: int = 0,
        time_attr: str = "training_iteration",
    ) -> None:
        check_name("metric", metric)
        check_name("time_attr", time_attr)
        check_choice("mode", mode, ("min", "max"))
        self._metric, self._mode, self._time_attr = metric, mode, time_attr
        self._patience, self._min_gain, self._grace = patience, min_gain, grace_period
        self._new()  # an error here, and not at the first result
        self._rules: dict[str, NoGain] = {}

    def _new(self) -> NoGain:
        return NoGain(self._patience, self._mode, self._min_gain, self._grace)

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Take a result; tell whether its trial ends."""
        iteration = as_number(result.get(self._time_attr))
        there, value = _look_up(result, self._metric)
        if iteration is None or not there:
            return False
        rule = self._rules.setdefault(trial_id, self._new())
        return rule.add(int(iteration), as_number(value))

    def stop_all(self) -> bool:
        """Never: it ends trials, not experiments."""
        return False

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Forget it."""
        self._rules.pop(trial.trial_id, None)

    def get_state(self) -> dict[str, Any]:
        """What was seen of every trial that is under way, JSON-able."""
        rules = {trial_id: rule.state() for trial_id, rule in self._rules.items()}
        return {"kind": type(self).__name__, "version": _VERSION, "trials": rules}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `get_state` returned.

        Raises:
            StateError: It is the state of something else, or of an unknown version.
        """
        known = isinstance(state, Mapping) and state.get("kind") == type(self).__name__
        if not known or state.get("version") != _VERSION:
            raise StateError(f"this is no state of a {type(self).__name__} of version {_VERSION}")
        rules = {str(trial_id): self._new() for trial_id in state["trials"]}
        for trial_id, rule in rules.items():
            rule.load(state["trials"][trial_id])
        self._rules = rules


def _look_up(result: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """Whether a result has something of this name, and what."""
    if name in result:
        return True, result[name]
    first, slash, rest = name.partition("/")
    inner = result.get(first)
    return _look_up(inner, rest) if slash and isinstance(inner, Mapping) else (False, None)
