"""Importances by group: effects that are known by hand, differences, rank correlations."""

import math

import numpy as np
import pytest
from ConfigSpace import ConfigurationSpace, Constant, GreaterThanCondition

from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.importance_groups import importance_by

SPACE = ConfigurationSpace({"x": (0.0, 1.0), "y": (0.0, 1.0), "z": (0.0, 1.0)})
QUICK = {"n_trees": 16, "resamples": 12, "resample_trees": 8, "pairs": False}


def drawn(count=150, seed=0):
    rng = np.random.default_rng(seed)
    return [dict(zip("xyz", map(float, row), strict=True)) for row in rng.random((count, 3))]


def at(sizes, configs):
    return [{**c, "size": s} for s in sizes for c in configs]


@pytest.fixture(scope="module")
def found():
    """4 x + 2 y + z at sizes 1 and 2, and x + 2 y + 4 z at 3: shares 16, 4 and 1 of 21."""
    configs = at((3, 1, 2), drawn())
    value = [
        c["x"] + 2 * c["y"] + 4 * c["z"] if c["size"] == 3 else 4 * c["x"] + 2 * c["y"] + c["z"]
        for c in configs
    ]
    return importance_by(SPACE, configs, value, group_by="size", **QUICK)


def test_each_group_has_its_own_shares_in_order(found):
    assert list(found.groups) == [1, 2, 3]
    for size, first, last in ((1, "x", "z"), (2, "x", "z"), (3, "z", "x")):
        assert found.groups[size].trials == 150
        assert found.share(size, first).value == pytest.approx(16 / 21, abs=0.08)
        assert found.share(size, last).value < 0.1
        assert found.share(size, first).low < found.share(size, first).high
    assert [name for name, _ in found.to_rows()][-1] == "y"


def test_what_differs_is_told_apart_and_what_is_the_same_is_not(found):
    up = found.difference("z", 1, 3)
    assert up.value == pytest.approx(15 / 21, abs=0.1)
    assert up.excludes_zero
    assert found.difference("x", 1, 3).high < 0
    # The same configurations and values in both, and the same forest.
    assert found.difference("x", 1, 2) == (0.0, 0.0, 0.0)
    assert not found.difference("x", 1, 2).excludes_zero


def test_rank_correlations_of_what_agrees_and_what_is_turned_round(found):
    assert found.rank_correlation(1, 2) == pytest.approx((1.0, 1.0, 1.0))
    turned = found.rank_correlation(1, 3)
    assert turned.value == pytest.approx(-1.0)
    assert turned.low <= turned.high < 0


def test_groups_of_other_configurations_and_conditions_and_the_key_in_the_space():
    space = ConfigurationSpace({**dict(SPACE), "size": (1, 3), "fixed": Constant("fixed", 1)})
    space.add(GreaterThanCondition(space["z"], space["size"], 1))
    configs = at((1,), drawn(40, 1)) + at((2,), drawn(60, 2))
    for config in configs[:40]:
        del config["z"]
    value = [None if c["x"] > 0.9 else c["y"] for c in configs]
    found = importance_by(space, configs, value, group_by="size", failed="drop", **QUICK)
    assert found.names == ("x", "y", "z")
    assert found.groups[1].failed == sum(v is None for v in value[:40])
    assert found.share(1, "z").value < 0.03
    assert min(found.share(s, "y").value for s in (1, 2)) > 0.8
    assert {d.shape for d in found.draws.values()} == {(12, 3)}


def test_without_resamples_there_are_no_intervals():
    configs = at((1, 2), drawn(20))
    quick = {**QUICK, "resamples": 0}
    found = importance_by(SPACE, configs, [c["x"] for c in configs], group_by="size", **quick)
    value, low, high = found.share(1, "x")
    assert value > 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    assert not found.difference("x", 1, 2).excludes_zero


def test_it_is_deterministic_and_leaves_the_global_state_alone():
    configs = at((1, 2), drawn(20))
    value = [c["x"] for c in configs]
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    quick = {**QUICK, "resamples": 3}
    a, b, c = (
        importance_by(SPACE, configs, value, group_by="size", seed=s, **quick) for s in (0, 0, 1)
    )
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert a.groups == b.groups
    assert (a.draws[1] == b.draws[1]).all()
    assert not (a.draws[1] == c.draws[1]).all()


def test_mistakes_are_named(found):
    configs = at((1, 2), drawn(20))
    value = [c["x"] for c in configs]
    with pytest.raises(InvalidTypeError, match="ConfigurationSpace"):
        importance_by({}, configs, value, group_by="size")
    with pytest.raises(InvalidValueError, match="configuration 3 has no 'size'"):
        importance_by(SPACE, [*configs[:3], {"x": 0.1}], value[:4], group_by="size")
    with pytest.raises(InvalidValueError, match="40 configs, but 3 values"):
        importance_by(SPACE, configs, value[:3], group_by="size")
    with pytest.raises(InvalidValueError, match="size = 2 has 7 trials"):
        importance_by(SPACE, configs, [*value[:27], *[None] * 13], group_by="size")
    with pytest.raises(InvalidValueError, match="there is no group size = 9; there are 1, 2, 3"):
        found.rank_correlation(1, 9)
    with pytest.raises(InvalidValueError, match="no parameter 'w'"):
        found.share(1, "w")
