"""Does the same matter everywhere? Importances for each value of a key, such as the image size.

`tune_ext.importance` once for the trials of each group, and a bootstrap over the trials that says
how sure it is what differs: every resample grows a forest of its own for each group. Where all
groups have the same configurations, a resample draws configurations, so that groups are compared
on the same ones.

| here | meaning |
| --- | --- |
| group | trials whose configurations have one value of the key, as one image size |
| draw | the main effects of a group in one resample of its trials |
| rank correlation | Spearman's, of the parameters' main effects in two groups |

The published finding that this is for: the importances are nearly the same at every image size,
and only that of the number of layers depends on it (Hinz et al., arXiv 1807.07362).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ConfigSpace import ConfigurationSpace
from numpy.typing import NDArray

from tune_ext._checks import check_count
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.importance import Importance, importance

__all__ = ["Estimate", "GroupedImportance", "importance_by"]

Array = NDArray[np.float64]
Config = Mapping[str, Any]

_LEAST = 8
"""Trials of a group with a finite value: fewer say nothing."""

LEVEL = 0.95
"""Of all intervals."""


class Estimate(NamedTuple):
    """A value with the ends of its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval has zero outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class GroupedImportance:
    """What mattered in each group, and whether that was the same.

    Args:
        key: What the groups are of.
        groups: Its value → the importances there, smallest value first.
        draws: Its value → main effects by resample, shape (resamples, parameters); the
            parameters in the order of `names`.
        names: The parameters that can vary, in the order of the space.
    """

    key: str
    groups: Mapping[Any, Importance]
    names: tuple[str, ...]
    draws: Mapping[Any, Array] = field(repr=False)

    def share(self, group: Any, name: str) -> Estimate:
        """A parameter's main effect in a group, with the interval of its resamples."""
        draws = self._draws(group)[:, self._place(name)]
        return _estimate(self.groups[group].main[name].mean, draws)

    def difference(self, name: str, first: Any, second: Any) -> Estimate:
        """A parameter's main effect in the second group minus that in the first."""
        place = self._place(name)
        draws = self._draws(second)[:, place] - self._draws(first)[:, place]
        mains = (self.groups[group].main[name].mean for group in (second, first))
        return _estimate(next(mains) - next(mains), draws)

    def rank_correlation(self, first: Any, second: Any) -> Estimate:
        """Spearman's correlation of the parameters' main effects in two groups.

        NaN with fewer than three parameters. Effects that are all noise have no order, and a
        resample, which has fewer distinct trials, has more noise: the interval lies lower than
        the value, and may not hold it. Whether the large effects agree says more.
        """
        a, b = self._draws(first), self._draws(second)
        mains = [[self.groups[g].main[n].mean for n in self.names] for g in (first, second)]
        return _estimate(
            _spearman(*mains), np.array([_spearman(x, y) for x, y in zip(a, b, strict=True)])
        )

    def to_rows(self) -> list[tuple[str, list[float]]]:
        """(parameter, its main effect in each group), the largest on average first."""
        rows = [(n, [g.main[n].mean for g in self.groups.values()]) for n in self.names]
        return sorted(rows, key=lambda row: -sum(row[1]))

    def _draws(self, group: Any) -> Array:
        if group not in self.draws:
            known = ", ".join(map(str, self.draws))
            raise InvalidValueError(f"there is no group {self.key} = {group!r}; there are {known}")
        return self.draws[group]

    def _place(self, name: str) -> int:
        if name not in self.names:
            known = ", ".join(self.names)
            raise InvalidValueError(f"there is no parameter {name!r}; there are {known}")
        return self.names.index(name)


def importance_by(
    space: ConfigurationSpace,
    configs: Sequence[Config],
    values: Iterable[float | None],
    *,
    group_by: str,
    n_trees: int = 64,
    resamples: int = 100,
    resample_trees: int = 16,
    seed: int = 0,
    **options: Any,
) -> GroupedImportance:
    """The importances of the parameters for each value of one key of the configurations.

    Args:
        space: Of the other parameters; where it has the key too, that is left out.
        configs: The trials' configurations, each with the key.
        values: The trials' objective; see `tune_ext.importance.importance`. Of a Ray
            `ResultGrid`, `tune_ext.importance.read_result_grid` gives both.
        group_by: The key, such as "image_size".
        n_trees: Of each group's forest.
        resamples: Of the bootstrap over trials; 0 does without, and there are no intervals.
        resample_trees: Of each resample's forest.
        seed: Of the forests and the resamples; the same gives the same result.
        **options: The other arguments of `importance`.

    Raises:
        InvalidTypeError, InvalidValueError: As `importance`; a configuration lacks the key; a
            group has too few trials with a finite value.
        MissingDependencyError: scikit-learn is not installed.

    >>> from ConfigSpace import ConfigurationSpace
    >>> grid = [{"x": (i + 0.5) / 8, "y": (j + 0.5) / 8} for i in range(8) for j in range(8)]
    >>> configs = [{**c, "size": s} for s in (14, 28) for c in grid]
    >>> found = importance_by(
    ...     ConfigurationSpace({"x": (0.0, 1.0), "y": (0.0, 1.0)}), configs,
    ...     [c["x"] if c["size"] == 14 else c["y"] for c in configs],
    ...     group_by="size", n_trees=8, resamples=8, resample_trees=4,
    ... )
    >>> [max(group.main, key=group.main.get) for group in found.groups.values()]
    ['x', 'y']
    >>> found.difference("x", 14, 28).excludes_zero
    True
    """
    check_count("resamples", resamples, least=0)
    check_count("resample_trees", resample_trees)
    check_count("seed", seed, least=0)
    space = _without(space, group_by)
    parts = _split(configs, list(values), group_by)
    groups = {
        group: importance(space, rows, y, n_trees=n_trees, seed=seed, **options)
        for group, (rows, y) in parts.items()
    }
    names = tuple(n for n in space if n in next(iter(groups.values())).main)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    draws: dict[Any, list[list[float]]] = {group: [] for group in groups}
    settings = {**options, "pairs": False, "n_trees": resample_trees}
    for chosen in _resamples(parts, resamples, rng):
        again = int(rng.integers(2**31))
        for group, places in chosen.items():
            rows, y = parts[group]
            drawn = [rows[i] for i in places], [y[i] for i in places]
            main = importance(space, *drawn, seed=again, **settings).main
            draws[group].append([main[n].mean for n in names])
    shape = (-1, len(names))
    arrays = {
        group: np.array(rows, dtype=np.float64).reshape(shape) for group, rows in draws.items()
    }
    return GroupedImportance(group_by, groups, names, arrays)


