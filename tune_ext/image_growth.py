"""Search on small images first, then on larger ones, with what was learned.

Source: Hinz, Navarro-Guerrero, Magg, Wermter, "Speeding up the Hyperparameter Optimization of Deep
Convolutional Neural Networks", 2018 (arXiv 1807.07362). The stages are the paper's; what is carried
from one to the next, and the weighing of it, are ours: the paper does not say.

A stage is a number of evaluations at one size. Those of a later stage are, in this order:

==========  ====================================================================================
kind        configuration
==========  ====================================================================================
`probe`     of the stage before, spread evenly over its ranking, the best among them: evaluated
            at both sizes, they measure how far the ranking carries over (`tune_ext._transfer`)
`best`      the next best of the stage before
`bridge`    drawn from a space narrowed half-way: for workers that are free before enough probes
            have results
`own`       the stage's own optimiser, in a space narrowed as far as the measured agreement
            says (`tune_ext._narrowing`), and told the results at this size
==========  ====================================================================================

Losses at different sizes are never compared. A result that is not finite is a failure, and is
never carried.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ConfigSpace import ConfigurationSpace

from tune_ext._checks import as_number, check_count, check_state
from tune_ext._narrowing import describe, narrow, plain
from tune_ext._random import check_seed, derive_seed
from tune_ext._transfer import Transfer, measure_transfer, translate_losses
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["PAPER_SIZES", "Carried", "ImageGrowth", "TransferWarning", "Trial", "Turn"]

PAPER_SIZES = ((32, 750), (64, 500), (128, 250))
"""The published stages: pixels an edge, evaluations."""

_STATE, _STATE_VERSION = "image_growth", 1
_HALF_WAY = 0.5
_KINDS = ("given", "probe", "best", "bridge", "own")


class TransferWarning(UserWarning):
    """What was best at one image size is hardly so at the next: little is carried."""


@dataclass(frozen=True)
class Turn:
    """What a trial is to be.

    Attributes:
        stage: Number of the stage, from 0.
        size: Its image size in pixels.
        kind: See the module's table; `given` are the points that the user named.
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
        late: Whether it ended after what its stage carries was decided.
    """

    name: str
    kind: str
    config: dict[str, Any]
    loss: float | None = None
    done: bool = False
    late: bool = False


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


@dataclass
class _Stage:
    """One size, its trials in the order of their start, and what it begins with."""

    size: int
    evaluations: int
    trials: list[Trial] = field(default_factory=list)
    reserved: set[str] = field(default_factory=set)
    probes: list[dict[str, Any]] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)
    carried: Carried | None = None
    begun: bool = False

    def issued(self) -> int:
        return len(self.trials) + len(self.reserved)

    def done(self) -> int:
        return sum(trial.done for trial in self.trials)

    def of(self, *kinds: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.kind in kinds]

    def ranked(self) -> list[Trial]:
        """Those with a loss that count, the best first; the earlier of equals first."""
        good = [t for t in self.trials if t.loss is not None and not t.late]
        return sorted(good, key=lambda t: t.loss if t.loss is not None else math.inf)


class ImageGrowth:
    """Which size the next trial has, and what it begins with; any number of trials at a time.

    The same seed and the same results in the same order give the same turns. Who runs several
    trials at once gets results in another order, and so other turns where they depend on
    results: probes, best, and what is carried.

    Args:
        space: What is searched at every size. It is copied.
        sizes: (pixels, evaluations) of each stage, sizes increasing.
        points: Configurations that the first stage begins with.
        probes: Configurations evaluated at both sizes to measure the agreement. None: a tenth of a
            stage's evaluations, from 4 to 12, and at most half of them.
        best: Further configurations re-evaluated, as many as the agreement lets. None: a
            twentieth of a stage's evaluations.
        top: Share of a stage's results around which the next is narrowed, in (0, 1].
        floor: The least share of its width that a range keeps, in (0, 1].
        enough: Share of a stage's results with which the next begins, in (0, 1].
        transfer: The weight of what is carried, in [0, 1]; None measures it.
        seed: None is another search every time.

    Raises:
        InvalidTypeError: An argument has the wrong type.
        InvalidValueError: An argument has an impossible value.

    Example:
        >>> space = ConfigurationSpace({"lr": (1e-4, 1.0)})
        >>> growth = ImageGrowth(space, [(8, 2), (16, 2)], points=[{"lr": 0.1}], seed=0)
        >>> growth.ask("a")
        Turn(stage=0, size=8, kind='given', config={'lr': 0.1})
        >>> growth.ask("b")
        Turn(stage=0, size=8, kind='own', config=None)
        >>> growth.accept("b", {"lr": 0.2})
        >>> _ = growth.tell("a", 0.5)
        >>> growth.tell("b", 0.3)
        (0, {'lr': 0.2})
        >>> growth.ask("c")
        Turn(stage=1, size=16, kind='probe', config={'lr': 0.2})
    """

    def __init__(
        self,
        space: ConfigurationSpace,
        sizes: Sequence[tuple[int, int]] = PAPER_SIZES,
        *,
        points: Sequence[Mapping[str, Any]] = (),
        probes: int | None = None,
        best: int | None = None,
        top: float = 0.2,
        floor: float = 0.2,
        enough: float = 0.9,
        transfer: float | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(space, ConfigurationSpace):
            raise InvalidTypeError(f"space must be a ConfigurationSpace, got {space!r}")
        self._document = plain(space.to_serialized_dict())
        self.space = ConfigurationSpace.from_serialized_dict(self._document)
        self._stages = [_Stage(*pair) for pair in check_sizes(sizes)]
        self._stages[0].begun = True
        self._stages[0].carried = Carried(Transfer(0, None, 0.0), self.space)
        self._points = [dict(point) for point in points]
        self._probes = None if probes is None else check_count("probes", probes, 0)
        self._best = None if best is None else check_count("best", best, 0)
        self._top = _share("top", top)
        self._floor = _share("floor", floor)
        self._enough = _share("enough", enough)
        self._transfer = None if transfer is None else _share("transfer", transfer, zero=True)
        self._seed = check_seed(seed)
        if self._seed is None:
            import secrets

            self._seed = secrets.randbits(31)
        self._where: dict[str, int] = {}

    # --- what the caller does -------------------------------------------------------------

    def ask(self, trial: str) -> Turn | None:
        """What a trial of this name is to be; None: wait for results, or all is `issued`.

        A turn without a configuration must be followed by `accept` or `withdraw`.

        Raises:
            InvalidValueError: The name was used before.
        """
        if trial in self._where:
            raise InvalidValueError(f"trial {trial!r} was asked for before")
        for number, stage in enumerate(self._stages):
            if stage.issued() >= stage.evaluations:
                continue
            if not stage.begun and not self._begin(number):
                return None
            fixed = self._fixed(number)
            if fixed is None:
                return None
            kind, config = fixed
            self._where[trial] = number
            if config is None:
                stage.reserved.add(trial)
            else:
                stage.trials.append(Trial(trial, kind, dict(config)))
            return Turn(number, stage.size, kind, None if config is None else dict(config))
        return None

    def accept(self, trial: str, config: Mapping[str, Any]) -> None:
        """What the stage's own optimiser has said for a turn."""
        stage = self._reserved(trial)
        stage.reserved.discard(trial)
        stage.trials.append(Trial(trial, "own", plain(dict(config))))

    def withdraw(self, trial: str) -> None:
        """The optimiser had nothing for a turn: as if it had not been asked for."""
        self._reserved(trial).reserved.discard(trial)
        del self._where[trial]

    def end_stage(self, stage: int) -> None:
        """The stage's optimiser has nothing more at all: what was issued is its evaluations."""
        self._stages[stage].evaluations = self._stages[stage].issued()

    def tell(self, trial: str, loss: float | None) -> tuple[int, dict[str, Any]] | None:
        """A trial has ended; lower is better; None, NaN and infinities are failures.

        Returns:
            Its stage and configuration; None for a name that was never asked for, or a second
            result, which change nothing.
        """
        number = self._where.get(trial)
        if number is None:
            return None
        found = next((t for t in self._stages[number].trials if t.name == trial), None)
        if found is None or found.done:
            return None
        found.done = True
        found.loss = float(loss) if loss is not None and math.isfinite(loss) else None
        after = self._stages[number + 1] if number + 1 < len(self._stages) else None
        found.late = after is not None and after.carried is not None
        return number, dict(found.config)

    # --- what the caller may read ---------------------------------------------------------

    @property
    def issued(self) -> bool:
        """Whether every evaluation of every stage was asked for."""
        return all(stage.issued() >= stage.evaluations for stage in self._stages)

    @property
    def sizes(self) -> list[int]:
        """The image size of each stage."""
        return [stage.size for stage in self._stages]

    @property
    def live(self) -> list[str]:
        """The names of trials that have not ended."""
        return [t.name for s in self._stages for t in s.trials if not t.done]

    def carried(self, stage: int) -> Carried:
        """What a stage's own optimiser begins with.

        Raises:
            InvalidValueError: It is not decided yet.
        """
        known = self._stages[stage].carried
        if known is None:
            raise InvalidValueError(f"what stage {stage} begins with is not decided yet")
        return known

    def remaining(self, stage: int) -> int:
        """How many evaluations a stage has left for its own optimiser."""
        return self._stages[stage].evaluations - len(self._stages[stage].trials)

    def trials(self, stage: int) -> list[Trial]:
        """The evaluations of a stage in the order of their start; copies."""
        return [replace(trial, config=dict(trial.config)) for trial in self._stages[stage].trials]

    @property
    def best(self) -> tuple[int, dict[str, Any], float] | None:
        """Size, configuration and loss of the best at the largest size with results."""
        for stage in reversed(self._stages):
            good = [t for t in stage.trials if t.loss is not None]
            if good:
                top = min(good, key=lambda t: t.loss if t.loss is not None else math.inf)
                assert top.loss is not None
                return stage.size, dict(top.config), top.loss
        return None

    def rows(self) -> list[dict[str, Any]]:
        """An account of each stage, for a table."""
        return [self._row(stage) for stage in self._stages]

    def _row(self, stage: _Stage) -> dict[str, Any]:
        carried = stage.carried
        losses = [t.loss for t in stage.trials if t.loss is not None]
        later = stage is not self._stages[0] and carried is not None
        return {
            "size": stage.size,
            "evaluations": stage.evaluations,
            "ended": stage.done(),
            "failed": sum(t.done and t.loss is None for t in stage.trials),
            "best": min(losses, default=None),
            "re-evaluated": len(stage.of("probe", "best")),
            "pairs": carried.transfer.pairs if later and carried else None,
            "correlation": carried.transfer.correlation if later and carried else None,
            "weight": carried.transfer.weight if later and carried else None,
            "points": len(carried.points) if later and carried else None,
            "narrowed": describe(carried.space, self.space) if later and carried else {},
        }

    # --- decisions ------------------------------------------------------------------------

    def _begin(self, number: int) -> bool:
        """Begin a stage if the one before has enough results: choose what is re-evaluated."""
        stage, before = self._stages[number], self._stages[number - 1]
        if before.done() < math.ceil(self._enough * before.evaluations) and any(
            not trial.done for trial in before.trials
        ):
            return False
        ranked = _distinct(before.ranked())
        half = stage.evaluations // 2
        usual = min(12, max(4, round(stage.evaluations / 10)))
        count = min(usual if self._probes is None else self._probes, len(ranked))
        count = min(count, max(1, half))
        stage.probes = [dict(ranked[i].config) for i in _spread(len(ranked), count)]
        usual = max(1, round(stage.evaluations / 20))
        more = min(usual if self._best is None else self._best, max(0, half - count))
        rest = [t.config for t in ranked if t.config not in stage.probes]
        stage.best = [dict(config) for config in rest[:more]]
        stage.begun = True
        return True

    def _fixed(self, number: int) -> tuple[str, dict[str, Any] | None] | None:
        """Kind and configuration of a stage's next trial; None: wait."""
        stage = self._stages[number]
        if number == 0:
            given = len(stage.of("given"))
            return ("given", self._points[given]) if given < len(self._points) else ("own", None)
        probed = len(stage.of("probe"))
        if probed < len(stage.probes):
            return "probe", stage.probes[probed]
        if stage.carried is None:
            self._decide(number)
        weight = 1.0 if stage.carried is None else stage.carried.transfer.weight
        again = len(stage.of("best"))
        if again < math.ceil(weight * len(stage.best)):
            return "best", stage.best[again]
        if stage.carried is not None:
            return "own", None
        if stage.issued() < stage.evaluations // 2:
            return "bridge", self._bridge(number)
        return None

    def _decide(self, number: int) -> None:
        """Decide what is carried, if enough probes have results."""
        stage, before = self._stages[number], self._stages[number - 1]
        probes = stage.of("probe")
        done = [trial for trial in probes if trial.done]
        if len(done) < math.ceil(self._enough * len(probes)):
            return
        pairs = self._pairs(number)
        transfer = measure_transfer(pairs)
        if self._transfer is not None:
            transfer = replace(transfer, weight=self._transfer)
        space = narrow(self.space, self._share_of(before), transfer.weight, floor=self._floor)
        points = self._translated(number, space, pairs, transfer.weight)
        stage.carried = Carried(transfer, space, points)
        if transfer.weight < _HALF_WAY and self._transfer is None:
            self._warn(before.size, stage.size, transfer)

    def _pairs(self, number: int) -> list[tuple[float, float | None]]:
        """The losses of the probes at both sizes."""
        small = [(t.config, t.loss) for t in self._stages[number - 1].ranked()]
        pairs: list[tuple[float, float | None]] = []
        for trial in self._stages[number].of("probe"):
            known = next((loss for config, loss in small if config == trial.config), None)
            if trial.done and known is not None:
                pairs.append((known, trial.loss))
        return pairs

    def _share_of(self, stage: _Stage) -> list[dict[str, Any]]:
        """The best share of a stage's results, the best first."""
        ranked = _distinct(stage.ranked())
        return [t.config for t in ranked[: math.ceil(self._top * len(ranked))]]

    def _translated(
        self,
        number: int,
        space: ConfigurationSpace,
        pairs: Sequence[tuple[float, float | None]],
        weight: float,
    ) -> tuple[tuple[dict[str, Any], float], ...]:
        """Results of the stage before for a model to start on: fewer where they carry less."""
        stage = self._stages[number]
        again = [t.config for t in stage.of("probe", "best")]
        ranked = _distinct(self._stages[number - 1].ranked())
        usable = [t for t in ranked if t.config not in again and _legal(space, t.config)]
        count = min(len(usable), round(weight * stage.evaluations))
        chosen = [usable[i] for i in _spread(len(usable), count)]
        losses = [t.loss for t in chosen if t.loss is not None]
        guessed = translate_losses(losses, pairs, weight)
        return tuple((dict(t.config), loss) for t, loss in zip(chosen, guessed, strict=False))

    def _bridge(self, number: int) -> dict[str, Any]:
        best = self._share_of(self._stages[number - 1])
        space = narrow(self.space, best, _HALF_WAY, floor=self._floor)
        return self.draw(space, "bridge", number, len(self._stages[number].of("bridge")))

    def draw(self, space: ConfigurationSpace, *purpose: int | str) -> dict[str, Any]:
        """A random configuration that depends on the seed and the purpose alone."""
        assert self._seed is not None
        space.seed(derive_seed(self._seed, *purpose) % 2**32)
        return dict(plain(dict(space.sample_configuration())))

    def _warn(self, before: int, size: int, transfer: Transfer) -> None:
        said = "is not known" if transfer.correlation is None else f"is {transfer.correlation:.2f}"
        warnings.warn(
            f"from {before} to {size} pixels, the rank correlation of {transfer.pairs} "
            f"configurations {said}: only {transfer.weight:.0%} of what the smaller images taught "
            "is carried over",
            TransferWarning,
            stacklevel=2,
        )

    def _reserved(self, trial: str) -> _Stage:
        stage = self._stages[self._where[trial]] if trial in self._where else None
        if stage is None or trial not in stage.reserved:
            raise InvalidValueError(f"trial {trial!r} waits for no configuration")
        return stage

    # --- state ----------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able; a turn that waits for a configuration is not part of it."""
        return {
            "kind": _STATE,
            "version": _STATE_VERSION,
            "space": self._document,
            "points": self._points,
            "options": {
                "probes": self._probes,
                "best": self._best,
                "top": self._top,
                "floor": self._floor,
                "enough": self._enough,
                "transfer": self._transfer,
                "seed": self._seed,
            },
            "stages": [_stage_to_json(stage) for stage in self._stages],
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> ImageGrowth:
        """What `to_json` wrote, as it was.

        Raises:
            StateError: It is of something else, of an unknown version, or damaged.
        """
        check_state(state, _STATE, _STATE_VERSION, "an image growth")
        try:
            space = ConfigurationSpace.from_serialized_dict(dict(state["space"]))
            stages = [_stage_from_json(stage) for stage in state["stages"]]
            sizes = [(stage.size, 1) for stage in stages]
            made = cls(space, sizes, points=state["points"], **state["options"])
            stages[0].carried = Carried(Transfer(0, None, 0.0), made.space)
            names = [(t.name, i) for i, s in enumerate(stages) for t in s.trials]
            made._stages, made._where = stages, dict(names)
            if len(made._where) < len(names):
                raise StateError("a trial is in it twice")
        except StateError:
            raise
        except Exception as error:  # ConfigSpace's errors have no common base
            raise StateError(f"the state of the image growth is damaged: {error!r}") from error
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


def _share(name: str, value: object, *, zero: bool = False) -> float:
    number = as_number(name, value)
    if not (0 <= number <= 1 if zero else 0 < number <= 1):
        raise InvalidValueError(f"{name} must be in {'[' if zero else '('}0, 1], got {number}")
    return number


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    """The first of each configuration."""
    kept: list[Trial] = []
    for trial in trials:
        if all(trial.config != other.config for other in kept):
            kept.append(trial)
    return kept


def _spread(total: int, count: int) -> list[int]:
    """So many places spread evenly over 0 … total - 1, both ends among them."""
    if count < 2:
        return list(range(min(count, total)))
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def _legal(space: ConfigurationSpace, config: Mapping[str, Any]) -> bool:
    from ConfigSpace import Configuration

    try:
        Configuration(space, values=dict(config)).check_valid_configuration()
    except Exception:  # ConfigSpace's errors have no common base
        return False
    return True


def _stage_to_json(stage: _Stage) -> dict[str, Any]:
    carried = None
    if stage.carried is not None:
        transfer = stage.carried.transfer
        carried = {
            "transfer": [transfer.pairs, transfer.correlation, transfer.weight],
            "space": plain(stage.carried.space.to_serialized_dict()),
            "points": [list(point) for point in stage.carried.points],
        }
    return {
        "size": stage.size,
        "evaluations": stage.evaluations,
        "trials": [[t.name, t.kind, dict(t.config), t.loss, t.done, t.late] for t in stage.trials],
        "probes": stage.probes,
        "best": stage.best,
        "begun": stage.begun,
        "carried": carried,
    }


def _stage_from_json(state: Mapping[str, Any]) -> _Stage:
    trials = []
    for name, kind, config, loss, done, late in state["trials"]:
        if kind not in _KINDS or not isinstance(name, str):
            raise StateError(f"an impossible trial: {name!r} of kind {kind!r}")
        number = None if loss is None else float(loss)
        trials.append(Trial(name, kind, dict(config), number, bool(done), bool(late)))
    carried = None
    if state["carried"] is not None:
        pairs, correlation, weight = state["carried"]["transfer"]
        carried = Carried(
            Transfer(int(pairs), correlation, float(weight)),
            ConfigurationSpace.from_serialized_dict(dict(state["carried"]["space"])),
            tuple((dict(config), float(loss)) for config, loss in state["carried"]["points"]),
        )
    return _Stage(
        check_count("a size", state["size"]),
        check_count("evaluations", state["evaluations"], 0),
        trials,
        set(),
        [dict(config) for config in state["probes"]],
        [dict(config) for config in state["best"]],
        carried,
        bool(state["begun"]),
    )
