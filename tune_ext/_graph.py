"""A network as a graph of weighted layers and merges.

Nodes are numbered in topological order. Pointwise things (activations, normalisation, pooling,
dropout, reshaping) are no nodes: an edge passes through them.

`tune_ext._paths` says what follows from a graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from tune_ext._checks import check_choice, check_count, check_flag
from tune_ext._dags import alive, parse_dag
from tune_ext.errors import InvalidValueError

__all__ = [
    "Aggregate",
    "Convention",
    "Layer",
    "NetworkGraph",
    "Node",
    "flattened",
    "from_dag",
]

Aggregate = Literal["sum", "mean", "gain"]
Convention = Literal["target", "source", "stream"]
_Op = Literal["input", "layer", "add", "concat", "product", "zero"]
_OPS = ("input", "layer", "add", "concat", "product", "zero")


@dataclass(frozen=True)
class Layer:
    """A weighted layer: what its initialisation and learning rate depend on.

    Args:
        name: Path of its weight parameter in the model, e.g. "layer1.0.conv1.weight".
        kind: "linear" or "conv".
        kernel: Side lengths of the kernel; () for a linear layer.
        fan_in: Inputs of one output unit: channels of one group × kernel positions.
        fan_out: Outputs that one input unit acts on: channels of one group × positions.
        groups: Groups of a convolution.
        shape: Shape of the weight.
        bias: Path of the bias parameter, if there is one.
        activation: What follows before the next layer or merge, or precedes the layer in
            pre-activation blocks: "relu", "gelu", …
        normalized: Whether a normalisation stands on the same edge.

    Raises:
        InvalidValueError: A size is below 1, or the kernel does not fit the kind.
    """

    name: str
    kind: Literal["linear", "conv"]
    kernel: tuple[int, ...]
    fan_in: int
    fan_out: int
    groups: int
    shape: tuple[int, ...]
    bias: str | None = None
    activation: str | None = None
    normalized: bool = False

    def __post_init__(self) -> None:
        check_choice(f"kind of {self.name!r}", self.kind, ("linear", "conv"))
        for what in ("fan_in", "fan_out", "groups"):
            check_count(f"{what} of {self.name!r}", getattr(self, what))
        for side in self.kernel:
            check_count(f"kernel of {self.name!r}", side)
        if bool(self.kernel) != (self.kind == "conv"):
            raise InvalidValueError(
                f"kernel of {self.name!r}: a convolution has one and a linear layer has none, "
                f"got {self.kernel} for {self.kind!r}"
            )

    @classmethod
    def of(
        cls,
        name: str,
        shape: Sequence[int],
        *,
        groups: int = 1,
        bias: str | None = None,
        activation: str | None = None,
        normalized: bool = False,
    ) -> Layer:
        """The layer with a weight of this shape: (out, in / groups, *kernel).

        >>> Layer.of("conv.weight", (32, 16, 3, 3)).fan_in
        144
        """
        outputs, inputs, *kernel = (check_count(f"shape of {name!r}", side) for side in shape)
        positions = math.prod(kernel)
        return cls(
            name=name,
            kind="conv" if kernel else "linear",
            kernel=tuple(kernel),
            fan_in=inputs * positions,
            fan_out=outputs // groups * positions,
            groups=groups,
            shape=(outputs, inputs, *kernel),
            bias=bias,
            activation=activation,
            normalized=normalized,
        )


@dataclass(frozen=True)
class Node:
    """One node: an input, a weighted layer, a merge of edges, or a constant zero.

    Args:
        op: What it does. An "add" sums its inputs; a "concat" joins channels; a "product"
            multiplies (attention, gates); a "zero" is a branch multiplied by 0.
        inputs: Indices of earlier nodes.
        layer: The layer, if `op` is "layer".
        shares: The channels that each input brings, if `op` is "concat".
        name: For messages.
    """

    op: _Op
    inputs: tuple[int, ...] = ()
    layer: Layer | None = None
    shares: tuple[int, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class NetworkGraph:
    """A network: nodes in topological order, and the one that is its output.

    Args:
        nodes: Each refers to earlier ones only.
        output: Index of the output.
        notes: What breaks the theory's assumptions, in words.

    Raises:
        InvalidValueError: A node refers to a later one, or lacks what its `op` needs.
    """

    nodes: tuple[Node, ...]
    output: int
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for index, node in enumerate(self.nodes):
            _check_node(index, node)
        if not 0 <= self.output < len(self.nodes):
            raise InvalidValueError(
                f"output must be the index of one of {len(self.nodes)} nodes, got {self.output}"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the weighted layers."""
        return tuple(i for i, node in enumerate(self.nodes) if node.op == "layer")

    def layer(self, index: int) -> Layer:
        """The layer of a node.

        Raises:
            InvalidValueError: The node is none.
        """
        node = self.nodes[index]
        if node.layer is None:
            raise InvalidValueError(f"node {index} is no layer but {node.op!r}")
        return node.layer

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node, those that take its value."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in dict.fromkeys(node.inputs):
                found[source].append(index)
        return tuple(map(tuple, found))

    @cached_property
    def live(self) -> tuple[bool, ...]:
        """For each node, whether an input reaches it: without one it is 0 at initialisation."""
        reached: list[bool] = []
        for node in self.nodes:
            reached.append(node.op == "input" or _reached(node, reached))
        return tuple(reached)

    def summands(self, index: int) -> int:
        """How many values that are not 0 meet in a node; 1 unless it is an "add"."""
        node = self.nodes[index]
        if node.op != "add":
            return 1
        return max(1, sum(self.live[source] for source in node.inputs))

    @cached_property
    def stream_summands(self) -> tuple[int, ...]:
        """For each node, the summands of the longest chain of additions that it is part of.

        x + f(x), and that plus g of it, are one sum of x, f and g: three summands, for both
        additions.
        """
        counts: list[int] = []
        for node in self.nodes:
            terms = (counts[i] for i in node.inputs if self.live[i]) if node.op == "add" else ()
            counts.append(max(1, sum(terms)))
        for index in range(len(self.nodes) - 1, -1, -1):
            if self.nodes[index].op == "add":
                for source in self.nodes[index].inputs:
                    if self.nodes[source].op == "add":
                        counts[source] = max(counts[source], counts[index])
        return tuple(counts)


