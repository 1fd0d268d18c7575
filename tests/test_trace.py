"""Graphs read from modules, against values derived by hand; and modules that are left alone."""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from tests.test_models import ALL_3X3, paths
from tune_ext._dags import CELL_OPERATIONS
from tune_ext._graph import NetworkGraph, from_dag
from tune_ext._paths import in_degree, moments
from tune_ext._trace import trace
from tune_ext.benchmark.tasks._architectures import make
from tune_ext.benchmark.tasks._networks import ResNet, mlp, plain_cnn
from tune_ext.errors import InvalidTypeError, InvalidValueError, UntraceableModelError
from tune_ext.models import CellNetwork, DagCNN, DagMLP, random_dags


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def written(graph: NetworkGraph) -> list[str]:
    """The nodes as text: a layer by its name, with the numbers of its inputs."""
    return [
        f"{node.layer.name if node.layer else node.op}({', '.join(map(str, node.inputs))})"
        for node in graph.nodes
    ]


def depths(graph: NetworkGraph) -> tuple[int, int]:
    """Layers on the shortest and on the longest path to the output."""
    found: list[tuple[int, int]] = []
    for node in graph.nodes:
        before = [found[source] for source in node.inputs] or [(0, 0)]
        own = node.layer is not None
        found.append((min(b[0] for b in before) + own, max(b[1] for b in before) + own))
    return found[graph.output]


def degrees(graph: NetworkGraph) -> Counter[int]:
    return Counter(in_degree(graph, index) for index in graph.layers)


# ---------------------------------------------------------------------- networks from strings


def reachable(graph: NetworkGraph) -> list[tuple[object, ...]]:
    """The nodes that the output needs, renumbered, without their names."""
    needed = {graph.output}
    for index in reversed(range(len(graph.nodes))):
        needed.update(graph.nodes[index].inputs if index in needed else ())
    new = {old: number for number, old in enumerate(sorted(needed))}
    nodes = [graph.nodes[old] for old in sorted(needed)]
    return [(n.op, sorted(new[i] for i in n.inputs), n.layer) for n in nodes]


@given(
    nodes=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    norm=st.booleans(),
    activation=st.sampled_from(["relu", "gelu", "silu"]),
    kernel=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=15, deadline=None)
def test_graphs_of_dags_are_those_of_their_strings(
    nodes: int, seed: int, norm: bool, activation: str, kernel: int | None
) -> None:
    (dag,) = random_dags(nodes, 1, seed=seed)
    options = {"activation": activation, "norm": norm, "bias": not norm}
    if kernel is None:
        network = on_meta(lambda: DagMLP(dag, 5, 4, 3, **options))
        found = trace(network, torch.empty(1, 5))
    else:
        network = on_meta(lambda: DagCNN(dag, 5, 4, 3, kernel_size=kernel, **options))
        found = trace(network, torch.empty(1, 5, 4, 4))
    string = from_dag(dag, inputs=5, width=4, classes=3, kernel_size=kernel, **options)
    assert reachable(found) == reachable(string)
    for aggregate in ("sum", "mean"):
        assert moments(found, aggregate) == moments(string, aggregate)
    lengths = [2 + sum(_is_layer(dag, edge) for edge in path) for path in paths(dag)]
    found_moments = moments(found, "sum")
    assert found_moments.count == len(lengths)
    assert found_moments.third == sum(length**3 for length in lengths)


def _is_layer(dag: str, edge: str) -> bool:
    k, j = map(int, edge.split("_to_"))
    return dag.split("_")[j - 1][k] == "2"


def cell_depths(operations: list[str]) -> Counter[int]:
    """How many paths of each depth lead through a cell, by trying all of them."""
    edges = dict(zip([(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)], operations, strict=True))
    found: Counter[int] = Counter()
    for size in range(3):
        for between in itertools.combinations((1, 2), size):
            path = [edges[edge] for edge in itertools.pairwise((0, *between, 3))]
            if "none" not in path:
                found[sum(name.startswith("nor_conv") for name in path)] += 1
    return found


def in_series(first: Counter[int], second: Counter[int]) -> Counter[int]:
    found: Counter[int] = Counter()
    for (a, m), (b, n) in itertools.product(first.items(), second.items()):
        found[a + b] += m * n
    return found


