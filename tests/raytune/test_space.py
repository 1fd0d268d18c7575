from __future__ import annotations

from typing import Any

import pytest
from ConfigSpace import Categorical, ConfigurationSpace, EqualsCondition, Float, Integer
from ray import tune
from ray.tune.search.sample import Domain
from ray.tune.search.sample import Float as SampledFloat

from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune._autohyper_start import core_parameters, initial_points
from tune_ext.raytune._space import (
    NumericParameter,
    flatten,
    from_config_space,
    has_domains,
    to_parameters,
    unflatten,
)


def test_flat_and_nested_are_the_same_configuration() -> None:
    nested = {"a": 1, "b": {"c": {"d": 2}, "e": 3}, "empty": {}}
    assert flatten(nested) == {("a",): 1, ("b", "c", "d"): 2, ("b", "e"): 3, ("empty",): {}}
    assert unflatten(flatten(nested)) == nested


def test_ranges_become_parameters_and_the_rest_is_constant() -> None:
    space = {
        "lr": tune.loguniform(1e-6, 1),
        "batch": 32,
        "optimizer": {"momentum": tune.uniform(0, 0.99), "name": "sgd"},
        "layers": tune.randint(1, 5),
        "width": tune.qlograndint(8, 64, 8),
        "drop": tune.quniform(0, 0.5, 0.1),
    }
    assert to_parameters(space) == [
        NumericParameter(("lr",), 1e-6, 1.0, log=True),
        NumericParameter(("optimizer", "momentum"), 0.0, 0.99),
        NumericParameter(("layers",), 1.0, 4.0, integer=True),
        NumericParameter(("width",), 8.0, 64.0, log=True, integer=True, step=8.0),
        NumericParameter(("drop",), 0.0, 0.5, step=0.1),
    ]
    assert to_parameters(space)[1].name == "optimizer/momentum"
    assert has_domains(space)
    assert not has_domains({"batch": 32, "list": [1, 2]})
    assert to_parameters(to_parameters(space)) == to_parameters(space)


@pytest.mark.parametrize(
    ("domain", "said"),
    [
        (tune.choice([1, 2]), "a choice among"),
        (tune.grid_search([1, 2]), "a grid"),
        (tune.sample_from(lambda spec: 1), "a function"),
        (tune.randn(0, 1), "a normal distribution"),
        (SampledFloat(0, None), "unbounded"),
        ([tune.uniform(0, 1)], "inside a list"),
        ([{"deep": tune.uniform(0, 1)}], "inside a list"),
        (tune.uniform(1, 1), "lower must be below the upper"),
    ],
)
def test_what_is_no_range_is_named(domain: Any, said: str) -> None:
    with pytest.raises(InvalidValueError, match=rf"'?x.*{said}"):
        to_parameters({"lr": tune.uniform(0, 1), "x": domain})


def test_a_space_of_another_kind() -> None:
    with pytest.raises(InvalidTypeError, match="ConfigurationSpace"):
        to_parameters(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="twice"):
        to_parameters({"a/b": tune.uniform(0, 1), "a": {"b": tune.uniform(0, 1)}})


def test_a_config_space_becomes_domains() -> None:
    space = ConfigurationSpace(
        {
            "lr": Float("lr", (1e-6, 1.0), log=True),
            "momentum": (0.0, 0.9),
            "layers": Integer("layers", (1, 4)),
            "optimizer": ["adam", "sgd"],
            "batch": 32,
        }
    )
    domains = from_config_space(space)
    assert domains["batch"] == 32
    assert domains["optimizer"].categories == ["adam", "sgd"]
    assert isinstance(domains["lr"], Domain)
    del domains["optimizer"]
    assert to_parameters(domains) == [
        NumericParameter(("layers",), 1.0, 4.0, integer=True),
        NumericParameter(("lr",), 1e-6, 1.0, log=True),
        NumericParameter(("momentum",), 0.0, 0.9),
    ]
    one = ConfigurationSpace({"optimizer/lr": Float("optimizer/lr", (1e-6, 1.0), log=True)})
    assert to_parameters(one)[0].path == ("optimizer", "lr")


def test_a_config_space_with_conditions_is_refused() -> None:
    space = ConfigurationSpace()
    kind, rate = Categorical("kind", ["a", "b"]), Float("rate", (0.0, 1.0))
    space.add(kind, rate)
    space.add(EqualsCondition(rate, kind, "a"))
    with pytest.raises(InvalidValueError, match="conditions"):
        from_config_space(space)


def test_published_starts_and_scales_stay_within_the_bounds() -> None:
    space = to_parameters(
        {
            "lr": tune.loguniform(1e-6, 1),
            "head_lr": tune.loguniform(1e-2, 1),
            "weight_decay": tune.uniform(0, 0.1),
            "wd": tune.loguniform(1e-7, 1e-1),
            "temperature": tune.loguniform(1e-2, 1e2),
            "momentum": tune.uniform(0, 0.9),
        }
    )
    found = core_parameters(space, {"momentum": 0.5}, {"lr": 1.2})
    assert [(p.name, p.start, p.scale) for p in found] == [
        ("lr", 1e-4, 1.2),
        ("head_lr", 1e-2, 1.45),
        ("weight_decay", 0.0, 2.0),
        ("wd", 1e-7, 2.0),
        ("temperature", pytest.approx(1.0), 1.45),
        ("momentum", 0.5, 1.45),
    ]
    assert [(p.lower, p.upper) for p in found] == [(q.lower, q.upper) for q in space]


@pytest.mark.parametrize(
    ("space", "start", "scale", "said"),
    [
        ({}, {}, {}, "search space is empty"),
        ({"batch": 32}, {}, {}, "search space is empty"),
        ({"lr": tune.uniform(0, 1)}, {"rate": 0.1}, {}, "start names rate.*has lr"),
        ({"lr": tune.uniform(0, 1)}, {}, {"rate": 2}, "scale names rate"),
        ({"lr": tune.loguniform(1e-6, 1)}, {"lr": 2.0}, {}, "start.*'lr'.*bounds"),
        ({"lr": tune.loguniform(1e-6, 1)}, {}, {"lr": 1.0}, "scale.*'lr'"),
        ({"x": tune.randint(1, 9)}, {}, {}, "'x' is an integer"),
        ({"x": tune.quniform(0, 1, 0.5)}, {}, {}, "'x' is quantised"),
        ({"x": tune.uniform(-1, 1)}, {}, {}, "'x'.*not negative"),
    ],
)
def test_a_start_that_cannot_work_is_named(space: Any, start: Any, scale: Any, said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        core_parameters(to_parameters(space), start, scale)


def test_points_to_evaluate_nested_flat_and_with_constants() -> None:
    space = to_parameters({"lr": tune.uniform(0, 1), "o": {"m": tune.uniform(0, 1)}})
    points = [{"lr": 0.1, "batch": 8, "o": {"m": 0.2}}, {"o/m": 0.3}]
    assert initial_points(points, space) == [{"lr": 0.1, "o/m": 0.2}, {"o/m": 0.3}]
    with pytest.raises(InvalidValueError, match="no parameter of the space"):
        initial_points([{"rate": 1}], space)
    with pytest.raises(InvalidTypeError, match="dictionaries"):
        initial_points([3], space)
