"""The joint search's parameters as Tune's domains, and in searchers."""

from __future__ import annotations

import copy
import importlib.util
import json
from typing import Any

import numpy as np
import pytest
from ray.tune.search.bohb import TuneBOHB
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.variant_generator import generate_variants

from tests.test_spaces import BRANCHES, PUBLISHED
from tune_ext.raytune import BOHBSearch
from tune_ext.raytune._space import to_parameters
from tune_ext.spaces import JOINT_DEFAULTS, joint_domains, joint_space

needs_hpbandster = pytest.mark.skipif(
    importlib.util.find_spec("hpbandster") is None, reason="needs hpbandster"
)


@pytest.mark.parametrize("flat", [False, True])
def test_domains_are_the_published_ranges(flat: bool) -> None:
    found = {
        p.name: (int if p.integer else float, p.lower, p.upper, p.log)
        for p in to_parameters(joint_domains(flat=flat))
    }
    assert found == PUBLISHED


def test_domains_of_a_part_within_limits() -> None:
    limits = {"length": (0, 4), "alpha": (0, 0), "batch_size": (16, 16)}
    domains = joint_domains(part="hyperparameters", limits=limits)
    assert set(domains) == set(joint_space(part="hyperparameters"))
    assert (domains["length"].lower, domains["length"].upper) == (0, 5)
    assert json.dumps([domains["alpha"], domains["batch_size"]]) == "[0.0, 16]"


def at_random(space: dict[str, Any], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """What Ray's own random search draws."""
    rng = np.random.default_rng(seed)
    spec = {"config": space}
    return [
        next(generate_variants(copy.deepcopy(spec), random_state=rng))[1]["config"]
        for _ in range(count)
    ]


def test_rays_random_search_draws_a_death_rate_where_a_group_has_one_branch() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    flat, found = (at_random(joint_domains(flat=flat), 60) for flat in (True, False))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert found == at_random(joint_domains(flat=False), 60)
    ones = [any(config[name] == 1 for name in BRANCHES) for config in found]
    assert 0 < sum(ones) < 60
    for one, config, unconditional in zip(ones, found, flat, strict=True):
        assert config["death_rate"] == (unconditional["death_rate"] if one else 0)
        assert config == unconditional | {"death_rate": config["death_rate"]}
        assert json.loads(json.dumps(config)) == config


def test_no_death_rate_is_drawn_where_it_never_has_an_effect_and_always_where_it_has() -> None:
    several = joint_domains(flat=False, limits=dict.fromkeys(BRANCHES, (2, 5)))
    assert several["death_rate"] == 0.0
    one = joint_domains(flat=False, limits={"res_branches_2": (1, 1)})
    assert all(config["death_rate"] > 0 for config in at_random(one, 10))


def check(config: dict[str, Any]) -> None:
    """The values are plain ones within their limits."""
    assert json.loads(json.dumps(config)) == config
    for name, value in config.items():
        kind, lower, upper, _ = PUBLISHED[name]
        assert isinstance(value, kind)
        assert lower * (1 - 1e-9) <= value <= upper * (1 + 1e-9)


@pytest.mark.parametrize("flat", [False, True])
def test_optuna_takes_the_domains(flat: bool) -> None:
    space = joint_domains(flat=flat)
    search = OptunaSearch(
        space, metric="loss", mode="min", seed=0, points_to_evaluate=[dict(JOINT_DEFAULTS)]
    )
    found = [search.suggest(f"{i}") for i in range(15)]
    assert found[0] == JOINT_DEFAULTS
    for config in found:
        check(config)
        assert len(config) == 17


@pytest.mark.parametrize("space", [joint_space(), joint_domains()], ids=["conditional", "flat"])
def test_our_bohb_takes_both(space: Any) -> None:
    search = BOHBSearch(
        space, metric="loss", mode="min", seed=0, points_to_evaluate=[dict(JOINT_DEFAULTS)]
    )
    assert search.suggest("first") == JOINT_DEFAULTS
    found = [search.suggest(f"{i}") for i in range(30)]
    for i, config in enumerate(found):
        check(config)
        conditional = any(config[name] == 1 for name in BRANCHES)
        assert ("death_rate" in config) == (conditional or isinstance(space, dict))
        search.on_trial_result(f"{i}", {"loss": config["learning_rate"], "training_iteration": 1})
        search.on_trial_complete(f"{i}", {"loss": config["learning_rate"], "training_iteration": 1})
    for i in range(12):
        check(search.suggest(f"after {i}"))


@needs_hpbandster
@pytest.mark.parametrize("flat", [False, True])
def test_tunebohb_takes_the_space(flat: bool) -> None:
    search = TuneBOHB(joint_space(flat=flat), metric="loss", mode="min", seed=0)
    for i in range(20):
        config = dict(search.suggest(f"{i}"))
        assert set(config) <= set(PUBLISHED)
        one = any(config[name] == 1 for name in BRANCHES)
        assert ("death_rate" in config) == (one or flat)
