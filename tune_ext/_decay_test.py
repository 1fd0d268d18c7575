"""Does the loss decay? A one-sided t-test on the slope of the log-loss, O(1) a step.

Source: Chaudhry and Mizuno, arXiv 2411.16975 (ExpTest): under squared loss and a rate below
2/λ_max, the loss of a linearised network is a sum of decaying exponentials plus a floor, so
that the loss curve of a converging run passes a test for exponential decay. What is ours: the
correction for autocorrelation and the arithmetic.

Notation, for a window of n per-step losses ℓ_0 … ℓ_{n−1}:

=========  ============================================================================
y_t        ln ℓ_t ("log"), or ℓ_t itself ("identity")
b, s_b     slope of the least-squares line of y on t, and its standard error as in any
           textbook; H0: b ≥ 0, H1: b < 0
t_b        b / s_b; the plain p-value is P(T_{n−2} < t_b)
e_t        residuals of the least-squares parabola (its slope over the window is b too)
t_c        the same as t_b with Σe²/(n − 3) for the variance
r          Σ e_t e_{t−1} / Σ e_t², their lag-1 autocorrelation
ρ          r corrected for its bias, (n r + 3) / (n − 7), in [0, 1]
f          (1 + ρ) / (1 − ρ): n correlated steps are worth n / f independent ones
t_d        t-statistic of the mean of the n − 1 differences y_t − y_{t−1}
=========  ============================================================================

Losses are autocorrelated where momentum, a rate near its limit or smoothing make them so, and
the plain test then rejects a true H0 far too often (35 % instead of 5 % at ρ = .9). The
default, "ar1", rejects if one of two tests does that bound the error from two sides:

    p_a = P(T_ν < t_c · √((n − 3f) / (f (n − 3)))),   ν = (n − 3f) / (1 + 2f)
    p_d = P(T_{n−2} < t_d)
    p   = max(plain p, min(p_a, p_d))

p_a takes the noise for an AR(1) process. f inflates the variance of the slope;
(n − 3f)/(n − 3) makes good that a parabola takes more out of correlated residuals (to first
order E Σe² = σ²(n − 3f)); ν are Satterthwaite's degrees of freedom of the estimated long-run
variance σ_ε²/(1 − ρ)², whose logarithm has the variance (2 + 4f)/n. A straight line would not
do: the curvature of a loss that falls fast and then slowly would pass for autocorrelation.
p_d takes the noise for a random walk: exact there, and far below its level for anything
stationary, where differences add up to nothing. It sees what p_a cannot, a curve so smooth
that no noise is left to compare with (large batches). Both rarely reject the same pure noise
wrongly, so that their minimum keeps the level; experiments/exptest/calibration.md has the
measured rates, and where they are exceeded.

The sums are exact (`tune_ext._exact_sums`): updates one by one, many at once and restored
states give the same result bit for bit, and nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, Literal, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from tune_ext._checks import as_number, check_choice, check_positive
from tune_ext._exact_sums import EXACT_BITS, FAST_BITS, Sums, fixed, sum_any, sum_small
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["DecayResult", "DecayTest", "Statistics", "Verdict", "corrected_p_value"]

Array = NDArray[np.float64]
Verdict = Literal["decaying", "not decaying", "diverged"]
Autocorrelation = Literal["ar1", "none"]
Transform = Literal["log", "identity"]

ALPHA = 0.05

_VERSION = 1
_KIND = "decay_test"
_BUFFER = 1024  # losses kept before they are summed: numpy is many times faster than Python


@dataclass(frozen=True)
class DecayResult:
    """What the test says about a window.

    Attributes:
        verdict: "decaying" iff p < α; "diverged" if a loss was not finite.
        p_value: Of H0 "the loss does not fall"; 1 where there is nothing to test.
        slope: Change of ln ℓ (or of ℓ, "identity") per step; 0 where it is not defined: fewer
            than two losses, or diverged.
        n: Number of steps.
        autocorrelation: ρ as used; 0 when "none".
    """

    verdict: Verdict
    p_value: float
    slope: float
    n: int
    autocorrelation: float = 0.0


@dataclass(frozen=True)
class Statistics:
    """The statistics that the p-value is made of; see the notation of the module.

    Attributes:
        n: Number of steps, at least 3.
        t_line: t_b, a number or an array.
        t_curve: t_c.
        t_drift: t_d.
        r: r.
    """

    n: int
    t_line: float | Array
    t_curve: float | Array
    t_drift: float | Array
    r: float | Array


def corrected_p_value(statistics: Statistics) -> tuple[Array, Array]:
    """The p-value of "ar1", and ρ as used; arrays of the shape of the statistics."""
    n = statistics.n
    rho = np.clip((n * statistics.r + 3.0) / max(n - 7.0, 1.0), 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        f = (1.0 + rho) / (1.0 - rho)
        left = np.maximum(n - 3.0 * f, 0.0)
        t = statistics.t_curve * np.sqrt(left / (f * (n - 3.0)))
        stationary = np.where(left > 0, stdtr(left / (1.0 + 2.0 * f), t), 0.5)
    drift = stdtr(n - 2.0, statistics.t_drift)
    plain = stdtr(n - 2.0, statistics.t_line)
    return np.maximum(plain, np.minimum(stationary, drift)), rho


class _Fit:
    """The least-squares line and parabola through exact sums of at least two numbers."""

    def __init__(self, sums: Sums) -> None:
        n = sums.n
        self.sums = sums
        self.b = sums.sty / Fraction(n * (n**2 - 1), 12)
        self.explained = self.b * sums.sty
        self.line = sums.syy - self.explained  # Σ of the squared residuals of the line

    def t_line(self) -> float:
        return self._root((self.sums.n - 2) * self.explained, self.line)

    def statistics(self) -> Statistics:
        s, n = self.sums, self.sums.n
        c = s.sqy / Fraction(n * (n**2 - 1) * (n**2 - 4), 180)
        left = self.line - c * s.sqy
        rise = s.last - s.first
        spread = s.dd - Fraction(rise**2, n - 1)
        return Statistics(
            n,
            self.t_line(),
            self._root((n - 3) * self.explained, left),
            _root((n - 2) * Fraction(rise**2, n - 1), spread) * (-1 if rise < 0 else 1),
            1.0 if left <= 0 else 1.0 - _float(self._changes(c) / (2 * left)),
        )

    def _changes(self, c: Fraction) -> Fraction:
        """Σ(e_t − e_{t−1})² + e_first² + e_last² = 2 Σe² − 2 Σ e_t e_{t−1} of the parabola."""
        s, n, b = self.sums, self.sums.n, self.b
        along = b * (s.last - s.first) + c * (n * (s.first + s.last) - 2 * s.y)
        squares = (n - 1) * b**2 + c**2 * Fraction(n * (n - 1) * (n - 2), 3)
        bend = c * Fraction((n - 1) * (n - 2), 6) + Fraction(s.y, n)
        tilt = b * Fraction(n - 1, 2)
        ends = (s.first + tilt - bend) ** 2 + (s.last - tilt - bend) ** 2
        return s.dd - 2 * along + squares + ends

    def _root(self, numerator: Fraction, denominator: Fraction) -> float:
        return _root(numerator, denominator) * (-1 if self.b < 0 else 1)


class DecayTest:
    """Tests a window of per-step losses for decay, from sufficient statistics.

    A step costs well below a microsecond of Python and memory does not grow. Losses of 0
    count as the smallest positive double. A loss that is not finite makes the window
    "diverged"; later losses then change nothing but the number of steps.

    Args:
        alpha: The rate of false "decaying" that is accepted under pure noise, in (0, 1).
        autocorrelation: "ar1" holds α for autocorrelated losses (as those of mini-batches are)
            and is never more liberal than "none", the textbook's t-test.
        transform: "log" tests for exponential decay and does not depend on the scale of the
            loss; "identity" takes the losses as they are, for those that may be negative.

    Raises:
        InvalidValueError: `alpha` outside (0, 1), or an unknown name.

    Example:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(size=60)
        >>> test = DecayTest(alpha=0.05)
        >>> test.update_many(np.exp(0.1 * noise))
        >>> test.result().verdict
        'not decaying'
        >>> test.reset()
        >>> for t in range(60):
        ...     test.update(float(2.0 * np.exp(-0.01 * t + 0.1 * noise[t])))
        >>> result = test.result()
        >>> result.verdict, round(result.slope, 3), result.n
        ('decaying', -0.009, 60)
    """

    def __init__(
        self,
        alpha: float = ALPHA,
        *,
        autocorrelation: Autocorrelation = "ar1",
        transform: Transform = "log",
    ) -> None:
        self.alpha = check_positive("alpha", alpha, below=1.0)
        check_choice("autocorrelation", autocorrelation, ("ar1", "none"))
        check_choice("transform", transform, ("log", "identity"))
        self.autocorrelation: Autocorrelation = autocorrelation
        self.transform: Transform = transform
        self._bits = FAST_BITS if transform == "log" else EXACT_BITS
        self._log = transform == "log"
        self.reset()

    def reset(self) -> None:
        """Forget every loss."""
        self._sums = Sums()
        self._buffer: list[float] = []
        self._diverged_at: int | None = None  # number of steps, once a loss was not finite

    @property
    def n(self) -> int:
        """Number of steps seen."""
        if self._diverged_at is not None:
            return self._diverged_at
        return self._sums.n + len(self._buffer)

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return self._diverged_at is not None

    def update(self, loss: SupportsFloat) -> None:
        """Take the next loss, a number or anything with one element that `float` accepts.

        Raises:
            InvalidValueError: A negative loss with transform="log".
            InvalidTypeError: Not a number.
        """
        try:
            value = float(loss)
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(f"loss must be a number, got {loss!r}") from error
        if not math.isfinite(value) or self._diverged_at is not None:
            self._diverged_at = self.n + 1
            return
        if value < 0 and self._log:
            _refuse_negative(value)
        self._buffer.append(value)
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def update_many(self, losses: ArrayLike) -> None:
        """Take many losses at once, in their order, shape `(steps,)`; the same as one by one.

        Raises:
            InvalidValueError: A negative loss with transform="log", or another shape; nothing
                has been taken then.
            InvalidTypeError: Not numbers.
        """
        values = _as_losses(losses)
        finite = np.isfinite(values)
        if self._log:
            negative = np.flatnonzero((values < 0) & finite)
            if len(negative) and finite[: negative[0]].all():
                _refuse_negative(float(values[negative[0]]))
        if self.diverged or not finite.all():
            self._diverged_at = self.n + len(values)
            return
        self._flush()
        self._sums += self._summed(values)

    def _flush(self) -> None:
        if self._buffer:
            values, self._buffer = np.array(self._buffer), []
            self._sums += self._summed(values)

    def _summed(self, losses: Array) -> Sums:
        if self._log:
            return sum_small(np.log(np.maximum(losses, math.ulp(0.0))))
        return sum_any(losses)

    def result(self, alpha: float | None = None) -> DecayResult:
        """The verdict on everything seen since the start or the last `reset`.

        Fewer than three losses, or losses that are all the same, say nothing: p = 1, "not
        decaying". Losses exactly on a line have p = 0 if it falls, else p = 1.

        Args:
            alpha: Instead of the instance's, as a sequential correction needs.
        """
        level = self.alpha if alpha is None else check_positive("alpha", alpha, below=1.0)
        if self.diverged:
            return DecayResult("diverged", 1.0, 0.0, self.n)
        self._flush()
        if self._sums.n < 2:
            return DecayResult("not decaying", 1.0, 0.0, self.n)
        fit = _Fit(self._sums)
        p, rho = self._p_value(fit)
        slope = _float(fit.b / (1 << self._bits))
        return DecayResult("decaying" if p < level else "not decaying", p, slope, self.n, rho)

    def _p_value(self, fit: _Fit) -> tuple[float, float]:
        if fit.sums.n < 3 or fit.sums.syy == 0:
            return 1.0, 0.0
        if fit.line <= 0:
            return (0.0 if fit.b < 0 else 1.0), 0.0
        if self.autocorrelation == "none":
            return float(stdtr(fit.sums.n - 2, fit.t_line())), 0.0
        p, rho = corrected_p_value(fit.statistics())
        return float(p), float(rho)

    def statistics(self) -> dict[str, float | int | bool]:
        """Nine flat numbers, enough to test the window and to merge it into another.

        Returns:
            "n"; "first" and "last" (y); "rise" = Σ(y_t − first); "sty" = Σ u_t y_t with
            u_t = t − (n − 1)/2; "sqy" = Σ (u_t² − (n² − 1)/12) y_t; "syy" = Σ(y_t − ȳ)²;
            "sdd" = Σ(y_t − y_{t−1})²; "diverged". The floats are exact to their last bit.
        """
        self._flush()
        s, one = self._sums, 1 << self._bits
        if self.diverged or not s.n:
            numbers = dict.fromkeys(_NUMBERS, 0.0)
        else:
            numbers = {
                "first": _float(Fraction(s.first, one)),
                "last": _float(Fraction(s.last, one)),
                "rise": _float(Fraction(s.y - s.n * s.first, one)),
                "sty": _float(s.sty / one),
                "sqy": _float(s.sqy / one),
                "syy": _float(s.syy / one**2),
                "sdd": _float(Fraction(s.dd, one**2)),
            }
        return {"n": self.n, **numbers, "diverged": self.diverged}

    def merge(self, statistics: Mapping[str, Any]) -> None:
        """Append a stretch of the same stream that followed, from its `statistics`.

        Raises:
            StateError: Not what `statistics` returns; nothing has been taken then.
        """
        n, diverged, numbers = _check_statistics(statistics)
        if n == 0 and not diverged:
            return
        if diverged or self.diverged:
            self._diverged_at = self.n + n
            return
        self._flush()
        self._sums += _from_statistics(n, numbers, self._bits)

    def state_dict(self) -> dict[str, Any]:
        """Everything about the test as plain JSON; the exact sums are integers."""
        self._flush()
        return {
            "version": _VERSION,
            "kind": _KIND,
            "alpha": self.alpha,
            "autocorrelation": self.autocorrelation,
            "transform": self.transform,
            "sums": asdict(self._sums),
            "diverged_at": self._diverged_at,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> DecayTest:
        """The test that `state_dict` described.

        Raises:
            StateError: Of another kind or version, or damaged.
        """
        if not isinstance(state, Mapping) or state.get("kind") != _KIND:
            raise StateError(f"not the state of a DecayTest: {state!r:.100}")
        if state.get("version") != _VERSION:
            raise StateError(
                f"version {state.get('version')!r} of a DecayTest's state is not known; "
                f"this is version {_VERSION}"
            )
        try:
            test = cls(
                state["alpha"],
                autocorrelation=state["autocorrelation"],
                transform=state["transform"],
            )
            test._sums = Sums(**{f.name: int(state["sums"][f.name]) for f in fields(Sums)})
            at = state["diverged_at"]
            test._diverged_at = None if at is None else int(at)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"the state of a DecayTest is damaged: {error!r}") from error
        return test


def _refuse_negative(loss: float) -> None:
    raise InvalidValueError(
        f"a loss is negative ({loss!r}), which has no logarithm; use transform='identity'"
    )


def _float(value: Fraction) -> float:
    """The nearest float; infinite beyond the largest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _root(numerator: Fraction, denominator: Fraction) -> float:
    """The root of a ratio of two numbers that are not negative; x/0 is infinite, 0/0 is 0.

    A sum of squares out of merged statistics, which are rounded, can be just below 0: that is 0.
    """
    if denominator <= 0:
        return math.inf if numerator > 0 else 0.0
    return math.sqrt(_float(numerator / denominator))