def _reached(node: Node, reached: Sequence[bool]) -> bool:
    if node.op in ("input", "zero"):
        return False
    combine = all if node.op == "product" else any
    return combine(reached[source] for source in node.inputs)


def _check_node(index: int, node: Node) -> None:
    where = f"node {index} ({node.name or node.op})"
    check_choice(f"op of {where}", node.op, _OPS)
    for source in node.inputs:
        if not 0 <= source < index:
            raise InvalidValueError(f"{where} must take earlier nodes, takes {source}")
    if (node.layer is not None) != (node.op == "layer"):
        raise InvalidValueError(f"{where}: a node has a layer if, and only if, it is one")
    wanted = {"input": 0, "layer": 1}.get(node.op)
    if wanted is not None and len(node.inputs) != wanted:
        raise InvalidValueError(f"{where} must have {wanted} inputs, has {len(node.inputs)}")
    if node.op in ("add", "concat", "product") and not node.inputs:
        raise InvalidValueError(f"{where} must have inputs")
    if node.op == "concat" and (
        len(node.shares) != len(node.inputs) or min(node.shares, default=0) < 1
    ):
        raise InvalidValueError(
            f"{where}: shares must give the channels of each of {len(node.inputs)} inputs, "
            f"got {node.shares}"
        )


def flattened(graph: NetworkGraph) -> NetworkGraph:
    """The same network with a sum of sums as one sum, where nothing else uses the inner one.

    a + (b + c) is an addition of three: each has d_in 3, however it is bracketed.
    """
    merged: list[tuple[int, ...]] = []
    inner: set[int] = set()
    for node in graph.nodes:
        inputs: list[int] = []
        for source in node.inputs:
            nested = node.op == graph.nodes[source].op == "add" and node.inputs.count(source) == 1
            if nested and len(graph.consumers[source]) == 1 and source != graph.output:
                inner.add(source)
                inputs += merged[source]
            else:
                inputs.append(source)
        merged.append(tuple(inputs))
    kept = [index for index in range(len(graph.nodes)) if index not in inner]
    new = {old: index for index, old in enumerate(kept)}
    nodes = (
        replace(graph.nodes[old], inputs=tuple(new[source] for source in merged[old]))
        for old in kept
    )
    return replace(graph, nodes=tuple(nodes), output=new[graph.output])


def from_dag(
    dag: str,
    *,
    inputs: int = 1,
    width: int = 64,
    classes: int = 10,
    kernel_size: int | None = None,
    activation: str | None = "relu",
    norm: bool = False,
    bias: bool = True,
) -> NetworkGraph:
    """The graph of `tune_ext.models.DagMLP` or `DagCNN`, without building either.

    Args:
        dag: "2_02_002": character k of group j is the edge from node k to node j + 1 (counted
            from 0); 0 is none, 1 the identity, 2 a weighted layer. A stem leads to node 0, a
            linear read-out from the last one. Edges on no path are left out.
        inputs: Values of an example (linear) or channels of an image (convolutions).
        width: Units or channels of every hidden layer.
        classes: Values of an answer.
        kernel_size: Side of the (square) kernels; None: linear layers.
        activation: What follows every layer but the read-out.
        norm: Whether a normalisation does.
        bias: Whether layers have biases.

    Raises:
        InvalidValueError: The string is no such graph, or no path leads through it.
    """
    nodes: list[Node] = [Node("input", name="input")]
    for name, size in (("inputs", inputs), ("width", width), ("classes", classes)):
        check_count(name, size)
    if kernel_size is not None:
        check_count("kernel_size", kernel_size)
    check_flag("norm", norm)
    check_flag("bias", bias)

    def layer(source: int, name: str, before: int) -> int:
        kernel = () if kernel_size is None else (kernel_size, kernel_size)
        made = Layer.of(
            f"{name}.weight",
            (width, before, *kernel),
            bias=f"{name}.bias" if bias else None,
            activation=activation,
            normalized=norm,
        )
        nodes.append(Node("layer", (source,), layer=made, name=name))
        return len(nodes) - 1

    groups = parse_dag(dag)
    features = [layer(0, "stem.layer", inputs)]
    for j, (group, live) in enumerate(zip(groups, alive(groups), strict=True), start=1):
        summands = [
            layer(features[k], f"graph.edges.{k}_to_{j}.layer", width)
            if group[k] == "2"
            else features[k]
            for k, is_alive in enumerate(live)
            if is_alive
        ]
        if len(summands) != 1:
            nodes.append(Node("add" if summands else "zero", tuple(summands), name=f"node {j}"))
        features.append(summands[0] if len(summands) == 1 else len(nodes) - 1)
    readout = Layer.of("readout.weight", (classes, width), bias="readout.bias" if bias else None)
    nodes.append(Node("layer", (features[-1],), layer=readout, name="readout"))
    return flattened(NetworkGraph(tuple(nodes), len(nodes) - 1))
