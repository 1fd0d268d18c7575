"""Functional ANOVA against variance decompositions that are known by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from ConfigSpace import (
    Categorical,
    ConfigurationSpace,
    Constant,
    EqualsCondition,
    Float,
    GreaterThanCondition,
    Integer,
    OrdinalHyperparameter,
)
from sklearn.tree import DecisionTreeRegressor

from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.importance import _dimensions, _is_active, _tree_shares, from_result_grid, importance

XY = ConfigurationSpace({"x": (0.0, 1.0), "y": (0.0, 1.0)})


def sample(space, count, seed=0):
    space.seed(seed)
    return [dict(c) for c in space.sample_configuration(count)]


def shares_of_tree(space, x, y):
    """The effects in one tree of scikit-learn that reproduces (x, y)."""
    tree = DecisionTreeRegressor(random_state=0).fit(np.asarray(x, dtype=float), y)
    return tree, _tree_shares(tree.tree_, _dimensions(space), pairs=True)


def test_a_tree_of_five_nodes_by_hand():
    """x <= 0.5: 0; else y <= 0.25: 4, else 8. Its boxes have the sizes 1/2, 1/8, 3/8.

    Mean 1/2 + 3 = 3.5; total variance 16/8 + 64 · 3/8 - 3.5² = 13.75. Over y, x > 0.5 has the
    mean 7: V_x = 3.5² = 12.25. Over x, y <= 0.25 has 2 and the rest 4: V_y = 4 · 3/16 = 0.75.
    What is left, 0.75, is of both.
    """
    x = [[0.25, 0.0], [0.25, 0.5], [0.75, 0.0], [0.75, 0.5]]
    tree, shares = shares_of_tree(XY, x, [0.0, 0.0, 4.0, 8.0])
    assert tree.tree_.node_count == 5
    expected = {("x",): 12.25 / 13.75, ("y",): 0.75 / 13.75, ("x", "y"): 0.75 / 13.75}
    assert shares == pytest.approx(expected)


def test_discrete_values_count_and_not_their_distance():
    """An integer of 1 … 4 on a log scale, split after 1: 1 weighs log 3 / log 9 = 1/2.

    Ordinal a < b < c, split after a: a weighs 1/3, so both variances are p (1 - p) · height².
    """
    space = ConfigurationSpace(
        {"n": Integer("n", (1, 4), log=True), "o": OrdinalHyperparameter("o", ["a", "b", "c"])}
    )
    positions = {1: 0.0, 2: 0.5, 3: math.log(3) / math.log(4), 4: 1.0}
    rows = [(n, o) for n in positions for o in range(3)]
    _, shares = shares_of_tree(
        space,
        [(positions[n], o) for n, o in rows],
        [2.0 * (n > 1) + 3.0 * (o > 0) for n, o in rows],
    )
    n, o = 4 / 4, 9 * 2 / 9
    assert shares == pytest.approx(
        {("n",): n / (n + o), ("o",): o / (n + o), ("n", "o"): 0.0}, abs=1e-12
    )


def test_a_tree_agrees_with_a_grid_over_the_space():
    """A grid that is finer than the leaves, summed as the definition of the variances says."""
    rng = np.random.default_rng(4)
    space = ConfigurationSpace({"a": (0.0, 1.0), "k": ["p", "q", "r"], "b": (0.0, 1.0)})
    names = list(space)
    points = np.round(rng.random((60, 2)) * 16) / 16
    kinds = rng.integers(3, size=60)
    value = np.sin(5 * points[:, 0]) * (kinds == 1) + points[:, 1] * points[:, 0] + kinds
    columns = {"a": points[:, :1], "b": points[:, 1:], "k": np.eye(3)[kinds]}
    tree, shares = shares_of_tree(space, np.hstack([columns[n] for n in names]), value)
    # Thresholds are multiples of 1/32, and the grid stands between them.
    axes = {"a": (np.arange(32)[:, None] + 0.5) / 32, "k": np.eye(3)}
    axes["b"] = axes["a"]
    index = np.indices([len(axes[n]) for n in names]).reshape(3, -1)
    grid = np.hstack([axes[n][i] for n, i in zip(names, index, strict=True)])
    f = tree.predict(grid).reshape([len(axes[n]) for n in names])
    f -= f.mean()
    alone = [f.mean(axis=tuple({0, 1, 2} - {i}), keepdims=True) for i in range(3)]
    for i, name in enumerate(names):
        assert shares[(name,)] == pytest.approx(alone[i].var() / f.var())
    for i, j in ((0, 1), (0, 2), (1, 2)):
        both = f.mean(axis=3 - i - j, keepdims=True) - alone[i] - alone[j]
        assert shares[names[i], names[j]] == pytest.approx(both.var() / f.var())


def test_an_additive_function():
    """3 x + y: variances 9/12 and 1/12, so the shares are 0.9 and 0.1, and none of both."""
    configs = sample(XY, 600)
    found = importance(XY, configs, [3 * c["x"] + c["y"] for c in configs], n_trees=24)
    assert list(found.main) == ["x", "y"]
    assert found.main["x"].mean == pytest.approx(0.9, abs=0.03)
    assert found.main["y"].mean == pytest.approx(0.1, abs=0.03)
    assert found.pairs["x", "y"].mean < 0.02
    assert 0 < found.main["x"].sd < 0.03
    assert found.r2 > 0.95
    assert (found.trials, found.failed) == (600, 0)


def test_a_product():
    """x y: V = 1/9 - 1/16 = 7/144, V_x = V_y = 1/48: shares 3/7, 3/7 and 1/7."""
    configs = sample(XY, 600)
    found = importance(XY, configs, [c["x"] * c["y"] for c in configs], n_trees=24)
    assert [e.mean for e in found.main.values()] == pytest.approx([3 / 7, 3 / 7], abs=0.03)
    assert found.pairs["x", "y"].mean == pytest.approx(1 / 7, abs=0.03)
    rows = found.to_rows()
    assert rows[-1][0] == "x × y"
    assert sum(mean for _, mean, _ in rows) <= 1 + 1e-9


def test_categories_logarithms_integers_and_constants():
    """(kind is "b") + z, where z is log lr on [0, 1]: 2/9 and 1/12, and units do nothing."""
    space = ConfigurationSpace(
        {
            "kind": Categorical("kind", ["a", "b", "c"]),
            "lr": Float("lr", (1e-4, 1.0), log=True),
            "units": Integer("units", (1, 10_000), log=True),
            "fixed": Constant("fixed", 3),
        }
    )
    configs = sample(space, 600)
    value = [(c["kind"] == "b") + 1 + math.log10(c["lr"]) / 4 for c in configs]
    found = importance(space, configs, value, n_trees=24)
    total = 2 / 9 + 1 / 12
    assert set(found.main) == {"kind", "lr", "units"}
    assert found.main["kind"].mean == pytest.approx(2 / 9 / total, abs=0.04)
    assert found.main["lr"].mean == pytest.approx(1 / 12 / total, abs=0.04)
    assert found.main["units"].mean < 0.01
    assert sum(row[1] for row in found.to_rows()) <= 1 + 1e-9


def test_two_categories_that_only_matter_together():
    """Exclusive or: no parameter has an effect of its own, both together have everything."""
    space = ConfigurationSpace({"p": [True, False], "q": [True, False]})
    configs = [{"p": p, "q": q} for p in (True, False) for q in (True, False)] * 10
    found = importance(space, configs, [c["p"] != c["q"] for c in configs], n_trees=16)
    assert found.pairs["p", "q"].mean > 0.95
    assert max(e.mean for e in found.main.values()) < 0.05


def test_what_is_not_active_does_nothing_whatever_its_value():
    """m with SGD, 1/2 else: V_m = 1/48, and as much of both; the optimiser alone does nothing.

    momentum at its default there would be all of it: m = 1/2 and the value is 1/2.
    """
    space = ConfigurationSpace(
        {"opt": Categorical("opt", ["sgd", "adam"]), "momentum": Float("momentum", (0.0, 1.0))}
    )
    space.add(EqualsCondition(space["momentum"], space["opt"], "sgd"))
    configs = sample(space, 600)
    assert any("momentum" not in c for c in configs)
    value = [c.get("momentum", 0.5) for c in configs]
    found = importance(space, configs, value, n_trees=16)
    assert found.main["momentum"].mean == pytest.approx(0.5, abs=0.05)
    assert found.pairs["opt", "momentum"].mean == pytest.approx(0.5, abs=0.05)
    assert importance(space, [{**c, "more": 1} for c in configs], value, n_trees=16) == found
    explicit = [{"momentum": 0.5, **c} for c in configs]
    assert importance(space, explicit, value, n_trees=16).main["momentum"].mean > 0.95


def test_what_was_not_set_is_at_its_default_and_a_child_of_what_is_not_active_is_neither():
    space = ConfigurationSpace({"k": ["a", "b"], "x": (0.0, 1.0), "y": (0.0, 1.0)})
    space.add(EqualsCondition(space["x"], space["k"], "a"))
    space.add(GreaterThanCondition(space["y"], space["x"], 0.4))
    held = [{"k": "a"}, {"k": "a", "x": 0.3}, {"k": "b"}, {}]
    active = [[_is_active(space, n, c) for n in "xy"] for c in held]
    assert active == [[True, True], [True, False], [False, False], [True, True]]


def test_a_conditional_parameter_by_hand():
    """f = x where k is a, else 0.

    V = E f² - (E f)² = 1/6 - 1/16 = 5/48. Over k: x/2, V_x = 1/48; over x: 1/2 or 0, V_k = 1/16.
    So k has .6, x alone .2, and both together .2.
    """
    space = ConfigurationSpace({"k": ["a", "b"], "x": (0.0, 1.0)})
    space.add(EqualsCondition(space["x"], space["k"], "a"))
    configs = sample(space, 600)
    assert 200 < sum("x" not in c for c in configs) < 400
    found = importance(space, configs, [c.get("x", 0.0) for c in configs], n_trees=24)
    assert found.main["k"].mean == pytest.approx(0.6, abs=0.03)
    assert found.main["x"].mean == pytest.approx(0.2, abs=0.03)
    assert found.pairs["k", "x"].mean == pytest.approx(0.2, abs=0.03)


def test_trials_that_fail_in_half_of_the_space_by_hand():
    """y where x <= 1/2, else a failure, which counts as the worst, 1: the same numbers again."""
    configs = sample(XY, 600)
    value = [c["y"] if c["x"] <= 0.5 else math.nan for c in configs]
    found = importance(XY, configs, value, n_trees=24)
    assert found.failed == sum(map(math.isnan, value))
    assert found.main["x"].mean == pytest.approx(0.6, abs=0.03)
    assert found.main["y"].mean == pytest.approx(0.2, abs=0.03)
    assert found.pairs["x", "y"].mean == pytest.approx(0.2, abs=0.03)


def test_the_function_of_ishigami():
    """sin a + 7 sin² b + c⁴ sin a / 10 on [-π, π]³: .3139, .4424, 0, and .2437 of a and c.

    Its variances: V_a = (1 + π⁴/50)²/2, V_b = 49/8, V_ac = π⁸ (1/1800 - 1/5000) (Ishigami and
    Homma 1990). c alone does nothing. Trees, which look one split ahead, see little of sin² b.
    """
    space = ConfigurationSpace({name: (-math.pi, math.pi) for name in "abc"})
    configs = sample(space, 2000)
    value = [math.sin(c["a"]) * (1 + c["c"] ** 4 / 10) + 7 * math.sin(c["b"]) ** 2 for c in configs]
    found = importance(space, configs, value, n_trees=16)
    v_a, v_b = (1 + math.pi**4 / 50) ** 2 / 2, 49 / 8
    v_ac = math.pi**8 * (1 / 1800 - 1 / 5000)
    total = v_a + v_b + v_ac
    assert (v_a / total, v_ac / total) == pytest.approx((0.3139, 0.2437), abs=1e-4)
    assert found.main["a"].mean == pytest.approx(v_a / total, abs=0.05)
    assert v_b / total - 0.13 < found.main["b"].mean < v_b / total + 0.05
    assert found.main["c"].mean < 0.02
    assert found.pairs["a", "c"].mean == pytest.approx(v_ac / total, abs=0.05)
    assert found.pairs["a", "b"].mean < 0.04


def test_failures_count_as_the_worst_or_not_at_all():
    """Trials fail where x > 0.5, and are equal elsewhere: x is everything, or nothing."""
    configs = sample(XY, 100)
    value = [None if c["x"] > 0.5 else 1e-3 * c["y"] for c in configs]
    value[0] = math.nan if value[0] is None else math.inf
    failures = sum(v is None or not math.isfinite(v) for v in value)
    dropped = importance(XY, configs, value, n_trees=8, failed="drop")
    assert dropped.main["y"].mean > 0.8
    assert (dropped.failed, dropped.trials) == (failures, 100 - failures)
    worse = [1.0 if v == 0 else v for v in value]
    worse[int(np.argmax([c["x"] < 0.1 for c in configs]))] = 1.0
    counted = importance(XY, configs, worse, n_trees=8)
    assert counted.main["x"].mean > 0.8
    assert counted.trials == 100
    best = importance(
        XY, configs, [None if v is None else -v for v in worse], n_trees=8, mode="max"
    )
    assert best.main["x"].mean == pytest.approx(counted.main["x"].mean)


def test_it_is_deterministic_and_leaves_the_global_state_alone():
    configs = sample(XY, 60)
    value = [c["x"] ** 2 for c in configs]
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = importance(XY, configs, value, n_trees=8)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert importance(XY, configs, value, n_trees=8, seed=0) == first
    assert importance(XY, configs, value, n_trees=8, seed=1) != first


def test_without_variance_nothing_matters():
    configs = sample(XY, 20)
    found = importance(XY, configs, [0.5] * 20, n_trees=4)
    assert {*found.main.values(), *found.pairs.values()} == {(0.0, 0.0)}
    assert math.isnan(found.r2)


def test_without_pairs():
    configs = sample(XY, 20)
    found = importance(XY, configs, [c["x"] for c in configs], n_trees=4, pairs=False)
    assert found.pairs == {}
    assert len(found.to_rows()) == 2


def test_a_rounded_record_is_legal_and_a_wrong_one_is_named():
    space = ConfigurationSpace(
        {
            "lr": Float("lr", (1e-3 / 3, 1.0), log=True),
            "width": OrdinalHyperparameter("width", [1 / 3, 2 / 3]),
        }
    )
    good = [{"lr": 0.000333333333333, "width": 0.333333333333}, {"lr": 1.0, "width": 2 / 3}] * 4
    assert importance(space, good, range(8), n_trees=2).trials == 8
    for wrong in ({"lr": 2.0, "width": 1 / 3}, {"lr": "x", "width": 1 / 3}):
        with pytest.raises(InvalidValueError, match="configuration 8 has lr = "):
            importance(space, [*good, wrong], range(9))
    with pytest.raises(InvalidValueError, match=r"configuration 8 has width = 0\.5"):
        importance(space, [*good, {"lr": 1.0, "width": 0.5}], range(9))
    with pytest.raises(InvalidValueError, match="configuration 0 has lr = -1"):
        importance(space, [{"lr": -1.0}] * 2, range(2))


def test_other_mistakes_are_named():
    configs = sample(XY, 4)
    with pytest.raises(InvalidTypeError, match="ConfigurationSpace"):
        importance({"x": (0, 1)}, configs, range(4))
    with pytest.raises(InvalidValueError, match="4 configs, but 3 values"):
        importance(XY, configs, range(3))
    with pytest.raises(InvalidValueError, match="two finite values"):
        importance(XY, configs, [None, 1.0, math.nan, math.inf])
    with pytest.raises(InvalidValueError, match="can vary"):
        importance(ConfigurationSpace({"c": Constant("c", 1)}), [{}] * 2, range(2))
    with pytest.raises(InvalidValueError, match="failed must be"):
        importance(XY, configs, range(4), failed="ignore")


def test_a_grid_of_results_of_ray():
    """Nested configurations, a crashed trial, one without reports: as Ray's Result has them."""
    space = ConfigurationSpace({"opt/lr": (0.0, 1.0), "y": (0.0, 1.0)})
    points = sample(space, 40)
    results = [
        SimpleNamespace(
            config={"opt": {"lr": p["opt/lr"]}, "y": p["y"], "seed": 3},
            metrics={"loss": p["opt/lr"]},
            error=None,
        )
        for p in points
    ]
    results += [
        SimpleNamespace(config={"opt": {"lr": 0.1}, "y": 0.1}, metrics=None, error=None),
        SimpleNamespace(
            config={"opt": {"lr": 0.9}, "y": 0.1}, metrics={"loss": 0.0}, error=RuntimeError()
        ),
    ]
    found = from_result_grid(results, space, "loss", "min", n_trees=8, failed="drop")
    assert (found.trials, found.failed) == (40, 2)
    assert found.main["opt/lr"].mean > 0.9
