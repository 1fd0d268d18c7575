"""Does a stretch of numbers fall? The t-test of its slope, corrected for autocorrelation.

The form of the correction is ours; experiments/exptest/calibration.md compares it with others.

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
that no noise is left to compare with (large batches). Where one of the two comes near its level
on pure noise the other is far below, so that their minimum keeps it.

Measured rates are in experiments/exptest/calibration.md: p keeps α = .05 for Gaussian and
heavy-tailed, AR(1) (ρ ≤ .9), moving-average and epoch-wise noise from n = 30 on, and α = .01
from n = 60 on (with ρ = .9: .013 at n = 60, .021 at n = 30). It does not for noise that is nearly
white from step to step and wanders slowly underneath: the lag-1 autocorrelation shows nothing
of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from tune_ext._exact_sums import Sums

__all__ = ["Fit", "Statistics", "corrected_p_value", "plain_p_value", "to_float"]

Array = NDArray[np.float64]


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


def plain_p_value(n: int, t_line: float) -> float:
    """The p-value of the textbook's test."""
    return float(stdtr(n - 2, t_line))


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


class Fit:
    """The least-squares line and parabola through exact sums of at least two numbers.

    Every quantity is held as an integer, multiplied by whatever it would otherwise be divided by:
    `fractions.Fraction` reduces at every step and takes ten times as long.
    """

    def __init__(self, sums: Sums) -> None:
        n = sums.n
        self.sums = sums
        self._a = 2 * sums.ty - (n - 1) * sums.y  # 2 Σ u_t y_t
        # n (n² − 1) Σ of the squared residuals of the line
        self.line = (n**2 - 1) * (n * sums.yy - sums.y**2) - 3 * self._a**2

    @property
    def b(self) -> Fraction:
        """The slope of the line."""
        return Fraction(6 * self._a, self.sums.n * (self.sums.n**2 - 1))

    def t_line(self) -> float:
        return self._sign(_root(3 * (self.sums.n - 2) * self._a**2, self.line))

    def statistics(self) -> Statistics:
        s, n = self.sums, self.sums.n
        k = 6 * s.tty - 6 * (n - 1) * s.ty + (n - 1) * (n - 2) * s.y  # 6 Σ q_t y_t
        left = (n**2 - 4) * self.line - 5 * k**2  # of the parabola, times n (n² − 1) (n² − 4)
        rise = s.last - s.first
        drift = _root((n - 2) * rise**2, (n - 1) * s.dd - rise**2)
        return Statistics(
            n,
            self.t_line(),
            self._sign(_root(3 * (n - 3) * (n**2 - 4) * self._a**2, left)),
            -drift if rise < 0 else drift,
            1.0 if left <= 0 else 1.0 - self._changes(k, left),
        )

    def _changes(self, k: int, left: int) -> float:
        """(Σ(e_t − e_{t−1})² + e_first² + e_last²) / 2 Σe² of the parabola's residuals.

        The numerator is 2 Σe² − 2 Σ e_t e_{t−1}; below it is multiplied by n² (n² − 1)² (n² − 4)².
        """
        s, n = self.sums, self.sums.n
        e = (n**2 - 1) * (n**2 - 4)
        d = n * e
        b, c = 6 * (n**2 - 4) * self._a, 30 * k  # times d: coefficients of u and q
        along = b * (s.last - s.first) + c * (n * (s.first + s.last) - 2 * s.y)
        squares = (n - 1) * b**2 + c**2 * (n * (n - 1) * (n - 2) // 3)
        bend = 5 * (n - 1) * (n - 2) * k + e * s.y
        tilt = 3 * (n - 1) * (n**2 - 4) * self._a
        ends = (d * s.first + tilt - bend) ** 2 + (d * s.last - tilt - bend) ** 2
        return _ratio(d**2 * s.dd - 2 * d * along + squares + ends, 2 * d * left)

    def _sign(self, size: float) -> float:
        return -size if self._a < 0 else size


def to_float(value: Fraction) -> float:
    """The nearest float; infinite beyond the largest."""
    return _ratio(value.numerator, value.denominator)


def _ratio(numerator: int, denominator: int) -> float:
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


def _root(numerator: int, denominator: int) -> float:
    """The root of a ratio of two numbers that are not negative; x/0 is infinite, 0/0 is 0.

    A sum of squares out of merged statistics, which are rounded, can be just below 0: that is 0.
    """
    if denominator <= 0:
        return math.inf if numerator > 0 else 0.0
    return math.sqrt(_ratio(numerator, denominator))
