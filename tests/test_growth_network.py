"""Tests of the network of growing images, and of its space."""

from __future__ import annotations

import math

import pytest
import torch
from ConfigSpace import Constant

from tune_ext.errors import InvalidConfigurationError, InvalidTypeError, InvalidValueError
from tune_ext.models import growth_network
from tune_ext.spaces import GROWTH_DEFAULTS, growth_domains, growth_space

CONFIG = {
    "conv_layers": 3,
    "filters_1": 4,
    "kernel_radius_1": 1,
    "filters_2": 6,
    "kernel_radius_2": 3,
    "filters_3": 8,
    "kernel_radius_3": 2,
    "fc_layers": 2,
    "units_1": 16,
    "units_2": 12,
}


def test_the_network_is_the_one_that_the_configuration_says():
    network = growth_network(CONFIG, channels=3, classes=7, size=28)
    shapes = {name: tuple(w.shape) for name, w in network.named_parameters() if w.ndim > 1}
    assert shapes == {
        "conv_1.weight": (4, 3, 3, 3),
        "conv_2.weight": (6, 4, 7, 7),
        "conv_3.weight": (8, 6, 5, 5),
        "fc_1.weight": (16, 8 * 3 * 3),  # 28 → 14 → 7 → 3
        "fc_2.weight": (12, 16),
        "readout.weight": (7, 12),
    }
    kinds = [type(layer).__name__ for layer in network]
    assert kinds[:3] == ["Conv2d", "ReLU", "MaxPool2d"]
    assert kinds[9:] == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("size", [8, 14, 21, 28, 42, 128])
@pytest.mark.parametrize("pooled", [False, True])
def test_both_ends_work_at_any_size(size, pooled):
    network = growth_network(CONFIG, 1, 10, size, global_pooling=pooled)
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 10)
    assert network.fc_1.in_features == (8 if pooled else 8 * (size // 8) ** 2)
    if pooled:  # one set of weights for every size
        assert network(torch.zeros(2, 1, 33, 33)).shape == (2, 10)


@pytest.mark.parametrize(("size", "most"), [(14, 3), (21, 4), (28, 4), (32, 5), (128, 7), (1, 0)])
def test_as_many_poolings_as_the_size_allows_and_no_more(size, most):
    config = {**CONFIG, **{f"filters_{i}": 2 for i in range(1, 9)}}
    config |= {f"kernel_radius_{i}": 1 for i in range(1, 9)}
    if most:
        network = growth_network({**config, "conv_layers": most}, 1, 10, size)
        assert network(torch.zeros(1, 1, size, size)).shape == (1, 10)
    with pytest.raises(
        InvalidConfigurationError, match=rf"at most {most} .*{size}×{size}.*1\), got"
    ):
        growth_network({**config, "conv_layers": most + 1}, 1, 10, size)


def test_layers_that_are_not_there_are_ignored_and_no_hidden_layer_is_one_choice():
    config = {**CONFIG, "conv_layers": 1, "fc_layers": 0, "filters_2": -3, "units_1": None}
    network = growth_network({**config, "learning_rate": 0.1}, 1, 10, 14)
    assert network.readout.in_features == 4 * 7 * 7
    assert not hasattr(network, "conv_2")
    assert not hasattr(network, "fc_1")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"filters_2": None}, InvalidValueError, "lacks 'filters_2'"),
        ({"filters_2": 0}, InvalidValueError, r"filters_2.*0"),
        ({"units_2": 2.5}, InvalidTypeError, r"units_2.*2\.5"),
        ({"conv_layers": 0}, InvalidValueError, "conv_layers.*0"),
        ({"fc_layers": -1}, InvalidValueError, "fc_layers.*-1"),
    ],
)
def test_impossible_configurations_are_named(change, error, message):
    with pytest.raises(error, match=message):
        growth_network({**CONFIG, **change}, 1, 10, 28)


# The space ----------------------------------------------------------------------------


def test_a_parameter_of_a_layer_is_there_when_the_layer_is():
    space = growth_space()
    space.seed(0)
    for config in space.sample_configuration(40):
        for name in space:
            kind, _, layer = name.rpartition("_")
            layers = {"filters": "conv_layers", "kernel_radius": "conv_layers"}
            layers["units"] = "fc_layers"
            expected = kind not in layers or int(layer) <= config[layers[kind]]
            assert (name in config) == expected
    with torch.device("meta"):
        growth_network(dict(config), 1, 10, 16)


def test_a_flat_space_has_everything_always():
    space = growth_space(flat=True)
    assert not space.conditions
    assert dict(space.get_default_configuration()) == pytest.approx(GROWTH_DEFAULTS)
    assert set(space) == set(growth_space()) == set(growth_domains())


def test_limits_change_ranges_of_all_layers_at_once():
    limits = {"conv_layers": (2, 3), "filters": (4, 8), "l1": (1e-6, 1e-6), "fc_layers": (0, 1)}
    space = growth_space(limits=limits)
    assert [n for n in space if n.startswith("filters")] == ["filters_1", "filters_2", "filters_3"]
    assert (space["filters_3"].lower, space["filters_3"].upper) == (4, 8)
    assert isinstance(space["l1"], Constant)
    # The first two convolutions are always there.
    assert sorted(c.child.name for c in space.conditions) == [
        "filters_3",
        "kernel_radius_3",
        "units_1",
    ]
    domains = growth_domains(limits=limits)
    assert domains["l1"] == 1e-6
    drawn = {domains["conv_layers"].sample() for _ in range(50)}
    assert drawn == {2, 3}
    assert domains["filters_1"].lower == 4
    assert domains["filters_1"].upper == 9  # excluded


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({"filters_1": (1, 2)}, InvalidValueError, "'filters_1'; there are .*filters"),
        ({"filters": (8, 4)}, InvalidValueError, r"filters.*\(8, 4\)"),
        ({"filters": (0, 4)}, InvalidValueError, r"filters.*\(0, 4\)"),
        ({"filters": (1.5, 4)}, InvalidValueError, r"whole.*1\.5"),
        ({"filters": 4}, InvalidTypeError, "filters.*4"),
        ({"l1": (0, 1)}, InvalidValueError, r"l1.*\(0, 1\)"),
        ({"l1": (1e-3, math.nan)}, InvalidValueError, "l1.*nan"),
        ([("l1", 1)], InvalidTypeError, "limits"),
    ],
)
def test_impossible_limits_are_refused(limits, error, message):
    for make in (growth_space, growth_domains):
        with pytest.raises(error, match=message):
            make(limits=limits)
