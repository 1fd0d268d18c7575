"""BOHB's model: where to look next, from what was seen at several budgets.

Source: Falkner, Klein, Hutter, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale",
ICML 2018 (arXiv 1807.01774), algorithm 2, with the constants of hpbandster.

========  ==========================  ====================================================
paper     here                        meaning
========  ==========================  ====================================================
ρ         `random_fraction`           share of configurations drawn at random
q         `top`                       share of the observations that count as good
N_s       `samples`                   candidates a suggestion
N_min     `min_points`                observations that a model needs
b_w       `bandwidth_factor`          candidates are drawn this much wider than the kernels
l, g      the two densities           of good and of bad configurations
D_b       observations at budget b
========  ==========================  ====================================================

It differs from hpbandster where that is at fault: ordered parameters have a kernel of their own,
categories a kernel that knows all of them and never has negative weights, everything random comes
from one seed, and a forbidden or conditional configuration is passed over for the next best one
instead of a random one. A density is fitted to a thousand observations at most, spread evenly over
the ranks of those that it is of, so that the last of ten thousand suggestions costs no more than
the thousandth.
"""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ConfigSpace import (
    CategoricalHyperparameter,
    Configuration,
    ConfigurationSpace,
    Constant,
    OrdinalHyperparameter,
)
from ConfigSpace.exceptions import ForbiddenValueError, IllegalValueError
from ConfigSpace.util import deactivate_inactive_hyperparameters
from numpy.typing import NDArray

from tune_ext._checks import as_number, check_count, check_positive, check_state
from tune_ext._kde import Density, Variable
from tune_ext._random import check_seed, generator
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["BOHB", "Suggestion"]

Array = NDArray[np.float64]
_STATE, _STATE_VERSION = "bohb", 1
_MOST = 1000
"""Observations to which one density is fitted at most: of more, these many, evenly by rank."""
_UNNAMED = "#"
"""What the keys of results begin with that were given none."""


@dataclass(frozen=True)
class Suggestion:
    """What to try next.

    Attributes:
        config: Values of the active parameters, as plain Python values.
        budget: Of the observations that the model was fitted to; None if drawn at random.
    """

    config: dict[str, Any]
    budget: float | None


class _Observations:
    """What was seen at one budget: a row of the parameters' values and a loss for each key."""

    def __init__(self, width: int) -> None:
        self._row: dict[str, int] = {}
        self._ranking: list[tuple[float, int]] = []  # loss and row, the lowest first
        self._vectors, self._losses = np.empty((16, width)), np.empty(16)

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, key: object) -> bool:
        return key in self._row

    def put(self, key: str | None, vector: Array, loss: float) -> None:
        """Note a result; one of the same key is replaced."""
        row = self._row.setdefault(f"{_UNNAMED}{len(self)}" if key is None else key, len(self))
        if row == len(self._losses):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
            self._losses = np.concatenate([self._losses, np.empty_like(self._losses)])
        if row < len(self._ranking):
            del self._ranking[bisect.bisect_left(self._ranking, (self._losses[row], row))]
        bisect.insort(self._ranking, (float(loss), row))
        self._vectors[row], self._losses[row] = vector, loss

    def ranked(self, first: int, end: int) -> Array:
        """Values of the observations from one rank to before another, (n, parameters).

        They are thinned evenly where they are more than a density takes.
        """
        ranks = np.arange(first, end)
        if len(ranks) > _MOST:
            ranks = ranks[np.linspace(0, len(ranks) - 1, _MOST).round().astype(int)]
        return self._vectors[[self._ranking[rank][1] for rank in ranks]]

    @property
    def vectors(self) -> Array:
        """(n, parameters); NaN where inactive."""
        return self._vectors[: len(self)]

    @property
    def losses(self) -> Array:
        """(n,); infinite where failed."""
        return self._losses[: len(self)]

    def rows(self) -> list[list[Any]]:
        """Keys, values and losses; None where not finite, as JSON has no such numbers."""
        known = zip(self._row, self.vectors.tolist(), self.losses.tolist(), strict=True)
        return [[key, _plain(vector), *_plain([loss])] for key, vector, loss in known]


