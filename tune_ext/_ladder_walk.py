"""ExpTest's search as a serial walk over the results of rungs: pure, and always the same.

Source: Chaudhry, Mizuno, arXiv 2411.16975, whose procedure this completes.

`walk` looks results up, one rung after another, as if there were a single worker, and says
which rung it has to know to go on, or which one it chose. It keeps nothing between calls, so
neither the order in which results became known nor results that it never looks at can
change the answer.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tune_ext._rung import LAST, RungResult

__all__ = ["BROKEN", "Rules", "Step", "Walk", "likely_next", "walk"]

BROKEN = RungResult("diverged", 1.0, 0.0, None, 0)
"""The result of a rung that crashed, or that has none that can be used."""

CLEARLY = 3.0
"""An end loss is clearly above another from so many standard errors of their difference."""
LEARNT = 0.9
"""A rung has learnt something if it passes, not by chance, and ends below so much of its first
loss."""
CHANCE = 1e-3
"""A p-value below this is not taken for chance: 25 rungs of noise have one with 2.5 %."""
PATIENCE = 3
"""While no rung has learnt anything, the climb and the descent end after so many rungs in a
row that are worse; after one, as published, otherwise. Rates that are far too small change
nothing, and rates that are far too large can leave a network dead, at the loss of guessing:
there one rung passes by chance and the next one is worse by chance."""

Lookup = Callable[[int], RungResult | None]
Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Rules:
    """Where rungs may lie.

    Args:
        lowest: The lowest index that is within the bounds.
        highest: The highest one.
        max_rungs: The walk looks at no more rungs than this.
    """

    lowest: int
    highest: int
    max_rungs: int


@dataclass(frozen=True)
class Step:
    """One line of the walk's account: a rung and what followed from it."""

    index: int
    reason: str


@dataclass
class Walk:
    """How far the walk has come.

    Args:
        needed: The rung whose result it waits for; None once it has ended.
        best: The passing rung with the lowest end loss so far.
        end: Why it ended.
        steps: The rungs that it looked at, in order.
    """

    rules: Rules
    lookup: Lookup
    needed: int | None = None
    best: int | None = None
    end: str = ""
    steps: list[Step] = field(default_factory=list)
    seen: dict[int, RungResult] = field(default_factory=dict)
    down_open: bool = True
    _no_better: int = 0

    def run(self) -> Walk:
        """Go as far as the known results lead."""
        index: int | None = 0
        while index is not None:
            result = self.lookup(index)
            if result is None:
                self.needed = index
                return self
            self._learn(index, result)
            index = self._next(self._direction())
        self.end = self.end or self._why_ended()
        return self

    def _learn(self, index: int, result: RungResult) -> None:
        """Take a result in, and say what follows from it."""
        reason = self._judge_up(index, result) if index >= 0 else self._judge_down(result)
        self.seen[index] = result
        if result.passes and (self.best is None or _end(result) < _end(self.seen[self.best])):
            self.best = index
        self.steps.append(Step(index, reason))

    def _judge_up(self, index: int, result: RungResult) -> str:
        if result.broken:
            return "diverged or failed: the climb ends"
        if self._above_a_smaller(index, result):
            more = self._up_open(index, result)
            return f"{_outcome(result)}, and ends above a smaller rate" + (
                ", but nothing was learnt yet" if more else ": the climb ends"
            )
        return _outcome(result) + ("" if result.passes else ", but no smaller rate ends lower")

    def _above_a_smaller(self, index: int, result: RungResult) -> bool:
        smaller = (r for i, r in self.seen.items() if i < index)
        return any(_clearly_above(result, r) for r in smaller)

    def _up_open(self, index: int, result: RungResult) -> bool:
        """Whether the climb goes on from the highest rung: it is not too large a rate yet."""
        if result.broken:
            return False
        row = 0
        known = {**self.seen, index: result}
        while index - row in known and self._too_large(index - row, known[index - row]):
            row += 1
        return row < self._patience

    def _too_large(self, index: int, result: RungResult) -> bool:
        """Whether it ends above a smaller rate, and not by chance."""
        return self._above_a_smaller(index, result) and (self._learnt or _raised(result))

    @property
    def _learnt(self) -> bool:
        return any(_learnt(r) for r in self.seen.values())

    @property
    def _patience(self) -> int:
        return 1 if self._learnt else PATIENCE

    def _judge_down(self, result: RungResult) -> str:
        if result.broken:
            return "diverged or failed: further down"
        if self.best is None or _end(result) <= _end(self.seen[self.best]):
            self._no_better = 0
            return _outcome(result) + ": further down"
        # As long as all end above where they began, none is a best that others may be held to.
        self._no_better += _end(self.seen[self.best]) <= _first(self.seen[self.best])
        self.down_open = self._no_better < self._patience
        return f"{_outcome(result)}, and ends above the best so far: " + (
            "further down, as nothing was learnt yet" if self.down_open else "the descent ends"
        )

    def _direction(self) -> Direction | None:
        """Where the next rung lies; None when the walk has ended."""
        if len(self.seen) >= self.rules.max_rungs:
            self.end = f"the limit of {self.rules.max_rungs} rungs"
            return None
        low, high = min(self.seen), max(self.seen)
        up = high < self.rules.highest and self._up_open(high, self.seen[high])
        down = self.down_open and low > self.rules.lowest
        if not self._learnt:  # what passes may do so by chance: both directions in turns
            if up and down:
                return "up" if self.best == high or high <= -low else "down"
            return "up" if up else "down" if down else None
        if up and any(r.passes for i, r in self.seen.items() if i >= 0):
            return "up"
        return "down" if down and self._lowest_is_best() else None

    def _lowest_is_best(self) -> bool:
        """Whether no rung above the lowest one that stayed finite ends lower."""
        ends = {i: _end(r) for i, r in self.seen.items() if not r.broken and not r.rose}
        if not ends:
            return True
        return min(ends, key=lambda i: (ends[i], i)) == min(ends)

    def _next(self, direction: Direction | None) -> int | None:
        if direction is None:
            return None
        return max(self.seen) + 1 if direction == "up" else min(self.seen) - 1

    def _why_ended(self) -> str:
        if self.best is None:
            return "no rung passes within the bounds"
        return "the lowest end loss of the passing rungs"