_NUMBERS = ("first", "last", "rise", "sty", "sqy", "syy", "sdd")


def _check_statistics(statistics: Mapping[str, Any]) -> tuple[int, bool, dict[str, float]]:
    try:
        n, diverged = int(statistics["n"]), bool(statistics["diverged"])
        numbers = {k: as_number(k, statistics[k]) for k in _NUMBERS}
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"not the statistics of a DecayTest: {statistics!r:.200} ({error!r})"
        ) from error
    if n < 0 or not all(map(math.isfinite, numbers.values())):
        raise StateError(f"not the statistics of a DecayTest: {statistics!r:.200}")
    return n, diverged, numbers


def _from_statistics(n: int, numbers: Mapping[str, float], bits: int) -> Sums:
    """The sums nearest to statistics that were rounded to floats."""
    first = fixed(numbers["first"], bits)
    return Sums.of(
        n,
        y=n * first + fixed(numbers["rise"], bits),
        sty=fixed(numbers["sty"], bits),
        sqy=fixed(numbers["sqy"], bits),
        syy=max(fixed(numbers["syy"], 2 * bits), 0),
        dd=max(fixed(numbers["sdd"], 2 * bits), 0),
        first=first,
        last=fixed(numbers["last"], bits),
    )


def _as_losses(losses: ArrayLike) -> Array:
    try:
        values = np.asarray(losses, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"losses must be numbers, got {losses!r}") from error
    if values.ndim != 1:
        raise InvalidValueError(
            f"losses must have one dimension (one loss a step), got shape {values.shape}"
        )
    return values
