"""Which hyper-parameters matter: functional analysis of variance of a random forest.

A forest learns the objective from trials. Each of its trees is constant on boxes, so its
variance over the whole space, and the part of it that one parameter or a pair explains
alone, are sums over the leaves: nothing is sampled. The spread over the trees, each grown on
its own bootstrap sample of the trials, says how sure the answer is.

| here | in the paper | meaning |
| --- | --- | --- |
| leaf | P_i, c_i | a box of the space and the value in it |
| `total` | V | variance of a tree over the space |
| main effect of a | V_{a} / V | a's share: the variance of the mean over all others |
| effect of a × b | V_{a,b} / V | the share of both together that neither has alone |

The space counts evenly: floats and integers over their range (on a logarithmic scale where
they are searched on one), categories and the steps of an ordinal parameter each the same.
Forbidden combinations count too.

Source: Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter
importance", ICML 2014.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from ConfigSpace import ConfigurationSpace
from ConfigSpace.hyperparameters import (
    CategoricalHyperparameter,
    Constant,
    IntegerHyperparameter,
    OrdinalHyperparameter,
)
from ConfigSpace.types import NotSet
from numpy.typing import NDArray

from tune_ext._checks import as_numbers, check_choice, check_count, check_flag, check_list
from tune_ext.errors import InvalidTypeError, InvalidValueError, MissingDependencyError

__all__ = ["Effect", "Importance", "from_result_grid", "importance", "read_result_grid"]

Array = NDArray[np.float64]

_MOST_ATOMS = 1000
"""An integer range with more values than this is treated as continuous."""
_MOST_LEAVES = 512
_MOST_SAMPLES = 5000
"""Of a tree's bootstrap sample; what more trials add is less than what they cost."""


