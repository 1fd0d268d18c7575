"""Does the loss decay? A one-sided t-test on the slope of the log-loss, O(1) a step.

Source: Chaudhry and Mizuno, arXiv 2411.16975 (ExpTest): under squared loss and a rate below
2/λ_max, the loss of a linearised network is a sum of decaying exponentials plus a floor, so
that the loss curve of a converging run passes a test for exponential decay. The paper's test
is completed here; what is ours is the arithmetic and the treatment of autocorrelation.

Notation, for a window of n per-step losses ℓ_0 … ℓ_{n−1}:

=========  ============================================================================
y_t        ln ℓ_t ("log"), or ℓ_t itself ("identity")
b          slope of the least-squares line of y on t; H0: b ≥ 0, H1: b < 0
e_t        residuals of that line
t_b        b / s_b, with s_b² = Σe² / ((n − 2) Σ(t − t̄)²), as in any textbook
r          Σ e_t e_{t−1} / Σ e_t², the lag-1 autocorrelation of the residuals
ρ          r corrected for its bias, (n r + 2) / (n − 5), and at least 0
f          (1 + ρ) / (1 − ρ): n correlated steps are worth n / f independent ones
=========  ============================================================================

Plain test: p = P(T_{n−2} < t_b). Losses of mini-batches are autocorrelated, which makes it
reject a true H0 far too often (35 % instead of 5 % at ρ = .9). The default is therefore

    p = P(T_ν < t_b · √((n − 2f) / (f (n − 2)))),   ν = (n − 2f) / (1 + 2f).

f inflates the variance of the slope; (n − 2f)/(n − 2) makes good that a line takes more out
of correlated residuals (to first order E Σe² = σ²(n − 2f)); ν are Satterthwaite's degrees of
freedom of the estimated long-run variance σ_ε²/(1 − ρ)², whose logarithm has the variance
(2 + 4f)/n in an AR(1) process. p is never below that of the plain test. How often it rejects
pure noise is measured in experiments/exptest/calibration.md.

Arithmetic: y is held as an integer, in units of 2^−76 (to the nearest; exact for |y| ≥ 2^−24)
for "log" and of 2^−1074 (exact) for "identity". The sums are then exact, whatever their
number and order: updates one by one, many at once and merges give the same result bit for
bit, and nothing cancels. Floats appear only in the last divisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from tune_ext._checks import as_number, check_choice, check_positive
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["DecayResult", "DecayTest", "Verdict", "p_value"]

Array = NDArray[np.float64]
Verdict = Literal["decaying", "not decaying", "diverged"]
Autocorrelation = Literal["ar1", "none"]
Transform = Literal["log", "identity"]

ALPHA = 0.05

_VERSION = 1
_KIND = "decay_test"
_BUFFER = 1024  # losses kept before they are summed: numpy is 30 times faster than Python
_CHUNK = 1 << 18  # 2^18 products of two limbs (44 bits) stay below 2^63
_LIMB = 22
_LOG_BITS = 76  # |ln ℓ| < 2^10, so that y fits into four limbs: 10 + 3 · 22 bits
_IDENTITY_BITS = 1074  # the smallest positive double is 2^−1074


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


def p_value(t: ArrayLike, r: ArrayLike, n: int) -> tuple[Array, Array]:
    """The p-value corrected for autocorrelation; the arguments may be arrays.

    Args:
        t: The plain t-statistic of the slope.
        r: Lag-1 autocorrelation of the residuals.
        n: Number of steps, at least 3.

    Returns:
        p, and ρ as used, in [0, 1].
    """
    t, r = np.asarray(t, np.float64), np.asarray(r, np.float64)
    rho = np.clip((n * r + 2.0) / max(n - 5.0, 1.0), 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        f = (1.0 + rho) / (1.0 - rho)
        left = np.maximum(n - 2.0 * f, 0.0)
        adjusted = np.where(left > 0, t * np.sqrt(left / (f * (n - 2.0))), 0.0)
        p = np.where(left > 0, stdtr(left / (1.0 + 2.0 * f), adjusted), 0.5)
    return np.maximum(p, stdtr(n - 2.0, t)), rho


@dataclass(frozen=True)
class _Sums:
    """Exact sums over a stretch of integers y_t; two stretches add up to their succession."""

    n: int = 0
    y: int = 0  # Σ y_t
    ty: int = 0  # Σ t y_t
    yy: int = 0  # Σ y_t²
    dd: int = 0  # Σ (y_t − y_{t−1})²
    first: int = 0
    last: int = 0

    def __add__(self, after: _Sums) -> _Sums:
        if not self.n or not after.n:
            return after if not self.n else self
        return _Sums(
            self.n + after.n,
            self.y + after.y,
            self.ty + after.ty + self.n * after.y,
            self.yy + after.yy,
            self.dd + after.dd + (after.first - self.last) ** 2,
            self.first,
            after.last,
        )

    # The four below are n times the centred sums over t and y, and n times (their product) R.

    @property
    def stt(self) -> int:
        return self.n**2 * (self.n**2 - 1) // 12

    @property
    def sty(self) -> int:
        return self.n * self.ty - self.n * (self.n - 1) // 2 * self.y

    @property
    def syy(self) -> int:
        return self.n * self.yy - self.y**2

    @property
    def residual(self) -> int:
        """n² (S_tt S_yy − S_ty²) = n² S_tt Σe²."""
        return self.stt * self.syy - self.sty**2

    def lag1(self) -> float:
        """r, from Σ(e_t − e_{t−1})² = 2 Σe² − e_first² − e_last² − 2 Σ e_t e_{t−1}."""
        n, stt, sty = self.n, self.stt, self.sty
        steps = self.dd * stt**2 - 2 * sty * stt * (self.last - self.first) + (n - 1) * sty**2
        tilt = n * (n - 1) * sty
        ends = (2 * stt * (n * self.first - self.y) + tilt) ** 2
        ends += (2 * stt * (n * self.last - self.y) - tilt) ** 2
        return 1.0 - (4 * n**2 * steps + ends) / (8 * n * stt * self.residual)


def _limbs(y: Array) -> list[NDArray[np.int64]]:
    """y·2^76 to the nearest integer, as four signed limbs of 22 bits, the lowest first."""
    scaled = y * 2.0 ** (_LOG_BITS - 3 * _LIMB)
    limbs = []
    for _ in range(4):
        limb = np.rint(scaled)
        limbs.append(limb.astype(np.int64))
        scaled = (scaled - limb) * 2.0**_LIMB  # exact: the remainder has fewer bits than y
    return limbs[::-1]


def _value(limbs: list[int]) -> int:
    return sum(limb << (_LIMB * i) for i, limb in enumerate(limbs))


def _square(limbs: list[NDArray[np.int64]]) -> int:
    """Σ of the squares, exactly."""
    return sum(
        (1 if i == j else 2) * int(limbs[i] @ limbs[j]) << (_LIMB * (i + j))
        for i in range(4)
        for j in range(i, 4)
    )


def _sum_logs(y: Array) -> _Sums:
    """The sums of up to 2^18 logarithms."""
    limbs = _limbs(y)
    t = np.arange(len(y))
    return _Sums(
        len(y),
        _value([int(limb.sum()) for limb in limbs]),
        _value([int(t @ limb) for limb in limbs]),
        _square(limbs),
        _square([np.diff(limb) for limb in limbs]),
        _value([int(limb[0]) for limb in limbs]),
        _value([int(limb[-1]) for limb in limbs]),
    )


def _sum_integers(values: list[int]) -> _Sums:
    return _Sums(
        len(values),
        sum(values),
        sum(t * v for t, v in enumerate(values)),
        sum(v * v for v in values),
        sum((b - a) ** 2 for a, b in pairwise(values)),
        values[0],
        values[-1],
    )


def _fixed(value: float, bits: int) -> int:
    """The integer nearest to value · 2^bits."""
    return round(Fraction(value) * (1 << bits))


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
        self._bits = _LOG_BITS if transform == "log" else _IDENTITY_BITS
        self._log = transform == "log"
        self.reset()

    def reset(self) -> None:
        """Forget every loss."""
        self._sums = _Sums()
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

    def _summed(self, losses: Array) -> _Sums:
        sums = _Sums()
        for start in range(0, len(losses), _CHUNK):
            chunk = np.ascontiguousarray(losses[start : start + _CHUNK])
            if self._log:
                sums += _sum_logs(np.log(np.maximum(chunk, math.ulp(0.0))))
            else:
                sums += _sum_integers([_fixed(v, self._bits) for v in chunk.tolist()])
        return sums

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
        s = self._sums
        slope = 0.0 if s.n < 2 else _ratio(s.sty, s.stt << self._bits)
        p, rho = self._p_value(s)
        return DecayResult("decaying" if p < level else "not decaying", p, slope, s.n, rho)

    def _p_value(self, s: _Sums) -> tuple[float, float]:
        if s.n < 3 or s.syy == 0:
            return 1.0, 0.0
        residual = s.residual
        if residual == 0:
            return (0.0 if s.sty < 0 else 1.0), 0.0
        t = math.sqrt(_ratio((s.n - 2) * s.sty**2, residual)) * (-1 if s.sty < 0 else 1)
        if self.autocorrelation == "none":
            return float(stdtr(s.n - 2, t)), 0.0
        p, rho = p_value(t, s.lag1(), s.n)
        return float(p), float(rho)

    def statistics(self) -> dict[str, float | int | bool]:
        """Eight flat numbers, enough to test the window and to merge it into another.

        Returns:
            "n"; "first" and "last" (y); "rise" = Σ(y_t − first); "sty", "syy", the centred
            sums of products; "sdd" = Σ(y_t − y_{t−1})²; "diverged". Floats carry a relative
            error of 1e-16, so that a merge from here is exact to that.
        """
        self._flush()
        s, one = self._sums, 1 << self._bits
        ok = not self.diverged and s.n > 0
        n = s.n if ok else 1
        s = s if ok else _Sums(n=1)
        return {
            "n": self.n,
            "first": _ratio(s.first, one),
            "last": _ratio(s.last, one),
            "rise": _ratio(s.y - n * s.first, one),
            "sty": _ratio(s.sty, n * one),
            "syy": _ratio(s.syy, n * one**2),
            "sdd": _ratio(s.dd, one**2),
            "diverged": self.diverged,
        }

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
            test._sums = replace(_Sums(), **{k: int(v) for k, v in state["sums"].items()})
            at = state["diverged_at"]
            test._diverged_at = None if at is None else int(at)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"the state of a DecayTest is damaged: {error!r}") from error
        return test


def _refuse_negative(loss: float) -> None:
    raise InvalidValueError(
        f"a loss is negative ({loss!r}), which has no logarithm; use transform='identity'"
    )


def _ratio(numerator: int, denominator: int) -> float:
    """The float nearest to a ratio of integers; infinite beyond the largest."""
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


_NUMBERS = ("first", "last", "rise", "sty", "syy", "sdd")


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


def _from_statistics(n: int, numbers: Mapping[str, float], bits: int) -> _Sums:
    """The exact sums nearest to statistics that were rounded to floats."""
    first, last, rise, sty = (_fixed(numbers[k], bits) for k in ("first", "last", "rise", "sty"))
    y = n * first + rise
    return _Sums(
        n,
        y,
        round(Fraction((n - 1) * y, 2)) + sty,
        round(Fraction(y**2, n)) + max(_fixed(numbers["syy"], 2 * bits), 0),
        max(_fixed(numbers["sdd"], 2 * bits), 0),
        first,
        last,
    )
