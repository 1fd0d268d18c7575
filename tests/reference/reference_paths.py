"""Every path of a network, one by one: what the moments must agree with, for small graphs.

A path is the tuple of the layers on it, from an input to the output, with its weight. Nothing
here carries sums along or knows a formula for moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from tune_ext._graph import NetworkGraph

Path = tuple[int, ...]


def paths(graph: NetworkGraph, aggregate: str) -> list[tuple[Fraction, Path]]:
    """Weight and layers of each path that brings something from an input to the output."""
    return list(_ending_at(graph, graph.output, aggregate))


def is_zero(graph: NetworkGraph, index: int) -> bool:
    """Whether a node is 0 whatever the inputs are (biases are 0)."""
    node = graph.nodes[index]
    if node.op in ("input", "zero"):
        return node.op == "zero"
    zeros = [is_zero(graph, source) for source in node.inputs]
    return any(zeros) if node.op == "product" else all(zeros)


def _ending_at(graph: NetworkGraph, index: int, aggregate: str) -> Iterator[tuple[Fraction, Path]]:
    node = graph.nodes[index]
    if is_zero(graph, index):
        return
    if node.op == "input":
        yield Fraction(1), ()
    for position, source in enumerate(node.inputs):
        if aggregate == "mean" and node.op == "concat":
            weight = Fraction(node.shares[position], sum(node.shares))
        elif aggregate == "mean" and node.op == "add":
            weight = Fraction(1, sum(not is_zero(graph, other) for other in node.inputs))
        elif aggregate == "mean" and node.op == "product":
            weight = Fraction(1, len(node.inputs))
        else:
            weight = Fraction(1)
        for before, path in _ending_at(graph, source, aggregate):
            yield weight * before, (*path, index) if node.op == "layer" else path


def power_sum(found: list[tuple[Fraction, Path]], power: int) -> Fraction:
    """Σ_p w_p L_p^power."""
    return sum((weight * len(path) ** power for weight, path in found), Fraction(0))
