"""What the theory of architecture-aware scaling reads off a network's graph.

* `in_degree`: how many summands meet where a layer's output goes;
* `moments`: the moments of the depths of all paths from the inputs to the output;
* `visits`: through how many paths each layer acts;
* `readouts`: the layers that end paths;
* `growth`: how much larger features become at initialisation.

All are exact and take O(edges).

Paths have weights, which depend on how they are added up:

=======  ======================  =======================  ==============
         summand of an addition  part of a concatenation  weighted layer
=======  ======================  =======================  ==============
"sum"    1                       1                        1
"mean"   1/summands              share of the channels    1
"gain"   1                       share of the channels    1/d_in or 1/m
=======  ======================  =======================  ==============

"sum" is the published one. "gain" is the part of the second moment that a path passes on at
initialisation with C = 2/d_in: 1/d_in for a layer; 1/m for one that is normalised, as it makes 1
of whatever second moment m it reads. So the weights add up to the second moment of the features.
"mean" is the same as if identities were scaled by 1/d_in too, so that they add up to 1.

Source: Chen, Wu, Wang, Hanin, "Principled architecture-aware scaling of hyperparameters" (ICLR
2024, arXiv 2402.17440); "mean" and "gain" follow its own averaging (equation 26), "stream" is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from tune_ext._checks import check_choice
from tune_ext._graph import Aggregate, Convention, NetworkGraph
from tune_ext._moments import PathMoments

__all__ = ["AGGREGATES", "CONVENTIONS", "growth", "in_degree", "moments", "readouts", "visits"]

AGGREGATES: tuple[Aggregate, ...] = ("sum", "mean", "gain")
CONVENTIONS: tuple[Convention, ...] = ("target", "source", "stream")


def in_degree(graph: NetworkGraph, index: int, convention: Convention = "target") -> int:
    """The d_in of a layer: how many summands its output is added up with, itself included.

    Only summands that an input reaches count; identities do. A layer whose output goes to
    several places is a feature of its own, with d_in 1, whatever is added to it afterwards. Where
    outputs are concatenated d_in is 1: the share is in the fan of the next layer.

    Args:
        graph: The network.
        index: The layer's node.
        convention: "target": the addition that the layer *enters*, as in the proof (equation
            12). "source": the one that it *leaves*, as in the printed equation 4 and in the
            published code; for comparison. "stream": the one that it enters, together with
            all additions that continue it: n residual blocks are one sum of n + 1.
    """
    check_choice("convention", convention, CONVENTIONS)
    graph.layer(index)
    if convention == "source":
        return graph.summands(graph.nodes[index].inputs[0])
    consumers = graph.consumers[index]
    if len(consumers) != 1 or index == graph.output:
        return 1
    (merge,) = consumers
    return graph.stream_summands[merge] if convention == "stream" else graph.summands(merge)


def moments(
    graph: NetworkGraph, aggregate: Aggregate, convention: Convention = "target"
) -> PathMoments:
    """The moments of the depths of all paths from the inputs to the output, exactly.

    Args:
        graph: The network.
        aggregate: How paths are weighted: see above.
        convention: What d_in is, where "gain" needs it: as in `in_degree`.
    """
    return _moments(graph, aggregate, convention)[graph.output]


def _moments(
    graph: NetworkGraph, aggregate: Aggregate, convention: Convention
) -> list[PathMoments]:
    """For each node, the moments of the paths that end there."""
    found: list[PathMoments] = []
    for index, node in enumerate(graph.nodes):
        if node.op == "input":
            found.append(PathMoments.start())
        elif not graph.live[index]:
            found.append(PathMoments.none())
        else:
            weights = _weights(graph, index, aggregate, convention, found)
            pairs = zip(node.inputs, weights, strict=True)
            total = _total(found[i] if w == 1 else found[i].weighted(w) for i, w in pairs)
            found.append(total.after_layer() if node.op == "layer" else total)
    return found


def _total(parts: Iterable[PathMoments]) -> PathMoments:
    total = PathMoments.none()
    for part in parts:
        total += part
    return total


def _weights(
    graph: NetworkGraph,
    index: int,
    aggregate: Aggregate,
    convention: Convention,
    before: Sequence[PathMoments],
) -> list[Fraction | int]:
    """The weight that a node gives to the paths of each of its inputs.

    Args:
        graph: The network.
        index: The node.
        aggregate: As in `moments`.
        convention: As in `moments`.
        before: The moments of the paths that end in earlier nodes.
    """
    check_choice("aggregate", aggregate, AGGREGATES)
    node = graph.nodes[index]
    if aggregate == "sum":
        return [1] * len(node.inputs)
    if node.op == "concat":
        channels = sum(node.shares)
        return [Fraction(share, channels) for share in node.shares]
    number: int | Fraction = 1
    if node.op == "product":
        number = len(node.inputs)
    elif node.op == "add" and aggregate == "mean":
        number = graph.summands(index)
    elif aggregate == "gain" and node.layer is not None:
        number = in_degree(graph, index, convention)
        if node.layer.normalized:
            number = before[node.inputs[0]].count
    return [1 / Fraction(number) if number != 1 else 1] * len(node.inputs)


def visits(
    graph: NetworkGraph, aggregate: Aggregate, convention: Convention = "target"
) -> dict[int, int | Fraction]:
    """For each layer, the number (or weight) of the paths to the output that go through it.

    Summed over all layers that is the first moment of the depths.

    Args:
        graph: The network.
        aggregate: As in `moments`.
        convention: As in `moments`.
    """
    before = _moments(graph, aggregate, convention)
    after: list[int | Fraction] = [0] * len(graph.nodes)
    after[graph.output] = 1
    for index in range(graph.output, -1, -1):
        node = graph.nodes[index]
        if after[index] and node.inputs and graph.live[index]:
            weights = _weights(graph, index, aggregate, convention, before)
            for source, weight in zip(node.inputs, weights, strict=True):
                after[source] += after[index] * weight
    return {i: before[i].count * after[i] for i in graph.layers}


def growth(graph: NetworkGraph, convention: Convention = "target") -> Fraction:
    """Second moment of what enters the read-outs over that of the input, at initialisation.

    With C = 2/d_in, ReLU and independent summands. A layer passes on 1/d_in of what it gets, an
    identity all of it, a normalised layer gives 1; the largest where there are several read-outs.
    """
    sizes = _moments(graph, "gain", convention)
    ends = [Fraction(sizes[graph.nodes[i].inputs[0]].count) for i in readouts(graph)]
    return max(ends, default=Fraction(1))


def readouts(graph: NetworkGraph) -> tuple[int, ...]:
    """The layers that end paths: they reach the output, and no other layer comes after them."""
    reaches = [False] * len(graph.nodes)
    layers_after = [False] * len(graph.nodes)
    reaches[graph.output] = True
    for index in range(graph.output, -1, -1):
        node = graph.nodes[index]
        if reaches[index]:
            for source in node.inputs:
                reaches[source] = True
                layers_after[source] |= layers_after[index] or node.op == "layer"
    return tuple(i for i in graph.layers if reaches[i] and not layers_after[i])
