"""EVBMF as slowly and plainly as it can be written down.

Nakajima, Sugiyama, Babacan, Tomioka (JMLR 14, 2013; NIPS 2012), with the constants of
autoHyper (arXiv 2111.14056). Singular values come from a full float64 SVD. The noise
variance comes from looking everywhere: the free energy is evaluated on a grid in every
stretch between two of its kinks, on both sides of every kink, and every cell of the grid
that might hide something lower is searched by golden section.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from scipy.optimize import brentq, minimize_scalar

GRID = 9  # points in each stretch


def capital_phi(z):
    return math.log(z + 1) / z - 0.5


def threshold(alpha, kind):
    if kind == "published":
        return 2.5129 * math.sqrt(alpha)
    return brentq(
        lambda t: capital_phi(t) + capital_phi(t / alpha),
        1.2 * math.sqrt(alpha),
        20 * math.sqrt(alpha),
        xtol=1e-15,
    )


def tau(x, alpha):
    b = x - (1 + alpha)
    return (b + np.sqrt(b**2 - 4 * alpha)) / 2


def free_energy(variance, s, rows, columns, retained):
    """F(σ²) with the first `retained` singular values kept, as it is printed."""
    alpha = rows / columns
    x = s**2 / (columns * variance)
    noise, signal = x[retained:], x[:retained]
    noise = noise[s[retained:] > 0]  # ln 0 does not depend on σ²; ln σ² is added below
    missing = len(s) - retained - len(noise)
    t = tau(signal, alpha)
    return (
        np.sum(noise - np.log(noise))
        + missing * np.log(variance)
        + np.sum(1 + alpha + alpha / t)  # x − τ, without the cancellation
        + np.sum(np.log((t + 1) / signal))
        + alpha * np.sum(np.log(t / alpha + 1))
    )


def polish(variance, s, rows, columns, retained):
    """The root of dF/d ln σ² beside a minimum that is known roughly.

    The derivative is the complex step's: Im F(σ² e^{ih}) / h, exact to rounding.
    """

    def slope(u):
        return free_energy(np.exp(u + 1e-30j), s, rows, columns, retained).imag

    u = math.log(variance)
    if slope(u - 1e-3) < 0 < slope(u + 1e-3):
        u = brentq(slope, u - 1e-3, u + 1e-3, xtol=1e-15)
    return math.exp(u)


def search(s, rows, columns, kind):
    """(σ², how many values are retained) at the least free energy."""
    alpha = rows / columns
    t_bar = threshold(alpha, kind)
    x_bar = (1 + t_bar) * (1 + alpha / t_bar)
    e = min(math.ceil(rows / (1 + alpha)) - 1, rows) - 1
    upper = np.sum(s**2) / (rows * columns)
    lower = max(s[e + 1] ** 2 / (columns * x_bar), np.mean(s[e + 1 :] ** 2) / columns)
    lower = min(lower, upper)
    if lower == 0.0:
        return 0.0, int(np.count_nonzero(s))
    kinks = s**2 / (columns * x_bar)
    inside = sorted({k for k in kinks if lower < k < upper}, reverse=True)
    edges = [upper, *inside, lower]

    found = []  # (free energy, σ², retained)
    cells = []
    for high, low in pairwise(edges):
        retained = int(np.count_nonzero(kinks > low))
        grid = np.geomspace(low, high, GRID)
        grid[0], grid[-1] = low, high
        values = [free_energy(v, s, rows, columns, retained) for v in grid]
        found += [(f, v, retained) for f, v in zip(values, grid, strict=True)]
        for i in range(GRID - 1):
            floor = min(values[i : i + 2]) - abs(values[i + 1] - values[i])
            cells.append((floor, grid[max(i - 1, 0)], grid[min(i + 2, GRID - 1)], retained))
    best = min(found)[0]
    for floor, low, high, retained in cells:
        if floor > best or high <= low * (1 + 1e-12):
            continue
        result = minimize_scalar(
            lambda u, k=retained: free_energy(math.exp(u), s, rows, columns, k),
            bounds=(math.log(low), math.log(high)),
            method="bounded",
            options={"xatol": 1e-12},
        )
        v = polish(math.exp(result.x), s, rows, columns, retained)
        found.append((free_energy(v, s, rows, columns, retained), v, retained))
    _, variance, retained = min(found)
    return variance, retained


def reference_evbmf(matrix, kind="published"):
    """The retained, shrunk singular values in descending order, and the noise variance."""
    y = np.asarray(matrix, dtype=np.float64)
    if y.shape[0] > y.shape[1]:
        y = y.T
    rows, columns = y.shape
    unit = np.abs(y).max() or 1.0
    s = np.linalg.svd(y / unit, full_matrices=False)[1]
    s[s <= 8 * columns * np.finfo(np.float64).eps * s[0]] = 0.0
    variance, retained = search(s, rows, columns, kind)
    kept = s[:retained]
    if variance == 0.0:
        return unit * kept, 0.0
    a = 1 - (rows + columns) * variance / kept**2
    b = 4 * rows * columns * variance**2 / kept**4
    return unit * kept / 2 * (a + np.sqrt(a**2 - b)), variance * unit * unit
