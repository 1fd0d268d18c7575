"""Networks from strings: what they compute, what they build, what they refuse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tune_ext._dags import CELL_OPERATIONS, alive, parse_cell, parse_dag
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.models import CellNetwork, DagCNN, DagMLP, random_dags

ALL_3X3 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+" + "|".join(
    ["", "nor_conv_3x3~0", "nor_conv_3x3~1", "nor_conv_3x3~2", ""]
)
dags = st.integers(2, 5).flatmap(
    lambda nodes: st.lists(
        st.sampled_from("012"), min_size=nodes * (nodes - 1) // 2, max_size=nodes * (nodes - 1) // 2
    )
)


def as_dag(characters: list[str]) -> str:
    rest, groups = list(characters), []
    while rest:
        size = len(groups) + 1
        groups.append("".join(rest[:size]))
        rest = rest[size:]
    return "_".join(groups)


def paths(dag: str) -> list[tuple[str, ...]]:
    """The edges ("k_to_j") of every path, by trying all sets of nodes in between."""
    groups = dag.split("_")
    last = len(groups)
    found = []
    for size in range(last):
        for between in itertools.combinations(range(1, last), size):
            stops = (0, *between, last)
            edges = list(itertools.pairwise(stops))
            if all(groups[j - 1][k] != "0" for k, j in edges):
                found.append(tuple(f"{k}_to_{j}" for k, j in edges))
    return found


@given(dags)
@settings(max_examples=60, deadline=None)
def test_edges_are_built_where_a_path_uses_them(characters: list[str]) -> None:
    dag = as_dag(characters)
    used = set(itertools.chain.from_iterable(paths(dag)))
    if not used:
        with pytest.raises(InvalidValueError, match="no path"):
            DagMLP(dag, 3, 4, 2)
        return
    with torch.device("meta"):
        network = DagMLP(dag, 3, 4, 2)
    assert set(network.graph.edges) == used
    for name, edge in network.graph.edges.items():
        k, j = map(int, name.split("_to_"))
        kind = nn.Identity if dag.split("_")[j - 1][k] == "1" else nn.Sequential
        assert type(edge) is kind


@pytest.mark.parametrize("dag", random_dags(4, 6, seed=1) + random_dags(6, 3, seed=2))
def test_an_mlp_without_activations_is_a_sum_over_its_paths(dag: str) -> None:
    """Linear networks are sums of products of matrices: an independent way to compute one."""
    torch.manual_seed(0)
    network = DagMLP(dag, 5, 4, 3, activation="identity", bias=False).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    start = x @ network.stem.layer.weight.T
    total = torch.zeros_like(start)
    for path in paths(dag):
        part = start
        for edge in path:
            layer = network.graph.edges[edge]
            part = part if isinstance(layer, nn.Identity) else part @ layer.layer.weight.T
        total = total + part
    torch.testing.assert_close(network(x), total @ network.readout.weight.T)


def test_layers_are_followed_by_normalisation_and_activation() -> None:
    network = DagMLP("2_12", 5, 4, 3, activation="gelu", norm=True, bias=False)
    assert [type(part) for part in network.stem] == [nn.Linear, nn.BatchNorm1d, nn.GELU]
    assert [type(part) for part in network.graph.edges["0_to_1"]] == [
        nn.Linear,
        nn.BatchNorm1d,
        nn.GELU,
    ]
    assert isinstance(network.readout, nn.Linear)
    assert not any(isinstance(m, nn.Linear) and m.bias is not None for m in network.modules())


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (4, 1), (5, 2), (3, 2)])
def test_edges_of_a_cnn_keep_the_size(kernel: int, stride: int) -> None:
    network = DagCNN("2_12_112", 3, 4, 5, kernel_size=kernel, stride=stride, norm=True)
    sizes = []
    network.stem.register_forward_hook(lambda _, __, y: sizes.append(y.shape))
    network.graph.register_forward_hook(lambda _, __, y: sizes.append(y.shape))
    assert network(torch.ones(2, 3, 9, 8)).shape == (2, 5)
    assert sizes[0] == sizes[1]
    assert sizes[0][2] == (9 if stride == 1 else 5)
    assert {m.weight.shape[2] for m in network.modules() if isinstance(m, nn.Conv2d)} == {kernel}


def test_identities_may_follow_one_another() -> None:
    network = DagCNN("1_01_001", 1, 4, 2)
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(network(x), network.readout(network.stem(x).mean((2, 3))))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def cell_network_parameters(convolutions_3x3: int, convolutions_1x1: int, cells: int) -> int:
    """By hand: stem, cells with batch normalisation, two residual blocks, head."""
    total = 27 * 16 + 2 * 16
    for width in (16, 32, 64):
        total += cells * convolutions_3x3 * (9 * width**2 + 2 * width)
        total += cells * convolutions_1x1 * (width**2 + 2 * width)
        if width > 16:
            first = 9 * width * width // 2 + 2 * width
            second = 9 * width**2 + 2 * width
            total += first + second + width * width // 2
    return total + 2 * 64 + 64 * 10 + 10


def test_cell_networks_have_the_published_number_of_parameters() -> None:
    """1.53 million is the largest of NAS-Bench-201 (arXiv 2001.00326)."""
    with torch.device("meta"):
        largest = CellNetwork(ALL_3X3, channels=3, classes=10)
        mixed = CellNetwork(
            "|nor_conv_1x1~0|+|avg_pool_3x3~0|skip_connect~1|+"
            "|nor_conv_3x3~0|none~1|nor_conv_1x1~2|",
            channels=3,
            classes=10,
            cells=2,
        )
    assert parameters(largest) == cell_network_parameters(6, 0, 5)
    assert round(parameters(largest) / 1e6, 2) == 1.53
    # The first 1×1 leads to node 1, from there the identity to node 2.
    assert parameters(mixed) == cell_network_parameters(1, 2, 2)


def test_a_cell_of_identities_only_counts_its_paths() -> None:
    """Four paths lead through a cell of six identities, so that it multiplies by four."""
    cell = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+" + "|".join(
        ["", "skip_connect~0", "skip_connect~1", "skip_connect~2", ""]
    )
    network = CellNetwork(cell, channels=1, classes=2, width=2, cells=1)
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(network.stages[0](x), 4 * x)


def test_cell_networks_halve_the_size_and_double_the_channels() -> None:
    network = CellNetwork(ALL_3X3, channels=1, classes=3, width=2, cells=1).eval()
    shapes = []
    for stage in network.stages:
        stage.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 3)
    assert shapes == [(2, 16, 16), (4, 8, 8), (4, 8, 8), (8, 4, 4), (8, 4, 4)]


def test_cell_operations_are_relu_convolution_normalisation() -> None:
    network = CellNetwork("|nor_conv_1x1~0|+|none~0|avg_pool_3x3~1|", 3, 10, cells=1)
    first, second = network.stages[0].edges.values()
    assert [type(part) for part in first] == [nn.ReLU, nn.Conv2d, nn.BatchNorm2d]
    assert first[1].kernel_size == (1, 1)
    # At the border the mean is over the pixels that exist.
    torch.testing.assert_close(second(torch.ones(1, 1, 3, 3)), torch.ones(1, 1, 3, 3))


def test_networks_on_meta_have_no_weights_and_draw_none() -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        networks = [DagMLP("2_12", 3, 4, 2), DagCNN("2_12", 3, 4, 2), CellNetwork(ALL_3X3, 3, 10)]
    assert all(p.is_meta for network in networks for p in network.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_numpy_sizes_are_sizes() -> None:
    width = np.int64(4)
    assert DagMLP("2", np.int64(3), width, 2)(torch.ones(1, 3)).shape == (1, 2)


@pytest.mark.parametrize(
    ("dag", "message"),
    [
        ("2_0", "group 2 must have 2 of the characters"),
        ("2_023", "group 2 must have 2"),
        ("3", "got '3'"),
        ("", "group 1 must have 1"),
        ("2_00", "no path leads"),
        ("0_20_0202", "group 3"),
    ],
)
def test_strings_that_are_no_graph(dag: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        parse_dag(dag)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("|conv~0|", "must be one of 'none'"),
        ("nor_conv_3x3~0", "node 1 must read like"),
        ("|none~0|", "no path leads"),
        ("|nor_conv_3x3~0|+|none~0|", "for each of the nodes 0 to 1"),
        ("|nor_conv_3x3~0|+|none~1|skip_connect~0|", "in this order"),
        ("|nor_conv_3x3~0|+|none~0|skip_connect~1", "node 2 must read like"),
    ],
)
def test_strings_that_are_no_cell(cell: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        parse_cell(cell)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: DagMLP(["2"], 3, 4, 2), InvalidTypeError),
        (lambda: DagMLP("2", 3, 0, 2), InvalidValueError),
        (lambda: DagMLP("2", 3, 4.0, 2), InvalidTypeError),
        (lambda: DagMLP("2", 3, 4, 2, activation="step"), InvalidValueError),
        (lambda: DagMLP("2", 3, 4, 2, norm="batch"), InvalidTypeError),
        (lambda: DagCNN("2", 3, 4, 2, kernel_size=0), InvalidValueError),
        (lambda: DagCNN("2", 3, 4, 2, bias=None), InvalidTypeError),
        (lambda: CellNetwork(3, 3, 4), InvalidTypeError),
        (lambda: CellNetwork(ALL_3X3, 3, 4, cells=0), InvalidValueError),
        (lambda: random_dags(1, 1), InvalidValueError),
        (lambda: random_dags(3, 0), InvalidValueError),
        (lambda: random_dags(3, 1, seed=-1), InvalidValueError),
    ],
)
def test_arguments_are_checked(make, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


@pytest.mark.parametrize("nodes", [2, 3, 5, 7])
def test_random_dags_are_different_and_have_no_dead_edges(nodes: int) -> None:
    count = min(200, {2: 2, 3: 14}.get(nodes, 200))
    found = random_dags(nodes, count, seed=3)
    assert len(set(found)) == count
    for dag in found:
        groups = parse_dag(dag)
        assert len(groups) == nodes - 1
        built = [edge != "0" for group in groups for edge in group]
        assert built == [is_alive for group in alive(groups) for is_alive in group]


def test_all_graphs_of_three_nodes() -> None:
    """One path (2 direct, 4 through the middle) or both (8): 14, and no 15th."""
    assert len(set(random_dags(3, 14, seed=0))) == 14
    with pytest.raises(InvalidValueError, match="at most 14"):
        random_dags(3, 15, seed=0)


def test_random_dags_depend_on_the_seed_alone() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert random_dags(6, 5, seed=0) == random_dags(6, 5, seed=0)
    assert random_dags(6, 5, seed=0) != random_dags(6, 5, seed=1)
    assert random_dags(5, 3, seed=0) == random_dags(5, 9, seed=0)[:3]
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_random_dags_are_uniform() -> None:
    """400 draws of one of 14 graphs: a χ² above 36 has probability .0006 (13 degrees)."""
    drawn = [random_dags(3, 1, seed=seed)[0] for seed in range(400)]
    counts = [drawn.count(dag) for dag in random_dags(3, 14, seed=0)]
    assert sum((count - 400 / 14) ** 2 / (400 / 14) for count in counts) < 36


def test_operations_are_those_of_the_benchmark() -> None:
    assert len(CELL_OPERATIONS) ** 6 == 15625
