"""Exact sums over a stream of numbers, for a regression on time whose terms do not cancel.

A number y is held as an integer, in units of 2^−76 or 2^−1074. Sums of integers are exact, so
that they do not depend on how many terms there are, in which order they came and how they were
grouped: one at a time, many at once, or stretches that were summed elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXACT_BITS", "FAST_BITS", "Sums", "fixed", "sum_any", "sum_small"]

FAST_BITS = 76
"""Fraction bits of numbers below 2^10, which are then summed by numpy: 4 limbs of 22 bits."""

EXACT_BITS = 1074
"""Fraction bits that hold every double exactly: 2^−1074 is the smallest."""

_LIMBS, _LIMB = 4, 22
_SHORT = 80  # below it Python's integers are faster than as many calls of numpy as there are limbs
_CHUNK = 1 << 13  # t² · limb has 26 + 21 bits, and the sum of 2^13 of them stays below 2^63


@dataclass(frozen=True)
class Sums:
    """Sums over a stretch of integers y_0 … y_{n−1}; a + b is a followed by b.

    Args:
        n: How many.
        y: Σ y_t.
        ty: Σ t y_t.
        tty: Σ t² y_t.
        yy: Σ y_t².
        dd: Σ (y_t − y_{t−1})².
        first: y_0.
        last: y_{n−1}.
    """

    n: int = 0
    y: int = 0
    ty: int = 0
    tty: int = 0
    yy: int = 0
    dd: int = 0
    first: int = 0
    last: int = 0

    def __add__(self, after: Sums) -> Sums:
        if not self.n or not after.n:
            return after if not self.n else self
        m = self.n
        return Sums(
            m + after.n,
            self.y + after.y,
            self.ty + after.ty + m * after.y,
            self.tty + after.tty + 2 * m * after.ty + m**2 * after.y,
            self.yy + after.yy,
            self.dd + after.dd + (after.first - self.last) ** 2,
            self.first,
            after.last,
        )

    @property
    def sty(self) -> Fraction:
        """Σ u_t y_t, u_t = t − (n − 1)/2."""
        return Fraction(2 * self.ty - (self.n - 1) * self.y, 2)

    @property
    def sqy(self) -> Fraction:
        """Σ q_t y_t, q_t = u_t² − (n² − 1)/12, which is orthogonal to 1 and u."""
        n = self.n
        ahead = 12 * self.tty - 12 * (n - 1) * self.ty + 2 * (n - 1) * (n - 2) * self.y
        return Fraction(ahead, 12)

    @property
    def syy(self) -> Fraction:
        """Σ (y_t − ȳ)²."""
        return Fraction(self.n * self.yy - self.y**2, self.n)

    @classmethod
    def of(
        cls,
        n: int,
        *,
        y: int,
        sty: int,
        sqy: int,
        syy: int,
        dd: int,
        first: int,
        last: int,
    ) -> Sums:
        """The sums whose centred sums are nearest to these."""
        ty = round(Fraction((n - 1) * y, 2)) + sty
        ahead = 6 * (n - 1) * ty - (n - 1) * (n - 2) * y
        tty = round(Fraction(ahead, 6)) + sqy
        return cls(n, y, ty, tty, round(Fraction(y**2, n)) + syy, dd, first, last)


def fixed(value: float, bits: int) -> int:
    """The integer nearest to value · 2^bits."""
    return round(Fraction(value) * (1 << bits))


def sum_any(values: NDArray[np.float64]) -> Sums:
    """The sums of any finite numbers, in units of 2^−1074."""
    return _sum_integers([fixed(v, EXACT_BITS) for v in values.tolist()])


def sum_small(values: NDArray[np.float64]) -> Sums:
    """The sums of numbers below 2^10, each rounded to a multiple of 2^−76."""
    sums = Sums()
    for start in range(0, len(values), _CHUNK):
        sums += _sum_chunk(values[start : start + _CHUNK])
    return sums


def _sum_integers(y: list[int]) -> Sums:
    if not y:
        return Sums()
    ty = [t * v for t, v in enumerate(y)]
    return Sums(
        len(y),
        sum(y),
        sum(ty),
        sum([t * v for t, v in enumerate(ty)]),
        sum([v * v for v in y]),
        sum([(b - a) ** 2 for a, b in pairwise(y)]),
        y[0],
        y[-1],
    )


def _sum_chunk(values: NDArray[np.float64]) -> Sums:
    if len(values) < _SHORT:  # the same integers: a power of 2 scales exactly
        return _sum_integers([round(v) for v in (values * 2.0**FAST_BITS).tolist()])
    limbs = _split(values)
    t = np.arange(len(values))
    return Sums(
        len(values),
        _join([int(limb.sum()) for limb in limbs]),
        _join([int(t @ limb) for limb in limbs]),
        _join([int((t * t) @ limb) for limb in limbs]),
        _sum_squares(limbs),
        _sum_squares([np.diff(limb) for limb in limbs]),
        _join([int(limb[0]) for limb in limbs]),
        _join([int(limb[-1]) for limb in limbs]),
    )


def _split(values: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """The integers as signed limbs, the lowest first: Σ limb_i 2^{22 i}, |limb_i| ≤ 2^21."""
    scaled = values * 2.0 ** (FAST_BITS - (_LIMBS - 1) * _LIMB)
    limbs = []
    for _ in range(_LIMBS):
        limb = np.rint(scaled)
        limbs.append(limb.astype(np.int64))
        scaled = (scaled - limb) * 2.0**_LIMB  # exact: the remainder has fewer bits than before
    return limbs[::-1]


def _join(limbs: list[int]) -> int:
    return sum(limb << (_LIMB * i) for i, limb in enumerate(limbs))


def _sum_squares(limbs: list[NDArray[np.int64]]) -> int:
    total = 0
    for i in range(_LIMBS):
        total += int(limbs[i] @ limbs[i]) << (2 * _LIMB * i)
        for j in range(i):
            total += int(limbs[i] @ limbs[j]) << (_LIMB * (i + j) + 1)
    return total