class Effect(NamedTuple):
    """A share of the variance: its mean over the trees, and their standard deviation."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Importance:
    """What explains how much of the variance of an objective over the whole space.

    All effects together are at most 1: what is missing belongs to three parameters and more.

    Args:
        main: Parameter → its own effect, the largest first.
        pairs: Two parameters → what they do together beyond that, the largest first; empty
            when it was not asked for.
        r2: Share of the trials' variance that the forest predicts from the trees that have
            not seen a trial; NaN if the values are all the same. The effects are those of
            the forest: where this is low, they say little about the objective. Repetitions
            of a configuration flatter it.
        trials: How many were learnt from.
        failed: How many of the given ones had no finite value.
    """

    main: Mapping[str, Effect]
    pairs: Mapping[tuple[str, str], Effect]
    r2: float
    trials: int
    failed: int

    def to_rows(self) -> list[tuple[str, float, float]]:
        """(what, mean, sd) of every effect, the largest first; pairs are written "a × b"."""
        rows = [(name, *effect) for name, effect in self.main.items()]
        rows += [(f"{a} × {b}", *effect) for (a, b), effect in self.pairs.items()]
        return sorted(rows, key=lambda row: -row[1])


@dataclass(frozen=True)
class _Dimension:
    """How a parameter looks to the trees, and how much each of its values counts.

    Args:
        name: Of the parameter.
        columns: One column, or one for each of three categories or more.
        atoms: Shape (values, columns), each legal value; without any it is a continuous
            range, which is one column in [0, 1].
        weights: Of the atoms; they sum to 1.
        choices: The values of a categorical or ordinal parameter, in the order of the atoms.
    """

    name: str
    columns: slice
    atoms: Array
    weights: Array
    choices: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Array:
        """A value, each as likely as it counts: shape (columns,)."""
        if not len(self.atoms):
            return rng.random(1)
        drawn: Array = self.atoms[rng.choice(len(self.atoms), p=self.weights)]
        return drawn

    def cells(self, low: Array, high: Array) -> tuple[NDArray[np.bool_], Array]:
        """Cut the parameter's range into cells that no split of a tree divides.

        Args:
            low: Shape (leaves, all columns), the lower ends of the leaves, exclusive.
            high: The upper ends, inclusive.

        Returns:
            Which leaf covers which cell, shape (leaves, cells), and the cells' weights.
        """
        low, high = low[:, None, self.columns], high[:, None, self.columns]
        places, weights = self.atoms, self.weights
        if not len(places):
            edges = np.unique(np.clip(np.append([low, high], [0.0, 1.0]), 0, 1))
            places, weights = (edges[1:, None] + edges[:-1, None]) / 2, np.diff(edges)
        inside = ((low < places) & (places <= high)).all(axis=2)
        return np.asarray(inside, dtype=np.bool_), weights


def importance(
    space: ConfigurationSpace,
    configs: Sequence[Mapping[str, Any]],
    values: Iterable[float | None],
    *,
    n_trees: int = 64,
    seed: int = 0,
    pairs: bool = True,
    mode: Literal["min", "max"] = "min",
    failed: Literal["worst", "drop"] = "worst",
) -> Importance:
    """Main and pairwise effects of the parameters on the objective, over the whole space.

    Args:
        space: Its constants are left out, its conditions may hold or not.
        configs: The trials' configurations. A parameter that one lacks because it is not active
            is drawn evenly there: it does nothing, whatever its value, and its effect is
            averaged over the configurations that do not use it too. (Were it at its default,
            trees could tell by that value what only its condition decides.) One that was not set
            is at its default. What the space does not name is ignored.
        values: The trials' objective; None, NaN and infinities are failures.
        n_trees: Of the forest.
        seed: Of the forest; the same gives the same result.
        pairs: Whether to compute the effects of pairs.
        mode: Which values are better; it decides which is the worst.
        failed: "worst" lets a failed trial count as the worst finite value, because where
            trials fail is what a parameter does; "drop" leaves them out.

    Raises:
        InvalidTypeError: `space` is no ConfigSpace, or `n_trees` or `seed` no whole number.
        InvalidValueError: A value is not legal in the space, there are fewer than two
            finite values, or as many values as configurations are not given.
        MissingDependencyError: scikit-learn is not installed.

    >>> from ConfigSpace import ConfigurationSpace
    >>> grid = [{"x": (i + 0.5) / 8, "y": (j + 0.5) / 8} for i in range(8) for j in range(8)]
    >>> found = importance(
    ...     ConfigurationSpace({"x": (0.0, 1.0), "y": (0.0, 1.0)}),
    ...     grid, [3 * c["x"] + c["y"] for c in grid], n_trees=16,
    ... )
    >>> list(found.main), round(found.main["x"].mean, 1)
    (['x', 'y'], 0.9)
    """
    check_count("n_trees", n_trees, 1, 100_000)
    check_count("seed", seed, least=0)
    check_flag("pairs", pairs)
    check_choice("mode", mode, ("min", "max"))
    dimensions = _dimensions(space)
    kept, y, failures = _objective(configs, values, mode, failed)
    x = _encode(space, dimensions, kept, np.random.default_rng([seed, 0]))
    trees, r2 = _grow(x, y, n_trees, seed)
    shares = [s for tree in trees if (s := _tree_shares(tree.tree_, dimensions, pairs))]
    names = [d.name for d in dimensions]
    return Importance(
        main={a[0]: e for a, e in _over_trees(shares, [(n,) for n in names])},
        pairs={
            (a[0], a[1]): e for a, e in _over_trees(shares, combinations(names, 2) if pairs else [])
        },
        r2=r2,
        trials=len(y),
        failed=failures,
    )


def from_result_grid(
    results: Iterable[Any],
    space: ConfigurationSpace,
    metric: str,
    mode: Literal["min", "max"],
    **options: Any,
) -> Importance:
    """`importance` of the trials of a Ray `ResultGrid`, each with its last report.

    Trials that crashed, or never reported the metric, count as failed.

    Args:
        results: What `Tuner.fit` returns.
        space: The parameters to look at; those of nested configurations are named as Ray
            prints them, as "optimizer/lr".
        metric: The key of the reports.
        mode: Whether it is minimised or maximised.
        **options: The other arguments of `importance`.
    """
    return importance(space, *read_result_grid(results, metric), mode=mode, **options)


def read_result_grid(
    results: Iterable[Any], metric: str
) -> tuple[list[dict[str, Any]], list[float | None]]:
    """The flat configurations of a Ray `ResultGrid`'s trials, and their last values or None.

    Args:
        results: What `Tuner.fit` returns.
        metric: The key of the reports.
    """
    configs, values = [], []
    for result in results:
        value = (result.metrics or {}).get(metric)
        configs.append(_flat(result.config or {}))
        values.append(None if result.error is not None else value)
    return configs, values


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _dimensions(space: ConfigurationSpace) -> list[_Dimension]:
    """The parameters that can vary, with their columns in the order of the space."""
    if not isinstance(space, ConfigurationSpace):
        raise InvalidTypeError(f"space must be a ConfigurationSpace, got {space!r}")
    dimensions: list[_Dimension] = []
    begin = 0
    for name in space:
        item = space[name]
        if isinstance(item, Constant):
            continue
        atoms, weights = _atoms(item)
        columns = slice(begin, begin + atoms.shape[1])
        dimensions.append(_Dimension(str(name), columns, atoms, weights, _choices(item)))
        begin = columns.stop
    if not dimensions:
        raise InvalidValueError("space must have a parameter that can vary, got none")
    return dimensions


def _choices(item: Any) -> tuple[Any, ...]:
    if isinstance(item, CategoricalHyperparameter):
        return tuple(item.choices)
    return tuple(item.sequence) if isinstance(item, OrdinalHyperparameter) else ()


def _atoms(item: Any) -> tuple[Array, Array]:
    """Every legal value as the trees see it, with its weight; none if it is continuous."""
    if n := len(_choices(item)):
        # Trees split numbers: of three categories or more, each has to be able to stand alone.
        apart = isinstance(item, CategoricalHyperparameter) and n > 2
        places = np.eye(n) if apart else np.arange(n, dtype=np.float64)[:, None]
        return np.asarray(places, dtype=np.float64), np.full(n, 1 / n)
    if not hasattr(item, "lower"):
        raise InvalidValueError(
            f"space parameter {item.name!r} is a {type(item).__name__}, whose range is unknown; "
            "use a float, an integer, a categorical or an ordinal"
        )
    count = int(item.upper) - int(item.lower) + 1
    if not isinstance(item, IntegerHyperparameter) or count > _MOST_ATOMS:
        return np.empty((0, 1)), np.empty(0)
    values = np.arange(int(item.lower), int(item.upper) + 1)
    weights = np.full(count, 1 / count)
    if getattr(item, "log", False):
        weights = np.diff(np.log(np.append(values - 0.5, values[-1] + 0.5)))
    # As scikit-learn sees them, so that none is on the wrong side of a split.
    atoms = np.array([_position(item, v) for v in values], dtype=np.float32).astype(np.float64)
    return atoms[:, None], weights / weights.sum()


def _position(item: Any, value: Any) -> float:
    """A number's place in its range, in [0, 1]; logarithmic where the parameter is."""
    low, high = float(item.lower), float(item.upper)
    number = float(value)
    if not low - 1e-6 * abs(low) <= number <= high + 1e-6 * abs(high):  # records are rounded
        raise ValueError
    if getattr(item, "log", False):
        low, high, number = math.log(low), math.log(high), math.log(number)
    return min(max((number - low) / (high - low), 0.0), 1.0)


