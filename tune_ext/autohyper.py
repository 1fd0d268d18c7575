"""autoHyper: find a learning rate (and more) from training weights alone, by ask and tell.

Source: Tuli, Hosseini, Plataniotis, "Response Modeling of Hyper-Parameters for Deep
Convolutional Neural Networks", arXiv 2111.14056, and the code published with it.

A probe trains a configuration from scratch for a few epochs (published: 5) and reports its
response Z in [0, 1], the fraction of weight unfoldings without a low-rank part
(`tune_ext.lowrank`): 1 for a learning rate so small that nothing is learnt, falling towards 0 as
it grows. A trust region of neighbouring points moves towards small responses until they
stop falling; the moves are in `tune_ext._trust_region`.

What this module adds: points are asked for and told in any order and by any number of workers,
idle workers measure what will most probably be needed next, and neither changes the answer.

>>> search = AutoHyper([Parameter.learning_rate(upper=1.0)])
>>> while not search.finished:
...     for probe in search.ask():
...         search.tell(probe.id, response=1 / (1 + probe.values["lr"] / 1e-3))
>>> f"{search.best['lr']:.4f}"
'0.0043'
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tune_ext._checks import (
    as_number,
    check_choice,
    check_count,
    check_list,
    check_mappings,
    check_positive,
    check_state,
)
from tune_ext._explanation import Explanation
from tune_ext._lattice import Parameter, Point
from tune_ext._speculation import likely_next
from tune_ext._trust_region import (
    ESTABLISH_BELOW,
    FAILED,
    PLATEAU,
    POWER,
    SCALE_TOLERANCE,
    SHRINK,
    Event,
    Rules,
    TrustRegion,
)
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = [
    "ESTABLISH_BELOW",
    "MAX_REGIONS",
    "PLATEAU",
    "POWER",
    "SCALE_TOLERANCE",
    "SHRINK",
    "AutoHyper",
    "Explanation",
    "Parameter",
    "Probe",
]

MAX_REGIONS = 100
"""The default of `max_probes` is so many times the points of one region: far more than any
published search took, and an end for responses that never fall below an infinite bound."""

_VERSION = 1
_Z_ROUNDING = 1e-9  # a mean of fractions may exceed 1 by its rounding


@dataclass(frozen=True)
class Probe:
    """A configuration to measure.

    Args:
        id: What `AutoHyper.tell` and `AutoHyper.forget` know it by.
        values: Parameter name → value.
        speculative: Asked for because it will probably be needed, not because the next
            decision waits for it.
    """

    id: int
    values: dict[str, float] = field(hash=False)
    speculative: bool = False


@dataclass
class _Record:
    probe: Probe
    point: Point
    status: Literal["pending", "done", "failed", "lost"] = "pending"
    response: float | None = None
    note: str = ""


class AutoHyper:
    """The search as ask and tell.

    The trajectory and the answer depend on the responses alone: not on how many probes were
    asked for at once, nor on the order of their results. A point is probed once, however often
    the search comes back to it (the published code probes it again). A probe that failed,
    diverged, or has no response in [0, 1] is worse than any real response: it is never
    chosen and never waited for.

    Args:
        parameters: What is searched, one axis each; the order decides ties (see the source).
        region: "full" is all 3^d points, "star" the 2d + 1 on the axes; "auto" is full up to
            two parameters and the star above.
        reuse: "points" (default) gives a response to the point that it was measured at;
            "positions" repeats the published code, which after a scale has shrunk still takes
            the responses of the old neighbours for those of the new ones.
        establish_below: While every response of the region is below this, the search goes
            down to find a start.
        plateau: ζ below this shrinks the scales.
        power: The exponent of ζ = (Π Z)^power.
        shrink: A plateau turns a scale s into (s − 1)·e^{−shrink} + 1.
        scale_tolerance: A parameter stops when its scale is this close to 1 at a plateau.
        max_probes: The search ends rather than need more points than this; probes that were
            measured ahead and not needed do not count. None: `MAX_REGIONS` whole regions.
        initial_points: Further points (missing parameters at their start) to probe first. The
            search then starts at the one with the smallest response that is at least
            `establish_below`, else at the one with the largest.

    Raises:
        InvalidValueError: An argument that cannot work; the message names it.
        InvalidTypeError: An argument of the wrong type.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        region: Literal["auto", "full", "star"] = "auto",
        reuse: Literal["points", "positions"] = "points",
        establish_below: float = ESTABLISH_BELOW,
        plateau: float = PLATEAU,
        power: float = POWER,
        shrink: float = SHRINK,
        scale_tolerance: float = SCALE_TOLERANCE,
        max_probes: int | None = None,
        initial_points: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self.parameters = _check_parameters(parameters)
        check_choice("region", region, ("auto", "full", "star"))
        check_choice("reuse", reuse, ("points", "positions"))
        if region == "auto":
            region = "full" if len(self.parameters) <= 2 else "star"
        if region == "full" and len(self.parameters) > 6:
            raise InvalidValueError(
                f"a full region of {len(self.parameters)} parameters has "
                f"3^{len(self.parameters)} points; use region='star'"
            )
        d = len(self.parameters)
        self._rules = Rules(
            region=region,
            reuse=reuse,
            establish_below=check_positive("establish_below", establish_below, below=math.inf),
            plateau=check_positive("plateau", plateau, below=1.0),
            power=check_positive("power", power, below=math.inf),
            shrink=check_positive("shrink", shrink, below=math.inf),
            scale_tolerance=check_positive("scale_tolerance", scale_tolerance, below=math.inf),
            max_probes=_check_limit(max_probes, 3**d if region == "full" else 2 * d + 1),
        )
        given = check_mappings("initial_points", initial_points)
        self._initial_points = [self._check_initial(p) for p in given]
        self._machine = TrustRegion.create(self.parameters, self._rules, self._initial_points)
        self._records: list[_Record] = []
        self._known: dict[Point, float] = {}
        self._notes: dict[Point, str] = {}  # why a point failed
        self._waiting: list[Point] = []
        self._advance()
        if self.finished:
            raise InvalidValueError(
                f"max_probes must be enough for the first region, got {max_probes}"
            )

    def _check_initial(self, point: Mapping[str, float]) -> dict[str, float]:
        unknown = set(point) - {p.name for p in self.parameters}
        if unknown:
            raise InvalidValueError(
                f"initial_points names {sorted(unknown)}, which are not among the parameters "
                f"{[p.name for p in self.parameters]}"
            )
        full = {}
        for p in self.parameters:
            value = as_number(f"{p.name} in initial_points", point.get(p.name, p.start))
            if not p.lower <= value <= p.upper or math.isinf(value):
                raise InvalidValueError(
                    f"{p.name} in initial_points must lie in [{p.lower}, {p.upper}], got {value}"
                )
            full[p.name] = value
        return full

    def ask(self, n: int | None = None) -> list[Probe]:
        """New probes to measure, each handed out once.

        First those that the next decision waits for, then those that will most probably be
        needed after it.

        Args:
            n: How many at most. None: what the next decision waits for, and no more.

        Returns:
            The probes; none when there is nothing to hand out, now or (`finished`) for good.
        """
        if n is not None and (isinstance(n, bool) or not isinstance(n, int)):
            raise InvalidTypeError(f"n must be None or an integer, got {n!r}")
        if n is not None and n < 0:
            raise InvalidValueError(f"n must not be negative, got {n}")
        if self.finished:
            return []
        running = [r.point for r in self._records if r.status == "pending"]
        points = [p for p in self._waiting if p not in running]
        needed = len(points)
        if n is not None:
            points = points[:n]
            if len(points) < n:
                skip = [*running, *self._waiting]
                points += likely_next(self._machine, self._known, skip, n - len(points))
        return [self._hand_out(p, speculative=i >= needed) for i, p in enumerate(points)]

    def _hand_out(self, point: Point, *, speculative: bool) -> Probe:
        probe = Probe(len(self._records), self._values(point), speculative)
        self._records.append(_Record(probe, point))
        return probe

    def tell(self, probe_id: int, response: float | None, *, failed: bool = False) -> None:
        """Report the response of a probe.

        The first report about a point counts; later ones change nothing.

        Args:
            probe_id: `Probe.id`.
            response: Z, in [0, 1]. None, NaN, infinite or anything else outside is a failure.
            failed: The probe crashed or diverged, whatever its response.

        Raises:
            InvalidValueError: There is no such probe.
        """
        record = self._record(probe_id)
        if record.status in ("done", "failed"):
            return
        value, note = _check_response(response, failed)
        if record.point in self._known:  # it was forgotten, asked for again, and both came back
            value, note = self._known[record.point], self._notes.get(record.point, "")
        record.status = "failed" if value == FAILED else "done"
        record.response = None if value == FAILED else value
        record.note = note
        self._learn(record.point, value, note)
        self._advance()

    def _learn(self, point: Point, value: float, note: str) -> None:
        self._known[point] = value
        if value == FAILED:
            self._notes[point] = note

    def forget(self, probe_id: int) -> None:
        """Take back a probe that never ran; its point may be asked for again.

        Raises:
            InvalidValueError: There is no such probe.
        """
        record = self._record(probe_id)
        if record.status == "pending":
            record.status = "lost"

    def _record(self, probe_id: int) -> _Record:
        if isinstance(probe_id, bool) or not isinstance(probe_id, int):
            raise InvalidTypeError(f"probe_id must be an integer, got {probe_id!r}")
        if not 0 <= probe_id < len(self._records):
            raise InvalidValueError(f"no probe {probe_id} has been asked for")
        return self._records[probe_id]

    def _advance(self) -> None:
        self._waiting = self._machine.advance(self._known.get)

    def _values(self, point: Point) -> dict[str, float]:
        pairs = zip(self._machine.axes, point, strict=True)
        return {axis.parameter.name: axis.value(c) for axis, c in pairs}

    @property
    def finished(self) -> bool:
        """Whether the search has its answer."""
        return self._machine.finished

    @property
    def pending(self) -> tuple[Probe, ...]:
        """The probes that were asked for and not yet told, in the order of asking."""
        return tuple(r.probe for r in self._records if r.status == "pending")

    @property
    def needed(self) -> frozenset[int]:
        """The ids of the pending probes that the next decision waits for."""
        waiting = set(self._waiting)
        return frozenset(
            r.probe.id for r in self._records if r.status == "pending" and r.point in waiting
        )

    @property
    def best(self) -> dict[str, float] | None:
        """The answer; before the end, where the search stands. None: nothing worked so far."""
        point = self._answer()
        return None if point is None else self._values(point)

    @property
    def best_probe(self) -> Probe | None:
        """The probe that measured `best`, None if that very point was not measured."""
        point = self._answer()
        done = (r.probe for r in self._records if r.status == "done" and r.point == point)
        return next(done, None)

    def _answer(self) -> Point | None:
        centre = self._machine.centre
        if self._known.get(centre, FAILED) != FAILED:
            return centre
        real = [(self._known[p], p) for p in self._machine.used if self._known[p] != FAILED]
        if not real and not self.finished:  # cut short before the first decision
            return min(
                (p for p, z in self._known.items() if z != FAILED), key=self._rank, default=None
            )
        if not real:
            return None
        if self._rules.reuse == "positions":
            return centre  # its response was taken from another point
        return min(real, key=lambda pair: pair[0])[1]

    def _rank(self, point: Point) -> tuple[float, Point]:
        return self._known[point], point

    def explain(self) -> Explanation:
        """Every probe and move so far, in order, each with its reason."""
        rows = [self._row(e) for e in self._machine.events]
        reason = "measured ahead, never needed" if self.finished else "measured, not used so far"
        for point, response in self._known.items():
            if point not in self._machine.used:
                event = Event("ahead", self._machine.round, point, response, None, reason)
                rows.append(self._row(event))
        return Explanation(tuple(rows))

    def _row(self, event: Event) -> dict[str, Any]:
        failed = event.response == FAILED
        return {
            "round": event.round,
            "event": event.kind,
            **self._values(event.point),
            "response": None if failed else event.response,
            "zeta": event.zeta,
            "reason": f"failed: {self._notes[event.point]}" if failed else event.reason,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything about the search as plain JSON."""
        rules = asdict(self._rules)
        return {
            "version": _VERSION,
            "kind": "autohyper",
            "parameters": [_finite(asdict(p)) for p in self.parameters],
            "rules": rules,
            "initial_points": [dict(p) for p in self._initial_points],
            "probes": [
                {
                    "point": [[anchor, list(steps)] for anchor, steps in r.point],
                    "speculative": r.probe.speculative,
                    "status": r.status,
                    "response": r.response,
                    "note": r.note,
                }
                for r in self._records
            ],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> AutoHyper:
        """The search that `state_dict` described: it goes on as that one would have.

        Raises:
            StateError: The state is damaged, of another version, or not of an `AutoHyper`.
        """
        check_state(state, "autohyper", _VERSION, "an AutoHyper search")
        try:
            parameters = [Parameter(**_infinite(p)) for p in state["parameters"]]
            search = cls(parameters, initial_points=state["initial_points"], **state["rules"])
            search._replay(state["probes"])
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise StateError(f"the state of the AutoHyper search is damaged: {error!r}") from error
        return search

    def _replay(self, probes: Sequence[Mapping[str, Any]]) -> None:
        for saved in probes:
            point = tuple((float(a), tuple(map(int, steps))) for a, steps in saved["point"])
            probe = self._hand_out(point, speculative=bool(saved["speculative"]))
            if not all(math.isfinite(v) for v in probe.values.values()):
                raise StateError(f"a probe has the values {probe.values}")
            record = self._records[probe.id]
            record.status, record.note = saved["status"], str(saved["note"])
            check_choice("status", record.status, ("pending", "done", "failed", "lost"))
            if record.status in ("done", "failed"):
                value, _ = _check_response(saved["response"], failed=record.status == "failed")
                if value == FAILED and record.status == "done":
                    raise StateError(f"a probe has the response {saved['response']!r}")
                record.response = None if value == FAILED else value
                self._learn(point, value, record.note)
        self._advance()


def _finite(parameter: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {k: None if v == math.inf else v for k, v in parameter.items()}


def _infinite(parameter: Mapping[str, Any]) -> dict[str, Any]:
    return {k: math.inf if v is None else v for k, v in parameter.items()}


def _check_parameters(parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    parameters = tuple(check_list("parameters", parameters, "Parameter objects"))
    if not parameters:
        raise InvalidValueError("parameters is empty: there is nothing to search")
    for p in parameters:
        if not isinstance(p, Parameter):
            raise InvalidTypeError(f"parameters must be Parameter objects, got {p!r}")
    names = [p.name for p in parameters]
    double = sorted({n for n in names if names.count(n) > 1})
    if double:
        raise InvalidValueError(f"parameters has the name {double[0]!r} more than once")
    return parameters


def _check_limit(max_probes: object, region: int) -> int:
    if max_probes is None:
        return MAX_REGIONS * region
    return check_count("max_probes", max_probes)


def _check_response(response: object, failed: bool) -> tuple[float, str]:
    """The response as the search counts it, and what was wrong with it."""
    if failed:
        return FAILED, "reported as failed"
    if response is None:
        return FAILED, "no response"
    try:
        value = float(response)  # type: ignore[arg-type]  # anything that is a number
    except (TypeError, ValueError):
        return FAILED, f"{response!r} is not a number"
    if not math.isfinite(value):
        return FAILED, f"the response is {value}"
    if not -_Z_ROUNDING <= value <= 1 + _Z_ROUNDING:
        return FAILED, f"{value:g} is not a response, which lies in [0, 1]"
    return min(max(value, 0.0), 1.0), ""
