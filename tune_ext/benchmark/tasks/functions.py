"""Test functions with a known optimum and a synthetic learning curve: tasks without a doubt.

Nothing is learnt here: "epoch" and "training" are figures of speech. They are for tests of
methods, where an exact regret says what an experiment cannot.

The functions are minimised (Currin's is turned over) on their usual domains. Where a cheaper
version is usual, the fidelity s = t / T after epoch t of T enters it as the literature has it
(Branin and Hartmann: Kandasamy et al., "Multi-fidelity Bayesian Optimisation with Continuous
Approximations", ICML 2017, arXiv:1703.06240, one s for all of their fidelities; counting
ones: Falkner et al., "BOHB", ICML 2018, arXiv:1807.01774); that of Currin's is ours. At s = 1
it is the function itself.

On top of it comes a learning curve of our own, the same for all but counting ones. With u in
[0, 1]^d for the configuration, A for the distance from the optimum to the median, T > 1:

    y_t = f_s(u) + A · (t^−p − T^−p) / (1 − T^−p),    p = 2^sin(2π · Σ u_i)

It falls from A above to the value itself, which it has at t = T; as p is between 1/2 and 2
and has nothing to do with f, curves cross: the best after one epoch need not be good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import check_choice, check_count
from tune_ext._random import generator
from tune_ext.benchmark.tasks._lookup import Interval, LookupTask, Parameter, Unordered

__all__ = ["FUNCTIONS", "CountingOnesTask", "FunctionTask", "SyntheticTask"]

Array = NDArray[np.float64]

_MEDIAN_POINTS = 2**14


def branin(x: Array, s: Array | float = 1.0) -> Array:
    """Branin's function; three global minima.

    Args:
        x: Shape (..., 2), in [−5, 10] × [0, 15].
        s: Fidelity in [0, 1].
    """
    low = 1.0 - s
    b = 5.1 / (4 * np.pi**2) - 0.01 * low
    c = 5 / np.pi - 0.1 * low
    t = 1 / (8 * np.pi) + 0.005 * low
    x1, x2 = x[..., 0], x[..., 1]
    value: Array = (x2 - b * x1**2 + c * x1 - 6) ** 2 + 10 * (1 - t) * np.cos(x1) + 10
    return value


def currin(x: Array, s: Array | float = 1.0) -> Array:
    """Currin's exponential function, turned over; its minimum lies on an edge, x2 = 0.

    Args:
        x: Shape (..., 2), in [0, 1]².
        s: Fidelity in [0, 1].
    """
    x1, x2 = x[..., 0], x[..., 1]
    with np.errstate(divide="ignore"):
        factor = np.exp(-1 / (2 * x2))  # 0 at x2 = 0
    ratio = (2300 * x1**3 + 1900 * x1**2 + 2092 * x1 + 60) / (
        100 * x1**3 + 500 * x1**2 + 4 * x1 + 20
    )
    value: Array = -(1 - (1 - 0.1 * (1.0 - s)) * factor) * ratio
    return value


_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A3 = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]], float)
_P3 = 1e-4 * np.array(
    [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
)
_A6 = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_P6 = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def _hartmann(x: Array, s: Array | float, a: Array, p: Array) -> Array:
    weights = _ALPHA - 0.1 * (1.0 - np.asarray(s, float))[..., None]
    exponent = (a * (x[..., None, :] - p) ** 2).sum(axis=-1)
    value: Array = -(weights * np.exp(-exponent)).sum(axis=-1)
    return value


def hartmann3(x: Array, s: Array | float = 1.0) -> Array:
    """Hartmann's function of three variables; four local minima.

    Args:
        x: Shape (..., 3), in [0, 1]³.
        s: Fidelity in [0, 1].
    """
    return _hartmann(x, s, _A3, _P3)


def hartmann6(x: Array, s: Array | float = 1.0) -> Array:
    """Hartmann's function of six variables; six local minima.

    Args:
        x: Shape (..., 6), in [0, 1]⁶.
        s: Fidelity in [0, 1].
    """
    return _hartmann(x, s, _A6, _P6)


@dataclass(frozen=True)
class _Function:
    """A function with what is known of it.

    Attributes:
        value: Of points of shape (..., d) and fidelities.
        bounds: Lower and upper, for each variable.
        minima: Where the value is `best`.
        best: The global minimum on the domain.
        worst: The least upper bound on the domain.
        what: A description.
    """

    value: Callable[[Array, Array | float], Array]
    bounds: tuple[tuple[float, float], ...]
    minima: tuple[tuple[float, ...], ...]
    best: float
    worst: float
    what: str


FUNCTIONS: dict[str, _Function] = {
    "function-branin": _Function(
        branin,
        ((-5.0, 10.0), (0.0, 15.0)),
        ((-math.pi, 12.275), (math.pi, 2.275), (3 * math.pi, 2.475)),
        10 / (8 * math.pi),
        308.12909601160663,  # at (-5, 0)
        "Branin's function (synthetic curves), two floats",
    ),
    "function-currin": _Function(
        currin,
        ((0.0, 1.0), (0.0, 1.0)),
        ((0.21666666666666667, 0.0),),
        -13.798722044728435,
        -3 * (1 - math.exp(-0.5)),  # at (0, 1)
        "Currin's function (synthetic curves), two floats",
    ),
    "function-hartmann3": _Function(
        hartmann3,
        ((0.0, 1.0),) * 3,
        ((0.11458887665506897, 0.5556488946169300, 0.8525469846866774),),
        -3.8627797873326625,
        0.0,
        "Hartmann's function (synthetic curves), three floats",
    ),
    "function-hartmann6": _Function(
        hartmann6,
        ((0.0, 1.0),) * 6,
        (
            (
                *(0.20168951100670542, 0.15001069182345796, 0.47687397422189700),
                *(0.27533243049405607, 0.31165161660011324, 0.65730053406562030),
            ),
        ),
        -3.3223680114155148,
        0.0,
        "Hartmann's function (synthetic curves), six floats",
    ),
}
"""The smooth functions by the names of their tasks."""


class SyntheticTask(LookupTask):
    """What the synthetic tasks have in common: the cost of an epoch, plain numbers as errors.

    Args:
        name: The name that `tasks.create` knows.
        parameters: What is searched.
        epochs: T, the full length.
        noise: See `FunctionTask`.
        cost: See `FunctionTask`.
    """

    percent = False

    def __init__(
        self, name: str, parameters: Sequence[Parameter], *, epochs: int, noise: float, cost: str
    ) -> None:
        super().__init__(name, parameters, noise=noise)
        self.max_epochs = check_count("epochs", epochs, 2, 10**6)
        check_choice("cost", cost, ("equal", "unequal"))
        self._cost = cost
        self.options = {"epochs": self.max_epochs, "noise": self._noise, "cost": cost}

    def _seconds(self, unit: Array) -> list[float]:
        """What the epochs cost: as `FunctionTask` says, `unit` in [0, 1]^d."""
        second = 1.0 if self._cost == "equal" else 4.0 ** float(unit[0]) / 2
        return [second] * self.max_epochs


class FunctionTask(SyntheticTask):
    """A smooth function with a synthetic learning curve.

    Args:
        name: One of `FUNCTIONS`.
        epochs: T, the full length; at least 2.
        noise: Standard deviation of Gaussian noise on every epoch's value, as a share of the
            distance from the optimum to the median of the function.
        cost: "equal": an epoch costs one second. "unequal": it costs 4^u / 2, from half a
            second to two, where u is the first variable's place in its range.

    Raises:
        InvalidValueError: There is no such function, or an option is out of range.
    """

    error_name = "function value"

    def __init__(
        self, name: str, *, epochs: int = 27, noise: float = 0.0, cost: str = "equal"
    ) -> None:
        check_choice("name", name, FUNCTIONS)
        self._function = function = FUNCTIONS[name]
        parameters = [Interval(f"x{i + 1}", *bound) for i, bound in enumerate(function.bounds)]
        super().__init__(name, parameters, epochs=epochs, noise=noise, cost=cost)
        self.description = function.what
        self.worst_error = function.worst

    def _curve(self, values: list[float], seed: int) -> tuple[Sequence[float], Sequence[float]]:
        point = np.array(values)
        lower, upper = np.array(self._function.bounds).T
        unit = (point - lower) / (upper - lower)
        last = self.max_epochs
        epochs = np.arange(1.0, last + 1)
        power = 2.0 ** math.sin(2 * math.pi * float(unit.sum()))
        gap = (epochs**-power - last**-power) / (1 - last**-power)
        spread = self._scale()[2]
        curve = self._function.value(point[None], epochs / last) + spread * gap
        if self._noise:
            rng = generator(seed, self.name, "noise", *map(repr, values))
            curve = curve + self._noise * spread * rng.standard_normal(last)
        return curve.tolist(), self._seconds(unit)

    def _true_error(self, values: list[float]) -> float:
        return float(self._function.value(np.array(values), 1.0))

    def _scale(self) -> tuple[float, float, float]:
        best, median = self._function.best, _median(self.name)
        return best, median, median - best


@cache
def _median(name: str) -> float:
    """The median of a function over its domain, by quasi-random points: to about 1 %."""
    from scipy.stats import qmc

    lower, upper = np.array(FUNCTIONS[name].bounds).T
    points = qmc.Sobol(len(lower), scramble=False).random(_MEDIAN_POINTS)
    return float(np.median(FUNCTIONS[name].value(lower + (upper - lower) * points, 1.0)))


class CountingOnesTask(SyntheticTask):
    """Counting ones: variables that are 0 or 1, and probabilities of drawing a 1.

    The error is the share of zeros among the variables, which is 0 where all are 1. In an
    epoch, each probability is drawn from `draws` times; what is seen after epoch t is the mean
    of t · `draws` draws, so that even the full length has noise, and only much of it tells
    close probabilities apart. The draws derive from the seed and the configuration.

    Args:
        epochs: T, the full length; at least 2.
        noise: Standard deviation of further Gaussian noise, as of `FunctionTask`; what leaves
            [0, 1] is cut off.
        cost: As of `FunctionTask`, by the first probability.
        binary: How many variables are 0 or 1.
        continuous: How many are probabilities.
        draws: Of each probability in an epoch.

    Raises:
        InvalidValueError: An option is out of range.
    """

    name = "function-counting-ones"
    description = "counting ones: eight zeros or ones, eight probabilities that are drawn from"
    error_name = "share of zeros"

    def __init__(
        self,
        *,
        epochs: int = 27,
        noise: float = 0.0,
        cost: str = "equal",
        binary: int = 8,
        continuous: int = 8,
        draws: int = 27,
    ) -> None:
        self._binary = check_count("binary", binary, 0, 1000)
        self._continuous = check_count("continuous", continuous, 1, 1000)
        self._draws = check_count("draws", draws, 1, 10**6)
        parameters: list[Parameter] = [Unordered(f"b{i + 1}", (0, 1)) for i in range(self._binary)]
        parameters += [Interval(f"p{i + 1}", 0.0, 1.0) for i in range(self._continuous)]
        super().__init__(self.name, parameters, epochs=epochs, noise=noise, cost=cost)
        self.options |= {
            "binary": self._binary,
            "continuous": self._continuous,
            "draws": self._draws,
        }

    def _curve(self, values: list[float], seed: int) -> tuple[Sequence[float], Sequence[float]]:
        rng = generator(seed, self.name, "draws", *map(repr, values))
        chance = np.array(values[self._binary :])
        ones = rng.binomial(self._draws, chance, (self.max_epochs, len(chance))).sum(axis=1)
        drawn = ones.cumsum() / (self._draws * np.arange(1, self.max_epochs + 1))
        errors = 1.0 - (sum(values[: self._binary]) + drawn) / len(values)
        errors = errors + self._noise * self._scale()[2] * rng.standard_normal(self.max_epochs)
        return np.clip(errors, 0.0, 1.0).tolist(), self._seconds(chance)

    def _true_error(self, values: list[float]) -> float:
        return 1.0 - sum(values) / len(values)

    def _scale(self) -> tuple[float, float, float]:
        return 0.0, 0.5, 0.5  # both halves are symmetric about one half
