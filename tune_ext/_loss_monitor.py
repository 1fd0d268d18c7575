"""What a training loop reports for ExpTest, in one line; and how a report is read.

A report is one flat dictionary under the key ``exptest``, which Ray flattens to ``exptest/n`` and
so on. Trials of a ladder report the result of their rung (`read_rung`), all others the sufficient
statistics of the steps since their last report (`read_statistics`), a handful of numbers however
many the steps are.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tune_ext._checks import check_count, check_positive
from tune_ext._decay import DecayTest
from tune_ext._losses import LossBuffer
from tune_ext._names import RESERVED_KEY
from tune_ext._rung import RungResult, RungTest
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["REPORT_KEY", "LossMonitor", "rate_in", "rate_path", "read_rung", "read_statistics"]

REPORT_KEY = "exptest"
"""Where a report stands in a result."""
SEARCHED = "exptest"
"""The value of a configuration's learning rate that says: let the trial find it."""
_VERSION = 1


class LossMonitor:
    """Collects the losses of a training loop for `ExpTestScheduler` and `ExpTestSearch`.

    A step costs one append. A loss on a device is copied there and read together with others,
    so that no step waits for the device. Memory: 8 bytes for each step since the last report.

    In a trial of a ladder only the first steps of the rung (``config["tune_ext"]["steps"]``)
    are tested, so that the answer does not depend on how often the loop reports, nor on when it
    notices that it may end.

    Args:
        config: The trial's configuration; None where there is none.
        lr: Where the learning rate is in it, nested names separated by slashes. None: where
            the searcher says that it is, else ``"lr"``.
        transform: What is tested, as for `tune_ext.DecayTest`: "log", or "identity" for losses
            that may be negative.

    Raises:
        InvalidTypeError: `config` is not a dictionary, or the trial's role is damaged.
        InvalidValueError: `transform` is unknown, or the trial's role is damaged.

    >>> monitor = LossMonitor({"lr": 0.1})
    >>> for loss in (1.0, 0.7, 0.5, 0.35):
    ...     ended = monitor.step(loss)
    >>> ended, monitor.report()["exptest"]["steps"]
    (False, 4)
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        lr: str | None = None,
        transform: Literal["log", "identity"] = "log",
    ) -> None:
        if config is not None and not isinstance(config, Mapping):
            raise InvalidTypeError(f"config must be a trial's configuration, got {config!r}")
        DecayTest(transform=transform)  # checks it
        self._transform = transform
        self._configured = rate_in(config or {}, lr or rate_path(config or {}))
        self._losses = LossBuffer()
        self._rung = _rung_of(config or {}, transform)
        self._found: float | None = None
        self._search_steps = 0
        self._steps = 0

    @property
    def lr(self) -> float | None:
        """The learning rate: the configuration's number, or else what `resolve` found."""
        return self._found if self._configured in (None, SEARCHED) else float(self._configured)

    @property
    def spent(self) -> int:
        """All training steps of this trial so far, those of its search for a rate included."""
        return self._search_steps + self._steps

    def epochs(self, steps_per_epoch: int) -> float:
        """The same in epochs: a time attribute that counts what the search has cost.

        Args:
            steps_per_epoch: Steps of one epoch, usually ``len(loader)``.
        """
        return self.spent / check_count("steps_per_epoch", steps_per_epoch)

    def resolve(self, resolve_lr: Callable[..., Any], *arguments: Any, **options: Any) -> float:
        """The learning rate to train with, searched for when and only when it must be.

        A number in the configuration is taken as it is. Where it says ``"exptest"``, the rate is
        what an earlier call found, also before a pause or a crash (see `load_state_dict`), and
        otherwise what ``resolve_lr("exptest", *arguments, **options)`` finds, whose steps count
        as `spent`.

        Args:
            resolve_lr: `tune_ext.resolve_lr`, or anything that returns an object with the
                attributes ``lr`` and ``steps``.
            *arguments: Passed on: the model, the loss function, the loader.
            **options: Passed on.

        Raises:
            InvalidValueError: The configuration has no learning rate, or none was found.
        """
        if self._configured is None:
            raise InvalidValueError(
                'the configuration has no learning rate; give a number, or "exptest" to search'
            )
        if self.lr is None:
            search = resolve_lr(SEARCHED, *arguments, **options)
            if search.lr is None:
                raise InvalidValueError("no rate of the ladder makes the loss decay")
            self._found = check_positive("the rate that was found", search.lr, below=math.inf)
            self._search_steps = int(search.steps)
        return float(self.lr or 0.0)

    def step(self, loss: Any) -> bool:
        """Take the loss of one training step.

        Args:
            loss: A number, or a tensor of one number on any device.

        Returns:
            True once a trial of a ladder has all its steps, or has diverged: the loop may end
            and report. Always False in other trials. A loss on a device is known to be finite
            only when it has been read.

        Raises:
            InvalidTypeError: `loss` is neither a number nor a tensor.
            InvalidValueError: `loss` is a tensor of more than one number.
        """
        if self._rung is None:
            self._losses.add(loss)
            self._steps += 1
            return False
        if not self._rung.done:
            self._losses.add(loss)
            self._steps += 1
            if not self._losses.waiting or self._steps >= self._rung.steps:
                self._feed(self._rung)
        return self._rung.done

    def report(self) -> dict[str, dict[str, Any]]:
        """The statistics of the steps since the last report: ``tune.report({…, **this})``."""
        if self._rung is not None:
            self._feed(self._rung)
            body = {**self._rung.result().to_dict(), "complete": self._rung.done}
        else:
            body = self._stretch()
        if self.lr is not None:
            body["lr"] = self.lr
        return {REPORT_KEY: {**body, "spent": self.spent}}

    def state_dict(self) -> dict[str, Any]:
        """What belongs into a checkpoint, JSON-able.

        A checkpoint goes with a report, whichever of the two is made first: steps that are not
        yet reported are not in it, and are never counted twice.
        """
        if self._rung is not None:
            self._feed(self._rung)
        return {
            "version": _VERSION,
            "lr": self._found,
            "search_steps": self._search_steps,
            "steps": self._steps,
            "rung": None if self._rung is None else self._rung.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            StateError: It is not such a state, or of an unknown version.
        """
        try:
            if state["version"] != _VERSION:
                raise StateError(f"this state of a LossMonitor has version {state['version']!r}")
            found, searched, steps = state["lr"], int(state["search_steps"]), int(state["steps"])
            rung = self._rung
            if rung is not None and state["rung"] is not None:
                rung = RungTest.from_state_dict(state["rung"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"this is not the state of a LossMonitor: {error!r}") from error
        self._found, self._search_steps, self._steps = found, searched, steps
        self._rung = rung
        self._losses.take()

    def _feed(self, rung: RungTest) -> None:
        for loss in self._losses.take():
            rung.update(loss)

    def _stretch(self) -> dict[str, Any]:
        """The statistics of what has not been reported yet."""
        losses = self._losses.take()
        test = DecayTest(transform=self._transform)
        test.update_many(losses)
        end = losses[-max(len(losses) // 5, 1) :]
        finite = not test.diverged and len(end) > 0
        return {
            **test.statistics(),
            "transform": self._transform,
            "steps": len(losses),
            "diverged": test.diverged,
            "end_loss": math.fsum(end) / len(end) if finite else None,
        }


def _rung_of(config: Mapping[str, Any], transform: Any) -> RungTest | None:
    """The test of the rung that a configuration asks for, or None."""
    ours = config.get(RESERVED_KEY)
    if not isinstance(ours, Mapping) or ours.get("role") != "rung":
        return None
    ladder = ours.get("ladder")
    alpha = ladder.get("alpha", 0.05) if isinstance(ladder, Mapping) else 0.05
    return RungTest(ours.get("steps", 60), alpha, transform=transform)


def rate_path(config: Mapping[str, Any], default: str = "lr") -> str:
    """Where the learning rate is in a configuration: where its searcher says so, or `default`.

    >>> rate_path({"tune_ext": {"role": "final", "lr": "optimizer/lr"}}), rate_path({"lr": 1})
    ('optimizer/lr', 'lr')
    """
    ours = config.get(RESERVED_KEY)
    said = ours.get("lr") if isinstance(ours, Mapping) else None
    return said if isinstance(said, str) else default


def rate_in(config: Mapping[str, Any], path: str) -> float | str | None:
    """The learning rate of a configuration: a number, ``"exptest"``, or None.

    >>> rate_in({"optimizer": {"lr": 0.1}}, "optimizer/lr"), rate_in({"lr": "high"}, "lr")
    (0.1, None)
    """
    value: Any = config
    for name in [path] if path in config else path.split("/"):
        value = value.get(name) if isinstance(value, Mapping) else None
    if value == SEARCHED:
        return SEARCHED
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < math.inf else None


def read_statistics(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `tune_ext.Tuner.tell` takes, out of a result as Ray hands it on.

    Args:
        result: A result, flat (``"exptest/n"``) or nested.

    Returns:
        The statistics, with the ``steps`` that they cover; None if there are none, or no
        statistics of at least one step, or those of a rung.
    """
    body = _body(result)
    if not _is_count(body.get("steps")) or "verdict" in body:
        return None
    return body


def read_rung(result: Mapping[str, Any], *, partial: bool = False) -> RungResult | None:
    """What `tune_ext.Ladder.tell` takes, out of a result as Ray hands it on.

    Args:
        result: A result, flat (``"exptest/verdict"``) or nested.
        partial: Take also a rung that has not seen all its steps, for a trial that has ended.

    Returns:
        The result of the rung; None if there is none, or if it is damaged.
    """
    body = _body(result)
    if not (body.get("complete") is True or (partial and _is_count(body.get("steps")))):
        return None
    try:
        return RungResult.from_dict(body)
    except (KeyError, TypeError, ValueError):
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _body(result: Mapping[str, Any]) -> dict[str, Any]:
    nested = result.get(REPORT_KEY)
    if isinstance(nested, Mapping):
        return dict(nested)
    start = f"{REPORT_KEY}/"
    return {k.removeprefix(start): v for k, v in result.items() if k.startswith(start)}