def _encode(
    space: ConfigurationSpace,
    dimensions: Sequence[_Dimension],
    configs: Sequence[Mapping[str, Any]],
    rng: np.random.Generator,
) -> Array:
    """What the forest learns from: shape (trials, columns)."""
    x = np.empty((len(configs), dimensions[-1].columns.stop))
    for dimension in dimensions:
        name, item = dimension.name, space[dimension.name]
        conditions = space.parent_conditions_of[name]
        for row, config in enumerate(configs):
            value = config.get(name)
            if value is None and conditions and not _is_active(space, name, config):
                x[row, dimension.columns] = dimension.draw(rng)
                continue
            value = item.default_value if value is None else value
            try:
                if dimension.choices:
                    place = _index(dimension.choices, value)
                    x[row, dimension.columns] = dimension.atoms[place]
                else:
                    x[row, dimension.columns] = _position(item, value)
            except (LookupError, TypeError, ValueError):
                raise InvalidValueError(
                    f"configuration {row} has {name} = {value!r}, which is not legal in {item}"
                ) from None
    return x


def _is_active(space: ConfigurationSpace, name: str, config: Mapping[str, Any]) -> bool:
    """Whether the conditions on a parameter hold, and those on what they are about."""
    values: dict[str, Any] = {}
    for parent in space.parents_of[name]:
        value = config.get(parent.name)
        if value is None:
            active = _is_active(space, parent.name, config)
            value = parent.default_value if active else NotSet
        values[parent.name] = value
    return all(c.satisfied_by_value(values) for c in space.parent_conditions_of[name])


def _index(legal: Sequence[Any], value: Any) -> int:
    """Where a value is among the legal ones; numbers may have been rounded in a record."""
    if value in legal:
        return legal.index(value)
    close = [i for i, v in enumerate(legal) if math.isclose(float(v), float(value), rel_tol=1e-6)]
    return close[0]


def _objective(
    configs: Sequence[Mapping[str, Any]],
    values: Iterable[float | None],
    mode: str,
    failed: str,
) -> tuple[list[Mapping[str, Any]], Array, int]:
    """The configurations to learn from, their values, and how many values were not finite."""
    check_choice("failed", failed, ("worst", "drop"))
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidTypeError(f"values must be numbers, got {values!r}")
    y = as_numbers("values", list(values))
    if y.ndim != 1:
        raise InvalidValueError(f"values must be one number a configuration, got shape {y.shape}")
    configs = check_list("configs", configs, "configurations")
    if len(y) != len(configs):
        raise InvalidValueError(f"there are {len(configs)} configs, but {len(y)} values")
    finite = np.isfinite(y)
    if finite.sum() < 2:
        raise InvalidValueError(f"two finite values are needed at least, got {finite.sum()}")
    failures = int((~finite).sum())
    if failed == "drop":
        return [c for c, ok in zip(configs, finite, strict=True) if ok], y[finite], failures
    worst = y[finite].max() if mode == "min" else y[finite].min()
    return list(configs), np.where(finite, y, worst), failures


