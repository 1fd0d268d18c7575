"""One operation of a traced network: its name, its arguments as values, and what it may add to.

What an operation does to the branches through it is in `_trace_layers` and `_trace_merges`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from tune_ext._trace_values import Builder, Constant, Stack, Value, Wire

__all__ = ["Rule", "Site", "base_name", "is_real", "shape_of", "size_of"]


class Site:
    """An operation where it stands.

    Args:
        node: The operation.
        builder: Where nodes and notes go.
        value_of: The value of an operand.
        rename: From a module's path in the exported model to that in the caller's model.
    """

    def __init__(
        self,
        node: fx.Node,
        builder: Builder,
        value_of: Callable[[fx.Node], Value],
        rename: Callable[[str], str],
    ) -> None:
        self.node = node
        self.builder = builder
        self._value_of = value_of
        self._rename = rename

    @cached_property
    def name(self) -> str:
        """The operation, the same for its form in place."""
        target = self.node.target
        return base_name(target) if isinstance(target, torch._ops.OpOverload) else str(target)

    @cached_property
    def given(self) -> dict[str, Any]:
        """Arguments by their names in the operation's schema, with values for nodes."""
        schema = self.node.target._schema  # type: ignore[union-attr]
        given = dict(zip((a.name for a in schema.arguments), self.node.args, strict=False))
        given.update(self.node.kwargs)
        return {name: self.mapped(value) for name, value in given.items()}

    def mapped(self, argument: Any) -> Any:
        """Nested arguments with values for nodes."""
        if isinstance(argument, fx.Node):
            return self._value_of(argument)
        if isinstance(argument, list | tuple):
            return [self.mapped(item) for item in argument]
        return argument

    def value(self, operand: fx.Node) -> Wire | Constant:
        """An operand as one branch or a constant."""
        return self.collapsed(self._value_of(operand))

    @cached_property
    def values(self) -> list[Wire | Constant]:
        """The arguments that are values, in their order, each as one branch or a constant."""
        given = self.given.values()
        return [self.collapsed(v) for v in given if isinstance(v, Constant | Wire | Stack | tuple)]

    @cached_property
    def wires(self) -> list[Wire]:
        """The branches among the operands; those of floating-point numbers if there are any."""
        found = [(source, self.value(source)) for source in self.node.all_input_nodes]
        wires = [(source, value) for source, value in found if isinstance(value, Wire)]
        real = [wire for source, wire in wires if is_real(source)]
        return real or [wire for _, wire in wires]

    def collapsed(self, value: Value) -> Wire | Constant:
        """A stack, or several results of one operation, as one branch."""
        return self.builder.collapsed(value, self.label)

    @property
    def inner_path(self) -> str:
        """Path, in the exported model, of the innermost module that the operation is in."""
        stack = self.node.meta.get("nn_module_stack") or {}
        return str(list(stack.values())[-1][0]) if stack else ""

    @property
    def path(self) -> str:
        """Path of that module in the caller's model."""
        return self._rename(self.inner_path)

    @property
    def kind(self) -> str:
        """Name of that module's class."""
        stack = self.node.meta.get("nn_module_stack") or {"": ("", "")}
        return str(list(stack.values())[-1][1]).rpartition(".")[2]

    @property
    def label(self) -> str:
        """A name for the node that the operation makes."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def where(self) -> str:
        """For messages."""
        return f"module {self.path!r}" if self.path else "the model"


Rule: TypeAlias = Callable[[Site], Value]
"""What an operation makes of the branches through it."""


def base_name(target: torch._ops.OpOverload) -> str:
    """The name of an operation, the same for its form in place."""
    name: str = target.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def is_real(node: fx.Node) -> bool:
    """Whether a value is of floating-point (or complex) numbers."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        value = next((v for v in value if isinstance(v, Tensor)), None)
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a value; () if it has none, 1 for a size that is not known."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        return ()
    return tuple(size if isinstance(size, int) else 1 for size in value.shape)


def size_of(node: Any) -> int:
    """How many entries a value has."""
    return math.prod(shape_of(node))
