"""Every path of a network, one by one: what the moments must agree with, for small graphs.

A path is the tuple of the layers on it, from an input to the output, with its weight. Nothing
here carries sums along or knows a formula for moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from tune_ext._graph import NetworkGraph

Path = tuple[int, ...]


def paths(
    graph: NetworkGraph, aggregate: str, convention: str = "target"
) -> list[tuple[Fraction, Path]]:
    """Weight and layers of each path that brings something from an input to the output."""
    return list(_ending_at(graph, graph.output, aggregate, convention))


def degree(graph: NetworkGraph, index: int, convention: str) -> int:
    """The d_in of a layer, from the definition."""
    if convention == "source":
        (source,) = graph.nodes[index].inputs
        return max(1, len(_terms(graph, source)))
    readers = [i for i, node in enumerate(graph.nodes) if index in node.inputs]
    if len(readers) != 1 or index == graph.output:
        return 1
    if convention == "target":
        return max(1, len(_terms(graph, readers[0])))
    return max(1, *(len(_unrolled(graph, i)) for i in _continuations(graph, readers[0])))


def _terms(graph: NetworkGraph, index: int) -> list[int]:
    node = graph.nodes[index]
    if node.op != "add":
        return [index]
    return [source for source in node.inputs if not is_zero(graph, source)]


def _unrolled(graph: NetworkGraph, index: int) -> list[int]:
    """What is added up in a node if sums within it are written out."""
    if graph.nodes[index].op != "add":
        return [index]
    return [leaf for term in _terms(graph, index) for leaf in _unrolled(graph, term)]


def _continuations(graph: NetworkGraph, index: int) -> set[int]:
    """An addition and all that it is a summand of, directly or through others."""
    found = {index}
    if graph.nodes[index].op == "add":
        for i, node in enumerate(graph.nodes):
            if node.op == "add" and index in node.inputs:
                found |= _continuations(graph, i)
    return found


def is_zero(graph: NetworkGraph, index: int) -> bool:
    """Whether a node is 0 whatever the inputs are (biases are 0)."""
    node = graph.nodes[index]
    if node.op in ("input", "zero"):
        return node.op == "zero"
    zeros = [is_zero(graph, source) for source in node.inputs]
    return any(zeros) if node.op == "product" else all(zeros)


def _ending_at(
    graph: NetworkGraph, index: int, aggregate: str, convention: str
) -> Iterator[tuple[Fraction, Path]]:
    node = graph.nodes[index]
    if is_zero(graph, index):
        return
    if node.op == "input":
        yield Fraction(1), ()
    for position, source in enumerate(node.inputs):
        if aggregate != "sum" and node.op == "concat":
            weight = Fraction(node.shares[position], sum(node.shares))
        elif aggregate == "mean" and node.op == "add":
            weight = Fraction(1, sum(not is_zero(graph, other) for other in node.inputs))
        elif aggregate != "sum" and node.op == "product":
            weight = Fraction(1, len(node.inputs))
        elif aggregate == "gain" and node.layer is not None and node.layer.normalized:
            read = _ending_at(graph, source, aggregate, convention)
            weight = 1 / sum((before for before, _ in read), Fraction(0))
        elif aggregate == "gain" and node.op == "layer":
            weight = Fraction(1, degree(graph, index, convention))
        else:
            weight = Fraction(1)
        for before, path in _ending_at(graph, source, aggregate, convention):
            yield weight * before, (*path, index) if node.op == "layer" else path


def power_sum(found: list[tuple[Fraction, Path]], power: int) -> Fraction:
    """Σ_p w_p L_p^power."""
    return sum((weight * len(path) ** power for weight, path in found), Fraction(0))
