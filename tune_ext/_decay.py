"""Does the loss decay? A one-sided t-test on the slope of the log-loss, O(1) a step.

Source: Chaudhry and Mizuno, arXiv 2411.16975 (ExpTest): under squared loss and a rate below
2/λ_max, the loss of a linearised network is a sum of decaying exponentials plus a floor, so
that the loss curve of a converging run passes a test for exponential decay. What is ours: the
correction for autocorrelation and the arithmetic.

The test is one of y = ln ℓ (or of ℓ itself) against the number of the step, with H0 "the slope is
not negative": `tune_ext._slope` has its formulas. The losses of mini-batches may be
autocorrelated, which it allows for unless it is told not to.

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

from tune_ext._checks import as_number, check_choice, check_positive
from tune_ext._exact_sums import EXACT_BITS, FAST_BITS, Sums, fixed, sum_any, sum_small
from tune_ext._slope import Fit, corrected_p_value, plain_p_value, to_float
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["DecayResult", "DecayTest", "Verdict"]

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
        autocorrelation: The lag-1 autocorrelation of the residuals that was allowed for, in
            [0, 1]; 0 when "none".
    """

    verdict: Verdict
    p_value: float
    slope: float
    n: int
    autocorrelation: float = 0.0


class DecayTest:
    """Tests a window of per-step losses for decay, from sufficient statistics.

    A step costs about half a microsecond (some ten of them with "identity", whose numbers have
    no limits) and memory does not grow. Losses of 0 count as the smallest positive double. A
    loss that is not finite makes the window "diverged"; later losses then change nothing but
    the number of steps.

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
        if self._log and not self.diverged:
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
        fit = Fit(self._sums)
        p, rho = self._p_value(fit)
        slope = to_float(fit.b / (1 << self._bits))
        return DecayResult("decaying" if p < level else "not decaying", p, slope, self.n, rho)

    def _p_value(self, fit: Fit) -> tuple[float, float]:
        if fit.sums.n < 3 or fit.sums.syy == 0:
            return 1.0, 0.0
        if fit.line <= 0:
            return (0.0 if fit.b < 0 else 1.0), 0.0
        if self.autocorrelation == "none":
            return plain_p_value(fit.sums.n, fit.t_line()), 0.0
        p, rho = corrected_p_value(fit.statistics())
        return float(p), float(rho)

    def statistics(self) -> dict[str, float | int | bool]:
        """Nine flat numbers, enough to test the window and to merge it into another.

        Returns:
            "n"; "first" and "last" (y); "rise" = Σ(y_t − first); "sty" = Σ u_t y_t with
            u_t = t − (n − 1)/2; "sqy" = Σ (u_t² − (n² − 1)/12) y_t; "syy" = Σ(y_t − ȳ)²;
            "sdd" = Σ(y_t − y_{t−1})²; "diverged", also if one of these is beyond the largest
            float (losses of 1e150 with "identity"). They are exact to their last bit.
        """
        self._flush()
        s, one = self._sums, 1 << self._bits
        if self.diverged or not s.n:
            numbers = dict.fromkeys(_NUMBERS, 0.0)
        else:
            numbers = {
                "first": to_float(Fraction(s.first, one)),
                "last": to_float(Fraction(s.last, one)),
                "rise": to_float(Fraction(s.y - s.n * s.first, one)),
                "sty": to_float(s.sty / one),
                "sqy": to_float(s.sqy / one),
                "syy": to_float(s.syy / one**2),
                "sdd": to_float(Fraction(s.dd, one**2)),
            }
        if not all(map(math.isfinite, numbers.values())):
            return {"n": self.n, **dict.fromkeys(_NUMBERS, 0.0), "diverged": True}
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