class BOHB:
    """Suggests configurations by two kernel densities: of the good and of the bad ones.

    The model is fitted to the largest budget with enough observations, whatever the order in
    which they came.

    Args:
        space: What is searched; conditions, constants, ordered parameters and forbidden clauses
            are kept. It is copied.
        min_points: Observations that a model needs at least; None: one more than there are
            parameters.
        top: Share of the observations that are good, in (0, 1).
        samples: Candidates from which the one with the highest l/g is suggested.
        random_fraction: Share of suggestions at random, in [0, 1].
        bandwidth_factor: How much wider than the kernels candidates are drawn.
        min_bandwidth: The smallest bandwidth, in a parameter's range scaled to [0, 1].
        seed: None is another search every time.

    Raises:
        InvalidTypeError: An argument has the wrong type.
        InvalidValueError: An argument has an impossible value, or the space is empty.

    Example:
        >>> space = ConfigurationSpace({"lr": (1e-4, 1.0), "depth": [1, 2, 3]})
        >>> search = BOHB(space, seed=0)
        >>> for trial in range(30):
        ...     config = search.suggest().config
        ...     search.observe(config, budget=1, loss=abs(config["lr"] - 0.3))
        >>> search.suggest().budget in (1, None)
        True
    """

    def __init__(
        self,
        space: ConfigurationSpace,
        *,
        min_points: int | None = None,
        top: float = 0.15,
        samples: int = 64,
        random_fraction: float = 1 / 3,
        bandwidth_factor: float = 3.0,
        min_bandwidth: float = 1e-3,
        seed: int | None = None,
    ) -> None:
        if not isinstance(space, ConfigurationSpace):
            raise InvalidTypeError(f"space must be a ConfigurationSpace, got {space!r}")
        if not len(space):
            raise InvalidValueError("the search space is empty: nothing to suggest")
        self.space = copy.deepcopy(space)
        self._parameters = list(self.space.values())
        self._columns = [j for j, p in enumerate(self._parameters) if not isinstance(p, Constant)]
        self._variables = [_variable(self._parameters[j]) for j in self._columns]
        least = len(self._columns) + 1
        given = least if min_points is None else check_count("min_points", min_points)
        self._min_points = max(least, given)
        self._top = check_positive("top", top, below=1)
        self._samples = check_count("samples", samples, 1, 10**7)
        self._random_fraction = as_number("random_fraction", random_fraction)
        if not 0 <= self._random_fraction <= 1:
            raise InvalidValueError(f"random_fraction must be in [0, 1], got {random_fraction}")
        self._factor = check_positive("bandwidth_factor", bandwidth_factor, below=math.inf)
        self._min_bandwidth = check_positive("min_bandwidth", min_bandwidth, below=1)
        self._random = generator(check_seed(seed), "bohb")
        self._seen: dict[float, _Observations] = {}
        self._model: tuple[float, Density, Density] | None = None

    def observe(
        self,
        config: Mapping[str, Any],
        budget: float,
        loss: float | None,
        *,
        key: str | None = None,
    ) -> None:
        """Take a result.

        Args:
            config: Values of the active parameters.
            budget: What the configuration had had.
            loss: Lower is better; None, NaN and infinities are worse than any number.
            key: Whose result it is: another one at the same budget replaces it. None: a new one.

        Raises:
            InvalidValueError: `config` is not in the space.
        """
        try:
            vector = Configuration(self.space, values=dict(config)).get_array()
        except Exception as error:  # ConfigSpace's errors have no common base
            raise InvalidValueError(f"{dict(config)!r} is not in the space: {error}") from error
        number = math.inf if loss is None or not math.isfinite(loss) else float(loss)
        seen = self._seen.setdefault(float(budget), _Observations(len(self._parameters)))
        seen.put(key, vector, number)
        if self._model is None or budget >= self._model[0]:
            self._model = None

    def knows(self, key: str, budget: float | None = None) -> bool:
        """Whether anything was observed under a key; at a budget, or None: at any."""
        if budget is not None:
            return budget in self._seen and key in self._seen[budget]
        return any(key in seen for seen in self._seen.values())

    def counts(self) -> dict[float, int]:
        """How many observations there are at each budget."""
        return {budget: len(self._seen[budget]) for budget in sorted(self._seen)}

    def rebase(self, budget: float) -> None:
        """Forget results under keys, which were at budgets of another kind.

        Failures, and results without a key, are at this budget from now on.
        """
        before, self._seen, self._model = self._seen, {}, None
        for seen in before.values():
            for key, vector, loss in seen.rows():
                if loss is None or key.startswith(_UNNAMED):
                    there = self._seen.setdefault(budget, _Observations(len(self._parameters)))
                    known = [math.nan if v is None else v for v in vector]
                    name = None if key.startswith(_UNNAMED) else key
                    there.put(name, np.array(known), math.inf if loss is None else loss)

    def model_budget(self) -> float | None:
        """The budget that the model is fitted to; None while there is none."""
        enough = [b for b, seen in self._seen.items() if len(seen) >= self._min_points]
        return max(enough, default=None) if self._columns else None

    def suggest(self) -> Suggestion:
        """Suggest a configuration."""
        budget = self.model_budget()
        if budget is None or self._random.random() < self._random_fraction:
            return Suggestion(self._at_random(), None)
        _, good, bad = self._fitted(budget)
        candidates = good.sample(self._samples, self._factor, self._random)
        gain = good.log_pdf(candidates) - bad.log_pdf(candidates)
        for index in np.argsort(-gain, kind="stable"):
            config = self._legal(candidates[index])
            if config is not None:
                return Suggestion(config, budget)
        return Suggestion(self._at_random(), None)

    def to_json(self) -> dict[str, Any]:
        """Everything that another instance, built alike, needs to go on; JSON-able."""
        return {
            "kind": _STATE,
            "version": _STATE_VERSION,
            "parameters": [p.name for p in self._parameters],
            "random": self._random.bit_generator.state,
            "seen": [[budget, seen.rows()] for budget, seen in self._seen.items()],
        }

    def load_json(self, state: Mapping[str, Any]) -> None:
        """Go on from what `to_json` returned.

        Raises:
            StateError: It is something else, of an unknown version or space, or damaged.
        """
        check_state(state, _STATE, _STATE_VERSION, "BOHB's model")
        try:
            if list(state["parameters"]) != [p.name for p in self._parameters]:
                raise StateError("the state belongs to another space: its parameters differ")
            seen: dict[float, _Observations] = {}
            for budget, rows in state["seen"]:
                seen[float(budget)] = _Observations(len(self._parameters))
                for key, vector, loss in rows:
                    known = [math.nan if v is None else float(v) for v in vector]
                    if len(known) != len(self._parameters):
                        raise StateError(f"{len(known)} values for {len(self._parameters)}")
                    number = math.inf if loss is None else float(loss)
                    seen[float(budget)].put(str(key), np.array(known), number)
            random = np.random.default_rng(0)
            random.bit_generator.state = state["random"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"the state of BOHB's model is damaged: {error!r}") from error
        self._seen, self._random, self._model = seen, random, None

    def _fitted(self, budget: float) -> tuple[float, Density, Density]:
        """The densities of good and bad, fitted anew when there is something new."""
        if self._model is not None and self._model[0] == budget:
            return self._model
        seen = self._seen[budget]
        count = len(seen)
        n_good = max(self._min_points, int(self._top * count + 1e-9))
        n_bad = max(self._min_points, int((1 - self._top) * count + 1e-9))
        good = seen.ranked(0, min(n_good, count))[:, self._columns]
        bad = seen.ranked(max(0, count - n_bad), count)[:, self._columns]
        self._model = (
            budget,
            Density(self._filled(good, count, "good"), self._variables, self._min_bandwidth),
            Density(self._filled(bad, count, "bad"), self._variables, self._min_bandwidth),
        )
        return self._model

    def _filled(self, data: Array, count: int, which: str) -> Array:
        """Inactive values stand for any: that of another row, or at random if no row has one."""
        data = data.copy()
        # Not the search's own: a model that is fitted again after a restore must be the same.
        random = generator(count, "bohb", which)
        for j, variable in enumerate(self._variables):
            missing = np.isnan(data[:, j])
            if not missing.any():
                continue
            known = data[~missing, j]
            holes = int(missing.sum())
            if len(known):
                data[missing, j] = random.choice(known, size=holes)
            elif variable.kind == "number":
                data[missing, j] = random.random(holes)
            else:
                data[missing, j] = random.integers(variable.levels, size=holes)
        return data

    def _at_random(self) -> dict[str, Any]:
        self.space.seed(int(self._random.integers(2**31)))
        return self._plain_values(self.space.sample_configuration())

    def _legal(self, candidate: Array) -> dict[str, Any] | None:
        """The configuration at a point of the model, or None if the space forbids it."""
        values = {p.name: p.value for p in self._parameters if isinstance(p, Constant)}
        for j, value in zip(self._columns, candidate, strict=True):
            parameter = self._parameters[j]
            values[parameter.name] = parameter.to_value(value)
        try:
            config = deactivate_inactive_hyperparameters(values, self.space)
            config.check_valid_configuration()
        except (ForbiddenValueError, IllegalValueError):
            return None
        return self._plain_values(config)

    def _plain_values(self, config: Configuration) -> dict[str, Any]:
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in dict(config).items()
        }


def _variable(parameter: Any) -> Variable:
    if isinstance(parameter, CategoricalHyperparameter):
        return Variable("category", len(parameter.choices))
    if isinstance(parameter, OrdinalHyperparameter):
        return Variable("level", len(parameter.sequence))
    return Variable("number")


def _plain(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