def _grow(x: Array, y: Array, n_trees: int, seed: int) -> tuple[list[Any], float]:
    """The forest, and its R² on what is out of the bag of its trees."""
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError:
        raise MissingDependencyError(
            "importance needs scikit-learn; install it with: pip install 'tune-ext[compare-base]'"
        ) from None
    samples = min(len(y), _MOST_SAMPLES)
    forest = RandomForestRegressor(
        n_estimators=n_trees,
        min_samples_leaf=max(2, round(math.sqrt(samples) / 4)),
        max_leaf_nodes=_MOST_LEAVES,
        max_samples=samples,
        oob_score=True,
        random_state=seed,
    )
    # Leaves grow with the trials, as noise looks like interactions in small ones: of 3 x + y
    # plus noise of deviation 1, at 2000 trials, x has 0.9; found is 0.74, with leaves of 2 0.51.
    with warnings.catch_warnings():  # few trees leave nothing out: that is no news
        warnings.simplefilter("ignore", UserWarning)
        forest.fit(x, y)
    return list(forest.estimators_), float(forest.oob_score_) if np.ptp(y) > 0 else math.nan


def _over_trees(
    shares: Sequence[Mapping[tuple[str, ...], float]], keys: Iterable[tuple[str, ...]]
) -> list[tuple[tuple[str, ...], Effect]]:
    """Mean and deviation of each key's share, the largest mean first; 0 without any tree."""
    effects = []
    for key in keys:
        over = np.array([tree[key] for tree in shares] or [0.0])
        effects.append((key, Effect(float(over.mean()), float(over.std()))))
    return sorted(effects, key=lambda item: -item[1].mean)


def _boxes(tree: Any, columns: int) -> tuple[Array, Array, Array]:
    """The leaves of a scikit-learn tree: lower ends, upper ends, values."""
    low = np.full((tree.node_count, columns), -np.inf)
    high = np.full((tree.node_count, columns), np.inf)
    left, right = tree.children_left, tree.children_right
    for node in range(tree.node_count):  # parents come before their children
        if left[node] < 0:
            continue
        feature, threshold = tree.feature[node], tree.threshold[node]
        for child in (left[node], right[node]):
            low[child], high[child] = low[node], high[node]
        high[left[node], feature] = min(high[node, feature], threshold)
        low[right[node], feature] = max(low[node, feature], threshold)
    leaves = left < 0
    return low[leaves], high[leaves], np.asarray(tree.value[leaves, 0, 0], dtype=np.float64)


def _tree_shares(
    tree: Any, dimensions: Sequence[_Dimension], pairs: bool
) -> dict[tuple[str, ...], float]:
    """The effects in one tree; empty for a tree that is constant.

    The mean over all parameters but a is, in a cell of a, the sum over the leaves that cover
    it of their value times their size in all other directions (the paper's algorithm 1).
    """
    low, high, value = _boxes(tree, dimensions[-1].columns.stop)
    cells = [d.cells(low, high) for d in dimensions]
    covers, weights = [c.astype(np.float64) for c, _ in cells], [w for _, w in cells]
    sizes = np.array([c @ w for c, w in zip(covers, weights, strict=True)])
    volume = sizes.prod(axis=0)
    mean = float(volume @ value)
    total = float(volume @ (value - mean) ** 2)
    if total <= 1e-14 * max(float(np.abs(value).max()) ** 2, 1e-300):
        return {}
    value = value - mean
    alone = [c.T @ (value * np.delete(sizes, i, axis=0).prod(axis=0)) for i, c in enumerate(covers)]
    shares: dict[tuple[str, ...], float] = {}
    for d, w, a in zip(dimensions, weights, alone, strict=True):
        shares[d.name,] = float(w @ a**2) / total
    for i, j in combinations(range(len(dimensions)), 2) if pairs else ():
        rest = value * np.delete(sizes, (i, j), axis=0).prod(axis=0)
        both = (covers[i] * rest[:, None]).T @ covers[j]
        both -= alone[i][:, None] + alone[j]
        share = float(weights[i] @ both**2 @ weights[j]) / total
        shares[dimensions[i].name, dimensions[j].name] = share
    return shares
