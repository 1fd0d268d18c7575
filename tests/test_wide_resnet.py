"""Residual networks of any depths, widths and branches: sizes, paths, training, refusals."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tune_ext import scaling
from tune_ext._on_meta import built_on_meta
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.models import (
    PreActResNet,
    ShakeDrop,
    ShakeShake,
    count_parameters,
    joint_network,
    seed_noise_,
    wide_resnet,
)
from tune_ext.spaces import JOINT_DEFAULTS, joint_space

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**changed: Any) -> dict[str, Any]:
    return {**JOINT_DEFAULTS, **changed}


def by_group(name: str, *values: Any) -> dict[str, Any]:
    return {f"{name}_{i}": value for i, value in enumerate(values, start=1)}


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("depth", "width", "parameters", "millions"),
    [
        (40, 1, 563_930, "0.6"),
        (40, 2, 2_243_546, "2.2"),
        (28, 10, 36_479_194, "36.5"),
        (22, 8, 17_158_106, "17.2"),
        (16, 8, 10_961_370, "11.0"),
    ],
)
def test_wide_resnets_have_the_published_sizes(depth, width, parameters, millions) -> None:
    """Millions are from table 4 of arXiv 1605.07146, for CIFAR-10."""
    counted = count_parameters(lambda: wide_resnet(depth, width))
    assert counted == parameters
    assert f"{counted / 1e6:.1f}" == millions


def expected_parameters(values: dict[str, Any], channels: int, classes: int) -> int:
    """A count from the definition alone, without building anything."""
    width = values["initial_filters"]
    count = 9 * channels * width
    for i in range(1, 4):
        wider = max(1, round(width * values[f"widen_factor_{i}"]))
        for block in range(values[f"nr_residual_blocks_{i}"]):
            branch = 9 * width * wider + 2 * wider + 9 * wider * wider
            count += 2 * width + values[f"res_branches_{i}"] * branch
            if width != wider or (i > 1 and block == 0):
                count += width * wider
            width = wider
    return count + 2 * width + (width + 1) * classes


def drawn(count: int, seed: int) -> list[dict[str, Any]]:
    space = joint_space()
    space.seed(seed)
    return [dict(found) for found in space.sample_configuration(count)]


LARGEST = {p: joint_space(flat=True)[p].upper for p in joint_space(flat=True)}
SMALLEST = {p: joint_space(flat=True)[p].lower for p in joint_space(flat=True)}


@pytest.mark.parametrize(
    "values",
    [LARGEST, SMALLEST, *drawn(6, seed=0)],
    ids=["largest", "smallest", *(f"drawn{i}" for i in range(6))],
)
def test_any_configuration_of_the_published_ranges_has_the_size_of_its_definition(values) -> None:
    """The largest has 16 blocks of 5 branches a group, and 12 billion parameters."""
    counted = count_parameters(lambda: joint_network(values, channels=3, classes=10))
    assert counted == expected_parameters(values, 3, 10)
    assert (counted > 10**10) == (values is LARGEST)


PUBLISHED = json.loads(
    (Path(__file__).parent / "data" / "joint_networks_published.json").read_text()
)["networks"]


def published_surplus(values: dict[str, Any]) -> int:
    """By how many parameters the published code's networks are larger, all of normalisations.

    It has Shake-Shake's blocks, ours are those of wide ResNets: there, every branch ends with a
    normalisation, shortcuts with a convolution have one, and so has the stem; here, every block
    starts with one, and so does the read-out. What is convolved is the same.
    """
    width = values["initial_filters"]
    surplus = 2 * width
    for i in range(1, 4):
        wider = round(width * values[f"widen_factor_{i}"])
        for block in range(values[f"nr_residual_blocks_{i}"]):
            shortcut = width != wider or (i > 1 and block == 0)
            surplus += 2 * wider * (values[f"res_branches_{i}"] + shortcut) - 2 * width
            width = wider
    return surplus - 2 * width


@pytest.mark.parametrize("values", PUBLISHED, ids=range(len(PUBLISHED)))
def test_convolutions_are_those_of_the_published_networks(values: dict[str, Any]) -> None:
    counted = count_parameters(lambda: joint_network(values, channels=3, classes=10))
    assert counted + published_surplus(values) == values["parameters"]


def test_a_network_of_full_width_runs_on_the_meta_device() -> None:
    values = drawn(2, seed=1)[1]
    with built_on_meta():
        assert joint_network(values, 3, 10)(torch.empty(2, 3, 32, 32)).shape == (2, 10)


def test_widths_multiply_from_group_to_group_and_are_rounded() -> None:
    network = PreActResNet(1, 7, blocks=(1, 1, 2), filters=9, widen=(0.5, 3.3, 0.5))
    widths = [group[-1].branches[0].conv2.out_channels for group in network.groups]
    assert widths == [4, 13, 6]  # 4.5 → 4, 13.2 → 13, 6.5 → 6: halves to the even number
    assert network.head.in_features == 6
    narrow = PreActResNet(1, 2, blocks=(1, 1, 1), filters=1, widen=(0.1, 0.1, 0.1))
    assert narrow.head.in_features == 1


def test_the_second_and_third_group_halve_the_image() -> None:
    network = PreActResNet(1, 2, blocks=(2, 2, 1), filters=2, widen=(1, 1, 1))
    sizes = []
    for group in network.groups:
        group.register_forward_hook(lambda _m, _x, out: sizes.append(tuple(out.shape[1:])))
    network(torch.ones(1, 1, 28, 28))
    assert sizes == [(2, 28, 28), (2, 14, 14), (2, 7, 7)]
    shortcuts = [[block.shortcut is not None for block in group] for group in network.groups]
    assert shortcuts == [[False, False], [True, False], [True]]


# ---------------------------------------------------------------------- noise


def test_branches_are_joined_where_there_are_several_and_dropped_where_there_is_one() -> None:
    network = PreActResNet(
        1, 2, blocks=(2, 1, 2), filters=2, branches=(1, 3, 1), death_rate=0.5, widen=(1, 1, 1)
    )
    shakes = [block.shake for group in network.groups for block in group]
    assert [type(shake) for shake in shakes] == [ShakeDrop] * 2 + [ShakeShake] + [ShakeDrop] * 2
    rates = [shake.death_rate for shake in shakes if isinstance(shake, ShakeDrop)]
    assert rates == pytest.approx([0.1, 0.2, 0.4, 0.5]), "block l of 5 has l/5 of the rate"


@pytest.mark.parametrize("coefficients", ["uniform", "softmax"])
def test_branches_are_joined_with_the_weights_asked_for(coefficients) -> None:
    network = joint_network(config(res_branches_2=2), 3, 10, coefficients=coefficients)
    found = [m.coefficients for m in network.modules() if isinstance(m, ShakeShake)]
    assert found == [coefficients] * 2


def test_without_a_death_rate_nothing_is_dropped() -> None:
    without = {name: value for name, value in config().items() if name != "death_rate"}
    for values in (without, config(), config(death_rate=None)):
        network = joint_network(values, 3, 10)
        assert not any(isinstance(module, ShakeDrop) for module in network.modules())
    assert any(
        isinstance(module, ShakeDrop)
        for module in joint_network(config(death_rate=0.1), 3, 2).modules()
    )


def test_every_branch_is_computed_once() -> None:
    network = joint_network(config(**by_group("res_branches", 3, 1, 5)), 1, 2)
    calls: Counter[nn.Module] = Counter()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(lambda module, _x, _y: calls.update([module]))
    network(torch.ones(2, 1, 8, 8))
    network.eval()(torch.ones(2, 1, 8, 8))
    convolutions = 1 + 2 * (3 + 1 + 5) * 2 + 3
    assert set(calls.values()) == {2}, "once in each of two passes"
    assert sum(isinstance(module, nn.Conv2d) for module in calls) == convolutions


def test_an_evaluated_block_adds_the_mean_of_its_branches() -> None:
    torch.manual_seed(0)
    network = PreActResNet(2, 2, blocks=(1, 1, 1), filters=2, widen=(1, 1, 1), branches=(4, 1, 1))
    block = network.eval().groups[0][0]
    x = torch.randn(3, 2, 5, 5)
    active = torch.relu(block.norm1(x))
    mean = torch.stack([branch(active) for branch in block.branches]).mean(0)
    torch.testing.assert_close(block(x), x + mean)


def test_a_seed_decides_a_training_step_whatever_torchs_generator_does() -> None:
    values = config(**by_group("res_branches", 2, 1, 1), death_rate=0.5)
    torch.manual_seed(0)
    network = joint_network(values, 1, 3)
    x = torch.randn(8, 1, 8, 8)
    found: list[Tensor] = []
    for seed in (0, 0, 1):
        seed_noise_(network, seed)
        state = torch.get_rng_state()
        network.zero_grad()
        network(x).square().sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
        found.append(network.stem.weight.grad.clone())
        torch.rand(1)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# ---------------------------------------------------------------------- architecture-aware scaling


def test_branches_and_shortcut_of_a_block_are_summands_of_one_addition() -> None:
    values = config(
        **by_group("res_branches", 3, 1, 5),
        **by_group("nr_residual_blocks", 2, 2, 1),
        **by_group("widen_factor", 1, 2, 2),
        death_rate=0.5,
    )
    network = joint_network(values, 3, 10)
    seed_noise_(network, 0)
    before = network.groups[0][0].shake.generator.get_state()
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scaling.ScalingWarning)
        planned = scaling.plan(network, torch.empty(2, 3, 8, 8), aggregate="sum")
    assert torch.equal(network.groups[0][0].shake.generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), state)
    summands = [len(node.inputs) for node in planned.graph.nodes if node.op == "add"]
    assert summands == [4, 4, 2, 2, 6]
    assert not any("detach" in note or "product" in note for note in planned.graph.notes)
    assert planned.moments.count == 4 * 4 * 2 * 2 * 6


# ---------------------------------------------------------------------- training


def numbers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


trainable = st.fixed_dictionaries(
    {
        **{f"nr_residual_blocks_{i}": numbers(1, 16) for i in (1, 2, 3)},
        **{f"res_branches_{i}": numbers(1, 5) for i in (1, 2, 3)},
        **{f"widen_factor_{i}": st.floats(0.5, 2) for i in (1, 2, 3)},
        "initial_filters": numbers(1, 4),
        "death_rate": st.none() | st.floats(0, 1),
        "learning_rate": st.floats(1e-3, 1),
        "momentum": st.floats(1e-3, 0.99),
        "weight_decay": st.floats(1e-5, 1e-3),
    }
)


def corner(**values: Any) -> dict[str, Any]:
    """As many blocks and branches as there can be in one group each, and all of them dropped."""
    return {
        **by_group("nr_residual_blocks", 16, 1, 1),
        **by_group("res_branches", 1, 5, 1),
        **by_group("widen_factor", 0.5, 2.0, 0.5),
        "initial_filters": 1,
        "death_rate": 1.0,
        "learning_rate": 1.0,
        "momentum": 0.99,
        "weight_decay": 1e-3,
        **values,
    }


@example(values=corner(), channels=1, size=8)
@example(values=corner(res_branches_1=5, nr_residual_blocks_3=16), channels=3, size=8)
@given(values=trainable, channels=st.sampled_from([1, 3]), size=st.sampled_from([8, 11]))
@settings(max_examples=6, derandomize=True)
def test_any_configuration_trains_a_step_with_finite_gradients(values, channels, size) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = joint_network(values, channels, classes=5)
        images, labels = torch.randn(4, channels, size, size), torch.tensor([0, 1, 4, 2])
    seed_noise_(network, 1)
    optimizer = torch.optim.SGD(
        network.parameters(),
        values["learning_rate"],
        values["momentum"],
        weight_decay=values["weight_decay"],
        nesterov=True,
    )
    loss = nn.functional.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.isfinite().all(), name
    assert network.eval()(images).isfinite().all()


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: wide_resnet(17, 4), InvalidValueError, "6n \\+ 4"),
        (lambda: wide_resnet(4, 4), InvalidValueError, "depth"),
        (lambda: wide_resnet(16.0, 4), InvalidTypeError, "depth"),
        (lambda: wide_resnet(16, 0), InvalidValueError, "widen"),
        (lambda: PreActResNet(0, 2), InvalidValueError, "channels"),
        (lambda: PreActResNet(1, 0), InvalidValueError, "classes"),
        (lambda: PreActResNet(1, 2, blocks=(1, 2)), InvalidValueError, "blocks.*three"),
        (lambda: PreActResNet(1, 2, blocks=2), InvalidTypeError, "blocks.*three"),
        (lambda: PreActResNet(1, 2, blocks=(1, 0, 1)), InvalidValueError, "blocks"),
        (lambda: PreActResNet(1, 2, filters=0), InvalidValueError, "filters"),
        (lambda: PreActResNet(1, 2, widen=(1, -1, 1)), InvalidValueError, "widen"),
        (lambda: PreActResNet(1, 2, widen=(1, float("inf"), 1)), InvalidValueError, "widen"),
        (lambda: PreActResNet(1, 2, branches=(1, 1, 0)), InvalidValueError, "branches"),
        (lambda: PreActResNet(1, 2, branches=(1, 1.5, 1)), InvalidTypeError, "branches"),
        (lambda: PreActResNet(1, 2, death_rate=2), InvalidValueError, "death_rate"),
        (lambda: PreActResNet(1, 2, coefficients="even"), InvalidValueError, "coefficients"),
        (lambda: joint_network({}, 1, 2), InvalidValueError, "must have nr_residual_blocks_1"),
        (lambda: joint_network(config(death_rate="a"), 1, 2), InvalidTypeError, "death_rate"),
    ],
)
def test_arguments_are_checked(make, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()
