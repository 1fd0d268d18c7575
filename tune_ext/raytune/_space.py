"""Search spaces: Ray Tune domains, ConfigSpace, flat and nested configurations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ConfigSpace import ConfigurationSpace
from ConfigSpace.hyperparameters import (
    CategoricalHyperparameter,
    Constant,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from ray import tune
from ray.tune.search.sample import (
    Categorical,
    Domain,
    Float,
    Function,
    Integer,
    LogUniform,
    Quantized,
)
from ray.tune.search.sample import Normal as NormalSampler

from tune_ext._checks import LARGEST_COUNT, as_number, check_positive
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = [
    "NumericParameter",
    "flatten",
    "from_config_space",
    "has_domains",
    "iter_domains",
    "to_parameters",
    "unflatten",
]

Path = tuple[Any, ...]


@dataclass(frozen=True)
class NumericParameter:
    """One number of a search space.

    Attributes:
        path: The keys that lead to the value in the nested configuration.
        lower: Smallest legal value.
        upper: Largest legal value.
        log: Whether the scale is logarithmic.
        integer: Whether only whole numbers are legal.
        step: Values are multiples of this; None for a continuous range.
    """

    path: Path
    lower: float
    upper: float
    log: bool = False
    integer: bool = False
    step: float | None = None

    @property
    def name(self) -> str:
        """The path as Ray prints it: ``optimizer/lr``."""
        return "/".join(str(key) for key in self.path)


def flatten(config: Mapping[Any, Any]) -> dict[Path, Any]:
    """Map the path of every leaf of a nested configuration to its value.

    >>> flatten({"lr": 0.1, "model": {"width": 8}})
    {('lr',): 0.1, ('model', 'width'): 8}
    """
    flat: dict[Path, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value and "grid_search" not in value:
            flat.update({(key, *path): leaf for path, leaf in flatten(value).items()})
        else:
            flat[(key,)] = value
    return flat


def unflatten(values: Mapping[Path, Any]) -> dict[Any, Any]:
    """Build the nested configuration of which `flatten` gives `values`.

    >>> unflatten({("lr",): 0.1, ("model", "width"): 8})
    {'lr': 0.1, 'model': {'width': 8}}

    Raises:
        InvalidValueError: A path is the beginning of another one.
    """
    config: dict[Any, Any] = {}
    for path, value in values.items():
        for end in range(1, len(path)):
            if path[:end] in values:
                name = "/".join(str(key) for key in path[:end])
                raise InvalidValueError(
                    f"space names {name!r} as a value and as a group of values; rename one of them"
                )
        node = config
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return config


def iter_domains(space: Mapping[Any, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the domain of everything in `space` that is not a constant.

    Grids (``tune.grid_search``) and domains inside lists are yielded as they are, so that
    the caller can say what it cannot handle.
    """
    for path, value in flatten(space).items():
        if isinstance(value, Domain) or (isinstance(value, Mapping) and "grid_search" in value):
            yield path, value
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    for tail, domain in iter_domains(item):
                        yield (*path, index, *tail), domain
                elif isinstance(item, Domain):
                    yield (*path, index), item


def has_domains(space: Mapping[Any, Any]) -> bool:
    """Tell whether anything in `space` is to be searched."""
    return any(True for _ in iter_domains(space))


def from_config_space(space: ConfigurationSpace) -> dict[str, Any]:
    """Express a ConfigSpace as a dictionary of Ray Tune domains and constants.

    Args:
        space: A space without conditions or forbidden clauses; Tune's domains have neither.

    Raises:
        InvalidValueError: The space has conditions, forbidden clauses or a kind of
            hyperparameter that no Tune domain describes.
    """
    if len(space.conditions) or len(space.forbidden_clauses):
        raise InvalidValueError(
            "space has conditions or forbidden clauses, which Ray Tune domains cannot express; "
            "remove them, or fix the parameters that they concern"
        )
    return {str(name): _from_hyperparameter(space[name]) for name in space}


