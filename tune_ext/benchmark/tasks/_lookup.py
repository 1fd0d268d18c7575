"""Tasks whose errors are looked up or computed: nothing is trained, the clock is simulated.

A run is decided when it starts: its errors and what each epoch costs are two arrays, so its
whole state is how many of them have been read.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Protocol

from ConfigSpace import CategoricalHyperparameter as Categorical
from ConfigSpace import ConfigurationSpace, UniformFloatHyperparameter, UniformIntegerHyperparameter

from tune_ext._checks import as_number, check_choice, check_state
from tune_ext._random import check_seed
from tune_ext.benchmark.tasks._base import Task
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["Interval", "LookupRun", "LookupTask", "Ordered", "Parameter", "Unordered"]

_KIND, _VERSION = "lookup run", 1


class Parameter(Protocol):
    """A hyper-parameter: how it is searched, and what a value of it means."""

    @property
    def name(self) -> str:
        """As in the space and the configurations."""
        ...

    @property
    def default(self) -> Any:
        """A value of the space; ours, where the publication names none."""
        ...

    def hyperparameter(self) -> Any:
        """For a ConfigSpace."""
        ...

    def read(self, value: object) -> float:
        """The place of a value of a configuration, or the number itself in an interval."""
        ...

    def meaning(self, read: float) -> Any:
        """What is behind a value that was read."""
        ...


@dataclass(frozen=True)
class Ordered:
    """One of several numbers; searched as its place, so that methods see the order.

    >>> batch = Ordered("batch_size", (8, 16, 32, 64))
    >>> batch.default, batch.meaning(batch.read(3))
    (2, 64)
    """

    name: str
    values: tuple[float, ...]

    @property
    def default(self) -> int:
        """The one in the middle; of two the later."""
        return len(self.values) // 2

    def hyperparameter(self) -> Any:
        """An integer range of places."""
        return UniformIntegerHyperparameter(self.name, 0, len(self.values) - 1, self.default)

    def read(self, value: object) -> int:
        """The place as an int; see `Parameter.read`."""
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or value not in range(len(self.values)):
            said = ", ".join(f"{known:g}" for known in self.values)
            raise InvalidValueError(
                f"config[{self.name!r}] must be a whole number from 0 to {len(self.values) - 1}, "
                f"a place among {said}; got {value!r}"
            )
        return int(value)  # type: ignore[call-overload, no-any-return] # it equals an int

    def meaning(self, read: float) -> float:
        """The number at a place."""
        return self.values[int(read)]


@dataclass(frozen=True)
class Unordered:
    """One of several things that have no order; searched as it is."""

    name: str
    values: tuple[str, ...] | tuple[int, ...]
    usual: int = 0

    @property
    def default(self) -> str | int:
        """The one at the place that is called usual."""
        return self.values[self.usual]

    def hyperparameter(self) -> Any:
        """A categorical choice."""
        return Categorical(self.name, self.values, default_value=self.default)

    def read(self, value: object) -> int:
        """Its place; see `Parameter.read`."""
        check_choice(f"config[{self.name!r}]", value, self.values)
        return self.values.index(value)

    def meaning(self, read: float) -> str | int:
        """What is at a place."""
        return self.values[int(read)]


@dataclass(frozen=True)
class Interval:
    """A number between two bounds."""

    name: str
    lower: float
    upper: float

    @property
    def default(self) -> float:
        """The middle."""
        return (self.lower + self.upper) / 2

    def hyperparameter(self) -> Any:
        """A range of floats."""
        return UniformFloatHyperparameter(self.name, self.lower, self.upper, self.default)

    def read(self, value: object) -> float:
        """The number; see `Parameter.read`."""
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not self.lower <= float(value) <= self.upper:  # type: ignore[arg-type]
            raise InvalidValueError(
                f"config[{self.name!r}] must be a number from {self.lower:g} to {self.upper:g}, "
                f"got {value!r}"
            )
        return float(value)  # type: ignore[arg-type] # it is a real number

    def meaning(self, read: float) -> float:
        """The number."""
        return read


class LookupRun:
    """A `TaskRun` that reads its errors one after another.

    Args:
        identity: Whose run it is, JSON-able: a state is taken from the same alone.
        errors: The validation error after each epoch; the last one stays for good.
        seconds: What each epoch costs; the last one goes on.
        true_error: At full length without noise.
    """

    def __init__(
        self,
        identity: Mapping[str, Any],
        errors: Sequence[float],
        seconds: Sequence[float],
        true_error: float,
    ) -> None:
        self.epoch = 0
        self.step_losses: Sequence[float] = ()
        self._identity = dict(identity)
        self._errors, self._seconds = errors, seconds
        self._true_error = true_error

    def train_epoch(self) -> dict[str, float | bool]:
        """Read one more epoch; `seconds` is what it cost on the simulated clock."""
        place = min(self.epoch, len(self._errors) - 1)
        self.epoch += 1
        return {
            "validation_error": float(self._errors[place]),
            "seconds": float(self._seconds[place]),
            "diverged": False,
        }

    def test(self) -> dict[str, float]:
        """The true error: there is no test set."""
        return {"test_error": self._true_error}

    def state_dict(self) -> dict[str, Any]:
        """Whose run it is, and how far it has read."""
        return {"kind": _KIND, "version": _VERSION, **self._identity, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the run that wrote `state` stood.

        Raises:
            StateError: It is not such a state, or of another task, configuration or seed:
                what that one has paid for says nothing about this one.
        """
        check_state(state, _KIND, _VERSION, "a run that is looked up")
        for name, mine in self._identity.items():
            if state.get(name) != mine:
                raise StateError(f"the state is of {name} {state.get(name)!r}, not of {mine!r}")
        epoch = state.get("epoch")
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise StateError(f"the state says that {epoch!r} epochs were trained")
        self.epoch = epoch


