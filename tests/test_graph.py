"""Graphs: path moments, in-degrees and read-outs against all paths listed one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.reference.reference_paths import degree, is_zero, paths, power_sum
from tune_ext._graph import (
    Layer,
    NetworkGraph,
    Node,
    flattened,
    from_dag,
)
from tune_ext._moments import PathMoments
from tune_ext._paths import CONVENTIONS, growth, in_degree, moments, readouts, visits
from tune_ext.errors import InvalidValueError

INPUT = Node("input")
WEIGHTS = [
    ("sum", "target"),
    ("mean", "target"),
    *(("gain", convention) for convention in CONVENTIONS),
]


def layer(*inputs: int, name: str = "w", normalized: bool = False) -> Node:
    return Node("layer", inputs, Layer.of(name, (8, 8), normalized=normalized))


def graph(*nodes: Node, output: int | None = None) -> NetworkGraph:
    return NetworkGraph(nodes, len(nodes) - 1 if output is None else output)


@st.composite
def graphs(draw, most: int = 9, ops=("layer", "add", "concat", "product", "zero", "input")):
    """Any graph: several inputs, dead ends, zeros, values used twice, any node the output."""
    nodes = [INPUT]
    for index in range(1, draw(st.integers(2, most))):
        op = draw(st.sampled_from(ops))
        source = st.integers(0, index - 1)
        if op == "layer":
            nodes.append(layer(draw(source), normalized=draw(st.booleans())))
        elif op == "input":
            nodes.append(INPUT)
        elif op == "zero":
            nodes.append(Node("zero", tuple(draw(st.lists(source, max_size=1)))))
        else:
            inputs = tuple(draw(st.lists(source, min_size=1, max_size=3)))
            shares = tuple(draw(st.integers(1, 5)) for _ in inputs) if op == "concat" else ()
            nodes.append(Node(op, inputs, shares=shares))
    return graph(*nodes, output=draw(st.integers(0, len(nodes) - 1)))


@st.composite
def dag_strings(draw, most: int = 5) -> str:
    groups = [
        draw(st.text("012", min_size=j, max_size=j)) for j in range(1, draw(st.integers(2, most)))
    ]
    return "_".join(groups)


@pytest.mark.parametrize(("aggregate", "convention"), WEIGHTS)
@settings(max_examples=60)
@given(network=graphs())
def test_moments_are_those_of_all_paths(
    aggregate: str, convention: str, network: NetworkGraph
) -> None:
    found = paths(network, aggregate, convention)
    result = moments(network, aggregate, convention)
    expected = [power_sum(found, k) for k in range(4)]
    assert [result.count, result.first, result.second, result.third] == expected


@pytest.mark.parametrize(("aggregate", "convention"), WEIGHTS)
@settings(max_examples=60)
@given(network=graphs())
def test_visits_are_the_paths_through_each_layer(
    aggregate: str, convention: str, network: NetworkGraph
) -> None:
    found = paths(network, aggregate, convention)
    result = visits(network, aggregate, convention)
    assert result == {
        i: sum((w for w, path in found if i in path), Fraction(0)) for i in network.layers
    }
    assert sum(result.values()) == moments(network, aggregate, convention).first


@pytest.mark.parametrize("convention", CONVENTIONS)
@settings(max_examples=60)
@given(network=graphs())
def test_in_degrees_are_those_of_the_definition(convention: str, network: NetworkGraph) -> None:
    for index in network.layers:
        expected = degree(network, index, convention)
        if any(is_zero(network, i) for i in (index, *network.nodes[index].inputs)):
            continue  # nothing comes of it, whatever its weights are
        assert in_degree(network, index, convention) == expected


@given(graphs())
def test_weights_of_a_mean_add_up_to_one_without_zeros(network: NetworkGraph) -> None:
    assume(not any(is_zero(network, i) for i in range(len(network.nodes))))
    assert moments(network, "mean").count == 1


@given(graphs(most=8, ops=("layer", "add")))
def test_read_outs_end_paths(network: NetworkGraph) -> None:
    ends = {path[-1] for _, path in paths(network, "sum") if path}
    others = {index for _, path in paths(network, "sum") for index in path[:-1]}
    assert set(readouts(network)) == ends - others


@given(graphs(ops=("layer", "add", "zero")))
def test_flattening_keeps_every_path(network: NetworkGraph) -> None:
    flat = flattened(network)
    assert moments(flat, "sum") == moments(network, "sum")
    assert flattened(flat) == flat
    assert len(flat.layers) == len(network.layers)
    for index, node in enumerate(flat.nodes):
        for source in node.inputs if node.op == "add" else ():
            shared = len(flat.consumers[source]) > 1 or source == flat.output
            twice = node.inputs.count(source) > 1
            assert flat.nodes[source].op != "add" or shared or twice, index


@settings(max_examples=200)
@given(dag_strings())
def test_dag_strings(dag: str) -> None:
    """Against the definition of the notation: edges by character, paths from node 0."""
    groups = dag.split("_")

    def depths(node: int) -> list[int]:
        if node == 0:
            return [0]
        steps = enumerate(map(int, groups[node - 1]))
        return [depth + edge - 1 for k, edge in steps if edge for depth in depths(k)]

    expected = sorted(depths(len(groups)))
    if not expected:
        with pytest.raises(InvalidValueError, match="no path"):
            from_dag(dag)
        return
    network = from_dag(dag, kernel_size=3)
    found = paths(network, "sum")
    assert sorted(len(path) - 2 for _, path in found) == expected
    assert readouts(network) == (network.output,)


@pytest.mark.parametrize(
    ("dag", "depths"),
    [
        ("2_02_002", [3]),
        ("2_12_112", [0, 1, 1, 3]),
        ("1_12_021_1120", [0, 0, 1, 2]),
        ("2_11_222_0211", [0, 1, 1, 1, 2, 2, 2]),
        ("0_12_022_1121", [0, 1, 1]),
    ],
)
def test_depths_of_the_published_code(dag: str, depths: list[int]) -> None:
    """What its `dag_depths` (VITA-Group/principled_scaling_lr_init) gives for these strings.

    It counts the edges between nodes; stem and read-out are two layers more. (It adds three,
    and so does not give the network of its base, "2", the rate of the base.)
    """
    result = moments(from_dag(dag), "sum")
    assert result == PathMoments(*(sum((d + 2) ** k for d in depths) for k in range(4)))


def test_a_dag_by_hand() -> None:
    network = from_dag("2_12_002", inputs=5, width=7, classes=3, kernel_size=3)
    # Node 1 is a layer, node 2 node 0 + a layer of node 1, node 3 a layer: depths 3 and 5.
    assert moments(network, "sum") == PathMoments(2, 3 + 5, 9 + 25, 27 + 125)
    found = [network.layer(i) for i in network.layers]
    assert [one.name for one in found] == [
        "stem.layer.weight",
        "graph.edges.0_to_1.layer.weight",
        "graph.edges.1_to_2.layer.weight",
        "graph.edges.2_to_3.layer.weight",
        "readout.weight",
    ]
    assert [one.shape for one in found] == [(7, 5, 3, 3), *3 * [(7, 7, 3, 3)], (3, 7)]
    assert [one.fan_in for one in found] == [45, 63, 63, 63, 7]
    assert [one.fan_out for one in found] == [63, 63, 63, 63, 3]
    assert [in_degree(network, i) for i in network.layers] == [1, 1, 2, 1, 1]
    assert [in_degree(network, i, "source") for i in network.layers] == [1, 1, 1, 2, 1]


def test_a_residual_stream() -> None:
    """Identities count; what a block reads, and the stem, are features of their own."""
    network = graph(
        INPUT,
        layer(0),  # 1: stem, read by a block and by an addition
        layer(1),
        layer(2),
        Node("add", (1, 3)),  # 4
        layer(4),
        layer(5),
        Node("add", (4, 6)),  # 7
        layer(7),
    )
    assert [in_degree(network, i) for i in network.layers] == [1, 1, 2, 1, 2, 1]
    assert [in_degree(network, i, "source") for i in network.layers] == [1, 1, 1, 2, 1, 2]
    assert [in_degree(network, i, "stream") for i in network.layers] == [1, 1, 3, 1, 3, 1]
    assert readouts(network) == (8,)


@pytest.mark.parametrize("blocks", [1, 4, 32])
def test_growth_of_a_residual_stream(blocks: int) -> None:
    """Each block adds 1/d_in of what it reads; the whole stream as one sum stays below e."""
    network = residual(blocks)
    assert growth(network) == Fraction(3, 2) ** blocks
    assert growth(network, "stream") == (1 + Fraction(1, blocks + 1)) ** blocks < math.e
    assert moments(network, "gain").count == growth(network)
    assert growth(residual(blocks, normalized=True)) == 1 + blocks


def residual(blocks: int, normalized: bool = False) -> NetworkGraph:
    nodes = [INPUT, layer(0)]
    for _ in range(blocks):
        x = len(nodes) - 1
        branch = layer(x, normalized=normalized), layer(x + 1, normalized=normalized)
        nodes += [*branch, Node("add", (x, x + 2))]
    return graph(*nodes, layer(len(nodes) - 1))


def test_only_what_an_input_reaches_is_a_summand() -> None:
    network = graph(
        INPUT, Node("zero", (0,)), layer(1), layer(0), layer(0), Node("add", (1, 2, 3, 4)), layer(5)
    )
    assert [in_degree(network, i) for i in (3, 4)] == [2, 2]
    assert moments(network, "mean").count == 1


def test_concatenation_has_no_in_degree_and_weights_by_channels() -> None:
    network = graph(INPUT, layer(0), Node("concat", (0, 1), shares=(3, 1)), layer(2))
    assert in_degree(network, 1) == 1
    assert moments(network, "mean") == PathMoments(
        1, Fraction(5, 4), Fraction(3 + 4, 4), Fraction(3 + 8, 4)
    )
    assert moments(network, "sum") == PathMoments(2, 3, 5, 9)


def test_an_output_that_is_used_on_is_a_feature() -> None:
    network = graph(INPUT, layer(0), layer(0), Node("add", (1, 2)), output=1)
    assert [in_degree(network, i) for i in (1, 2)] == [1, 2]
    assert readouts(network) == (1,)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((INPUT, layer(2), layer(0)), r"node 1 \(layer\) must take earlier nodes, takes 2"),
        ((INPUT, Node("layer", (0,))), "a node has a layer if, and only if"),
        ((INPUT, Node("add", (0,), layer(0).layer)), "a node has a layer if, and only if"),
        ((INPUT, layer(0, 0)), "must have 1 inputs, has 2"),
        ((INPUT, Node("add", ())), "must have inputs"),
        ((INPUT, Node("concat", (0, 0), shares=(1,))), "channels of each of 2 inputs"),
        ((INPUT, Node("minus", (0, 0))), "op of node 1 .* must be one of"),
        ((), "output must be the index"),
    ],
)
def test_graphs_that_cannot_be(nodes: tuple[Node, ...], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        NetworkGraph(nodes, len(nodes) - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "else"}, "kind of 'w' must be one of 'linear', 'conv'"),
        ({"fan_in": 0}, "fan_in of 'w' must be at least 1, got 0"),
        ({"kernel": (3, 3)}, r"a linear layer has none, got \(3, 3\) for 'linear'"),
        ({"kind": "conv"}, "a convolution has one"),
        ({"kind": "conv", "kernel": (0,)}, "kernel of 'w' must be at least 1"),
    ],
)
def test_layers_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        replace(layer(0).layer, **change)


def test_a_layer_by_the_shape_of_its_weight() -> None:
    grouped = Layer.of("w", (32, 4, 3, 5), groups=2, bias="b")
    assert (grouped.kind, grouped.kernel, grouped.bias) == ("conv", (3, 5), "b")
    assert (grouped.fan_in, grouped.fan_out) == (4 * 15, 16 * 15)


def test_unknown_words() -> None:
    network = from_dag("2_12")
    with pytest.raises(InvalidValueError, match="aggregate must be one of 'sum', 'mean'"):
        moments(network, "max")
    with pytest.raises(InvalidValueError, match="convention must be one of"):
        in_degree(network, 1, "both")
    with pytest.raises(InvalidValueError, match="node 0 is no layer but 'input'"):
        in_degree(network, 0)


def test_densenet_121_by_an_independent_recursion() -> None:
    """Far too many paths to list: features are counted by depth instead.

    In a block each dense layer (two convolutions) reads all channels so far, so that after
    it the number of paths of depth d is f(d) + f(d − 2): the polynomial (1 + x²)^n; a
    transition is one more layer. With "mean", channels replace paths and the total is normalised.
    """
    grown, blocks = 32, (6, 12, 24, 16)
    network = densenet(grown, blocks)
    depths: dict[int, int] = {1: 1}
    for count in blocks:
        for _ in range(count):
            depths = {
                d: depths.get(d, 0) + depths.get(d - 2, 0)
                for d in {*depths, *(d + 2 for d in depths)}
            }
        depths = {d + 1: n for d, n in depths.items()}  # a transition, or the classifier
    result = moments(network, "sum")
    assert result.count == 2**58 == sum(depths.values())
    assert result.third == sum(n * d**3 for d, n in depths.items())

    channels, share = 64, {1: Fraction(1)}
    for count in blocks:
        for _ in range(count):
            old = Fraction(channels, channels + grown)
            share = {
                d: old * share.get(d, 0) + (1 - old) * share.get(d - 2, 0)
                for d in {*share, *(d + 2 for d in share)}
            }
            channels += grown
        share = {d + 1: w for d, w in share.items()}
        channels //= 2
    mean = moments(network, "mean")
    assert mean.count == 1
    assert mean.third == sum(w * d**3 for d, w in share.items())


def densenet(grown: int, blocks: tuple[int, ...]) -> NetworkGraph:
    """The graph of torchvision's DenseNet, as a concatenation of all features in each layer."""
    nodes = [INPUT, layer(0)]
    channels = 64
    for count in blocks:
        features, shares = [len(nodes) - 1], [channels]
        for _ in range(count):
            nodes.append(Node("concat", tuple(features), shares=tuple(shares)))
            nodes.append(layer(len(nodes) - 1))
            nodes.append(layer(len(nodes) - 1))
            features.append(len(nodes) - 1)
            shares.append(grown)
        nodes.append(Node("concat", tuple(features), shares=tuple(shares)))
        channels = sum(shares) // 2
        nodes.append(layer(len(nodes) - 1))  # a transition, or the classifier
    return graph(*nodes)