def _from_hyperparameter(item: Any) -> Any:
    """Translate one hyperparameter of ConfigSpace."""
    if isinstance(item, Constant):
        return item.value
    if isinstance(item, UniformFloatHyperparameter):
        build = tune.loguniform if item.log else tune.uniform
        return build(float(item.lower), float(item.upper))
    if isinstance(item, UniformIntegerHyperparameter):
        build = tune.lograndint if item.log else tune.randint
        return build(int(item.lower), int(item.upper) + 1)
    if isinstance(item, CategoricalHyperparameter):
        return tune.choice(list(item.choices))
    if isinstance(item, OrdinalHyperparameter):
        return tune.choice(list(item.sequence))
    raise InvalidValueError(
        f"space parameter {item.name!r} is a {type(item).__name__}, which has no counterpart in "
        "Ray Tune; use a uniform float or integer, a categorical, an ordinal or a constant"
    )


def to_parameters(
    space: Mapping[Any, Any] | ConfigurationSpace | Sequence[NumericParameter],
) -> list[NumericParameter]:
    """List the numbers to search in a space, in the order in which the space names them.

    Args:
        space: Nested dictionary of Tune domains (everything else in it is a constant), a
            ConfigSpace, or the list that this function returns.

    Raises:
        InvalidTypeError: `space` is none of these.
        InvalidValueError: Something in the space is not a bounded range of numbers.
    """
    if isinstance(space, ConfigurationSpace):
        space = unflatten(
            {tuple(name.split("/")): item for name, item in from_config_space(space).items()}
        )
    if isinstance(space, Mapping):
        parameters = [_to_parameter(path, domain) for path, domain in iter_domains(space)]
    elif isinstance(space, Sequence) and all(isinstance(p, NumericParameter) for p in space):
        parameters = list(space)
    else:
        raise InvalidTypeError(
            f"space must be a dictionary of Ray Tune domains or a ConfigurationSpace, got {space!r}"
        )
    names = [parameter.name for parameter in parameters]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidValueError(f"space names {', '.join(twice)} twice; rename one of them")
    return parameters


def _to_parameter(path: Path, domain: Any) -> NumericParameter:
    """Translate one Tune domain, or say why it is not a range of numbers."""
    name = "/".join(str(key) for key in path)
    if any(isinstance(key, int) for key in path):
        raise InvalidValueError(
            f"space parameter {name!r} is inside a list; give it a key of its own in a dictionary"
        )
    sampler = None if isinstance(domain, Mapping) else domain.get_sampler()
    step = None
    if isinstance(sampler, Quantized):
        step = check_positive(f"the step of space parameter {name!r}", sampler.q, below=math.inf)
        sampler = sampler.get_sampler()
    problem = _why_not_numeric(domain, sampler)
    if problem:
        raise InvalidValueError(
            f"space parameter {name!r} is {problem}; this searcher moves numbers within bounds: "
            "use tune.uniform or tune.loguniform, or fix the parameter to one value"
        )
    integer = isinstance(domain, Integer)
    # Tune's integer ranges exclude their upper end.
    upper = domain.upper - 1 if integer and step in (None, 1.0) else domain.upper
    if not domain.lower < upper:
        raise InvalidValueError(
            f"space parameter {name!r} has the bounds {domain.lower!r} and {upper!r}: "
            "the lower must be below the upper"
        )
    log = isinstance(sampler, LogUniform)
    return NumericParameter(path, float(domain.lower), float(upper), log, integer, step)


def _why_not_numeric(domain: Any, sampler: Any) -> str | None:
    """Say what a domain is when it is not a bounded range of numbers."""
    if isinstance(domain, Mapping):
        return "a grid (tune.grid_search)"
    if isinstance(domain, Categorical):
        return f"a choice among {list(domain.categories)!r}"
    if isinstance(domain, Function):
        return "a function (tune.sample_from)"
    if not isinstance(domain, Float | Integer):
        return f"a {type(domain).__name__}"
    if isinstance(sampler, NormalSampler):
        return "a normal distribution"
    ends = [as_number("a bound", bound) for bound in (domain.lower, domain.upper)]
    if not all(map(math.isfinite, ends)):
        return f"unbounded {domain.domain_str}"
    if isinstance(domain, Integer) and max(map(abs, ends)) > LARGEST_COUNT:
        return "a range of whole numbers that no floating-point number tells apart"
    return None