def _without(space: ConfigurationSpace, key: str) -> ConfigurationSpace:
    """The space without a parameter and what is conditional on it, in a group always or never."""
    if not isinstance(space, ConfigurationSpace):
        raise InvalidTypeError(f"space must be a ConfigurationSpace, got {space!r}")
    if key not in space:
        return space
    document = space.to_serialized_dict()
    kept = [entry for entry in document["hyperparameters"] if entry["name"] != key]
    document |= {"hyperparameters": kept}
    for clauses in ("conditions", "forbiddens"):
        document[clauses] = [c for c in document[clauses] if key not in _named(c)]
    return ConfigurationSpace.from_serialized_dict(document)


def _named(clause: Mapping[str, Any]) -> set[str]:
    """The parameters that a serialised condition or forbidden clause is about."""
    own = {str(clause[k]) for k in ("parent", "child", "name") if k in clause}
    inner = [*clause.get("conditions", ()), *clause.get("clauses", ())]
    return own.union(*(_named(part) for part in inner))


_Part = tuple[list[Config], list[float | None]]


def _split(configs: Sequence[Config], values: list[float | None], key: str) -> dict[Any, _Part]:
    if len(values) != len(configs):
        raise InvalidValueError(f"there are {len(configs)} configs, but {len(values)} values")
    parts: dict[Any, _Part] = {}
    for row, (config, value) in enumerate(zip(configs, values, strict=True)):
        if config.get(key) is None:
            raise InvalidValueError(f"configuration {row} has no {key!r}, which group_by names")
        rows, y = parts.setdefault(config[key], ([], []))
        rows.append({k: v for k, v in config.items() if k != key})
        y.append(value)
    if not parts:
        raise InvalidValueError("there are no configurations")
    for group, (_, y) in parts.items():
        known = sum(_is_finite(value) for value in y)
        if known < _LEAST:
            raise InvalidValueError(
                f"{key} = {group!r} has {known} trials with a finite value, {_LEAST} are needed; "
                "leave its trials out"
            )
    return {group: parts[group] for group in sorted(parts, key=_order)}


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _order(group: Any) -> tuple[float, str]:
    number = isinstance(group, int | float)
    return (float(group) if number else math.inf, str(group))


def _resamples(
    parts: Mapping[Any, _Part], count: int, rng: np.random.Generator
) -> Iterable[dict[Any, list[int]]]:
    """Places in each group's trials, `count` times; the same configurations where all have them."""
    rows = {group: _by_config(configs) for group, (configs, _) in parts.items()}
    first = next(iter(rows.values()))
    shared = all(known.keys() == first.keys() for known in rows.values())
    names = {group: list(first if shared else known) for group, known in rows.items()}
    done = 0
    while done < count:
        drawn = rng.integers(len(first), size=len(first))
        chosen = {}
        for group, known in rows.items():
            if not shared:
                drawn = rng.integers(len(known), size=len(known))
            chosen[group] = [place for i in drawn for place in known[names[group][i]]]
        # Too few that did not fail, by bad luck: drawn once more.
        if all(sum(_is_finite(parts[g][1][i]) for i in p) >= 2 for g, p in chosen.items()):
            done += 1
            yield chosen


def _by_config(configs: Sequence[Config]) -> dict[str, list[int]]:
    """Configuration → its places: repetitions go together, as they are not independent."""
    places: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        key = json.dumps(config, sort_keys=True, default=str)
        places.setdefault(key, []).append(place)
    return places


def _spearman(first: Sequence[float] | Array, second: Sequence[float] | Array) -> float:
    from scipy.stats import rankdata

    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _estimate(value: float, draws: Array) -> Estimate:
    known = draws[np.isfinite(draws)]
    if len(known) < 2:
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
