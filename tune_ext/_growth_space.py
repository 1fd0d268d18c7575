"""The space of the convolutional network of Hinz et al., arXiv 1807.07362.

What is searched is the paper's: the learning rate, the number of convolutions and of fully
connected layers, the filters of each convolution and their size, the units of each fully connected
layer, the batch size, and the weights of the L1 and L2 penalties. **The ranges are ours**: the
paper's are not public in what we have.

| name | type | range | log |
|---|---|---|---|
| learning_rate | float | 1e-5 … 1e-1 | yes |
| batch_size | int | 16 … 256 | yes |
| l1 | float | 1e-8 … 1e-3 | yes |
| l2 | float | 1e-7 … 1e-2 | yes |
| conv_layers | int | 1 … 4 | no |
| fc_layers | int | 1 … 3 | no |
| filters_1, … (where there is such a convolution) | int | 8 … 64 | yes |
| kernel_radius_1, … (likewise; kernels of 2r + 1 pixels) | int | 1 … 3 | no |
| units_1, … (where there is such a layer) | int | 16 … 256 | yes |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ConfigSpace import (
    ConfigurationSpace,
    Constant,
    GreaterThanCondition,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)

from tune_ext._checks import as_number, check_flag
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["GROWTH_DEFAULTS", "growth_domains", "growth_space"]


@dataclass(frozen=True)
class _Range:
    """Bounds, both included, and a value for a parameter of which nothing is known.

    Attributes:
        low: The lower one.
        high: The upper one.
        default: That value.
        log: Whether it is searched by its logarithm.
        integer: Whether it is a whole number.
        layers: The parameter that says how many of it there are; None: it is one.
        least: The smallest whole number that means something.
        most: The largest one that a network can be built with.
    """

    low: float
    high: float
    default: float
    log: bool = False
    integer: bool = True
    layers: str | None = None
    least: int = 1
    most: int = 2**20

    def within(self, name: str, limits: tuple[float, float]) -> _Range:
        low, high = (as_number(f"limits[{name!r}]", limit) for limit in limits)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InvalidValueError(f"limits[{name!r}] must be finite, got {limits!r}")
        if self.integer and high > self.most:
            raise InvalidValueError(f"limits[{name!r}] must be at most {self.most}, got {limits!r}")
        if low > high or (self.log and low <= 0) or (self.integer and low < self.least):
            raise InvalidValueError(f"limits[{name!r}] is no range of {name}: {limits!r}")
        if self.integer and not (low.is_integer() and high.is_integer()):
            raise InvalidValueError(f"limits[{name!r}] must be whole numbers, got {limits!r}")
        default = min(max(self.default, low), high)
        return replace(self, low=low, high=high, default=default)


_RANGES = {
    "learning_rate": _Range(1e-5, 1e-1, 1e-3, log=True, integer=False),
    "batch_size": _Range(16, 256, 32, log=True),
    "l1": _Range(1e-8, 1e-3, 1e-8, log=True, integer=False),
    "l2": _Range(1e-7, 1e-2, 1e-5, log=True, integer=False),
    "conv_layers": _Range(1, 4, 3, most=32),
    "fc_layers": _Range(1, 3, 1, least=0, most=32),
    "filters": _Range(8, 64, 32, log=True, layers="conv_layers"),
    "kernel_radius": _Range(1, 3, 1, layers="conv_layers"),
    "units": _Range(16, 256, 64, log=True, layers="fc_layers"),
}


def _ranges(limits: Mapping[str, tuple[float, float]] | None) -> dict[str, _Range]:
    """The range of every parameter by its full name, as "filters_2"."""
    if not isinstance(limits, Mapping | None):
        raise InvalidTypeError(f"limits must map names to (low, high), got {limits!r}")
    ranges = dict(_RANGES)
    for name, pair in (limits or {}).items():
        if name not in ranges:
            raise InvalidValueError(f"limits names {name!r}; there are {', '.join(ranges)}")
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InvalidTypeError(f"limits[{name!r}] must be (low, high), got {pair!r}")
        ranges[name] = ranges[name].within(name, pair)
    every: dict[str, _Range] = {}
    for name, known in ranges.items():
        if known.layers is None:
            every[name] = known
        else:
            layers = int(ranges[known.layers].high)
            every |= {f"{name}_{layer}": known for layer in range(1, layers + 1)}
    return every


def growth_space(
    *, flat: bool = False, limits: Mapping[str, tuple[float, float]] | None = None
) -> ConfigurationSpace:
    """The parameters of the network of arXiv 1807.07362 and of its training; the ranges are ours.

    Args:
        flat: Without conditions: every configuration has the values of all layers that there can
            be, and those of layers that it has not are ignored. For searchers that know no
            conditions.
        limits: Other ranges, both ends included, by name: "filters", "kernel_radius" and "units"
            stand for all layers, as {"conv_layers": (1, 3), "filters": (4, 32)}.

    Raises:
        InvalidTypeError: `limits` is no mapping of pairs of numbers, or `flat` neither true nor
            false.
        InvalidValueError: `limits` names what there is not, or a range that cannot be.

    >>> space = growth_space()
    >>> [name for name in space if name.startswith("conv") or name.endswith("_1")]
    ['conv_layers', 'filters_1', 'kernel_radius_1', 'units_1']
    >>> len(space), len(space.conditions), len(growth_space(flat=True).conditions)
    (17, 8, 0)
    """
    check_flag("flat", flat)
    ranges = _ranges(limits)
    space = ConfigurationSpace(name="image growth")
    made = {name: _parameter(name, known) for name, known in ranges.items()}
    space.add(list(made.values()))
    for name, known in ranges.items():
        layer = int(name.rpartition("_")[2]) if known.layers else 0
        # The layers that are always there need no condition.
        if known.layers and not flat and layer > ranges[known.layers].low:
            space.add(GreaterThanCondition(made[name], made[known.layers], layer - 1))
    return space


def _parameter(name: str, known: _Range) -> Any:
    if known.low == known.high:
        return Constant(name, int(known.low) if known.integer else known.low)
    if known.integer:
        bounds = int(known.low), int(known.high)
        return UniformIntegerHyperparameter(name, *bounds, int(known.default), log=known.log)
    return UniformFloatHyperparameter(name, known.low, known.high, known.default, log=known.log)


def growth_domains(*, limits: Mapping[str, tuple[float, float]] | None = None) -> dict[str, Any]:
    """`growth_space(flat=True)` as Tune's domains.

    Tune's searchers know no conditions: every configuration has the values of all layers that
    there can be, and `tune_ext.models.growth_network` ignores those of layers that it has not.

    Args:
        limits: See `growth_space`; equal ones are that value.

    >>> sorted(growth_domains(limits={"conv_layers": (1, 2), "fc_layers": (1, 1)}))
    ['batch_size', 'conv_layers', 'fc_layers', 'filters_1', 'filters_2', 'kernel_radius_1',
     'kernel_radius_2', 'l1', 'l2', 'learning_rate', 'units_1']
    """
    from tune_ext.raytune._joint_domains import range_domain

    return {
        name: range_domain(known.low, known.high, integer=known.integer, log=known.log)
        for name, known in _ranges(limits).items()
    }


GROWTH_DEFAULTS: dict[str, Any] = {
    name: int(known.default) if known.integer else known.default
    for name, known in _ranges(None).items()
}
"""A configuration that trains on every data set here, with the values of all layers."""
