"""Empirical variational Bayes matrix factorisation of a spectrum: numpy only.

The analytic solution of Nakajima, Sugiyama, Babacan and Tomioka ("Global analytic
solution of fully-observed variational Bayesian matrix factorization", JMLR 14, 2013;
"Perfect dimensionality recovery by variational Bayesian PCA", NIPS 2012) needs nothing of
a matrix but its squared singular values, so that is what this module takes.

Notation, for an L × M matrix with L ≤ M (a tall one is transposed):

=========  ============================================================================
λ_h        squared singular values s_h², descending, h = 1 … L
α          L / M
v          M σ², the noise variance in the units of λ
u          ln v
x_h        λ_h / v
τ(x)       the larger root of x = (1 + τ)(1 + α/τ); the shrunk value is d = s τ/x
τ̄, x̄       the threshold: a component is retained when x_h > x̄ = (1 + τ̄)(1 + α/τ̄)
k          how many components are retained
φ(τ)       ln(1 + τ) + α ln(1 + τ/α) − τ, what retaining a component adds
=========  ============================================================================

The free energy, without the terms that do not depend on v, is

    F(v) = Σ_h x_h + L ln v + Σ_{h ≤ k} φ(τ(x_h)).

At a kink (a v where some x_h = x̄) k changes by one and F jumps by φ(τ̄), which is 0 for
the exact threshold and small for the published one. Between two kinks

    dF/du   = L − Σ_h x_h + Σ_{h ≤ k} τ_h
    d²F/du² = Σ_{h > k} x_h − Σ_{h ≤ k} α (1 + τ_h)(τ_h + α) / (τ_h (τ_h² − α)),

and the second derivative falls strictly with u: F is first convex, then concave, so that
it has at most one minimum between two neighbouring kinks, in the convex part, where it
lies above its tangents. The global minimum is therefore found for certain: it is one side
of a kink, an end of the range of v, or the interior minimum of a stretch between two
kinks that its tangent does not rule out.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from tune_ext.errors import InvalidValueError

__all__ = [
    "Factorization",
    "Solution",
    "Spectrum",
    "Threshold",
    "check_threshold",
    "factorize",
    "threshold_tau",
]

Array = NDArray[np.float64]
Threshold = Literal["published", "exact"]

#: τ̄ / √α as published; exact only for square matrices.
PUBLISHED_FACTOR = 2.5129


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
    """The squared singular values of a matrix, as exactly as they are known.

    Attributes:
        squares: λ_h / unit², in any order; negative ones are rounding and count as 0.
        rows: L, the shorter side of the matrix.
        columns: M, the longer side.
        error: How far each of `squares` may be off (an estimate; see `tune_ext.lowrank`).
        unit: The unit of the singular values, so that squares neither over- nor underflow.
    """

    squares: Array
    rows: int
    columns: int
    error: float = 0.0
    unit: float = 1.0


class Solution(NamedTuple):
    """A factorisation, and whether the errors of the spectrum can have changed it.

    Attributes:
        factorization: The retained values and the noise variance.
        resolution: The error of the spectrum in units of the smallest square that is
            still retained; infinite where nothing smaller can be told from noise.
        certain: Whether the rank stays the same for every spectrum within `error`.
    """

    factorization: Factorization
    resolution: float
    certain: bool


class _Minimum(NamedTuple):
    """Where F is least: v, the rank there, and how far every other rank is above it."""

    v: float
    rank: int
    margin: float


def check_threshold(threshold: object) -> None:
    """Raise `InvalidValueError` unless `threshold` names a threshold."""
    if not isinstance(threshold, str) or threshold not in ("published", "exact"):
        raise InvalidValueError(f"threshold must be 'published' or 'exact', got {threshold!r}")


def _phi(tau: Array, alpha: float) -> Array:
    """What retaining a component with this τ adds to the free energy."""
    value: Array = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    return value


@lru_cache(maxsize=1024)
def threshold_tau(alpha: float, threshold: Threshold = "published") -> float:
    """τ̄ for the aspect ratio `alpha` = L / M in (0, 1].

    "published" is 2.5129·√α. "exact" is the root of Φ(τ) + Φ(τ/α) = 0 above √α, where
    Φ(z) = ln(z + 1)/z − 1/2: there, retaining a component costs as much as leaving it out.

    >>> [round(threshold_tau(1.0, t), 3) for t in ("published", "exact")]
    [2.513, 2.513]
    >>> [round(threshold_tau(1 / 9, t) * 3, 4) for t in ("published", "exact")]
    [2.5129, 2.5925]
    """
    check_threshold(threshold)
    root = math.sqrt(alpha)
    if threshold == "published":
        return PUBLISHED_FACTOR * root

    # φ(τ) = τ (Φ(τ) + Φ(τ/α)) rises up to τ = √α and falls to −∞ from there.
    def cost(factor: float) -> float:
        return float(_phi(np.asarray(factor * root), alpha))

    return root * float(brentq(cost, 1.5, 10.0, xtol=1e-15, rtol=1e-14))


def _tau(x: Array, alpha: float) -> Array:
    """The larger root τ of x = (1 + τ)(1 + α/τ); √α below its domain, x < (1 + √α)²."""
    b = np.maximum(x - (1.0 + alpha), 2.0 * math.sqrt(alpha))
    value: Array = 0.5 * (b + np.sqrt(np.maximum(b * b - 4.0 * alpha, 0.0)))
    return value


def factorize(spectrum: Spectrum, threshold: Threshold = "published") -> Solution:
    """The retained values and the noise variance at the global minimum of F.

    Args:
        spectrum: The squared singular values.
        threshold: See `threshold_tau`.

    A matrix whose values are zero from the ⌈L/(1 + α)⌉-th on has F → −∞ as v → 0: its
    noise variance is 0 and its values are retained as they are.
    """
    alpha = spectrum.rows / spectrum.columns
    tau_bar = threshold_tau(alpha, threshold)
    x_bar = (1.0 + tau_bar) * (1.0 + alpha / tau_bar)
    squares = np.sort(np.maximum(spectrum.squares, 0.0))[::-1]
    scale = float(squares.mean())
    exact = spectrum.error == 0.0
    if scale == 0.0:
        return Solution(Factorization(np.zeros(0), 0.0), math.inf, exact)
    lam = squares / scale
    head = math.ceil(spectrum.rows / (1.0 + alpha)) - 1
    low = min(max(float(lam[head]) / x_bar, float(lam[head:].mean())), 1.0)
    if low == 0.0:
        values = np.sqrt(squares[squares > 0.0]) * spectrum.unit
        return Solution(Factorization(values, 0.0), math.inf, exact)
    error = spectrum.error / scale
    v, rank, margin = _minimise(lam, low, alpha, tau_bar, error)
    kept = lam[:rank]
    shrunk = np.sqrt(scale * kept) * (_tau(kept / v, alpha) * v / kept) * spectrum.unit
    noise = v * scale / spectrum.columns * spectrum.unit * spectrum.unit
    return Solution(Factorization(shrunk, noise), error / (x_bar * v), margin > 0.0)


def _minimise(lam: Array, low: float, alpha: float, tau_bar: float, error: float) -> _Minimum:
    """The global minimum of F over v in [low, 1], for a spectrum `lam` of mean 1.

    A stretch is the range of v between two neighbouring kinks (or an end of the range).
    Stretch i retains `ranks[i]` components and reaches from `v[i + 1]` up to `v[i]`.
    """
    x_bar = (1.0 + tau_bar) * (1.0 + alpha / tau_bar)
    kinks = lam / x_bar
    least, most = (int(np.count_nonzero(kinks > bound)) for bound in (1.0, low))
    v = np.concatenate(([1.0], kinks[least:most], [low]))
    ranks = np.arange(least, most + 1)
    # Once per kink, from above; from below there is one component more, with τ = τ̄.
    f, g = _energy(v, np.concatenate(([least], ranks)), lam, alpha)
    jump = float(_phi(np.asarray(tau_bar), alpha))
    f_low, g_low = f[1:], g[1:]
    f_high = f[:-1] + jump
    f_high[0] = f[0]

    found = np.minimum(f_low, f_high)
    where = np.where(f_low <= f_high, v[1:], v[:-1])
    tangent = np.where(g_low < 0.0, f_low + g_low * np.log(v[:-1] / v[1:]), np.inf)
    for i in np.flatnonzero(tangent < found.min()):
        inside = _interior(v[i + 1], v[i], lam, int(ranks[i]), alpha)
        tangent[i] = np.inf
        if inside is None:
            continue
        energy = _energy(np.array([inside]), ranks[i : i + 1], lam, alpha)[0][0]
        if energy < found[i]:
            found[i], where[i] = energy, inside
    best = int(np.argmin(found))
    # Each retained component may shift F by error / v, independently of the others.
    doubt = error * (1.0 + np.sqrt(ranks))
    bound = np.minimum(found, tangent) - doubt / v[1:]
    bound[best] = np.inf
    margin = float(bound.min() - found[best] - doubt[best] / where[best])
    # The bound itself may be off too: would another kink come into the range?
    below = float(kinks[most]) if most < len(kinks) else 0.0
    if where[best] == low and 0.0 < low - below <= 2.0 * error:
        margin = -math.inf
    return _Minimum(float(where[best]), int(ranks[best]), margin)


def _energy(v: Array, ranks: NDArray[np.int_], lam: Array, alpha: float) -> tuple[Array, Array]:
    """F and dF/du at each of `v`, with `ranks` components retained.

    x − τ is computed as 1 + α + α/τ: both can be 1e15 times larger than their difference.
    """
    most = int(ranks.max())
    rest = np.append(np.cumsum(lam[::-1])[::-1], 0.0)[ranks] / v
    retained = np.arange(most) < ranks[:, None]
    tau = _tau(lam[:most] / v[:, None], alpha)
    spent = 1.0 + alpha + alpha / tau
    gained = np.log1p(tau) + alpha * np.log1p(tau / alpha)
    f = rest + len(lam) * np.log(v) + np.sum(spent + gained, axis=1, where=retained)
    g = len(lam) - rest - np.sum(spent, axis=1, where=retained)
    return f, g


def _slope(u: float, lam: Array, rank: int, alpha: float) -> float:
    """dF/du at v = e^u with `rank` components retained."""
    tau = _tau(lam[:rank] * math.exp(-u), alpha)
    rest = float(lam[rank:].sum()) * math.exp(-u)
    return len(lam) - rest - rank * (1.0 + alpha) - float(np.sum(alpha / tau))


def _bend(u: float, lam: Array, rank: int, alpha: float) -> float:
    """d²F/du² at v = e^u with `rank` components retained."""
    tau = _tau(lam[:rank] * math.exp(-u), alpha)
    drop = alpha * (1.0 + tau) * (tau + alpha) / (tau * (tau * tau - alpha))
    return float(lam[rank:].sum()) * math.exp(-u) - float(drop.sum())


def _interior(lower: float, upper: float, lam: Array, rank: int, alpha: float) -> float | None:
    """The one minimum of F inside a stretch, if there is one: where dF/du rises through 0."""
    a, b = math.log(lower), math.log(upper)
    rest = (lam, rank, alpha)
    if _slope(a, *rest) >= 0.0:
        return None
    if _slope(b, *rest) <= 0.0:
        # The slope ends below zero too, but may have had a peak above zero in between.
        if not _bend(a, *rest) > 0.0 > _bend(b, *rest):
            return None
        b = float(brentq(_bend, a, b, args=rest, xtol=1e-14, rtol=1e-13))
        if _slope(b, *rest) <= 0.0:
            return None
    return math.exp(brentq(_slope, a, b, args=rest, xtol=1e-15, rtol=1e-14))