class LookupTask(Task):
    """What looked-up tasks have in common: the space, checks of configurations, the start.

    A subclass sets `max_epochs` and `options`, and has `_curve`, `_true_error` and `_scale`.

    Args:
        name: The name that `tasks.create` knows.
        parameters: What is searched.
        noise: Extra noise, as a share of `_scale`'s spread; checked here.
    """

    simulated = True
    measures_response = False

    def __init__(self, name: str, parameters: Sequence[Parameter], *, noise: float) -> None:
        self.name = name
        self._noise = as_number("noise", noise)
        if not 0 <= self._noise < math.inf:
            raise InvalidValueError(f"noise must be finite and at least 0, got {noise!r}")
        self._parameters = {parameter.name: parameter for parameter in parameters}
        self.default_config = {parameter.name: parameter.default for parameter in parameters}
        self.space = ConfigurationSpace(name=name)
        self.space.add(*[parameter.hyperparameter() for parameter in parameters])

    def missing(self) -> str | None:
        """None: a formula is always there."""
        return None

    def start(self, config: Mapping[str, Any], *, seed: int) -> LookupRun:
        """Start a run; see `Task.start`."""
        values = self._read(config)
        checked = check_seed(seed)
        if checked is None:
            raise InvalidTypeError("seed must be an integer, got None")
        errors, seconds = self._curve(values, checked)
        identity = {"task": self.name, "options": self.options, "config": values, "seed": checked}
        return LookupRun(identity, errors, seconds, self._true_error(values))

    def true_error(self, config: Mapping[str, Any]) -> float:
        """See `Task.true_error`."""
        values = self._read(config)
        return self._true_error(values)

    def describe(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a configuration stands for: the numbers behind the places.

        Args:
            config: See `Task.start`.
        """
        read = zip(self._parameters.values(), self._read(config), strict=True)
        return {parameter.name: parameter.meaning(value) for parameter, value in read}

    @cached_property
    def regret_range(self) -> tuple[float, float] | None:  # type: ignore[override]
        """The true errors of the best configuration and of the median one."""
        return None if self.missing() else self._scale()[:2]

    @abstractmethod
    def _curve(self, values: list[float], seed: int) -> tuple[Sequence[float], Sequence[float]]:
        """The validation errors and the seconds of the epochs."""

    @abstractmethod
    def _true_error(self, values: list[float]) -> float:
        """At full length without noise."""

    @abstractmethod
    def _scale(self) -> tuple[float, float, float]:
        """Best true error, median true error, and the spread that noise is a share of."""

    def _read(self, config: Mapping[str, Any]) -> list[float]:
        """The values of all parameters in order, checked."""
        for name in config:
            if name not in self._parameters:
                check_choice("a name in config", name, self._parameters)
        defaults = self.default_config
        return [
            parameter.read(config.get(name, defaults[name]))
            for name, parameter in self._parameters.items()
        ]
