"""autoHyper's decision: a trust region that walks over a lattice of values.

Source: Tuli, Hosseini, Plataniotis, "Response Modeling of Hyper-Parameters for Deep
Convolutional Neural Networks", arXiv 2111.14056, and the code published with it.

The machine here is serial and pure: it looks responses up, decides, moves, and says which
points it has to know before it can go on. Who measures them, how many at once and in which
order is `tune_ext.autohyper`'s affair and cannot change a decision.

========  =======================================  ==============================
paper     here                                     meaning
========  =======================================  ==============================
λ         `Point`, one coordinate a parameter      a configuration
Z(λ)      `response`                               mean response of a probe
s         `Parameter.scale`, `Axis.scale(level)`   one step multiplies by s
Ω         `TrustRegion.region`                     the points λ·s^{−1, 0, +1}
ζ         `TrustRegion.zeta`                       (Π Z of all rounds)^power
========  =======================================  ==============================
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tune_ext._lattice import Axis, Parameter, Point

__all__ = [
    "ESTABLISH_BELOW",
    "FAILED",
    "PLATEAU",
    "POWER",
    "SCALE_TOLERANCE",
    "SHRINK",
    "Event",
    "Rules",
    "TrustRegion",
]

ESTABLISH_BELOW = 0.85
"""Published: the start is established when a response of the region is at least this."""
PLATEAU = 5e-3
"""Published: ζ below this is a plateau, which shrinks every scale."""
POWER = 0.8
"""Published: the exponent of ζ = (Π Z)^power."""
SHRINK = 2.5
"""Published: a plateau turns a scale s into (s − 1)·e^{−shrink} + 1."""
SCALE_TOLERANCE = 5e-3
"""Published: a parameter whose scale is this close to 1 stops at the next plateau."""

FAILED = math.inf
"""The response of a failed probe: worse than any real one, which is at most 1."""

_CLOSE = 1e-5  # the published closeness test allows this much on top of its tolerance
_SKIP_ROUNDS = 64  # circles longer than this are multiplied out instead of walked
_SMALLEST_SHARE = 1000.0  # "positions" halves a value this far below the step from 0, then: 0

Offset = tuple[int, ...]
Lookup = Callable[[Point], float | None]


@dataclass(frozen=True)
class Rules:
    """The constants of the search, and what a remembered response belongs to.

    Args:
        region: "full" is the 3^d points, "star" the 2d + 1 on the axes.
        reuse: "points": a response belongs to the point that it was measured at.
            "positions": as in the published code, it belongs to a position in the region and
            moves along with it, also when a shrinking scale (or a step from 0) has changed
            which point that position stands for.
        max_probes: End before more points than this would be needed; None is no limit.
    """

    region: Literal["full", "star"] = "full"
    reuse: Literal["points", "positions"] = "points"
    establish_below: float = ESTABLISH_BELOW
    plateau: float = PLATEAU
    power: float = POWER
    shrink: float = SHRINK
    scale_tolerance: float = SCALE_TOLERANCE
    max_probes: int | None = None


@dataclass(frozen=True)
class Event:
    """One line of the search's account of itself.

    Args:
        kind: "probe", "move", "stay", "shrink", "note" or "finish".
        round: The region that it belongs to, counted from 0.
        point: The probed point, or where a move leads.
        response: The response that was read or that decided; `FAILED` for a failed probe.
        zeta: ζ after the round, where one has been counted.
        reason: Why, in words.
    """

    kind: str
    round: int
    point: Point
    response: float | None
    zeta: float | None
    reason: str


@dataclass
class TrustRegion:
    """The search as a serial machine over known responses.

    `advance` runs until a response is missing. It always ends: a scale shrinks a bounded
    number of times, and between two shrinks each round either reaches a centre that is new
    (the lattice within finite bounds is finite, and `max_probes` limits it otherwise) or
    closes a circle, whose responses are multiplied into ζ until that is a plateau; a circle
    of responses of exactly 1 is a plateau at once.
    """

    axes: Sequence[Axis]
    rules: Rules
    candidates: tuple[Point, ...]  # where the search may start: the first, or the best of them
    centre: Point = ()
    level: int = 0
    round: int = 0
    establishing: bool = True
    product: float = 1.0
    finished: bool = False
    used: dict[Point, None] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    _stopped: set[int] = field(default_factory=set)
    _visited: dict[Point, tuple[float, int]] = field(default_factory=dict)
    _carried: dict[Offset, Point] = field(default_factory=dict)
    _started: bool = False

    def __post_init__(self) -> None:
        if not self.centre:
            self.centre = self.candidates[0]
        d = len(self.axes)
        offsets = itertools.product((-1, 0, 1), repeat=d)
        star = self.rules.region == "star"
        # Lexicographic order: the first parameter varies slowest, as in the published code.
        self.offsets: list[Offset] = [o for o in offsets if not star or sum(map(abs, o)) <= 1]

    @classmethod
    def create(
        cls,
        parameters: Sequence[Parameter],
        rules: Rules,
        initial_points: Sequence[Mapping[str, float]] = (),
    ) -> TrustRegion:
        """A machine that has not looked at any response yet."""
        zero_below = _SMALLEST_SHARE if rules.reuse == "positions" else None
        axes = [Axis(p, shrink=rules.shrink, zero_below=zero_below) for p in parameters]
        starts = [{p.name: p.start for p in parameters}, *initial_points]
        points: list[Point] = [tuple((s[p.name], ()) for p in parameters) for s in starts]
        return cls(axes, rules, tuple(dict.fromkeys(points)))

    def copy(self) -> TrustRegion:
        """An independent machine in the same state, with an account that starts empty."""
        return replace(
            self,
            used=dict(self.used),
            events=[],
            _stopped=set(self._stopped),
            _visited=dict(self._visited),
            _carried=dict(self._carried),
        )

    @property
    def zeta(self) -> float:
        """ζ = (Π Z)^power over the rounds so far."""
        return math.pow(self.product, self.rules.power)

    def advance(self, lookup: Lookup) -> list[Point]:
        """Decide and move as long as everything needed is known.

        Args:
            lookup: The response of a point, `FAILED` for a failed probe, None if unknown.

        Returns:
            The points that have to be known before the next decision; none when finished.
        """
        while not self.finished:
            missing = self.step(lookup)
            if missing:
                return missing
        return []

    def step(self, lookup: Lookup) -> list[Point]:
        """One round, or the points that it still needs."""
        if not self._started:
            return self._start(lookup)
        region = self.region()
        missing = self._missing(list(region.values()), lookup)
        if missing or self.finished:
            return missing
        responses = {offset: lookup(point) or 0.0 for offset, point in region.items()}
        if min(responses.values()) == FAILED:
            self._all_failed()
            return []
        if self.establishing and self._establish(responses):
            return []
        return self._round(responses, lookup)

    def region(self) -> dict[Offset, Point]:
        """Offset → the point whose response counts there, in index order."""
        return {o: self._carried.get(o) or self._at(o) for o in self.offsets}

    def _at(self, offset: Offset) -> Point:
        pairs = zip(self.axes, self.centre, offset, strict=True)
        return tuple(axis.step(c, self.level, o) for axis, c, o in pairs)

    def _missing(self, points: list[Point], lookup: Lookup) -> list[Point]:
        fresh = [p for p in dict.fromkeys(points) if p not in self.used]
        limit = self.rules.max_probes
        if limit is not None and len(self.used) + len(fresh) > limit:
            self._finish(f"the limit of {limit} probes leaves no room for the next region")
            return []
        missing = [p for p in fresh if lookup(p) is None]
        if not missing:
            for point in fresh:
                self.used[point] = None
                self._log("probe", point, lookup(point), "")
        return missing

    def _start(self, lookup: Lookup) -> list[Point]:
        if len(self.candidates) > 1:
            missing = self._missing(list(self.candidates), lookup)
            if missing or self.finished:
                return missing
            self._choose_start(lookup)
        self._started = True
        return []

    def _choose_start(self, lookup: Lookup) -> None:
        # The walk climbs from where responses are high, so the best place to begin is the
        # lowest response that still counts as established, else the highest one.
        known = [(lookup(p) or 0.0, p) for p in self.candidates]
        real = [(z, p) for z, p in known if z != FAILED]
        high = [(z, p) for z, p in real if z >= self.rules.establish_below]
        if not real:
            return
        z, self.centre = min(high, key=_first) if high else max(real, key=_first)
        self._log("move", self.centre, z, "start here: nearest to the established response")

    def _all_failed(self) -> None:
        target = self._at((-1,) * len(self.axes))
        if target == self.centre:
            self._finish("every probe failed, down to the lower bounds")
            return
        self._move((-1,) * len(self.axes), None, "every probe of the region failed: all down")

    def _establish(self, responses: dict[Offset, float]) -> bool:
        """Move down towards high responses; False when the start is established."""
        self.establishing = False
        below = self.rules.establish_below
        largest = max(responses.values())
        if largest >= below:
            why = "a probe failed" if largest == FAILED else f"a response is ≥ {below:g}"
            self._log("note", self.centre, None, f"start established: {why}")
            return False
        offset = next(o for o, z in responses.items() if z == largest)
        reason = f"every response < {below:g}: to the largest"
        if self._at(offset) == self.centre:
            offset = (-1,) * len(self.axes)
            reason = f"every response < {below:g}, the centre's is the largest: all down"
        target = self._at(offset)
        self._visited[self.centre] = (1.0, self.round)
        if target == self.centre or target in self._visited:
            why = "at the lower bounds" if target == self.centre else "going in a circle"
            self._log("note", self.centre, None, f"start given up: {why}")
            self._visited.clear()
            return False
        self.establishing = True
        self._move(offset, largest, reason)
        return True

    def _round(self, responses: dict[Offset, float], lookup: Lookup) -> list[Point]:
        smallest = min(responses.values())
        offset = [o for o, z in responses.items() if z == smallest][-1]
        kind, reason = "move", "to the smallest response"
        if self._at(offset) == self.centre:
            offset = (1,) * len(self.axes)
            reason = "the centre's response is the smallest: all up"
            target = self._carried.get(offset) or self._at(offset)
            missing = self._missing([target], lookup)
            if missing or self.finished:
                return missing
            if self._at(offset) == self.centre:
                kind, reason = "stay", "the centre's response is the smallest, at the upper bounds"
            elif lookup(target) == FAILED:
                kind, reason = "stay", "the centre's response is the smallest, all up failed"
        self._visited.setdefault(self.centre, (self.product, self.round))
        self.product *= smallest
        if kind == "stay":
            self._log(kind, self.centre, smallest, reason)
            self.round += 1
        else:
            self._move(offset, smallest, reason)
        self._end_round()
        return []

    def _move(self, offset: Offset, response: float | None, reason: str) -> None:
        if self.rules.reuse == "positions":
            old = self.region()
            shifted = {o: tuple(a + b for a, b in zip(o, offset, strict=True)) for o in old}
            self._carried = {o: old[s] for o, s in shifted.items() if s in old}
        self.centre = self._at(offset)
        self._log("move", self.centre, response, reason)
        self.round += 1

    def _end_round(self) -> None:
        circling = self._circle()
        if not circling and self.zeta >= self.rules.plateau:
            return
        tolerance = self.rules.scale_tolerance + _CLOSE
        close = {i for i, a in enumerate(self.axes) if a.scale(self.level) - 1 <= tolerance}
        self._stopped |= close
        why = "a circle of responses of 1" if circling else f"ζ < {self.rules.plateau:g}"
        self.level += 1
        self._visited.clear()
        if len(self._stopped) == len(self.axes):
            self._finish(f"{why}, and every scale is within {self.rules.scale_tolerance:g} of 1")
            return
        scales = ", ".join(f"{a.parameter.name} ×{a.scale(self.level):.6g}" for a in self.axes)
        self._log("shrink", self.centre, None, f"{why}: scales shrink to {scales}")

    def _circle(self) -> bool:
        """Multiply a circle of known responses out; True if that would never end."""
        if self.centre not in self._visited:
            return False
        before, since = self._visited[self.centre]
        self._visited[self.centre] = (self.product, self.round)
        if self.product == 0 or self.zeta < self.rules.plateau:
            return False
        lap, rounds = self.product / before, self.round - since
        if lap >= 1:
            return True
        limit = math.log(self.rules.plateau) / self.rules.power
        laps = int((limit - math.log(self.product)) / math.log(lap)) - 1
        if laps * rounds > _SKIP_ROUNDS:
            self.product *= lap**laps
            self.round += laps * rounds
            self._visited = {self.centre: (self.product, self.round)}
            self._log("note", self.centre, None, f"the same circle {laps} times more")
        return False

    def _finish(self, reason: str) -> None:
        self.finished = True
        self._log("finish", self.centre, None, reason)

    def _log(self, kind: str, point: Point, response: float | None, reason: str) -> None:
        zeta = None if self.establishing else self.zeta
        self.events.append(Event(kind, self.round, point, response, zeta, reason))


def _first(pair: tuple[float, Point]) -> float:
    return pair[0]