@given(st.lists(st.sampled_from(CELL_OPERATIONS), min_size=6, max_size=6))
@settings(max_examples=5, deadline=None)
def test_paths_of_cell_networks(operations: list[str]) -> None:
    a, b, c, d, e, f = operations
    cell = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
    through = cell_depths(operations)
    if not through:
        return
    network = on_meta(lambda: CellNetwork(cell, 3, 10, width=4, cells=1))
    found = moments(trace(network, torch.empty(1, 3, 8, 8)), "sum")
    whole = Counter({1: 1})
    reduction = Counter({2: 1, 1: 1})
    for part in (through, reduction, through, reduction, through, Counter({1: 1})):
        whole = in_series(whole, part)
    assert found.count == whole.total()
    assert found.first == sum(n * depth for depth, n in whole.items())
    assert found.third == sum(n * depth**3 for depth, n in whole.items())


def test_a_cell_network_exactly() -> None:
    cell = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
    network = on_meta(lambda: CellNetwork(cell, 3, 10, width=4, cells=1))
    graph = trace(network, torch.empty(1, 3, 8, 8))
    assert written(graph)[:9] == [
        "input()",
        "stem.0.weight(0)",
        "stages.0.edges.0_to_1.1.weight(1)",
        "stages.0.edges.0_to_2.1.weight(1)",
        "add(3, 2)",
        "stages.0.edges.2_to_3.1.weight(4)",
        "add(1, 5)",
        "stages.1.shortcut.1.weight(6)",
        "stages.1.first.1.weight(6)",
    ]
    layers = [graph.layer(index) for index in graph.layers]
    assert [in_degree(graph, index) for index in graph.layers[:4]] == [1, 2, 2, 2]
    assert [layer.kernel for layer in layers[:4]] == [(3, 3), (3, 3), (1, 1), (3, 3)]
    assert [layer.fan_in for layer in layers[:4]] == [27, 36, 4, 36]
    assert [layer.activation for layer in layers[:4]] == [None, "relu", "relu", "relu"]
    assert all(layer.normalized for layer in layers[:4])
    assert graph.notes == ("normalisation: BatchNorm2d (15 times)",)


# ---------------------------------------------------------------------- published networks


@pytest.fixture(scope="module")
def published() -> Callable[[str], NetworkGraph]:
    """Graphs of torchvision's networks, each traced once."""
    graphs: dict[str, NetworkGraph] = {}

    def get(name: str) -> NetworkGraph:
        if name not in graphs:
            options = {"init_weights": False} if name.startswith("vgg") else {}
            network = on_meta(lambda: getattr(torchvision.models, name)(weights=None, **options))
            graphs[name] = trace(network, torch.empty(1, 3, 224, 224, device="meta"))
        return graphs[name]

    return get


@pytest.mark.parametrize(
    ("name", "layers", "shortest", "longest", "paths", "in_degrees"),
    [
        # Stem and read-out; 5 blocks of 2 beside an identity, 3 of 2 beside a convolution.
        ("resnet18", 21, 1 + 3 + 1, 18, 2**8, {1: 10, 2: 11}),
        ("resnet34", 37, 1 + 3 + 1, 34, 2**16, {1: 18, 2: 19}),
        # 12 blocks of 3 beside an identity, 4 of 3 beside a convolution.
        ("resnet50", 54, 1 + 4 + 1, 50, 2**16, {1: 34, 2: 20}),
        ("vgg11", 11, 11, 11, 1, {1: 11}),
        ("vgg16_bn", 16, 16, 16, 1, {1: 16}),
        # Each of 58 dense layers adds 2 convolutions beside what came before; 3 transitions.
        ("densenet121", 121, 1 + 3 + 1, 121, 2**58, {1: 121}),
        # 10 of 17 blocks have an identity beside 3 convolutions.
        ("mobilenet_v2", 53, 53 - 10 * 3, 53, 2**10, {1: 43, 2: 10}),
    ],
)
def test_published_networks(
    published: Callable[[str], NetworkGraph],
    name: str,
    layers: int,
    shortest: int,
    longest: int,
    paths: int,
    in_degrees: dict[int, int],
) -> None:
    graph = published(name)
    assert len(graph.layers) == layers
    assert depths(graph) == (shortest, longest)
    assert moments(graph, "sum").count == paths
    assert degrees(graph) == in_degrees
    assert moments(graph, "mean").count == 1


def test_mean_depths_by_hand(published: Callable[[str], NetworkGraph]) -> None:
    """An average over both branches of each block: 1 beside an identity, 1.5 or 2 else."""
    assert moments(published("resnet18"), "mean").first == 2 + 5 + 3 * Fraction(3, 2)
    assert moments(published("resnet34"), "mean").first == 2 + 13 + 3 * Fraction(3, 2)
    assert moments(published("resnet50"), "mean").first == 2 + 12 * Fraction(3, 2) + 4 * 2


