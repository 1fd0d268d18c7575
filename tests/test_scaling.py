"""Plans: published rules where they are defined, what a network breaks, JSON, safe use."""

from __future__ import annotations

import gc
import json
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from tests.test_graph import INPUT, graph, layer
from tune_ext import scaling
from tune_ext._graph import Layer, NetworkGraph, Node
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.models import CellNetwork, DagCNN, DagMLP, random_dags
from tune_ext.scaling import PathMoments, Plan, ScalingWarning, plan_of_dag, plan_of_graph


def quiet(network, **options) -> Plan:
    """A plan without its warnings."""
    return Plan(network, **options)


def conv(source: int, *kernel: int, name: str = "w") -> Node:
    return Node("layer", (source,), Layer.of(name, (8, 8, *kernel)))


def test_the_published_rule_for_chains() -> None:
    """One path: (L_base/L)^1.5·(q_base/q), whatever the paths are added up by."""
    for aggregate in ("sum", "mean", "gain"):
        base = plan_of_dag("2", kernel_size=3, aggregate=aggregate)
        deep = plan_of_dag("2_02_002", kernel_size=5, aggregate=aggregate)
        assert deep.factor(base) == pytest.approx((3 / 5) ** 1.5 * 3 / 5)
        assert base.factor() == 1.0
        assert deep.factor() == pytest.approx((3 / 5) ** 1.5)  # the published base, same kernel
        assert deep.learning_rate(0.2, base=base) == 0.2 * deep.factor(base)


def test_the_published_rule_for_several_paths() -> None:
    plan = plan_of_dag("2_12_112", aggregate="sum")  # depths 0, 1; 0, 1, 1 and 3 - by hand: below
    depths = [2 + hidden for hidden in (0, 1, 1, 3)]
    assert sorted(depths) == [2, 3, 3, 5]
    assert plan.moments.count == 4
    assert plan.factor() == pytest.approx(math.sqrt(27 / sum(d**3 for d in depths)))


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (3, 3, 3)])
def test_kernel_size_of_a_uniform_network_is_exact(kernel: tuple[int, ...]) -> None:
    layers = (conv(0, *kernel), conv(1, *kernel), Node("add", (1, 2)), layer(3, name="end"))
    network = graph(INPUT, *layers)
    assert quiet(network).kernel_size == 3.0


def test_kernel_size_of_mixed_networks() -> None:
    assert quiet(graph(INPUT, layer(0))).kernel_size == 1.0
    assert quiet(graph(INPUT, conv(0, 3, 3, name="only"))).kernel_size == 3.0
    assert quiet(graph(INPUT, conv(0, 1, 9), layer(1, name="end"))).kernel_size == 3.0
    # Root mean square of 1 and 7, and of 7 and a hidden linear layer.
    chain = graph(INPUT, conv(0, 1, 1), conv(1, 7, 7), layer(2, name="end"))
    assert quiet(chain).kernel_size == pytest.approx(5.0)
    hidden = graph(INPUT, conv(0, 7, 7), layer(1), layer(2, name="end"))
    assert quiet(hidden).kernel_size == pytest.approx(5.0)
    # A branch of a sum of two has half the weight: (1·7² + ½·1²)/1.5.
    sum_of_two = Node("add", (1, 2))
    branch = graph(INPUT, conv(0, 7, 7), conv(1, 1, 1), sum_of_two, layer(3, name="end"))
    assert quiet(branch, aggregate="mean").kernel_size == pytest.approx(math.sqrt(49.5 / 1.5))
    # Both paths count 1: 7² twice, 1² once.
    assert quiet(branch, aggregate="sum").kernel_size == pytest.approx(math.sqrt(99 / 3))


def test_standard_deviations() -> None:
    plan = plan_of_dag("2_12", inputs=50, width=32, classes=4, kernel_size=3)
    assert [(one.in_degree, one.readout) for one in plan.layers] == [
        (1, False),
        (1, False),
        (2, False),
        (1, True),
    ]
    expected = [2 / (50 * 9), 2 / (32 * 9), 1 / (32 * 9), 2 / 32**2]
    assert [one.std**2 for one in plan.layers] == pytest.approx(expected)
    published = plan_of_dag(
        "2_12", inputs=50, width=32, classes=4, kernel_size=3, fan="out", in_degree="source"
    )
    # Nothing but the read-out leaves the sum of two, and that has d_in 1 in the published code.
    expected = [2 / (32 * 9), 2 / (32 * 9), 2 / (32 * 9), 2 / 4**2]
    assert [one.std**2 for one in published.layers] == pytest.approx(expected)


