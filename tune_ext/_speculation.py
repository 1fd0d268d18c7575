"""Which points the trust region will most probably ask for next.

Idle workers should measure what the search will need. The machine itself says what that is:
a copy of it walks ahead over predicted responses, and every point that it would have asked
for is a candidate. It walks once for each of a few outcomes (as extrapolated, falling faster,
flat), and a point's score is the summed weight of the walks that need it, less for each region
that lies before it. Nothing here can change a decision, only the order of the work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tune_ext._lattice import Axis, Point
from tune_ext._trust_region import FAILED, TrustRegion

__all__ = ["likely_next"]

_OUTCOMES = ((1.0, 0.5), (2.0, 0.3), (0.0, 0.2))  # (factor of the slope, weight)
_DISCOUNT = 0.8  # of a point's score for each region before it
_PRIOR_SLOPE = -0.05  # responses fall by about this much a step of the learning rate
_LOWEST = 0.02  # never predict a plateau from one response of 0


def likely_next(
    machine: TrustRegion, known: Mapping[Point, float], skip: Sequence[Point], count: int
) -> list[Point]:
    """The `count` unknown points most probably needed next, the likeliest first.

    Args:
        machine: The search as it stands; it is copied, not changed.
        known: Every response so far.
        skip: Points that are being measured already: walked through, not returned.
        count: How many points at most.
    """
    scores: dict[Point, float] = {}
    skipped = set(skip)
    for factor, weight in _OUTCOMES:
        model = _Model(machine.axes, known, factor)
        for point, regions in _walk(machine, model, skipped, count):
            scores[point] = scores.get(point, 0.0) + weight * _DISCOUNT**regions
    # sorted() is stable: equal scores keep the order of the likeliest walk
    return sorted(scores, key=lambda p: -scores[p])[:count]


def _walk(
    machine: TrustRegion, model: _Model, skipped: set[Point], count: int
) -> list[tuple[Point, int]]:
    """The unknown points that one walk ahead asks for, and after how many regions."""
    walker = machine.copy()
    found: dict[Point, int] = {}
    for _ in range(4 * count + 16):
        if walker.finished or len(found) >= count:
            break
        before = walker.round
        walker.step(model)
        for point in model.drain():
            if point not in skipped:
                found.setdefault(point, before - machine.round)
    return list(found.items())


class _Model:
    """Predicted responses: a weighted ridge regression around each point asked for."""

    def __init__(self, axes: Sequence[Axis], known: Mapping[Point, float], factor: float) -> None:
        self._axes, self._known, self._factor = axes, known, factor
        self._asked: list[Point] = []
        self._predicted: dict[Point, float] = {}
        real = [(self._where(p), z) for p, z in known.items() if z != FAILED]
        self._x = np.array([x for x, _ in real]).reshape(len(real), len(axes))
        self._z = np.array([z for _, z in real])
        self._failed = [self._where(p) for p, z in known.items() if z == FAILED]

    def __call__(self, point: Point) -> float:
        if point in self._known:
            return self._known[point]
        if point not in self._predicted:
            self._asked.append(point)
            self._predicted[point] = self._predict(self._where(point))
        return self._predicted[point]

    def drain(self) -> list[Point]:
        """The unknown points asked for since the last call."""
        asked, self._asked = self._asked, []
        return asked

    def _where(self, point: Point) -> list[float]:
        return [axis.position(c) for axis, c in zip(self._axes, point, strict=True)]

    def _predict(self, where: list[float]) -> float:
        if any(all(a >= b for a, b in zip(where, bad, strict=True)) for bad in self._failed):
            return FAILED
        prior = np.zeros(len(where))
        prior[0] = _PRIOR_SLOPE * self._factor
        if not len(self._z):
            return float(min(max(0.9 + prior[0], _LOWEST), 1.0))
        away = self._x - np.array(where)
        distance = np.sqrt((away**2).sum(axis=1))
        order = np.argsort(distance, kind="stable")[: 4 * len(where) + 1]
        near, z = away[order], self._z[order]
        weight = 1 / (0.5 + distance[order]) ** 2
        middle = (weight @ near) / weight.sum()
        level = float(weight @ z / weight.sum())
        centred = near - middle
        gram = (centred * weight[:, None]).T @ centred + 0.1 * np.eye(len(where))
        moment = (centred * weight[:, None]).T @ (z - level) + 0.1 * prior
        slope = np.linalg.solve(gram, moment) * self._factor
        value = level - float(slope @ middle)
        lowest = max(_LOWEST, 0.5 * float(z.min()))
        return float(min(max(value, lowest), 1.0)) if math.isfinite(value) else 1.0