def test_layers_of_resnet18(published: Callable[[str], NetworkGraph]) -> None:
    graph = published("resnet18")
    layers = {graph.layer(index).name: graph.layer(index) for index in graph.layers}
    stem = layers["conv1.weight"]
    assert (stem.kind, stem.kernel, stem.shape) == ("conv", (7, 7), (64, 3, 7, 7))
    assert (stem.fan_in, stem.fan_out, stem.groups) == (3 * 49, 64 * 49, 1)
    assert (stem.activation, stem.normalized, stem.bias) == ("relu", True, None)
    shortcut = layers["layer2.0.downsample.0.weight"]
    assert (shortcut.kernel, shortcut.fan_in, shortcut.fan_out) == ((1, 1), 64, 128)
    head = layers["fc.weight"]
    assert (head.kind, head.kernel, head.fan_in, head.fan_out) == ("linear", (), 512, 1000)
    assert (head.bias, head.normalized) == ("fc.bias", False)
    assert graph.notes == ("normalisation: BatchNorm2d (20 times)",)


def test_layers_of_vgg(published: Callable[[str], NetworkGraph]) -> None:
    plain, normalized = published("vgg11"), published("vgg16_bn")
    assert plain.notes == ()
    assert not any(plain.layer(index).normalized for index in plain.layers)
    kinds = [normalized.layer(index).kind for index in normalized.layers]
    assert kinds == ["conv"] * 13 + ["linear"] * 3
    flags = [normalized.layer(index).normalized for index in normalized.layers]
    assert flags == [True] * 13 + [False] * 3
    assert normalized.layer(normalized.layers[13]).fan_in == 512 * 7 * 7
    activations = [plain.layer(index).activation for index in plain.layers]
    assert activations == ["relu"] * 10 + [None]


def test_concatenations_of_densenet(published: Callable[[str], NetworkGraph]) -> None:
    graph = published("densenet121")
    shares = [node.shares for node in graph.nodes if node.op == "concat"]
    # What the second and the last layer of the first block read, and the block's output.
    assert shares[0] == (64, 32)
    assert shares[4] == (64, 32, 32, 32, 32, 32)
    assert shares[5] == (64, 32, 32, 32, 32, 32, 32)
    assert sum(shares[-1]) == 1024


def test_depthwise_convolutions_of_mobilenet(published: Callable[[str], NetworkGraph]) -> None:
    graph = published("mobilenet_v2")
    grouped = [graph.layer(i) for i in graph.layers if graph.layer(i).groups > 1]
    assert len(grouped) == 17
    assert {(layer.fan_in, layer.fan_out) for layer in grouped} == {(9, 9)}
    assert {layer.activation for layer in grouped} == {"relu6"}


@pytest.mark.parametrize(
    ("build", "layers", "shortest", "longest", "paths"),
    [
        (lambda: ResNet(1, 10, 4, (1, 1, 1)), 10, 1 + 0 + 1 + 1 + 1, 8, 8),
        (lambda: make("wrn-10-1", channels=3, classes=10, size=32, width=0), 10, 4, 8, 8),
        # One more block beside an identity in each stage.
        (lambda: make("wrn-16-2", channels=3, classes=10, size=32, width=0), 17, 5, 14, 64),
        (lambda: plain_cnn(3, 10, (4, 8, 8), (1, 2, 2)), 4, 4, 4, 1),
        (lambda: mlp(3 * 32 * 32, 10, (8, 8)), 3, 3, 3, 1),
    ],
)
def test_our_own_networks(build, layers: int, shortest: int, longest: int, paths: int) -> None:
    network = on_meta(build)
    first = next(p for p in network.parameters())
    channels = first.shape[1] if first.ndim == 4 else 3
    graph = trace(network, torch.empty(2, channels, 32, 32))
    assert len(graph.layers) == layers
    assert depths(graph) == (shortest, longest)
    assert moments(graph, "sum").count == paths


def test_pre_activation_belongs_to_the_layer_that_follows() -> None:
    network = on_meta(lambda: make("wrn-10-1", channels=3, classes=10, size=32, width=0))
    graph = trace(network, torch.empty(2, 3, 32, 32))
    layers = {graph.layer(index).name: graph.layer(index) for index in graph.layers}
    first = layers["groups.1.0.branches.0.conv1.weight"]
    assert (first.activation, first.normalized) == ("relu", True)
    assert layers["stem.weight"].activation is None
    assert layers["groups.1.0.shortcut.weight"].activation == "relu"