def walk(rules: Rules, lookup: Lookup) -> Walk:
    """Walk as far as results are known.

    Args:
        rules: Bounds and limits.
        lookup: The result of a rung, `BROKEN` for a failed one, None if it is not known.
    """
    return Walk(rules, lookup).run()


def likely_next(
    rules: Rules, known: Mapping[int, RungResult], skip: set[int], count: int
) -> list[int]:
    """The `count` unknown rungs most probably needed next, the likeliest first.

    The walk goes on over imagined results: at every unknown rung it branches into a better
    one that passes and a worse one. A rung's score is the probability of the branches that
    need it; the most probable branches are followed first.

    Args:
        rules: Bounds and limits.
        known: Every result so far.
        skip: Rungs that are being measured already: walked through, not returned.
        count: How many at most.
    """
    scores: dict[int, float] = {}
    imagined: list[tuple[float, int, dict[int, RungResult]]] = [(-1.0, 0, {})]
    ends = [r.end_loss for r in known.values() if r.end_loss is not None]
    lowest, highest = min(ends, default=1.0), max(ends, default=1.0)
    tie = 0
    for _ in range(8 * count + 32):
        if not imagined:
            break
        probability, _, branch = heapq.heappop(imagined)
        results = {**known, **branch}
        needed = walk(rules, results.get).needed
        if needed is None:
            continue
        if needed not in skip:
            scores[needed] = scores.get(needed, 0.0) - probability
        better = RungResult("decaying", 0.0, -1.0, lowest - 1 - len(branch), 1)
        worse = RungResult("decaying", 0.0, -1.0, highest + 1, 1) if needed < 0 else BROKEN
        goes_on = _CLIMB_GOES_ON if needed >= 0 else _DESCENT_GOES_ON
        for share, result in ((goes_on, better), (1 - goes_on, worse)):
            tie += 1
            heapq.heappush(imagined, (probability * share, tie, {**branch, needed: result}))
    return sorted(scores, key=lambda i: (-scores[i], abs(i), -i))[:count]


_CLIMB_GOES_ON = 0.75  # prior probability that a rung at or above the bound passes
_DESCENT_GOES_ON = 0.5  # and that one below it ends lower than all others so far


def _end(result: RungResult) -> float:
    return math.inf if result.end_loss is None else result.end_loss


def _outcome(result: RungResult) -> str:
    if result.passes:
        return "passes"
    return "never below its first loss" if result.rose else "fails"


def _first(result: RungResult) -> float:
    return math.inf if result.first_loss is None else result.first_loss


def _learnt(result: RungResult) -> bool:
    """Whether it passes, not by chance, and ends well below where it began."""
    first = _first(result)
    lower = math.isinf(first) or _end(result) < first - (1 - LEARNT) * abs(first)
    return result.passes and result.p_value < CHANCE and lower


def _raised(result: RungResult) -> bool:
    """Whether it ends clearly above its first loss, which has the spread of a single one."""
    if result.first_loss is None:
        return True
    single = result.end_error * math.sqrt(max(result.steps // LAST, 1))
    return _above((_end(result), single), (result.first_loss, 0.0))


def _clearly_above(result: RungResult, other: RungResult) -> bool:
    """Whether `result` ends above `other` by more than chance would explain."""
    if other.broken or other.end_loss is None or result.end_loss is None:
        return False
    return _above((result.end_loss, result.end_error), (other.end_loss, other.end_error))


def _above(loss: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether a loss, with its standard error, is clearly above another."""
    (a, e), (b, f) = loss, other
    if a > b > 0:  # as losses scale, so do their errors
        return math.log(a / b) > CLEARLY * math.hypot(e / a, f / b)
    return a - b > CLEARLY * math.hypot(e, f)
