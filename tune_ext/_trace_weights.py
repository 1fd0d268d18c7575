"""Kernel, fans and groups of a weight from how it is applied (pure Python)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tune_ext._trace_values import Constant, Weight

__all__ = ["einsum_weight", "layer_weight", "matrix_weight"]


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


def einsum_weight(
    parameter: str, equation: str, side: int, shape: tuple[int, ...], other: tuple[int, ...]
) -> Weight:
    """The weight of an einsum of two operands: what it is summed over is its fan-in."""
    terms, _, result = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    mine = operands[side].replace("...", "")
    theirs = operands[1 - side]
    sizes = dict(zip(reversed(mine), reversed(shape), strict=False))
    if not _:
        letters = terms.replace(",", "").replace(".", "")
        result = "".join(letter for letter in letters if letters.count(letter) == 1)
    summed = [size for letter, size in sizes.items() if letter not in result]
    new = [size for letter, size in sizes.items() if letter in result and letter not in theirs]
    shared = [size for letter, size in sizes.items() if letter in result and letter in theirs]
    fans = math.prod(summed), math.prod(new)
    return Weight(parameter, "linear", (), *fans, math.prod(shared), shape, None)


def _per_dimension(value: Any, dimensions: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(v) for v in (values * dimensions if len(values) == 1 else values)]


def _name_of(bias: Any) -> str | None:
    return bias.parameter if isinstance(bias, Constant) and bias.whole else None
