"""The joint search's parameters: exactly those that were published, and their condition."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ConfigSpace import (
    Configuration,
    ConfigurationSpace,
    Constant,
    EqualsCondition,
    OrConjunction,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)

from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.spaces import JOINT_DEFAULTS, joint_space

PUBLISHED = {
    "nr_residual_blocks_1": (int, 1, 16, True),
    "nr_residual_blocks_2": (int, 1, 16, True),
    "nr_residual_blocks_3": (int, 1, 16, True),
    "initial_filters": (int, 8, 32, True),
    "widen_factor_1": (float, 0.5, 8, True),
    "widen_factor_2": (float, 0.5, 4, True),
    "widen_factor_3": (float, 0.5, 4, True),
    "res_branches_1": (int, 1, 5, False),
    "res_branches_2": (int, 1, 5, False),
    "res_branches_3": (int, 1, 5, False),
    "learning_rate": (float, 1e-3, 1, True),
    "batch_size": (int, 32, 128, True),
    "weight_decay": (float, 1e-5, 1e-3, True),
    "momentum": (float, 1e-3, 0.99, False),
    "alpha": (float, 0, 1, False),
    "length": (int, 0, 20, False),
    "death_rate": (float, 0, 1, False),
}
"""Type, limits and logarithm as in the published code of arXiv 1807.06906 (cifar10_worker.py)."""
HYPERPARAMETERS = ["learning_rate", "batch_size", "weight_decay", "momentum", "alpha", "length"]
BRANCHES = ["res_branches_1", "res_branches_2", "res_branches_3"]


def described(space: ConfigurationSpace) -> dict[str, tuple[type, float, float, bool]]:
    kinds = {UniformIntegerHyperparameter: int, UniformFloatHyperparameter: float}
    return {p.name: (kinds[type(p)], p.lower, p.upper, p.log) for p in space.values()}


def conditions(space: ConfigurationSpace) -> set[tuple[str, str, Any]]:
    """What is there where what has which value."""
    found = set()
    for condition in space.conditions:
        parts = condition.components if isinstance(condition, OrConjunction) else [condition]
        for part in parts:
            assert isinstance(part, EqualsCondition)
            found.add((part.child.name, part.parent.name, part.value))
    return found


def drawn(space: ConfigurationSpace, count: int = 200) -> list[Configuration]:
    space.seed(0)
    return list(space.sample_configuration(count))


@pytest.mark.parametrize("flat", [False, True])
def test_the_parameters_are_those_that_were_published(flat: bool) -> None:
    space = joint_space(flat=flat)
    assert described(space) == PUBLISHED
    assert not space.forbidden_clauses
    expected = set() if flat else {("death_rate", name, 1) for name in BRANCHES}
    assert conditions(space) == expected


def test_the_death_rate_is_there_where_a_group_has_one_branch() -> None:
    seen = set()
    for found in drawn(joint_space()):
        found.check_valid_configuration()
        one = any(found[name] == 1 for name in BRANCHES)
        assert ("death_rate" in found) == one
        seen.add(one)
    assert seen == {True, False}
    assert all(len(found) == 17 for found in drawn(joint_space(flat=True), 20))


def test_parts_share_the_parameters_out() -> None:
    architecture, rest = joint_space(part="architecture"), joint_space(part="hyperparameters")
    assert set(rest) == set(HYPERPARAMETERS)
    assert set(architecture) == set(PUBLISHED) - set(HYPERPARAMETERS)
    assert described(architecture) | described(rest) == PUBLISHED
    assert conditions(architecture) == conditions(joint_space())
    assert not rest.conditions


@pytest.mark.parametrize("part", ["joint", "architecture", "hyperparameters"])
def test_configurations_are_plain_values_that_make_a_whole(part: Any) -> None:
    for found in drawn(joint_space(part=part), 30):
        values = {**JOINT_DEFAULTS, **found}
        assert json.loads(json.dumps(dict(found))) == dict(found)
        for name, (kind, lower, upper, _) in PUBLISHED.items():
            assert isinstance(values[name], kind)
            assert lower <= values[name] <= upper


def test_the_defaults_are_a_configuration_of_the_space() -> None:
    assert list(JOINT_DEFAULTS) == list(PUBLISHED)
    assert {name: type(value) for name, value in JOINT_DEFAULTS.items()} == {
        name: kind for name, (kind, *_) in PUBLISHED.items()
    }
    for flat in (False, True):
        default = joint_space(flat=flat).get_default_configuration()
        assert dict(default) == pytest.approx(JOINT_DEFAULTS)


# ---------------------------------------------------------------------- limits


def test_limits_change_ranges_and_move_defaults_into_them() -> None:
    space = joint_space(
        limits={"initial_filters": (4, 8), "widen_factor_1": [0.25, 1], "momentum": (0.5, 0.99)}
    )
    expected = PUBLISHED | {
        "initial_filters": (int, 4, 8, True),
        "widen_factor_1": (float, 0.25, 1, True),
        "momentum": (float, 0.5, 0.99, False),
    }
    assert described(space) == expected
    default = space.get_default_configuration()
    assert (default["initial_filters"], default["widen_factor_1"]) == (8, 1.0)
    assert described(joint_space()) == PUBLISHED, "and leave the published ones alone"


def test_equal_limits_are_a_constant() -> None:
    space = joint_space(limits={"batch_size": (64, 64), "alpha": (0, 0)})
    assert isinstance(space["batch_size"], Constant)
    assert {found["batch_size"] for found in drawn(space, 5)} == {64}
    assert {repr(found["alpha"]) for found in drawn(space, 5)} == {"0.0"}
    assert json.loads(json.dumps(dict(drawn(space, 5)[0])))["batch_size"] == 64


@pytest.mark.parametrize(
    ("limits", "depends_on"),
    [
        ({"res_branches_1": (2, 5)}, BRANCHES[1:]),
        ({"res_branches_1": (2, 5), "res_branches_3": (2, 2)}, BRANCHES[1:2]),
        ({"res_branches_2": (1, 1)}, []),
    ],
)
def test_the_condition_is_on_what_can_have_one_branch(limits: Any, depends_on: Any) -> None:
    space = joint_space(limits=limits)
    assert conditions(space) == {("death_rate", name, 1) for name in depends_on}
    for found in drawn(space, 50):
        assert ("death_rate" in found) == any(found[name] == 1 for name in BRANCHES)


def test_a_death_rate_without_any_effect_is_not_searched() -> None:
    limits = dict.fromkeys(BRANCHES, (2, 5))
    assert "death_rate" not in joint_space(limits=limits)
    assert "death_rate" in joint_space(limits=limits, flat=True)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"limits": {"lr": (0, 1)}}, InvalidValueError, "limits.*'learning_rate'.*'lr'"),
        ({"limits": {"alpha": 1}}, InvalidTypeError, "alpha must be a pair"),
        ({"limits": {"alpha": (0, 1, 2)}}, InvalidTypeError, "alpha must be a pair"),
        ({"limits": {"alpha": (1, 0)}}, InvalidValueError, "alpha.*lower and an upper"),
        ({"limits": {"alpha": (0, float("inf"))}}, InvalidValueError, "alpha"),
        ({"limits": {"alpha": (0, "a")}}, InvalidTypeError, "alpha"),
        ({"limits": {"learning_rate": (0, 1)}}, InvalidValueError, "learning_rate.*above 0"),
        ({"limits": {"length": (0, 1.5)}}, InvalidTypeError, "length"),
        ({"limits": {"length": (-1, 2)}}, InvalidValueError, "length"),
        ({"limits": {"res_branches_1": (0, 2)}}, InvalidValueError, "at least 1"),
        ({"limits": {"death_rate": (0, 1.5)}}, InvalidValueError, "death_rate.*from 0 to 1"),
        ({"limits": 3}, InvalidTypeError, "limits"),
        ({"part": "all"}, InvalidValueError, "part"),
    ],
)
def test_arguments_are_checked(arguments: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        joint_space(**arguments)