# ---------------------------------------------------------------------- single operations


class Net(nn.Module):
    """A module whose forward is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., object], **parts: object) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return self.function(self, *args, **kwargs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


def in_place(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    y += x
    y.relu_()
    y *= 2
    return m.b(y).add_(x)


def without_gradient(m: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.a(x)
    return y + x


def half_precision(m: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.a(x)
    return y.float() + x


def in_parts(m: Net, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :4] = m.a(x)[:, :4]
    y[:, 4:] = x[:, 4:]
    return y


BRANCHES = ["input()", "a.weight(0)", "b.weight(0)"]


@pytest.mark.parametrize(
    ("function", "nodes"),
    [
        # sums
        (lambda m, x: x + m.a(x), ["input()", "a.weight(0)", "add(0, 1)"]),
        (lambda m, x: m.a(x) - m.b(x), [*BRANCHES, "add(1, 2)"]),
        (lambda m, x: sum([x, m.a(x), m.b(x)]), [*BRANCHES, "add(0, 1, 2)"]),
        (lambda m, x: x + (m.a(x) + m.b(x)), [*BRANCHES, "add(0, 1, 2)"]),
        (lambda m, x: x + 2 * (m.a(x) + m.b(x)), [*BRANCHES, "add(0, 1, 2)"]),
        (lambda m, x: x + F.relu(m.a(x) + m.b(x)), [*BRANCHES, "add(1, 2)", "add(0, 3)"]),
        (lambda m, x: torch.stack([m.a(x), m.b(x)]).sum(0), [*BRANCHES, "add(1, 2)"]),
        (lambda m, x: torch.stack([m.a(x), m.b(x)], -1).mean(-1), [*BRANCHES, "add(1, 2)"]),
        (lambda m, x: torch.lerp(m.a(x), m.b(x), 0.3), [*BRANCHES, "add(1, 2)"]),
        (lambda m, x: x + m.a(x) + x, ["input()", "a.weight(0)", "add(0, 1, 0)"]),
        (in_place, ["input()", "a.weight(0)", "add(1, 0)", "b.weight(2)", "add(3, 0)"]),
        # no sums
        (lambda m, x: 0 + m.a(x) + 1.5, ["input()", "a.weight(0)"]),
        (lambda m, x: m.a(x) + x * 0, ["input()", "a.weight(0)"]),
        (lambda m, x: m.a(x) + torch.zeros_like(x), ["input()", "a.weight(0)"]),
        (lambda m, x: (y := m.a(x)) - y.mean(-1, keepdim=True), ["input()", "a.weight(0)"]),
        # side by side
        (lambda m, x: torch.cat([x, m.a(x)], 1), ["input()", "a.weight(0)", "concat(0, 1)"]),
        (lambda m, x: torch.cat([x, x.flip(1)], 1), ["input()"]),
        (lambda m, x: torch.cat([torch.zeros_like(x), m.a(x)], 1), ["input()", "a.weight(0)"]),
        (lambda m, x: torch.stack([m.a(x), m.b(x)]), [*BRANCHES, "concat(1, 2)"]),
        (lambda m, x: torch.maximum(m.a(x), m.b(x)), [*BRANCHES, "concat(1, 2)"]),
        (lambda m, x: torch.max(m.a(x), m.b(x)), [*BRANCHES, "concat(1, 2)"]),
        (in_parts, ["input()", "a.weight(0)", "concat(1, 0)"]),
        # products
        (lambda m, x: torch.sigmoid(m.a(x)) * m.b(x), [*BRANCHES, "product(1, 2)"]),
        (lambda m, x: m.a(x) @ m.b(x).T, [*BRANCHES, "product(1, 2)"]),
        (lambda m, x: (y := m.a(x)) * torch.sigmoid(y), ["input()", "a.weight(0)"]),
        (lambda m, x: (y := m.a(x)) * (y > 0), ["input()", "a.weight(0)"]),
        (lambda m, x: m.a(x) * 3 / 2, ["input()", "a.weight(0)"]),
        # contexts
        (without_gradient, ["input()", "a.weight(0)", "add(1, 0)"]),
        (half_precision, ["input()", "a.weight(0)", "add(1, 0)"]),
        (
            lambda m, x: checkpoint(m.a, x, use_reentrant=False) + x,
            ["input()", "a.weight(0)", "add(1, 0)"],
        ),
        # what the input does not reach is not there
        (lambda m, x: (m.b(x), m.a(x))[1], ["input()", "a.weight(0)"]),
    ],
)
def test_merges(function: Callable[..., object], nodes: list[str]) -> None:
    graph = trace(on_meta(lambda: Net(function)), torch.empty(8, 8))
    assert written(graph) == nodes
    assert graph.output == len(nodes) - 1


@pytest.mark.parametrize(
    ("function", "shape", "fan_in", "fan_out", "groups", "bias"),
    [
        (lambda m, x: x @ m.w, (8, 5), 8, 5, 1, None),
        (lambda m, x: x @ m.w + m.v, (8, 5), 8, 5, 1, "v"),
        (lambda m, x: m.w @ x, (5, 8), 8, 5, 1, None),
        (lambda m, x: torch.addmm(m.v, x, m.w.t()), (5, 8), 8, 5, 1, "v"),
        (lambda m, x: F.linear(x, m.w, m.v), (5, 8), 8, 5, 1, "v"),
        (lambda m, x: torch.einsum("bi,oi->bo", x, m.w), (5, 8), 8, 5, 1, None),
        (lambda m, x: torch.einsum("...i,io", x, m.w), (8, 5), 8, 5, 1, None),
        (lambda m, x: torch.einsum("bi,bio->bo", x, m.w), (8, 8, 5), 8, 5, 8, None),
        (lambda m, x: x.view(8, 1, 8).bmm(m.w), (8, 8, 5), 8, 5, 8, None),
        (lambda m, x: torch.inner(x, m.w), (5, 8), 8, 5, 1, None),
        (lambda m, x: torch.tensordot(x, m.w, dims=1), (8, 5), 8, 5, 1, None),
        (lambda m, x: torch.tensordot(m.w, x, ([0, 2], [0, 1])), (8, 5, 8), 64, 5, 1, None),
        (lambda m, x: F.conv1d(x.view(1, 8, 8), m.w, m.v), (5, 8, 3), 24, 15, 1, "v"),
        (lambda m, x: F.conv1d(x.view(1, 8, 8), m.w, groups=2), (6, 4, 3), 12, 9, 2, None),
        (lambda m, x: F.conv2d(x.view(1, 4, 4, 4), m.w), (2, 4, 1, 3), 12, 6, 1, None),
        # A stride of 2 leaves an output unit 4 of 16 positions.
        (
            lambda m, x: F.conv_transpose2d(x.view(1, 4, 4, 4), m.w, stride=2),
            (4, 3, 4, 4),
            4 * 4,
            3 * 16,
            1,
            None,
        ),
    ],
)
def test_weights_of_functions(
    function: Callable[..., object],
    shape: tuple[int, ...],
    fan_in: int,
    fan_out: int,
    groups: int,
    bias: str | None,
) -> None:
    network = Net(function, w=parameter(*shape), v=parameter(5))
    graph = trace(network, torch.empty(8, 8))
    assert written(graph) == ["input()", "w(0)"]
    layer = graph.layer(1)
    assert (layer.fan_in, layer.fan_out, layer.groups) == (fan_in, fan_out, groups)
    assert (layer.shape, layer.bias, layer.kernel) == (
        shape,
        bias,
        shape[2:] * (layer.kind == "conv"),
    )


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.GELU(), "gelu"),
        (nn.SiLU(), "silu"),
        (nn.Hardswish(), "hardswish"),
        (nn.ReLU6(), "relu6"),
        (nn.PReLU(), "prelu"),
        (nn.Sequential(nn.Dropout(), nn.Tanh()), "tanh"),
        (nn.Identity(), None),
    ],
)
def test_activations(activation: nn.Module, name: str | None) -> None:
    network = nn.Sequential(nn.Linear(8, 8), activation, nn.Linear(8, 2))
    graph = trace(network, torch.empty(3, 8))
    assert [graph.layer(i).activation for i in graph.layers] == [name, None]


def test_a_clamp_at_zero_is_a_relu() -> None:
    graph = trace(Net(lambda m, x: m.b(m.a(x).clamp(min=0))), torch.empty(3, 8))
    assert graph.layer(1).activation == "relu"


@pytest.mark.parametrize(
    ("norm", "note"),
    [
        (nn.BatchNorm1d(8), "normalisation: BatchNorm1d"),
        (nn.SyncBatchNorm(8), "normalisation: SyncBatchNorm"),
        (nn.LayerNorm(8), "normalisation: layer_norm"),
        (nn.GroupNorm(2, 8), "normalisation: group_norm"),
    ],
)
def test_normalisations(norm: nn.Module, note: str) -> None:
    """Also with one example, from which a batch normalisation could compute nothing."""
    network = nn.Sequential(nn.Linear(8, 8), norm, nn.ReLU(), nn.Linear(8, 2)).train()
    graph = trace(network, torch.empty(1, 8))
    assert [graph.layer(i).normalized for i in graph.layers] == [True, False]
    assert graph.notes == (note,)


def test_normalisations_that_are_written_out() -> None:
    def root_mean_square(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * m.g

    def standard(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        return (y - y.mean(-1, keepdim=True)) / (y.std(-1, keepdim=True) + 1e-6)

    for function in (root_mean_square, standard):
        graph = trace(Net(function, g=parameter(8)), torch.empty(3, 8))
        assert written(graph) == ["input()", "a.weight(0)"]
        assert graph.notes == ("normalisation: written out",)


def test_normalisations_whose_parameters_are_used_elsewhere() -> None:
    def function(m: Net, x: Tensor) -> Tensor:
        return m.b(m.norm(m.a(x))) * m.norm.weight

    graph = trace(Net(function, norm=nn.BatchNorm1d(8)), torch.empty(1, 8))
    assert written(graph) == ["input()", "a.weight(0)", "b.weight(1)"]


class SqueezeAndExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.down, self.up = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return x + y * gate


def test_gates_are_products() -> None:
    graph = trace(SqueezeAndExcite(), torch.empty(1, 4, 6, 6))
    assert written(graph) == [
        "input()",
        "conv.weight(0)",
        "down.weight(1)",
        "up.weight(2)",
        "product(1, 3)",
        "add(0, 4)",
    ]
    assert len(graph.notes) == 1
    assert graph.notes[0].startswith("product: mul multiplies branches")


def test_transformers_are_read_and_noted() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    graph = trace(nn.TransformerEncoder(layer, 2).eval(), torch.empty(1, 5, 8))
    assert len(graph.layers) == 8
    assert degrees(graph) == {1: 4, 2: 4}
    assert any(note.startswith("attention: ") for note in graph.notes)
    attention = nn.MultiheadAttention(8, 2)
    x = torch.empty(5, 1, 8)
    separate = trace(attention, (x, x, x))
    assert "part of a parameter: in_proj_weight holds several weights (3 times)" in separate.notes
    assert not any("sharing" in note for note in separate.notes)


def test_shared_weights_are_noted() -> None:
    repeated = trace(Net(lambda m, x: m.a(m.a(m.a(x)))), torch.empty(3, 8))
    assert written(repeated) == ["input()", "a.weight(0)", "a.weight(1)", "a.weight(2)"]
    assert repeated.notes == ("weight sharing: a.weight is the weight of 3 layers",)
    table = nn.Embedding(5, 8)
    tied = Net(lambda m, x: F.linear(m.a(m.table(x)), m.table.weight), table=table)
    graph = trace(tied, torch.zeros(2, 3, dtype=torch.long))
    assert written(graph) == ["input()", "a.weight(0)", "table.weight(1)"]
    assert graph.notes == (
        "embedding: its output is taken as an input",
        "weight sharing: table.weight is an embedding and the weight of a layer",
    )


def pruned() -> nn.Module:
    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    "build",
    [
        lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
        lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
        lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
        pruned,
    ],
)
def test_computed_weights_are_layers(build: Callable[[], nn.Module]) -> None:
    graph = trace(nn.Sequential(build(), nn.ReLU()), torch.empty(3, 8))
    assert written(graph) == ["input()", "0.weight(0)"]
    assert len(graph.notes) == 1
    assert graph.notes[0].startswith("computed weight: 0.weight is a function of 0.")
    assert (graph.layer(1).fan_in, graph.layer(1).activation) == (8, "relu")


@pytest.mark.parametrize(
    ("function", "shape", "name"),
    [
        (lambda m, x: F.bilinear(x, x, m.w), (8, 8, 8), "bilinear"),
        (lambda m, x: torch.linalg.multi_dot([x, m.w, m.w]), (8, 8), "linalg_multi_dot"),
        (lambda m, x: torch.addbmm(x, x[None], m.w), (1, 8, 8), "addbmm"),
        (lambda m, x: torch.einsum("bi,ij,jk->bk", x, m.w, m.w), (8, 8), "einsum"),
    ],
)
def test_weights_without_a_rule_are_told(
    function: Callable[..., Tensor], shape: tuple[int, ...], name: str
) -> None:
    network = Net(lambda m, x: m.a(function(m, x)), w=parameter(*shape))
    graph = trace(network, torch.empty(8, 8))
    assert f"weights left out: w, as {name} is not read as a layer" in graph.notes


def test_weights_that_are_no_parameters_count_as_no_layer() -> None:
    blur = Net(lambda m, x: m.a(F.conv1d(x[:, None], torch.ones(1, 1, 3), padding=1)[:, 0]))
    graph = trace(blur, torch.empty(3, 8))
    assert written(graph) == ["input()", "a.weight(0)"]
    assert graph.notes == ("fixed weights: conv1d with no parameter counts as no layer",)


# ---------------------------------------------------------------------- inputs and outputs


def test_several_inputs() -> None:
    network = Net(lambda m, x, y: m.a(x) + m.b(y))
    nodes = ["input()", "input()", "a.weight(0)", "b.weight(1)", "add(2, 3)"]
    x = torch.empty(3, 8)
    assert written(trace(network, (x, x))) == nodes
    assert written(trace(network, {"x": x, "y": x})) == nodes
    nested = Net(lambda m, x: m.a(x["one"]) + m.b(x["two"]))
    assert written(trace(nested, ({"one": x, "two": x},))) == nodes


def test_several_outputs() -> None:
    def function(m: Net, x: Tensor) -> object:
        y = m.a(x)
        return {"classes": y.argmax(1), "heads": [m.b(y), y], "again": y, "loss": None, "n": 3}

    graph = trace(Net(function), torch.empty(3, 8))
    assert written(graph) == ["input()", "a.weight(0)", "b.weight(1)", "concat(2, 1)"]
    assert graph.notes == ("several outputs: paths to all 2 count",)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_batch_and_device_of_the_example_do_not_matter(batch: int, device: str) -> None:
    network = DagMLP("2_12", 5, 4, 3, norm=True)
    expected = trace(network, torch.empty(3, 5))
    assert trace(network, torch.empty(batch, 5, device=device)) == expected
    assert trace(network.eval(), torch.empty(batch, 5, device=device)) == expected
    assert trace(network.to("meta"), torch.empty(batch, 5, device=device)) == expected


def test_tensors_that_forward_makes_may_be_anywhere() -> None:
    def function(m: Net, x: Tensor) -> Tensor:
        return m.a(x + torch.arange(8.0)) + torch.ones(8, device="cpu")

    for build in (lambda: Net(function), lambda: on_meta(lambda: Net(function))):
        assert written(trace(build(), torch.empty(3, 8))) == ["input()", "a.weight(0)"]


# ---------------------------------------------------------------------- the model is left alone


class Secretive(nn.Module):
    """Keeps everything it can of a forward pass, and draws from every generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.register_buffer("steps", torch.zeros(()))
        self.seen: list[object] = []
        self.lock = threading.Lock()
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        self.seen.append(x)
        self.steps += 1
        noise = random.random() + np.random.rand()  # noqa: NPY002
        return F.dropout(self.norm(self.last)) + noise * torch.randn(8)