def test_a_shared_weight_is_planned_once() -> None:
    network = graph(INPUT, layer(0), layer(1), Node("add", (1, 2)), layer(3))
    (one,) = quiet(network).layers
    assert (one.in_degree, one.readout, one.paths) == (2, False, 1.0)


def test_plans_that_cannot_be_compared() -> None:
    mean, total = plan_of_dag("2", aggregate="mean"), plan_of_dag("2", aggregate="sum")
    with pytest.raises(InvalidValueError, match="aggregate='sum', this plan by 'mean'"):
        mean.factor(total)
    with pytest.raises(InvalidTypeError, match="base must be a Plan, got float"):
        mean.factor(0.1)
    for rate in (0, -1, math.inf, math.nan):
        with pytest.raises(InvalidValueError, match="base_lr must be"):
            mean.learning_rate(rate)
    with pytest.raises(InvalidTypeError, match="base_lr must be a number"):
        mean.learning_rate("0.1")


def test_a_network_without_a_path_has_a_plan_but_no_rate() -> None:
    network = graph(INPUT, layer(0), Node("zero", (1,)), layer(2))
    with pytest.warns(ScalingWarning, match="no path leads from an input to the output"):
        plan = plan_of_graph(network)
    assert "factor" not in str(plan)
    with pytest.raises(InvalidValueError, match=r"no path of the network .* no learning rate"):
        plan.factor()
    with pytest.raises(InvalidValueError, match="no path of the base"):
        plan_of_dag("2").factor(plan)
    with pytest.warns(ScalingWarning, match="there is nothing to scale"):
        nothing = plan_of_graph(graph(INPUT))
    with pytest.raises(InvalidValueError, match="has a weighted layer"):
        nothing.factor()
    assert "no layers" in str(nothing)


def residual(blocks: int) -> list[Node]:
    nodes = [INPUT, layer(0)]
    for _ in range(blocks):
        x = len(nodes) - 1
        nodes += [layer(x), layer(x + 1), Node("add", (x, x + 2))]
    return [*nodes, layer(len(nodes) - 1)]


def test_more_paths_than_a_float_holds() -> None:
    plan = quiet(graph(*residual(300)), aggregate="sum")
    assert plan.moments.count == 2**300
    assert "paths        2.037e+90" in str(plan)
    assert 0 < plan.factor() < 1e-45
    vast = quiet(graph(*residual(1500)), aggregate="sum")
    with pytest.raises(InvalidValueError, match='aggregate="mean" weights them'):
        vast.factor()
    assert quiet(graph(*residual(300)), aggregate="mean").factor() > 1e-5


