"""What is known of a value while a traced network is read, and the graph that grows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from tune_ext._graph import Layer, NetworkGraph, Node

__all__ = ["Builder", "Constant", "Stack", "Value", "Weight", "Wire"]

_Op = Literal["input", "layer", "add", "concat", "product"]


@dataclass(frozen=True)
class Constant:
    """A value that does not depend on the input: a parameter, a buffer, something computed.

    Args:
        parameter: The parameter that it is, if it is one, perhaps in another shape.
        shape: The shape of that parameter.
        whole: Whether it is all of that parameter.
        parameters: All parameters that it is computed from.
        zero: Whether it is known to be 0.
    """

    parameter: str | None = None
    shape: tuple[int, ...] = ()
    whole: bool = True
    parameters: frozenset[str] = frozenset()
    zero: bool = False


@dataclass(frozen=True)
class Wire:
    """A branch: the value of a node after what happened to it since.

    Args:
        node: Index of the node.
        activation: What was applied and belongs to no layer yet.
        normalized: Whether a normalisation was applied that belongs to no layer yet.
        plain: Whether it is still the node's value, up to reshaping and scaling.
        alone: Whether nothing else takes the node's value, or this one on its way here.
        formula: Whether it is part of a formula that is written out.
        statistic: Whether it is what a normalisation that is written out divides by.
    """

    node: int
    activation: str | None = None
    normalized: bool = False
    plain: bool = True
    alone: bool = True
    formula: bool = False
    statistic: bool = False


@dataclass(frozen=True)
class Stack:
    """Branches side by side along a dimension of their own, which may be summed up next."""

    wires: tuple[Wire | Constant, ...]
    dim: int


Value: TypeAlias = Constant | Wire | Stack | tuple["Value", ...]


@dataclass(frozen=True)
class Weight:
    """A weight that is applied to a branch; the fields are those of `tune_ext._graph.Layer`.

    `shape` is that of the whole parameter, and `part` says whether the weight is a slice of it.
    """

    name: str
    kind: Literal["linear", "conv"]
    kernel: tuple[int, ...]
    fan_in: int
    fan_out: int
    groups: int
    shape: tuple[int, ...]
    bias: str | None
    part: bool = False


@dataclass
class _Draft:
    op: _Op
    inputs: list[int]
    name: str
    shares: list[int] = field(default_factory=list)
    weight: Weight | None = None
    before: Wire | None = None
    activation: str | None = None
    normalized: bool = False


class Builder:
    """Nodes as they are found, and notes; `finish` makes the graph of what the output needs."""

    def __init__(self) -> None:
        self._drafts: list[_Draft] = []
        self._notes: Counter[str] = Counter()
        self._tables: set[str] = set()

    def note(self, text: str) -> None:
        """Record what breaks the theory's assumptions; the same text is counted."""
        self._notes[text] += 1

    def input(self, name: str) -> Wire:
        """A new input."""
        return self._new(_Draft("input", [], name))

    def embedding(self, name: str, parameters: Iterable[str]) -> Wire:
        """Rows of a parameter, picked by the input: taken as an input."""
        self._tables.update(parameters)
        self.note("embedding: its output is taken as an input")
        return self.input(name)

    def layer(self, wire: Wire, weight: Weight) -> Wire:
        """A weighted layer on a branch."""
        name = weight.name.removesuffix(".weight")
        return self._new(_Draft("layer", [wire.node], name, weight=weight, before=wire))

    def product(self, wires: Sequence[Wire], name: str) -> Wire:
        """Branches multiplied, each node once."""
        return self._new(_Draft("product", list(dict.fromkeys(w.node for w in wires)), name))

    def add(self, wires: Sequence[Wire], name: str) -> Wire:
        """Branches added up; sums that go nowhere else become summands of this one."""
        inputs: list[int] = []
        for wire in wires:
            draft = self._drafts[wire.node]
            nested = draft.op == "add" and wire.plain and wire.alone
            inputs += draft.inputs if nested else [wire.node]
        return self._new(_Draft("add", inputs, name))

    def concat(self, parts: Sequence[tuple[Wire, int]], name: str) -> Wire:
        """Branches side by side, each with its number of channels; parts of one are one."""
        shares: dict[int, int] = {}
        for wire, share in parts:
            shares[wire.node] = shares.get(wire.node, 0) + share
        if len(shares) == 1:
            return joined([wire for wire, _ in parts])
        return self._new(_Draft("concat", list(shares), name, shares=list(shares.values())))

    def collapsed(self, value: Value, name: str) -> Wire | Constant:
        """A stack, or several results of one operation, as one branch."""
        if isinstance(value, Stack):
            parts = [(wire, 1) for wire in value.wires if isinstance(wire, Wire)]
            return self.concat(parts, name) if parts else Constant()
        if isinstance(value, tuple):
            wires = [v for v in (self.collapsed(v, name) for v in value) if isinstance(v, Wire)]
            return wires[0] if wires else Constant()
        return value

    def activate(self, wire: Wire, activation: str) -> Wire:
        """An activation on a branch: the layer's before it, if nothing else takes its value."""
        draft = self._drafts[wire.node]
        if draft.op == "layer" and draft.activation is None and wire.alone:
            draft.activation = activation
            return replace(wire, plain=False)
        return replace(wire, activation=activation, plain=False)

    def normalize(self, wire: Wire) -> Wire:
        """A normalisation on a branch; whose it is follows the same rule."""
        draft = self._drafts[wire.node]
        if draft.op == "layer" and not draft.normalized and wire.alone:
            draft.normalized = True
            return replace(wire, plain=False)
        return replace(wire, normalized=True, plain=False)

    def shift(self, wire: Wire, parameter: str) -> None:
        """A parameter added to a branch: a layer's bias, if it comes right after the layer."""
        draft = self._drafts[wire.node]
        weight = draft.weight
        if weight is not None and weight.bias is None and wire.plain and wire.alone:
            draft.weight = replace(weight, bias=parameter)

    def _new(self, draft: _Draft) -> Wire:
        self._drafts.append(draft)
        return Wire(len(self._drafts) - 1)

    def finish(self, output: Wire) -> NetworkGraph:
        """The graph of the nodes that the output needs."""
        needed = {output.node}
        for index in range(output.node, -1, -1):
            if index in needed:
                needed.update(self._drafts[index].inputs)
        kept = sorted(needed)
        new = {old: index for index, old in enumerate(kept)}
        nodes = tuple(_finished(self._drafts[old], new) for old in kept)
        self._note_shared(self._drafts[old].weight for old in kept)
        notes = (
            text + (f" ({count} times)" if count > 1 else "") for text, count in self._notes.items()
        )
        return NetworkGraph(nodes, new[output.node], tuple(notes))

    def _note_shared(self, weights: Iterable[Weight | None]) -> None:
        uses = Counter(weight.name for weight in weights if weight is not None and not weight.part)
        for name, count in uses.items():
            if count > 1:
                self.note(f"weight sharing: {name} is the weight of {count} layers")
            if name in self._tables:
                self.note(f"weight sharing: {name} is an embedding and the weight of a layer")


def joined(wires: Sequence[Wire]) -> Wire:
    """Several branches from one node as one."""
    if len(wires) == 1:
        return wires[0]
    activation = next((w.activation for w in wires if w.activation is not None), None)
    return replace(
        wires[0],
        activation=activation,
        normalized=any(w.normalized or w.statistic for w in wires),
        plain=all(w.plain for w in wires),
        alone=False,
        formula=False,
        statistic=False,
    )


def _finished(draft: _Draft, new: dict[int, int]) -> Node:
    layer = None
    if draft.weight is not None and draft.before is not None:
        w, before = draft.weight, draft.before
        layer = Layer(
            name=w.name,
            kind=w.kind,
            kernel=w.kernel,
            fan_in=w.fan_in,
            fan_out=w.fan_out,
            groups=w.groups,
            shape=w.shape,
            bias=w.bias,
            activation=draft.activation or before.activation,
            normalized=draft.normalized or before.normalized,
        )
    inputs = tuple(new[source] for source in draft.inputs)
    return Node(draft.op, inputs, layer=layer, shares=tuple(draft.shares), name=draft.name)