def test_the_model_is_left_as_it_was() -> None:
    network = Secretive()
    network.norm.eval()
    network.layer.bias.requires_grad_(False)
    calls: list[object] = []
    network.layer.register_forward_hook(lambda *args: calls.append(args))
    network.register_full_backward_hook(lambda *args: calls.append(args))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    before = {name: set(vars(module)) for name, module in network.named_modules()}
    pointers = [p.data_ptr() for p in network.parameters()]
    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002

    graph = trace(network, torch.empty(3, 8))

    assert written(graph) == ["input()", "layer.weight(0)"]
    assert "hooks: 1 forward hooks are left out" in graph.notes
    assert not calls
    assert not network.seen
    assert len(network.layer._forward_hooks) == len(network._backward_hooks) == 1
    assert {name: set(vars(module)) for name, module in network.named_modules()} == before
    assert [m.training for m in network.modules()] == [True, True, False]
    assert [p.requires_grad for p in network.layer.parameters()] == [True, False]
    assert [p.data_ptr() for p in network.parameters()] == pointers
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.array_equal(np.random.get_state()[1], generators[1])  # noqa: NPY002
    assert random.getstate() == generators[2]


def test_no_weights_are_allocated() -> None:
    """A tebibyte of weights would not fit."""
    side = 2**19
    network = on_meta(lambda: nn.Sequential(nn.Linear(side, side), nn.ReLU(), nn.Linear(side, 1)))
    graph = trace(network, torch.empty(1, side))
    assert [graph.layer(index).fan_in for index in graph.layers] == [side, side]


