"""Moments of the depths of a network's paths, without looking at a single path.

A network of m additions has up to 2^m paths or more; the moments of their depths follow from
a walk over its edges, exactly. What is carried along is

======  =========  ==============================================================
field   symbol     meaning
======  =========  ==============================================================
count   n          how many paths there are, or the sum of their weights w_p
first   S1         Σ_p w_p L_p, L_p the number of weighted layers on the path p
second  S2         Σ_p w_p L_p²
third   S3         Σ_p w_p L_p³: what the learning rate depends on
======  =========  ==============================================================

in whole numbers where every path counts 1, and in fractions where paths have weights.

Source: the learning rate's dependence on Σ_p L_p³ is equation 8 of Chen, Wu, Wang, Hanin,
"Principled architecture-aware scaling of hyperparameters" (ICLR 2024, arXiv 2402.17440);
the recursion is ours (the published code lists the paths).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

__all__ = ["PathMoments", "short"]


@dataclass(frozen=True)
class PathMoments:
    """The number of paths and the first three moments of their depths (sums, not means).

    `a + b` holds the paths of both (they meet in an addition); `a.then(b)` every path of `a`
    continued by every path of `b` (one block after another).

    >>> identity = PathMoments.start()
    >>> branch = identity.after_layer().after_layer()
    >>> block = identity + branch           # a residual block: depths 0 and 2
    >>> block
    PathMoments(count=2, first=2, second=4, third=8)
    >>> block.then(block)                   # depths 0, 2, 2 and 4
    PathMoments(count=4, first=8, second=24, third=80)
    """

    count: int | Fraction
    first: int | Fraction
    second: int | Fraction
    third: int | Fraction

    @classmethod
    def start(cls) -> PathMoments:
        """One path that has met no layer yet."""
        return cls(1, 0, 0, 0)

    @classmethod
    def none(cls) -> PathMoments:
        """No path at all."""
        return cls(0, 0, 0, 0)

    def after_layer(self) -> PathMoments:
        """Every path one weighted layer longer: Σ(L+1)^k by the binomial formula."""
        n, s1, s2, s3 = self.count, self.first, self.second, self.third
        return PathMoments(n, s1 + n, s2 + 2 * s1 + n, s3 + 3 * s2 + 3 * s1 + n)

    def __add__(self, other: PathMoments) -> PathMoments:
        return PathMoments(
            self.count + other.count,
            self.first + other.first,
            self.second + other.second,
            self.third + other.third,
        )

    def then(self, after: PathMoments) -> PathMoments:
        """Each path continued by each of `after`: M_k = Σ_j C(k, j) M_j M'_(k−j)."""
        n, s1, s2, s3 = self.count, self.first, self.second, self.third
        m, t1, t2, t3 = after.count, after.first, after.second, after.third
        return PathMoments(
            n * m,
            s1 * m + n * t1,
            s2 * m + 2 * s1 * t1 + n * t2,
            s3 * m + 3 * s2 * t1 + 3 * s1 * t2 + n * t3,
        )

    def weighted(self, weight: Fraction | int) -> PathMoments:
        """Every path with `weight` times its weight."""
        return PathMoments(
            self.count * weight, self.first * weight, self.second * weight, self.third * weight
        )

    @property
    def mean_depth(self) -> Fraction:
        """Mean number of weighted layers on a path; 0 where there is no path."""
        return Fraction(self.first) / self.count if self.count else Fraction(0)


def short(value: int | Fraction) -> str:
    """A number of any size in a few characters."""
    if value == int(value) and value < 10**9:
        return f"{int(value):,}"
    fraction = Fraction(value)
    return f"{Decimal(fraction.numerator) / Decimal(fraction.denominator):.4g}"
