"""Where a parameter is applied to a branch: layers, their kernels, fans and groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from tune_ext import _trace_ops as ops
from tune_ext._trace_merges import multiplied, through
from tune_ext._trace_site import Rule, Site, shape_of
from tune_ext._trace_values import Constant, Value, Weight, Wire

__all__ = [
    "LAYERS",
    "contracted_weight",
    "contracts",
    "einsum_weight",
    "layer_weight",
    "matrix_weight",
]


def _weighted(site: Site) -> Value:
    """A convolution or `linear`."""
    x, weight = site.collapsed(site.given["input"]), site.collapsed(site.given["weight"])
    if not isinstance(x, Wire) or not isinstance(weight, Constant):
        return through(site)  # weights that depend on the input
    if not weight.parameters:
        site.builder.note(f"fixed weights: {site.name} with no parameter counts as no layer")
        return replace(x, plain=False)
    shape = shape_of(site.node.args[1])
    made = layer_weight(site.name, _name_of_weight(site, weight), shape, site.given)
    return site.builder.layer(x, _of_parameter(made, weight))


def _matrix(site: Site) -> Value:
    """A matrix product: a linear layer, if one of two sides is made of parameters."""
    factors = _factors(site)
    values = [site.value(source) for source in factors]
    wires = [value for value in values if isinstance(value, Wire)]
    weights = [(i, v) for i, v in enumerate(values) if isinstance(v, Constant) and v.parameters]
    if len(wires) == len(weights) == 1 and len(values) == 2 and _sums(site, weights[0][0]):
        return _plus(site, _applied(site, wires[0], *weights[0], factors))
    if not wires:
        return _plus(site, Constant())
    if weights and len(values) > 2:
        _leave_out(site, frozenset[str]().union(*(v.parameters for _, v in weights)))
    if len(wires) > 1:
        return _plus(site, multiplied(site, wires))
    return _plus(site, through(site, wires))


def _unread(site: Site) -> Value:
    """A sum over products for whose weights there is no rule."""
    factors = map(site.value, site.node.all_input_nodes)
    parameters = (v.parameters for v in factors if isinstance(v, Constant))
    _leave_out(site, frozenset[str]().union(*parameters))
    return through(site)


def _leave_out(site: Site, parameters: frozenset[str]) -> None:
    """Say which weights count as no layer."""
    if parameters:
        names = ", ".join(sorted(parameters))
        site.builder.note(f"weights left out: {names}, as {site.name} is not read as a layer")


def _factors(site: Site) -> list[fx.Node]:
    args: Any = site.node.args
    if site.name == "einsum":
        return list(args[1])
    return list(args[1:3] if site.name in _PLUS else args[:2])


def _sums(site: Site, side: int) -> bool:
    if site.name == "tensordot":
        return bool(site.node.args[2 + side])
    return site.name != "einsum" or contracts(str(site.given["equation"]), side)


def _applied(site: Site, wire: Wire, side: int, weight: Constant, factors: list[fx.Node]) -> Wire:
    name, shape = _name_of_weight(site, weight), shape_of(factors[side])
    if site.name == "einsum":
        made = einsum_weight(name, str(site.given["equation"]), side, shape)
    elif site.name in ("inner", "tensordot"):
        dims: Any = [-1] if site.name == "inner" else site.node.args[2 + side]
        made = contracted_weight(name, dims, shape)
    else:
        made = matrix_weight(name, side, shape)
    return site.builder.layer(wire, _of_parameter(made, weight))


def _of_parameter(weight: Weight, source: Constant) -> Weight:
    """The weight, with the shape that its parameter is stored in."""
    return replace(weight, shape=source.shape or weight.shape, part=not source.whole)


_PLUS = ("addmm", "addmv", "addbmm", "baddbmm")


def _plus(site: Site, value: Wire | Constant) -> Value:
    """What `addmm` and its like add to the product."""
    if site.name not in _PLUS:
        return value
    extra = site.values[0]
    if isinstance(value, Wire) and isinstance(extra, Wire):
        return site.builder.add([extra, value], site.label)
    if isinstance(value, Wire) and isinstance(extra, Constant) and extra.parameter:
        site.builder.shift(value, extra.parameter)
    return value if isinstance(value, Wire) else extra


def _name_of_weight(site: Site, weight: Constant) -> str:
    """The parameter that a layer's weight is, or the path that it would have."""
    if weight.parameter is not None:
        if not weight.whole:
            site.builder.note(f"part of a parameter: {weight.parameter} holds several weights")
        return weight.parameter
    name = f"{site.path}.weight" if site.path else "weight"
    sources = ", ".join(sorted(weight.parameters))
    site.builder.note(f"computed weight: {name} is a function of {sources}")
    return name