def test_tracing_keeps_quiet(capfd: pytest.CaptureFixture[str], recwarn) -> None:
    trace(Net(lambda m, x: print("hello") or m.a(x)), torch.empty(3, 8))
    with pytest.raises(UntraceableModelError):
        trace(Net(lambda m, x: m.a(x) if x.sum() > 0 else x), torch.empty(3, 8))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_tracing_works_where_there_are_no_gradients(mode: Callable[[], Any]) -> None:
    network = nn.Sequential(nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8), nn.ReLU())
    expected = trace(network, torch.empty(3, 8, 4))
    with mode():
        assert trace(network, torch.empty(3, 8, 4)) == expected


def test_wrappers_do_not_show_in_names() -> None:
    def compiled(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend="eager")

    first, second = nn.Linear(8, 8), parametrizations.weight_norm(nn.Linear(8, 8))
    plain = nn.Sequential(first, second)
    expected = trace(plain, torch.empty(3, 8))
    assert written(expected) == ["input()", "0.weight(0)", "1.weight(1)"]
    for network in (
        compiled(plain),
        nn.DataParallel(plain),
        nn.DataParallel(compiled(plain)),
        torch.optim.swa_utils.AveragedModel(plain),
        nn.Sequential(nn.DataParallel(first), compiled(second)),
    ):
        assert trace(network, torch.empty(3, 8)) == expected


