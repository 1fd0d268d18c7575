"""A space in ConfigSpace's terms, for searchers that think in it, and the way back to Tune's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ConfigSpace import (
    CategoricalHyperparameter,
    Configuration,
    ConfigurationSpace,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from ray.tune.search.sample import Categorical

from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune._space import flatten, iter_domains, to_parameters, unflatten

__all__ = ["SearchedSpace", "check_points"]


class SearchedSpace:
    """A space in ConfigSpace's terms, and the way back to Tune's nested configurations.

    Args:
        space: What is searched.
        paths: The keys of each parameter in the nested configuration.
        choices: What the numbers of a Tune choice stand for.
        steps: Of parameters whose values are multiples of something: of what.
    """

    def __init__(
        self,
        space: ConfigurationSpace,
        paths: Mapping[str, tuple[Any, ...]],
        choices: Mapping[str, list[Any]],
        steps: Mapping[str, float] | None = None,
    ) -> None:
        self.space, self._paths, self._choices = space, dict(paths), dict(choices)
        self._steps = dict(steps or {})

    @classmethod
    def of(cls, space: Any, *, steps: bool = False) -> SearchedSpace:
        """From a ConfigSpace or from Tune's domains.

        Args:
            space: Either.
            steps: Whether quantised domains are taken: searched as if they were not, and
                rounded. An error without.
        """
        if isinstance(space, ConfigurationSpace):
            made = cls(copy.deepcopy(space), {n: tuple(n.split("/")) for n in space}, {})
        elif isinstance(space, Mapping):
            made = cls._of_domains(space, steps)
        else:
            raise InvalidTypeError(
                f"space must be a ConfigurationSpace or hold Tune domains, got {space!r}"
            )
        if not len(made.space):
            raise InvalidValueError("the search space is empty: nothing in it is a Tune domain")
        return made

    @classmethod
    def _of_domains(cls, space: Mapping[str, Any], with_steps: bool) -> SearchedSpace:
        made = ConfigurationSpace()
        paths: dict[str, tuple[Any, ...]] = {}
        choices: dict[str, list[Any]] = {}
        steps: dict[str, float] = {}
        for path, domain in iter_domains(space):
            name = "/".join(str(key) for key in path)
            if name in paths:
                raise InvalidValueError(f"space names {name} twice; rename one of them")
            paths[name] = path
            if isinstance(domain, Categorical):
                choices[name] = list(domain.categories)
                made.add(CategoricalHyperparameter(name, range(len(domain.categories))))
            else:
                number, step = _number(name, path, domain, with_steps)
                made.add(number)
                if step is not None:
                    steps[name] = step
        return cls(made, paths, choices, steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchedSpace) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment] # a space can change

    def decode(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The nested configuration of plain values."""
        values = {}
        for name, value in dict(config).items():
            plain = value.item() if hasattr(value, "item") else value
            choices = self._choices.get(name)
            if name in self._steps:
                plain = _rounded(plain, self._steps[name], self.space[name])
            values[self._paths[name]] = plain if choices is None else choices[plain]
        return unflatten(values)

    def encode(self, point: Mapping[str, Any]) -> Configuration:
        """The nested configuration as ConfigSpace's; what is not searched is left out."""
        flat, values = flatten(point), {}
        for name, path in self._paths.items():
            if path in flat:
                values[name] = flat[path]
                if name in self._choices and flat[path] in self._choices[name]:
                    values[name] = self._choices[name].index(flat[path])
        try:
            return Configuration(self.space, values=values)
        except Exception as error:  # ConfigSpace's errors have no common base
            raise InvalidValueError(
                f"points_to_evaluate has {dict(point)!r}, which is not in the space: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "space": self.space.to_serialized_dict(),
            "paths": {name: list(path) for name, path in self._paths.items()},
            "choices": self._choices,
            "steps": self._steps,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> SearchedSpace:
        """What `to_json` wrote."""
        return cls(
            ConfigurationSpace.from_serialized_dict(state["space"]),
            {name: tuple(path) for name, path in state["paths"].items()},
            # Ray stands tuples for what is not a plain value; JSON knows lists alone.
            {name: [_tuples(v) for v in values] for name, values in state["choices"].items()},
            state.get("steps", {}),
        )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _rounded(value: float, step: float, parameter: Any) -> float:
    """The multiple of `step` next to a value, within the parameter's bounds."""
    nearest = round(value / step) * step
    if nearest > parameter.upper:
        nearest -= step
    if nearest < parameter.lower:
        nearest += step
    return round(nearest) if isinstance(value, int) else float(round(nearest, 12))


def _number(
    name: str, path: tuple[Any, ...], domain: Any, with_steps: bool
) -> tuple[UniformFloatHyperparameter | UniformIntegerHyperparameter, float | None]:
    (number,) = to_parameters(unflatten({path: domain}))
    step = None if number.integer and number.step == 1 else number.step
    if step is not None and not with_steps:
        raise InvalidValueError(
            f"space parameter {name!r} has steps of {step}, which this searcher does not know; use "
            "tune.uniform, tune.randint or a tune.choice of the values"
        )
    if number.integer:
        low, high = int(number.lower), int(number.upper)
        return UniformIntegerHyperparameter(name, low, high, log=number.log), step
    return UniformFloatHyperparameter(name, number.lower, number.upper, log=number.log), step


def check_points(points: Any) -> list[dict[str, Any]]:
    """A copy of points to evaluate; an error unless they are a list of dictionaries."""
    if isinstance(points, Mapping | str) or not isinstance(points or (), Sequence):
        raise InvalidTypeError(f"points_to_evaluate must be a list of dictionaries, got {points!r}")
    for point in points or ():
        if not isinstance(point, Mapping):
            raise InvalidTypeError(f"points_to_evaluate must hold dictionaries, got {point!r}")
    return [copy.deepcopy(dict(point)) for point in points or ()]