@pytest.mark.parametrize("aggregate", ["sum", "mean", "gain"])
def test_plans_survive_json_and_pickle(aggregate: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = plan_of_dag("2_12_112", kernel_size=3, norm=True, aggregate=aggregate)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan == pickle.loads(pickle.dumps(plan))
    assert again.moments == plan.moments
    assert again.factor() == plan.factor()
    assert str(again) == str(plan)


def test_damaged_plans() -> None:
    state = plan_of_dag("2").to_dict()
    for change in (
        {"kind": "else"},
        {"version": 2},
        {"aggregate": "max"},
        {"graph": {"nodes": [{}]}},
        {"graph": None},
    ):
        with pytest.raises(StateError):
            Plan.from_dict({**state, **change})


def said(*nodes: Node, notes: tuple[str, ...] = ()) -> str:
    return "; ".join(quiet(NetworkGraph(nodes, len(nodes) - 1, notes)).warnings)


def edge(source: int, width: int = 8, **options) -> Node:
    made = {"activation": "relu", **options}
    return Node("layer", (source,), Layer("w", "linear", (), 8, 8, 1, (width, 8), **made))


def test_warnings_name_what_the_theory_leaves_out() -> None:
    assert said(INPUT, edge(0), edge(1)) == ""
    assert "normalisation: 1 of 2 layers" in said(INPUT, edge(0, normalized=True), edge(1))
    noted = said(INPUT, edge(0, normalized=True), notes=("normalisation: LayerNorm",))
    assert noted.startswith("normalisation: LayerNorm. The theory")
    assert noted.count("normalisation:") == 1
    product = Node("product", (1, 2))
    assert "products: 1 of features, which" in said(INPUT, edge(0), edge(1), product, edge(3))
    assert "widths: hidden layers have 4 to 8" in said(INPUT, edge(0, 4), edge(1), edge(2))
    assert "widths" not in said(INPUT, edge(0), edge(1, 3))  # the read-out's differs anyway
    assert ".92, .68 and .95" in said(INPUT, edge(0, activation="gelu"), edge(1))
    assert "tanh. The theory takes ReLU; nothing is published" in said(
        INPUT, edge(0, activation="tanh"), edge(1)
    )
    assert "activations: none was found" in said(INPUT, layer(0), layer(1))
    total = Node("add", (1, 2))  # what follows a sum is with the layer that reads the sum
    assert said(INPUT, layer(0), layer(0), total, edge(3)) == ""
    assert "tanh" in said(INPUT, layer(0), layer(0), total, edge(3, activation="tanh"))
    assert "none was found" in said(INPUT, layer(0), edge(1, activation="softmax"))
    assert said(INPUT, edge(0, activation="tanh")) == ""  # of a read-out
    assert said(INPUT, edge(0), notes=("two outputs",)) == "two outputs"
    block = [edge(1), edge(2), Node("add", (1, 3))]
    assert "identities" not in said(INPUT, edge(0), *block, edge(4))
    assert said(INPUT, edge(0), edge(1, activation="log_softmax")) == ""  # of the read-out


def test_growth_of_a_residual_stack_is_foreseen() -> None:
    """Each block adds half of what it reads: 1.5 to the power of the blocks."""
    nodes = [INPUT, edge(0)]
    for _ in range(10):
        x = len(nodes) - 1
        nodes += [edge(x), edge(x + 1), Node("add", (x, x + 2))]
    nodes.append(edge(len(nodes) - 1))
    assert f"at least {1.5**10:.4g} times the input's" in said(*nodes)
    assert quiet(graph(*nodes), in_degree="stream").warnings == ()


def test_unknown_options() -> None:
    for option in ("aggregate", "in_degree", "fan"):
        with pytest.raises(InvalidValueError, match=f"{option} must be one of"):
            plan_of_dag("2", **{option: "else"})
    with pytest.raises(InvalidTypeError, match="graph must be a NetworkGraph"):
        plan_of_graph("2_02")
    with pytest.raises(InvalidValueError, match="group 2 must have 2"):
        plan_of_dag("2_0")


@pytest.mark.parametrize("dag", [*random_dags(nodes=4, count=4, seed=0), "2_12_011"])
@pytest.mark.parametrize("kernel", [None, 3])
def test_a_module_and_its_string_have_the_same_plan(dag: str, kernel: int | None) -> None:
    with torch.device("meta"):
        model, example = (
            (DagMLP(dag, inputs=5, width=16, classes=3), torch.zeros(2, 5))
            if kernel is None
            else (DagCNN(dag, 5, 16, 3, kernel_size=kernel), torch.zeros(2, 5, 8, 8))
        )
    plan = scaling.plan(model, example)
    other = plan_of_dag(dag, inputs=5, width=16, classes=3, kernel_size=kernel)
    assert sorted(plan.layers, key=str) == sorted(other.layers, key=str)
    assert plan.moments == other.moments
    assert plan.factor() == other.factor()


def test_a_plan_knows_its_module_while_that_is_there() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.warns(ScalingWarning, match="normalisation: BatchNorm1d"):
        plan = scaling.plan(model, torch.zeros(2, 4))
    assert plan.param_groups(0.1)[0]["params"] == list(model.parameters())
    report = plan.initialize_(model, 0)
    assert report.weights == ("0.weight", "3.weight")
    assert report.biases == ("0.bias", "3.bias")
    assert report.norms == ("1.weight", "1.bias")
    again = pickle.loads(pickle.dumps(plan))
    for lost in (again, Plan.from_dict(plan.to_dict())):
        with pytest.raises(InvalidValueError, match="pass model="):
            lost.param_groups(0.1)
    del model
    gc.collect()
    with pytest.raises(InvalidValueError, match="pass model="):
        plan.param_groups(0.1)


def test_a_network_of_cells_is_its_blocks_in_series() -> None:
    cell = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|avg_pool_3x3~0|none~1|nor_conv_3x3~2|"
    with torch.device("meta"):
        model = CellNetwork(cell, channels=3, classes=10, width=4, cells=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScalingWarning)
        plan = scaling.plan(model, torch.zeros(2, 3, 16, 16, device="meta"), aggregate="sum")
    start = PathMoments.start()
    one = start.after_layer()
    two = one.after_layer()
    block = start + (start + two).after_layer()  # node 3: pooled node 0, a layer on node 2
    stage = block.then(block)
    network = one.then(stage).then(one + two).then(stage).then(one + two).then(stage).then(one)
    assert plan.moments == network
    assert 1 < plan.kernel_size < 3
