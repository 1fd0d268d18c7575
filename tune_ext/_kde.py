"""Kernel densities over numbers, categories and ordered levels, all points at once.

Product kernels as BOHB uses them (Falkner, Klein, Hutter, "BOHB: Robust and Efficient
Hyperparameter Optimization at Scale", ICML 2018, section 3.2; the kernels are those of Racine,
Li, "Nonparametric estimation of regression functions with both categorical and continuous
data", 2004): Gaussian for numbers, Aitchison and Aitken's for categories, Wang and van Ryzin's
for ordered levels.

The logarithm of a product of kernels is a scalar product of two vectors, one of the query and
one of the datum, so all pairs are one matrix product. That is what makes 5,000 observations
cheap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

__all__ = ["Density", "Variable"]

Array = NDArray[np.float64]
_TINY = 1e-300


@dataclass(frozen=True)
class Variable:
    """One column of the data.

    Attributes:
        kind: "number" in [0, 1], "category" or "level", which are 0, 1, …, levels − 1.
        levels: How many categories or levels there are; 0 for a number.
    """

    kind: Literal["number", "category", "level"]
    levels: int = 0


class Density:
    """The density of a set of points, each of which carries a kernel.

    Bandwidths are the normal reference rule, 1.06·σ·n^(−1/(4 + d)), for every kind of variable,
    and not below `min_bandwidth`; those of categories and levels not above the one at which the
    kernel is flat, (K − 1)/K.

    Args:
        data: (n, d), finite.
        variables: What the d columns are.
        min_bandwidth: So that points that agree in a variable do not pin it.

    Attributes:
        bandwidth: (d,).
    """

    def __init__(
        self, data: Array, variables: Sequence[Variable], min_bandwidth: float = 1e-3
    ) -> None:
        self._data = np.asarray(data, dtype=float)
        self._variables = tuple(variables)
        n, d = self._data.shape
        wide = 1.06 * self._data.std(axis=0) * n ** (-1 / (4 + d))
        flat = [(v.levels - 1) / v.levels if v.levels else math.inf for v in self._variables]
        self.bandwidth: Array = np.maximum(np.minimum(wide, flat), min_bandwidth)
        self._numbers = [j for j, v in enumerate(self._variables) if v.kind == "number"]
        self._others = [j for j, v in enumerate(self._variables) if v.kind != "number"]
        self._tables = {j: _kernel(self._variables[j], self.bandwidth[j]) for j in self._others}
        scaled = self._scaled(self._data)
        self._features = np.hstack([scaled, *(self._one_hot(j) for j in self._others)])
        self._offset = -0.5 * np.einsum("ij,ij->i", scaled, scaled)
        widths = self.bandwidth[self._numbers]
        self._scale = -np.log(widths * math.sqrt(2 * math.pi)).sum() - math.log(n)

    def log_pdf(self, points: Array) -> Array:
        """The logarithm of the density at (m, d) points, (m,)."""
        points = np.asarray(points, dtype=float)
        scaled = self._scaled(points)
        rows = [scaled]
        for j in self._others:
            rows.append(np.log(np.maximum(self._tables[j], _TINY))[points[:, j].astype(int)])
        exponent = np.hstack(rows) @ self._features.T + self._offset
        exponent -= 0.5 * np.einsum("ij,ij->i", scaled, scaled)[:, None]
        largest = exponent.max(axis=1, keepdims=True)
        np.exp(np.subtract(exponent, largest, out=exponent), out=exponent)
        result: Array = np.log(exponent.sum(axis=1)) + largest[:, 0] + self._scale
        return result

    def sample(self, count: int, factor: float, random: np.random.Generator) -> Array:
        """Draw points near the data: (count, d).

        Args:
            count: How many.
            factor: Numbers are drawn with bandwidths this many times as wide, truncated to [0, 1].
            random: Where randomness comes from.
        """
        centres = self._data[random.integers(len(self._data), size=count)]
        drawn = np.empty_like(centres)
        for j, variable in enumerate(self._variables):
            uniform = random.random(count)
            if variable.kind == "number":
                drawn[:, j] = _truncated(centres[:, j], factor * self.bandwidth[j], uniform)
            else:
                steps = np.cumsum(self._tables[j] / self._tables[j].sum(1, keepdims=True), axis=1)
                below = steps[centres[:, j].astype(int)] < uniform[:, None]
                drawn[:, j] = np.minimum(below.sum(axis=1), variable.levels - 1)
        return drawn

    def _scaled(self, points: Array) -> Array:
        scaled: Array = points[:, self._numbers] / self.bandwidth[self._numbers]
        return scaled

    def _one_hot(self, j: int) -> Array:
        levels = np.arange(self._variables[j].levels)
        return np.asarray(self._data[:, j, None] == levels, dtype=float)


def _kernel(variable: Variable, width: float) -> Array:
    """The kernel's value for every pair of levels, (K, K)."""
    levels = np.arange(variable.levels)
    apart = np.abs(levels[:, None] - levels)
    if variable.kind == "level":
        table = 0.5 * (1 - width) * width**apart
    else:
        table = np.full(apart.shape, width / max(1, variable.levels - 1))
    np.fill_diagonal(table, 1 - width if variable.levels > 1 else 1)
    return np.asarray(table, dtype=float)


def _truncated(centre: Array, width: float, uniform: Array) -> Array:
    """Normal variates around `centre`, kept within [0, 1], by inversion."""
    low, high = ndtr(-centre / width), ndtr((1 - centre) / width)
    drawn = centre + width * ndtri(low + uniform * (high - low))
    result: Array = np.clip(drawn, 0, 1)
    return result
