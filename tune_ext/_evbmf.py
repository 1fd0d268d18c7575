"""Empirical variational Bayes matrix factorisation of a spectrum: numpy only.

The analytic solution of Nakajima, Sugiyama, Babacan and Tomioka ("Global analytic
solution of fully-observed variational Bayesian matrix factorization", JMLR 14, 2013;
"Perfect dimensionality recovery by variational Bayesian PCA", NIPS 2012) needs nothing of
a matrix but its squared singular values, so that is what this module takes.

Notation, for an L × M matrix with L ≤ M:

==========  =========================================================================
λ_h         squared singular values s_h², descending, h = 1 … L
α           L / M
v           M σ², the noise variance in the units of λ
x_h         λ_h / v
τ(x)        the larger root of x = (1 + τ)(1 + α/τ)
τ̄, x̄        the threshold: a component is retained when x_h > x̄, where τ = τ̄
k           how many components are retained
φ(τ)        ln(1 + τ) + α ln(1 + τ/α) − τ, what a retained component adds
==========  =========================================================================

The free energy, without terms that do not depend on v, is

    F(v) = Σ_h λ_h / v + L ln v + Σ_{h ≤ k} φ(τ(x_h)).

Between two kinks (values of v where some x_h = x̄) k is constant, and with u = ln v

    dF/du   = L − Σ_h x_h + Σ_{h ≤ k} τ_h
    d²F/du² = Σ_{h > k} x_h − Σ_{h ≤ k} α (1 + τ_h)(τ_h + α) / (τ_h (τ_h² − α)).

The second derivative falls strictly with u: F is first convex, then concave, so that it
has at most one minimum between two neighbouring kinks, in its convex part. The global
minimum is therefore found for certain: both sides of every kink, and the one interior
minimum of every stretch whose tangent does not rule it out.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from tune_ext.errors import InvalidValueError

__all__ = ["Factorization", "Spectrum", "Threshold", "factorize_spectrum", "threshold_tau"]

Array = NDArray[np.float64]
Threshold = Literal["published", "exact"]

#: τ̄ / √α as published; exact only for square matrices (α = 1).
PUBLISHED_FACTOR = 2.5129
THRESHOLDS = ("published", "exact")


class Factorization(NamedTuple):
    """What the factorisation of one matrix keeps.

    Attributes:
        singular_values: The retained singular values after shrinkage, descending, shape
            `(rank,)`, float64.
        noise_variance: σ², the variance of the noise on one entry of the matrix.
    """

    singular_values: Array
    noise_variance: float

    @property
    def rank(self) -> int:
        """How many singular values are retained."""
        return len(self.singular_values)


class Spectrum(NamedTuple):
    """The squared singular values of a matrix, and its sides (rows ≤ columns)."""

    squares: Array
    rows: int
    columns: int


def _phi(tau: Array, alpha: float) -> Array:
    """What retaining a component with this τ adds to the free energy."""
    value: Array = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    return value


def threshold_tau(alpha: float, threshold: Threshold = "published") -> float:
    """τ̄ for the aspect ratio `alpha` = rows / columns, in (0, 1].

    "published" is 2.5129·√α. "exact" is the positive root of Φ(τ) + Φ(τ/α) = 0 with
    Φ(z) = ln(z + 1)/z − 1/2, where retaining a component and leaving it out cost the same.

    >>> round(threshold_tau(1.0), 4), round(threshold_tau(1.0, "exact"), 4)
    (2.5129, 2.5129)
    >>> round(threshold_tau(1 / 9) * 3, 4), round(threshold_tau(1 / 9, "exact") * 3, 4)
    (2.5129, 2.5925)
    """
    if threshold not in THRESHOLDS:
        raise InvalidValueError(f"threshold must be one of {THRESHOLDS}, got {threshold!r}")
    root = float(np.sqrt(alpha))
    if threshold == "published":
        return PUBLISHED_FACTOR * root

    # φ(τ) = τ (Φ(τ) + Φ(τ/α)): positive just above √α, negative for large τ.
    def excess(factor: float) -> float:
        return float(_phi(np.asarray(factor * root), alpha))

    return root * float(brentq(excess, 1.5, 10.0, xtol=1e-14, rtol=1e-14))


def _tau(x: Array, alpha: float) -> Array:
    """The larger root τ of x = (1 + τ)(1 + α/τ), for x ≥ (1 + √α)²."""
    b = x - (1.0 + alpha)
    value: Array = 0.5 * (b + np.sqrt(np.maximum(b * b - 4.0 * alpha, 0.0)))
    return value


def factorize_spectrum(spectrum: Spectrum, threshold: Threshold = "published") -> Factorization:
    """Retained values and noise variance at the global minimum of the free energy.

    Args:
        spectrum: Squared singular values (any order, tiny negative ones count as 0).
        threshold: See `threshold_tau`.
    """
    rows, columns = spectrum.rows, spectrum.columns
    alpha = rows / columns
    tau_bar = threshold_tau(alpha, threshold)
    squares = np.sort(np.maximum(spectrum.squares, 0.0))[::-1]
    scale = float(squares.mean())
    if scale == 0.0:
        return Factorization(np.zeros(0), 0.0)
    lam = squares / scale
    # What lies below the accuracy of the eigenvalues is not a value but their rounding.
    lam[lam < columns * np.finfo(np.float64).eps * lam[0]] = 0.0
    x_bar = (1.0 + tau_bar) * (1.0 + alpha / tau_bar)
    head = min(int(np.ceil(rows / (1.0 + alpha))) - 1, rows)
    low = max(lam[head] / x_bar, float(lam[head:].mean()))
    if low == 0.0:  # fewer components than the model allows for, and no noise at all
        return Factorization(np.sqrt(squares[lam > 0.0]), 0.0)
    v, rank = _minimise(lam, low, alpha, tau_bar, x_bar)
    kept = lam[:rank]
    shrunk = np.sqrt(kept * scale) * (_tau(kept / v, alpha) * v / kept)
    return Factorization(shrunk, v * scale / columns)


def _minimise(
    lam: Array, low: float, alpha: float, tau_bar: float, x_bar: float
) -> tuple[float, int]:
    """The v in [low, mean λ] where F is least, and the rank there."""
    rows = len(lam)
    total = float(lam.sum())
    high = total / rows
    low = min(low, high)
    kinks = lam / x_bar
    most = int(np.count_nonzero(kinks > low))  # no more than this can be retained
    least = int(np.count_nonzero(kinks > high))
    top = lam[:most]
    # Stretches between breakpoints, in falling order of v, with ranks least … most.
    upper = np.concatenate(([high], kinks[least:most]))
    lower = np.concatenate((kinks[least:most], [low]))
    ranks = np.arange(least, most + 1)
    f_low, g_low = _energy(lower, ranks, top, total, rows, alpha)
    f_high, g_high = _energy(upper, ranks, top, total, rows, alpha)
    ends = np.concatenate((f_low, f_high))
    best = int(np.argmin(ends))
    best_f, best_v = float(ends[best]), float(np.concatenate((lower, upper))[best])
    best_rank = int(np.concatenate((ranks, ranks))[best])
    # An interior minimum lies above the tangent at the lower end.
    width = np.log(upper / lower)
    hopeful = (g_low < 0.0) & (f_low + g_low * width < best_f)
    for i in np.flatnonzero(hopeful):
        rank = int(ranks[i])
        v = _interior(float(lower[i]), float(upper[i]), float(g_high[i]), lam, rank, alpha)
        if v is None:
            continue
        f, _ = _energy(np.array([v]), ranks[i : i + 1], top, total, rows, alpha)
        if f[0] < best_f:
            best_f, best_v, best_rank = float(f[0]), v, rank
    return best_v, best_rank


def _energy(
    v: Array, ranks: NDArray[np.int_], top: Array, total: float, rows: int, alpha: float
) -> tuple[Array, Array]:
    """F and dF/du at each of `v`, with `ranks` components retained."""
    retained = np.arange(len(top)) < ranks[:, None]
    tau = _tau(np.where(retained, top / v[:, None], 4.0), alpha)
    f = total / v + rows * np.log(v) + np.sum(_phi(tau, alpha), axis=1, where=retained)
    g = rows - total / v + np.sum(tau, axis=1, where=retained)
    return f, g


def _slope(u: float, lam: Array, rank: int, alpha: float) -> tuple[float, float]:
    """dF/du and d²F/du² at v = e^u with `rank` components retained."""
    x = lam * np.exp(-u)
    tau = _tau(x[:rank], alpha)
    bend = alpha * (1.0 + tau) * (tau + alpha) / (tau * (tau * tau - alpha))
    first = len(lam) - x.sum() + tau.sum()
    return float(first), float(x[rank:].sum() - bend.sum())


def _interior(
    lower: float, upper: float, g_upper: float, lam: Array, rank: int, alpha: float
) -> float | None:
    """The one minimum of F inside a stretch whose slope at `lower` is negative."""
    a, b = float(np.log(lower)), float(np.log(upper))
    if g_upper <= 0.0:
        # The slope rises to its peak and falls again: look for a peak above zero.
        def bend(u: float) -> float:
            return _slope(u, lam, rank, alpha)[1]

        if bend(a) <= 0.0 or bend(b) >= 0.0:
            return None
        b = float(brentq(bend, a, b, xtol=1e-14, rtol=1e-13))
        if _slope(b, lam, rank, alpha)[0] <= 0.0:
            return None
    u = float(brentq(lambda u: _slope(u, lam, rank, alpha)[0], a, b, xtol=1e-15, rtol=1e-14))
    return float(np.exp(u))
