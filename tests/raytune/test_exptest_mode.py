"""lr="exptest": each trial finds its own rate, once, and what it costs counts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, HyperBandForBOHB
from ray.tune.search.bohb import TuneBOHB
from ray.tune.search.optuna import OptunaSearch

from tests.raytune.torch_trainables import RUNG, function, lives
from tune_ext import ExpTestScheduler

EPOCH = 40


@pytest.fixture
def searched(run: Any, tmp_path: Path) -> Any:
    """`run` of a torch model without a learning rate in its space."""

    def start(**options: Any) -> Any:
        space = {"width": tune.randint(4, 17), **options.pop("config", {})}
        config = {"lr": "exptest", "home": str(tmp_path), **space}
        one_at_a_time = tune.with_resources(function, {"cpu": 2})  # torch is imported once
        return run(one_at_a_time, **{"config": config, "num_samples": 3, **options})

    return start


def check(analysis: Any, home: Path) -> None:
    """Every trial searched once, in its first life, and has counted the steps."""
    for trial in analysis.trials:
        first, *later = [life for life in lives(home) if life["trial"] == trial.trial_id]
        assert (first["epoch"], first["search"] % RUNG) == (0, 0)
        assert first["search"] > 0
        assert all(life["epoch"] > 0 and life["search"] == 0 for life in later)
        result = trial.last_result
        assert result["exptest"]["spent"] == first["search"] + EPOCH * result["epoch"]
        assert result["epochs_spent"] == result["exptest"]["spent"] / EPOCH > result["epoch"]


def test_under_optuna_and_asha_with_a_crash(searched: Any, tmp_path: Path) -> None:
    asha = ASHAScheduler("epochs_spent", "loss", "min", max_t=9, grace_period=4)
    analysis = searched(
        search_alg=OptunaSearch(metric="loss", mode="min", seed=0),
        scheduler=asha,
        config={"crash": 3},
        max_failures=1,
    )
    check(analysis, tmp_path)
    assert len(lives(tmp_path)) == 4
    ends = [t.last_result["epochs_spent"] for t in analysis.trials]
    assert all(4 <= end < 10 for end in ends)
    assert max(ends) >= 9
    assert {t.config["lr"] for t in analysis.trials} == {"exptest"}


def test_random_search_with_rates_that_go_down(searched: Any, tmp_path: Path) -> None:
    scheduler = ExpTestScheduler("epochs_spent", max_t=9)
    analysis = searched(scheduler=scheduler, num_samples=2)
    check(analysis, tmp_path)
    for trial in analysis.trials:
        rates = [life["lr"] for life in lives(tmp_path) if life["trial"] == trial.trial_id]
        assert len(rates) >= 2
        assert rates == [pytest.approx(rates[0] * 0.33**i) for i in range(len(rates))]
        assert trial.last_result["config"]["lr"] == trial.config["lr"] == rates[-1]
        assert 9 <= trial.last_result["epochs_spent"] < 10


@pytest.mark.skipif(importlib.util.find_spec("hpbandster") is None, reason="needs hpbandster")
def test_bohb_pauses_and_no_rate_is_searched_again(searched: Any, tmp_path: Path) -> None:
    analysis = searched(
        search_alg=TuneBOHB(metric="loss", mode="min", seed=0),
        scheduler=HyperBandForBOHB("epochs_spent", "loss", "min", max_t=9),
    )
    check(analysis, tmp_path)
    assert len(lives(tmp_path)) > 3
