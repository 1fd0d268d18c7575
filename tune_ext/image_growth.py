"""Search on small images first, then on larger ones, with what was learned.

Source: Hinz, Navarro-Guerrero, Magg, Wermter, "Speeding up the Hyperparameter Optimization of Deep
Convolutional Neural Networks", 2018 (arXiv 1807.07362). The stages are the paper's; what is carried
from one to the next, and the weighing of it, are ours: the paper does not say.

A stage is a number of evaluations at one size. Those of a later stage are, in this order:

==========  ====================================================================================
kind        configuration
==========  ====================================================================================
`probe`     of the stage before, spread over its ranking, the best and the worst among them and
            denser among the good: evaluated at both sizes, they measure how far the ranking
            carries over (`tune_ext._transfer`)
`best`      the next best of the stage before, as many as the agreement lets
`bridge`    drawn from a space narrowed half-way, for workers that are free before the probes
            have results; at most until half of the stage is under way
`own`       the stage's own optimiser, in a space narrowed as far as the measured agreement
            says (`tune_ext._narrowing`), and told the results at this size
==========  ====================================================================================

Losses at different sizes are never compared. A result that is not finite is a failure, and is
never carried.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ConfigSpace import ConfigurationSpace

from tune_ext._checks import check_count, check_mappings, check_state
from tune_ext._growth_stages import (
    Carried,
    Stage,
    Trial,
    Turn,
    check_share,
    check_sizes,
    is_legal,
    spread,
)
from tune_ext._narrowing import describe, narrow, plain, read_space
from tune_ext._random import check_seed, derive_seed
from tune_ext._transfer import MIN_PAIRS, Transfer, measure_transfer, translate_losses
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["PAPER_SIZES", "Carried", "ImageGrowth", "TransferWarning", "Trial", "Turn"]

PAPER_SIZES = ((32, 750), (64, 500), (128, 250))
"""The published stages: pixels an edge, evaluations."""

_STATE, _STATE_VERSION = "image_growth", 1
_HALF_WAY = 0.5
_PROBES = (5, 12)
"""The least and the most probes of a stage, if the user does not say."""


class TransferWarning(UserWarning):
    """What was best at one image size is hardly so at the next, or nobody knows whether it is."""


class ImageGrowth:
    """Which size the next trial has, and what it begins with; any number of trials at a time.

    The same seed and the same results in the same order give the same turns. Who runs several
    trials at once gets results in another order, and so other turns where they depend on
    results: probes, best, and what is carried.

    Args:
        space: What is searched at every size. It is copied.
        sizes: (pixels, evaluations) of each stage, sizes increasing.
        points: Configurations that the first stage begins with.
        probes: Configurations evaluated at both sizes to measure the agreement. None: a sixth of a
            stage's evaluations, from 5 to 12; never more than half of them.
        best: Further configurations re-evaluated, as many as the agreement lets. None: a
            twentieth of a stage's evaluations.
        top: Share of a stage's results around which the next is narrowed, in (0, 1].
        floor: The least share of its width that a range keeps, in (0, 1].
        enough: Share of a stage's results with which the next begins, and of the probes' with
            which the agreement is measured, in (0, 1]; late ones are waited for only if nothing
            else is to do.
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
        self.space = read_space(self._document)
        self._stages = [Stage(*pair) for pair in check_sizes(sizes)]
        self._stages[0].begun = True
        self._stages[0].carried = Carried(Transfer(0, None, 0.0), self.space)
        self._points = [dict(point) for point in check_mappings("points", points)]
        self._probes = None if probes is None else check_count("probes", probes, 0)
        self._best = None if best is None else check_count("best", best, 0)
        self._top, self._floor = check_share("top", top), check_share("floor", floor)
        self._enough = check_share("enough", enough)
        self._transfer = None if transfer is None else check_share("transfer", transfer, zero=True)
        given = check_seed(seed)
        self._seed = secrets.randbits(31) if given is None else given
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
        open_stages = (n for n, s in enumerate(self._stages) if s.issued() < s.evaluations)
        number = next(open_stages, None)
        if number is None or not self._begun(number):
            return None
        stage, turn = self._stages[number], self._next(number)
        if turn is None:
            return None
        self._where[trial] = number
        if turn.config is None:
            stage.reserved.add(trial)
        else:
            stage.add(Trial(trial, turn.kind, dict(turn.config)))
        return turn

    def accept(self, trial: str, config: Mapping[str, Any]) -> None:
        """What the stage's own optimiser has said for a turn."""
        stage = self._reserved(trial)
        stage.reserved.discard(trial)
        stage.add(Trial(trial, "own", plain(dict(config))))

    def withdraw(self, trial: str) -> None:
        """The optimiser had nothing for a turn: as if it had not been asked for."""
        self._reserved(trial).reserved.discard(trial)
        del self._where[trial]

    def end_stage(self, stage: int) -> None:
        """The stage's optimiser has nothing more at all: what was issued is its evaluations."""
        self._stages[stage].evaluations = self._stages[stage].issued()

    def tell(self, trial: str, loss: float | None) -> tuple[int, dict[str, Any]] | None:
        """A trial has ended; lower is better; None, NaN and infinities are failures.

        A number replaces a failure: the trial was run again, or only thought to be lost.

        Returns:
            Its stage and configuration; None for a name that was never asked for, or any other
            second result, which change nothing.
        """
        number = self._where.get(trial)
        if number is None:
            return None
        stage = self._stages[number]
        found = stage.find(trial)
        finite = float(loss) if loss is not None and math.isfinite(loss) else None
        if found is None or (found.done and (found.loss is not None or finite is None)):
            return None
        stage.end(found, finite)
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
        return [name for stage in self._stages for name in stage.live]

    def carried(self, stage: int) -> Carried:
        """What a stage's own optimiser begins with.

        Raises:
            InvalidValueError: It is not decided yet.
        """
        known = self._stages[stage].carried
        if known is None:
            raise InvalidValueError(f"what stage {stage} begins with is not decided yet")
        return known

    def own_evaluations(self, stage: int) -> int:
        """How many evaluations of a stage its own optimiser has, those it had included."""
        known = self._stages[stage]
        return known.evaluations - len(known.trials) + known.count("own")

    def trials(self, stage: int) -> list[Trial]:
        """The evaluations of a stage in the order of their start; copies."""
        return [replace(trial, config=dict(trial.config)) for trial in self._stages[stage].trials]

    @property
    def best(self) -> tuple[int, dict[str, Any], float] | None:
        """Size, configuration and loss of the best at the largest size with results."""
        for stage in reversed(self._stages):
            good = [(t.loss, t.config) for t in stage.trials if t.loss is not None]
            if good:
                loss, config = min(good, key=lambda pair: pair[0])
                return stage.size, dict(config), loss
        return None

    def rows(self) -> list[dict[str, Any]]:
        """An account of each stage, for a table."""
        return [self._row(number) for number in range(len(self._stages))]

    def _row(self, number: int) -> dict[str, Any]:
        stage = self._stages[number]
        carried = stage.carried if number else None
        transfer = None if carried is None else carried.transfer
        return {
            "size": stage.size,
            "evaluations": stage.evaluations,
            "ended": stage.done(),
            "failed": sum(t.done and t.loss is None for t in stage.trials),
            "late": sum(t.late for t in stage.trials),
            "best": min((t.loss for t in stage.trials if t.loss is not None), default=None),
            "re-evaluated": len(stage.of("probe", "best")),
            "pairs": None if transfer is None else transfer.pairs,
            "correlation": None if transfer is None else transfer.correlation,
            "weight": None if transfer is None else transfer.weight,
            "points": None if carried is None else len(carried.points),
            "narrowed": {} if carried is None else describe(carried.space, self.space),
        }

    def draw(self, space: ConfigurationSpace, *purpose: int | str) -> dict[str, Any]:
        """A random configuration that depends on the seed and the purpose alone."""
        space.seed(derive_seed(self._seed, *purpose) % 2**32)
        return dict(plain(dict(space.sample_configuration())))

    # --- decisions ------------------------------------------------------------------------

    def _begun(self, number: int) -> bool:
        """Whether a stage has begun; it does if the one before has enough results."""
        stage, before = self._stages[number], self._stages[number - 1]
        if stage.begun:
            return True
        if before.live and before.done() < math.ceil(self._enough * before.evaluations):
            return False
        ranked = [trial for _, trial in before.ranked()]
        half = max(1, stage.evaluations // 2)
        usual = min(max(_PROBES[0], round(stage.evaluations / 6)), _PROBES[1])
        count = min(usual if self._probes is None else self._probes, half, len(ranked))
        chosen = spread(len(ranked), count, power=2)
        stage.probes = [dict(ranked[place].config) for place in chosen]
        usual = max(1, round(stage.evaluations / 20))
        more = min(usual if self._best is None else self._best, half - count)
        rest = [trial for place, trial in enumerate(ranked) if place not in chosen]
        stage.best = [dict(trial.config) for trial in rest[:more]]
        stage.begun = True
        return True

    def _next(self, number: int) -> Turn | None:
        """The next turn of a stage; None: wait."""
        stage = self._stages[number]
        given, probed, again = (stage.count(kind) for kind in ("given", "probe", "best"))
        if number == 0:
            if given < len(self._points):
                return self._turn(number, "given", self._points[given])
            return self._turn(number, "own", None)
        if probed < len(stage.probes):
            return self._turn(number, "probe", stage.probes[probed])
        if stage.carried is None:
            self._decide(number)
        weight = 1.0 if stage.carried is None else stage.carried.transfer.weight
        if again < math.ceil(weight * len(stage.best)):
            return self._turn(number, "best", stage.best[again])
        if stage.carried is not None:
            return self._turn(number, "own", None)
        if stage.issued() < stage.evaluations // 2:
            return self._turn(number, "bridge", self._bridge(number))
        return None

    def _turn(self, number: int, kind: str, config: Mapping[str, Any] | None) -> Turn:
        given = None if config is None else dict(config)
        return Turn(number, self._stages[number].size, kind, given)

    def _decide(self, number: int) -> None:
        """Decide what is carried, if enough probes have results."""
        stage, before = self._stages[number], self._stages[number - 1]
        probes = stage.of("probe")
        if sum(trial.done for trial in probes) < math.ceil(self._enough * len(probes)):
            return
        pairs = self._pairs(number)
        transfer = measure_transfer(pairs)
        if not before.ranked():  # nothing to carry, whatever may be believed
            transfer = replace(transfer, weight=0.0)
        elif self._transfer is not None:
            transfer = replace(transfer, weight=self._transfer)
        space = narrow(self.space, before.top(self._top), transfer.weight, floor=self._floor)
        points = self._translated(number, space, pairs, transfer.weight)
        stage.carried = Carried(transfer, space, points)
        if self._transfer is None:
            self._warn(before.size, stage.size, transfer)

    def _pairs(self, number: int) -> list[tuple[float, float | None]]:
        """The losses of the probes at both sizes."""
        small = {trial.key: loss for loss, trial in self._stages[number - 1].ranked()}
        probes = self._stages[number].of("probe")
        return [(small[t.key], t.loss) for t in probes if t.done and t.key in small]

    def _translated(
        self,
        number: int,
        space: ConfigurationSpace,
        pairs: Sequence[tuple[float, float | None]],
        weight: float,
    ) -> tuple[tuple[dict[str, Any], float], ...]:
        """Results of the stage before for a model to start on: fewer where they carry less."""
        stage = self._stages[number]
        again = {trial.key for trial in stage.of("probe", "best")}
        ranked = self._stages[number - 1].ranked()
        usable = [(loss, t) for loss, t in ranked if t.key not in again]
        usable = [(loss, t) for loss, t in usable if is_legal(space, t.config)]
        count = min(len(usable), round(weight * stage.evaluations))
        chosen = [usable[place] for place in spread(len(usable), count)]
        guessed = translate_losses([loss for loss, _ in chosen], pairs, weight)
        return tuple((dict(t.config), g) for (_, t), g in zip(chosen, guessed, strict=False))

    def _bridge(self, number: int) -> dict[str, Any]:
        best = self._stages[number - 1].top(self._top)
        space = narrow(self.space, best, _HALF_WAY, floor=self._floor)
        return self.draw(space, "bridge", number, self._stages[number].count("bridge"))

    def _warn(self, before: int, size: int, transfer: Transfer) -> None:
        said = "is not known" if transfer.correlation is None else f"is {transfer.correlation:.2f}"
        if transfer.weight < _HALF_WAY:
            told = (
                f"from {before} to {size} pixels, the rank correlation of {transfer.pairs} "
                f"configurations {said}: only {transfer.weight:.0%} of what the smaller images "
                "taught is carried over"
            )
        elif transfer.pairs < MIN_PAIRS and self._probes != 0:
            least = f"probes={MIN_PAIRS}"
            if self._probes is None:
                least = f"{size} pixels {2 * MIN_PAIRS} evaluations"
            told = (
                f"from {before} to {size} pixels, {transfer.pairs} configurations have results at "
                f"both sizes: fewer than {MIN_PAIRS} do not say how far small images can be "
                f"trusted, and {transfer.weight:.0%} of what they taught is carried over all the "
                f"same. Give {least} or more"
            )
        else:
            return
        warnings.warn(told, TransferWarning, stacklevel=2)

    def _reserved(self, trial: str) -> Stage:
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
            "stages": [stage.to_json() for stage in self._stages],
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> ImageGrowth:
        """What `to_json` wrote, as it was.

        Raises:
            StateError: It is of something else, of an unknown version, or damaged.
        """
        check_state(state, _STATE, _STATE_VERSION, "an image growth")
        try:
            space = read_space(state["space"])
            if not len(space):
                raise StateError("the state of the image growth has no parameters")
            stages = [Stage.from_json(stage) for stage in state["stages"]]
            sizes = [(stage.size, 1) for stage in stages]
            made = cls(space, sizes, points=state["points"], **state["options"])
            stages[0].carried = made._stages[0].carried
            names = [(t.name, i) for i, s in enumerate(stages) for t in s.trials]
            made._stages, made._where = stages, dict(names)
            if len(made._where) < len(names):
                raise StateError("the state of the image growth has a trial twice")
        except StateError:
            raise
        except Exception as error:  # ConfigSpace's errors have no common base
            raise StateError(f"the state of the image growth is damaged: {error!r}") from error
        return made