LAYERS: dict[str, Rule] = {
    **dict.fromkeys([*ops.CONVOLUTIONS, "linear"], _weighted),
    **dict.fromkeys(ops.PRODUCTS, _matrix),
    **dict.fromkeys(ops.UNREAD, _unread),
}
"""The rules, by the operation's name."""


def layer_weight(
    name: str, parameter: str, shape: tuple[int, ...], given: Mapping[str, Any]
) -> Weight:
    """The weight of a convolution, a transposed convolution or `linear`.

    Args:
        name: The operation.
        parameter: Path of the weight.
        shape: Of the weight: (out, in / groups, …), transposed convolutions (in, out / groups, …).
        given: The operation's arguments by name.
    """
    kernel = shape[2:]
    positions = math.prod(kernel)
    groups = int(given.get("groups", 1))
    if given.get("transposed", "transpose" in name):
        # An output unit meets every stride-th position of the kernel in each direction.
        met = math.ceil(positions / math.prod(_per_dimension(given.get("stride", 1), len(kernel))))
        fan_in, fan_out = shape[0] // groups * met, shape[1] * positions
    else:
        fan_in, fan_out = math.prod(shape[1:]), shape[0] // groups * positions
    return Weight(
        name=parameter,
        kind="linear" if name == "linear" else "conv",
        kernel=kernel,
        fan_in=fan_in,
        fan_out=fan_out,
        groups=groups,
        shape=shape,
        bias=_name_of(given.get("bias")),
    )


def matrix_weight(parameter: str, side: int, shape: tuple[int, ...]) -> Weight:
    """The weight of a matrix product: x @ W (side 1) or W @ x (side 0).

    Leading dimensions are as many matrices beside each other.
    """
    matrix = shape[-2:] if len(shape) > 1 else (*shape, 1)
    before, after = matrix if side == 1 else matrix[::-1]
    groups = math.prod(shape[:-2])
    return Weight(parameter, "linear", (), before, after, groups, shape, None)


def contracted_weight(parameter: str, dims: Sequence[int], shape: tuple[int, ...]) -> Weight:
    """The weight of a product that is summed over some of its dimensions.

    >>> weight = contracted_weight("w", [-1], (8, 16))
    >>> weight.fan_in, weight.fan_out
    (16, 8)
    """
    fan_in = math.prod(shape[dim] for dim in dims)
    return Weight(parameter, "linear", (), fan_in, math.prod(shape) // fan_in, 1, shape, None)


def einsum_weight(parameter: str, equation: str, side: int, shape: tuple[int, ...]) -> Weight:
    """The weight of an einsum of two operands: what it is summed over is its fan-in."""
    mine, theirs, result = _einsum_letters(equation, side)
    sizes = dict(zip(reversed(mine), reversed(shape), strict=False))
    summed = [size for letter, size in sizes.items() if letter not in result]
    new = [size for letter, size in sizes.items() if letter in result and letter not in theirs]
    shared = [size for letter, size in sizes.items() if letter in result and letter in theirs]
    fans = math.prod(summed), math.prod(new)
    return Weight(parameter, "linear", (), *fans, math.prod(shared), shape, None)


def contracts(equation: str, side: int) -> bool:
    """Whether an einsum of two operands sums over a dimension of the one on a side.

    >>> contracts("bi,io->bo", 1), contracts("bi,i->bi", 1)
    (True, False)
    """
    mine, _, result = _einsum_letters(equation, side)
    return any(letter not in result for letter in mine)


def _einsum_letters(equation: str, side: int) -> tuple[str, str, str]:
    """Dimensions of the operand on a side, of the other one and of the result."""
    terms, arrow, result = equation.replace(" ", "").replace("...", "").partition("->")
    operands = terms.split(",")
    if not arrow:
        letters = terms.replace(",", "")
        result = "".join(letter for letter in letters if letters.count(letter) == 1)
    return operands[side], operands[1 - side], result


def _per_dimension(value: Any, dimensions: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(v) for v in (values * dimensions if len(values) == 1 else values)]


def _name_of(bias: Any) -> str | None:
    return bias.parameter if isinstance(bias, Constant) and bias.whole else None
