"""The stages of `tune_ext.image_growth`: their trials, what they begin with, and both as JSON."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ConfigSpace import Configuration, ConfigurationSpace

from tune_ext._checks import as_number, check_count
from tune_ext._narrowing import plain, read_space
from tune_ext._transfer import Transfer
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = [
    "KINDS",
    "Carried",
    "Stage",
    "Trial",
    "Turn",
    "check_share",
    "check_sizes",
    "is_legal",
    "spread",
]

KINDS = ("given", "probe", "best", "bridge", "own")


@dataclass(frozen=True)
class Turn:
    """What a trial is to be.

    Attributes:
        stage: Number of the stage, from 0.
        size: Its image size in pixels.
        kind: See `tune_ext.image_growth`; `given` are the points that the user named.
        config: Active values; None where the stage's own optimiser is to say.
    """

    stage: int
    size: int
    kind: str
    config: dict[str, Any] | None


@dataclass
class Trial:
    """What is known of one evaluation.

    Attributes:
        name: The caller's.
        kind: As in `Turn`.
        config: Active values.
        loss: Lower is better; None for a failure, and before the end.
        done: Whether it has ended.
        late: Whether it ended after what the next stage begins with was decided.
    """

    name: str
    kind: str
    config: dict[str, Any]
    loss: float | None = None
    done: bool = False
    late: bool = False

    @property
    def key(self) -> str:
        """The same for the same configuration."""
        return json.dumps(self.config, sort_keys=True, default=repr)


@dataclass(frozen=True)
class Carried:
    """What a stage starts from.

    Attributes:
        transfer: How far the ranking of the stage before carries over.
        space: What the stage's own optimiser searches.
        points: Configurations of the stage before in that space, with their losses translated to
            this size: guesses, for a model to start on.
    """

    transfer: Transfer
    space: ConfigurationSpace
    points: tuple[tuple[dict[str, Any], float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "transfer": [self.transfer.pairs, self.transfer.correlation, self.transfer.weight],
            "space": plain(self.space.to_serialized_dict()),
            "points": [list(point) for point in self.points],
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Carried:
        """What `to_json` wrote."""
        pairs, correlation, weight = state["transfer"]
        return cls(
            Transfer(int(pairs), None if correlation is None else float(correlation), weight),
            read_space(state["space"]),
            tuple((dict(config), float(loss)) for config, loss in state["points"]),
        )


@dataclass
class Stage:
    """One size, its trials in the order of their start, and what it begins with.

    Attributes:
        size: Pixels.
        evaluations: How many trials it has in all.
        trials: Those that have begun.
        reserved: Names of trials whose configuration the optimiser has yet to say.
        probes: Configurations evaluated again to measure the transfer.
        best: Configurations that are evaluated again if it is good.
        carried: None until it is decided.
        begun: Whether the configurations above were chosen.
        live: Those of the trials that have not ended, by their names.
    """

    size: int
    evaluations: int
    reserved: set[str] = field(default_factory=set)
    probes: list[dict[str, Any]] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)
    carried: Carried | None = None
    begun: bool = False
    trials: list[Trial] = field(default_factory=list, init=False)
    live: dict[str, Trial] = field(default_factory=dict, init=False)
    _named: dict[str, Trial] = field(default_factory=dict, init=False)
    _kinds: dict[str, list[Trial]] = field(default_factory=lambda: defaultdict(list), init=False)

    # No call below that is made for every trial may take longer the more there are.

    def add(self, trial: Trial) -> None:
        """One more has begun, or had."""
        self.trials.append(trial)
        self._named[trial.name] = trial
        self._kinds[trial.kind].append(trial)
        if not trial.done:
            self.live[trial.name] = trial

    def find(self, name: str) -> Trial | None:
        """The trial of a name."""
        return self._named.get(name)

    def end(self, trial: Trial, loss: float | None) -> None:
        """One has ended; again, if its result comes after all."""
        trial.done, trial.loss = True, loss
        self.live.pop(trial.name, None)

    def issued(self) -> int:
        """Trials that were asked for."""
        return len(self.trials) + len(self.reserved)

    def done(self) -> int:
        """Trials that have ended."""
        return len(self.trials) - len(self.live)

    def count(self, kind: str) -> int:
        """Trials of a kind."""
        return len(self._kinds[kind])

    def of(self, *kinds: str) -> list[Trial]:
        """Trials of some kinds, each kind in order."""
        return [trial for kind in kinds for trial in self._kinds[kind]]

    def ranked(self) -> list[tuple[float, Trial]]:
        """Losses that are carried, the best first; of each configuration the best only."""
        found = sorted(
            ((t.loss, t) for t in self.trials if t.loss is not None and not t.late),
            key=lambda pair: pair[0],
        )
        first: dict[str, tuple[float, Trial]] = {}
        for loss, trial in found:
            first.setdefault(trial.key, (loss, trial))
        return list(first.values())

    def top(self, share: float) -> list[dict[str, Any]]:
        """The best share of its configurations, four at least, the best first."""
        ranked = self.ranked()
        return [trial.config for _, trial in ranked[: max(4, math.ceil(share * len(ranked)))]]

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values, without what is only reserved."""
        return {
            "size": self.size,
            "evaluations": self.evaluations,
            "trials": [
                [t.name, t.kind, dict(t.config), t.loss, t.done, t.late] for t in self.trials
            ],
            "probes": self.probes,
            "best": self.best,
            "begun": self.begun,
            "carried": None if self.carried is None else self.carried.to_json(),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Stage:
        """What `to_json` wrote.

        Raises:
            StateError: A trial is impossible.
        """
        trials = []
        for name, kind, config, loss, done, late in state["trials"]:
            if kind not in KINDS or not isinstance(name, str):
                raise StateError(f"an impossible trial: {name!r} of kind {kind!r}")
            number = None if loss is None else as_number("loss", loss)
            trials.append(Trial(name, kind, dict(config), number, bool(done), bool(late)))
        carried = state["carried"]
        made = cls(
            size=check_count("a size", state["size"]),
            evaluations=check_count("evaluations", state["evaluations"], 0),
            probes=[dict(config) for config in state["probes"]],
            best=[dict(config) for config in state["best"]],
            carried=None if carried is None else Carried.from_json(carried),
            begun=bool(state["begun"]),
        )
        for trial in trials:
            made.add(trial)
        return made


def check_sizes(sizes: Any) -> list[tuple[int, int]]:
    """The stages as pairs of whole numbers; an error unless sizes increase."""
    if isinstance(sizes, str | Mapping) or not isinstance(sizes, Sequence) or not sizes:
        raise InvalidTypeError(f"sizes must be a list of (pixels, evaluations), got {sizes!r}")
    made = []
    for pair in sizes:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InvalidTypeError(f"sizes must hold (pixels, evaluations), got {pair!r}")
        made.append((check_count("a size", pair[0]), check_count("evaluations", pair[1])))
    pixels = [size for size, _ in made]
    if sorted(set(pixels)) != pixels:
        raise InvalidValueError(f"sizes must increase from stage to stage, got {pixels}")
    return made


def check_share(name: str, value: object, *, zero: bool = False) -> float:
    """`value` as a float in (0, 1], or [0, 1]."""
    number = as_number(name, value)
    if not (0 <= number <= 1 if zero else 0 < number <= 1):
        raise InvalidValueError(f"{name} must be in {'[' if zero else '('}0, 1], got {number}")
    return number


def spread(total: int, count: int, *, power: float = 1.0) -> list[int]:
    """So many different places among 0 … total - 1, both ends among them.

    Args:
        total: How many there are.
        count: How many of them.
        power: 1 spreads them evenly; more, denser at the beginning.

    >>> spread(10, 4), spread(10, 4, power=2)
    ([0, 3, 6, 9], [0, 1, 4, 9])
    """
    count = min(count, total)
    if count < 2:
        return list(range(count))
    places: list[int] = []
    for i in range(count):
        place = round((i / (count - 1)) ** power * (total - 1))
        places.append(max(place, places[-1] + 1) if places else place)
    return places


def is_legal(space: ConfigurationSpace, config: Mapping[str, Any]) -> bool:
    """Whether a configuration of active values belongs to a space."""
    try:
        Configuration(space, values=dict(config)).check_valid_configuration()
    except Exception:  # ConfigSpace's errors have no common base
        return False
    return True
