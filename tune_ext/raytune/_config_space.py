"""A space in ConfigSpace's terms, for searchers that think in it, and the way back to Tune's."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ConfigSpace import (
    CategoricalHyperparameter,
    Configuration,
    ConfigurationSpace,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from ray.tune.search.sample import Categorical

from tune_ext._checks import check_mappings
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune._space import iter_domains, to_parameters, unflatten

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
                if not choices[name]:
                    raise InvalidValueError(f"{name} has no choices: give one or more")
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
        for name, value in self.plain(config).items():
            choices = self._choices.get(name)
            values[self._paths[name]] = value if choices is None else choices[value]
        return unflatten(values)

    def plain(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """ConfigSpace's own values as plain ones, those with steps rounded."""
        values = {name: _plain(value) for name, value in dict(config).items()}
        for name in self._steps.keys() & values.keys():
            values[name] = _rounded(values[name], self._steps[name], self.space[name])
        return values

    def encode(self, point: Mapping[str, Any]) -> Configuration:
        """The nested configuration as ConfigSpace's; what is not searched is left out."""
        values = {}
        for name, path in self._paths.items():
            value = _at(point, path)
            if value is not _MISSING:
                values[name] = _place(value, self._choices.get(name, []))
        try:
            return Configuration(self.space, values=values)
        except Exception as error:  # ConfigSpace's errors have no common base
            raise InvalidValueError(
                f"points_to_evaluate has {dict(point)!r}, which is not in the space: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "space": _plain(self.space.to_serialized_dict()),
            "paths": {name: list(path) for name, path in self._paths.items()},
            "choices": {
                name: [_choice_to_json(value) for value in values]
                for name, values in self._choices.items()
            },
            "steps": self._steps,
        }

    @classmethod
    def from_json(
        cls, state: Mapping[str, Any], known: SearchedSpace | None = None
    ) -> SearchedSpace:
        """What `to_json` wrote.

        Args:
            state: It.
            known: Where choices are taken from that JSON cannot hold: functions and the like.

        Raises:
            StateError: There are such choices, and `known` lacks them.
        """
        told = {} if known is None else known._choices
        return cls(
            ConfigurationSpace.from_serialized_dict(copy.deepcopy(state["space"])),
            {name: tuple(path) for name, path in state["paths"].items()},
            {
                name: [
                    _choice_from_json(v, dict(enumerate(told.get(name, []))).get(i, _MISSING))
                    for i, v in enumerate(values)
                ]
                for name, values in state["choices"].items()
            },
            state.get("steps", {}),
        )


_MISSING = object()


def _at(point: Any, path: Sequence[Any]) -> Any:
    """What is at a path of a nested configuration, be it a mapping itself."""
    for key in path:
        if not isinstance(point, Mapping) or key not in point:
            return _MISSING
        point = point[key]
    return point


def _place(value: Any, choices: Sequence[Any]) -> Any:
    """The number of a choice; the value itself if it is none of them."""
    for same in (_identical, _equal):
        for number, choice in enumerate(choices):
            if same(value, choice):
                return number
    return value


def _identical(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and _equal(one, other))


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError):  # arrays
        return False


def _plain(value: Any) -> Any:
    """A copy without numpy's scalars, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def _choice_to_json(value: Any) -> Any:
    """Ray stands tuples for what is not a plain value; JSON knows lists alone."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (list, tuple):
        return {type(value).__name__: [_choice_to_json(item) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _choice_to_json(item) for key, item in value.items()}}
    return {"object": f"{type(value).__module__}.{type(value).__qualname__}"}


def _choice_from_json(state: Any, known: Any = _MISSING) -> Any:
    """What `_choice_to_json` wrote; `known` is the choice at the same place elsewhere."""
    if known is not _MISSING and _choice_to_json(known) == state:
        return known
    if not isinstance(state, Mapping):
        return state
    ((kind, content),) = state.items()
    if kind == "dict":
        return {key: _choice_from_json(item) for key, item in content.items()}
    if kind in ("list", "tuple"):
        items = [_choice_from_json(item) for item in content]
        return items if kind == "list" else tuple(items)
    raise StateError(
        f"the saved space has a choice of type {content}, which cannot be saved: restore it in a "
        "searcher that is given the same space"
    )


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
    low, high = number.lower, number.upper
    try:
        if number.integer:
            return UniformIntegerHyperparameter(name, int(low), int(high), log=number.log), step
        with np.errstate(over="ignore", invalid="ignore"):  # it rounds them
            made = UniformFloatHyperparameter(name, low, high, log=number.log)
        if not math.isfinite(made.upper - made.lower):
            raise ValueError("numbers as large as these are rounded to infinite ones")
        return made, step
    except (ValueError, ArithmeticError) as error:  # such as a range wider than any number
        raise InvalidValueError(
            f"space parameter {name!r} from {low:g} to {high:g} cannot be searched: {error}"
        ) from None


def check_points(points: Any) -> list[dict[str, Any]]:
    """A copy of points to evaluate; an error unless they are a list of dictionaries."""
    given = [] if points is None else check_mappings("points_to_evaluate", points)
    try:
        return [_plain(copy.deepcopy(dict(point))) for point in given]
    except TypeError as error:  # a generator, an open file
        raise InvalidTypeError(f"points_to_evaluate cannot be copied: {error}") from None