# ---------------------------------------------------------------------- what cannot be traced


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Net(lambda m, x: m.a(x) if x.sum() > 0 else x),
            r"Net cannot be traced: what it does depends on the values of tensors in Net "
            r"\(test_trace.py, line \d+\); let forward do the same .*plan_of_graph",
        ),
        (
            lambda: Net(lambda m, x: [m.a(x) for _ in range(int(x.sum()))][-1]),
            "depends on the values of tensors",
        ),
        (
            lambda: nn.Sequential(nn.Linear(9, 8)),
            r"RuntimeError in Linear '0': .*\[9, 8\].*check that the model runs on example_input",
        ),
        (
            lambda: nn.Sequential(nn.Identity(), nn.BatchNorm2d(8)),
            r"ValueError in BatchNorm2d '1': expected 4D input",
        ),
        (lambda: Net(lambda m, x: 1 / 0), r"ZeroDivisionError in Net \(test_trace.py, line"),
        (lambda: nn.LSTM(8, 8), r"recurrent \(lstm\)"),
        (lambda: nn.Sequential(nn.GRUCell(8, 8)), r"module '0' is recurrent \(gru_cell\)"),
        (lambda: Net(lambda m, x: torch.ones(3)), "none of its outputs depends on example_input"),
        (lambda: Net(lambda m, x: x.argmax(1)), "none of its outputs"),
        (
            lambda: Net(
                lambda m, x: torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,))
            ),
            "decides what to do while it runs",
        ),
        (lambda: torch.jit.trace(nn.Linear(8, 8), torch.ones(3, 8)), "compiled to TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_models_that_cannot_be_traced(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UntraceableModelError, match=message):
        trace(build(), torch.empty(3, 8))


def test_arguments_are_checked() -> None:
    with pytest.raises(InvalidTypeError, match="model must be"):
        trace(lambda x: x, torch.empty(3, 8))  # type: ignore[arg-type]
    for nothing in ((), {}, (3,), None, "x"):
        with pytest.raises(InvalidTypeError, match="example_input must be"):
            trace(nn.Linear(8, 8), nothing)
    with pytest.raises(InvalidValueError, match="lazy"):
        trace(nn.LazyLinear(8), torch.empty(3, 8))


def test_evaluation_mode_is_read_where_training_mode_cannot_be() -> None:
    def function(m: Net, x: Tensor) -> Tensor:
        return x if m.training and torch.rand(()) < 0.5 else x + m.a(x)

    graph = trace(Net(function), torch.empty(3, 8))
    assert written(graph) == ["input()", "a.weight(0)", "add(0, 1)"]
    assert graph.notes == ("read in evaluation mode, as training mode failed",)


def test_sizes_of_cell_networks_follow_from_their_graphs() -> None:
    """Weights of the layers and two values for each normalised channel: all but a few biases."""
    network = on_meta(lambda: CellNetwork(ALL_3X3, 3, 10, width=4, cells=1))
    graph = trace(network, torch.empty(1, 3, 8, 8))
    weights = sum(math.prod(graph.layer(index).shape) for index in graph.layers)
    norms = sum(m.num_features * 2 for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert weights + norms + 10 == sum(p.numel() for p in network.parameters())
