"""BOHBSearch: the conformance suite, what it learns under which scheduler, spaces."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ConfigSpace import (
    CategoricalHyperparameter,
    ConfigurationSpace,
    Constant,
    EqualsCondition,
    ForbiddenAndConjunction,
    ForbiddenEqualsClause,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
)
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter

from tune_ext.benchmark.simulation import simulate
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune import BOHBSearch, HyperBand
from tune_ext.raytune.brackets import BUDGET
from tune_ext.raytune.testing import SearcherConformance


class TestBOHBSearch(SearcherConformance):
    def make(self, **options: Any) -> Any:
        return BOHBSearch(**options)


class _Trained:
    """Better with more epochs, best at x = .3; a failure or NaN where asked."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.epoch = config, 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        if self.config["x"] > 0.97:
            raise RuntimeError("as planned")
        loss = abs(self.config["x"] - 0.3) + 0.1 / self.epoch
        return {"loss": math.nan if self.config["x"] < 0.02 else loss, "seconds": 1.0}

    def state(self) -> int:
        return self.epoch

    def load(self, state: int) -> None:
        self.epoch = state


def _searched(tmp_path: Path, scheduler: Any, count: int = 40, workers: int = 1) -> BOHBSearch:
    class Counted(BOHBSearch):
        left = count
        suggested: list[float]

        def suggest(self, trial_id: str) -> Any:
            if not self.left:
                return "FINISHED"
            self.left -= 1
            config = super().suggest(trial_id)
            assert config is not None
            self.suggested.append(config["x"])
            return config

    search = Counted({"x": tune.uniform(0, 1)}, metric="loss", mode="min", seed=0)
    search.suggested = []
    simulate(_Trained, search_alg=search, scheduler=scheduler, workers=workers, storage=tmp_path)
    return search


def test_it_sees_every_rung_the_last_included(tmp_path: Path) -> None:
    scheduler = HyperBand(metric="loss", mode="min", max_t=9, brackets=1)
    search = _searched(tmp_path, scheduler, count=9)
    assert search._model is not None
    assert search._model.counts() == {1: 9, 3: 3, 9: 1}


def test_under_other_schedulers_it_sees_every_epoch(tmp_path: Path) -> None:
    search = _searched(tmp_path, ASHAScheduler(metric="loss", mode="min", max_t=9), count=12)
    assert search._model is not None
    counts = search._model.counts()
    assert counts[1] == 12
    assert counts[9] >= 1
    assert list(counts) == [float(epoch) for epoch in range(1, 10)]


class _Uneven(_Trained):
    """No two trials are as fast."""

    def step(self) -> dict[str, Any]:
        return {**super().step(), "seconds": 0.8 + 0.7 * self.config["x"]}


@pytest.mark.parametrize("budgets", [None, [1.0, 3.0, 9.0]])
def test_under_asha_with_seconds_it_has_a_model(tmp_path: Path, budgets: Any) -> None:
    """Else each result has a budget of its own, and no budget has enough of them."""
    time = {"time_attr": "time_total_s"}
    search = BOHBSearch({"x": tune.uniform(0, 0.9)}, "loss", "min", budgets=budgets, seed=0, **time)
    scheduler = ASHAScheduler(metric="loss", mode="min", max_t=9, reduction_factor=3, **time)
    simulate(
        _Uneven, search_alg=search, scheduler=scheduler, workers=4, steps=150, storage=tmp_path
    )
    assert search._model is not None
    counts = search._model.counts()
    assert list(counts) == (budgets or [0.5, 1.0, 2.0, 4.0, 8.0])
    assert search._model.model_budget() == max(counts)
    again = BOHBSearch()
    again.set_state(json.loads(json.dumps(search.get_state())))
    assert again._budgets == budgets


def test_the_first_result_of_a_trial_at_a_budget_counts() -> None:
    search = BOHBSearch({"x": tune.uniform(0, 1)}, "loss", "min", budgets=[2, 1], seed=0)
    search.suggest("a")
    for epoch, loss in ((0.5, 9.0), (1.2, 8.0), (1.9, 7.0), (2.0, 6.0), (3.0, 5.0)):
        search.on_trial_result("a", {"loss": loss, "training_iteration": epoch})
    assert search._model is not None
    seen = search._model.to_json()["seen"]
    assert [(budget, [row[2] for row in rows]) for budget, rows in seen] == [(1, [8]), (2, [6])]


@pytest.mark.parametrize(
    ("results", "seen"),
    [
        ([(1, math.nan)], {4: [None]}),  # it has diverged before the first budget
        ([(5, 0.5), (6, math.nan)], {4: [None]}),
        ([(5, 0.5), (13, math.nan)], {4: [0.5], 12: [None]}),
        ([(1, 0.5)], {}),  # it has ended before anything could be compared
        ([], {4: [None]}),
    ],
)
def test_a_trial_that_fails_is_the_worst_at_a_budget_it_was_given(results, seen) -> None:
    search = BOHBSearch({"x": tune.uniform(0, 1)}, "loss", "min", budgets=[4, 12], seed=0)
    search.suggest("a")
    told = [{"training_iteration": spent + 0.5, "loss": loss} for spent, loss in results]
    for one in told:
        search.on_trial_result("a", one)
    search.on_trial_complete("a", told[-1] if told else None, error=not told)
    assert search._model is not None
    assert {b: [row[2] for row in rows] for b, rows in search._model.to_json()["seen"]} == seen


@pytest.mark.parametrize(
    ("spent", "expected"), [(0, {4: 1}), (5, {4: 1, 12: 1}), (13, {4: 1, 12: 1})]
)
def test_a_crash_is_the_worst_at_the_next_budget(spent: int, expected: dict[float, int]) -> None:
    """As a trial that diverges on its way there; one that had all of them has lost nothing."""
    search = BOHBSearch({"x": tune.uniform(0, 1)}, "loss", "min", budgets=[4, 12], seed=0)
    search.suggest("a")
    for epoch in (5, 13):
        if epoch <= spent:
            search.on_trial_result("a", {"training_iteration": epoch, "loss": 0.5})
    search.on_trial_complete("a", error=True)
    assert search._model is not None
    assert search._model.counts() == expected
    rows = dict(search._model.to_json()["seen"])
    assert (rows[max(expected)][0][2] is None) == (spent < 13)


def test_evaluated_points_are_at_the_first_rung_that_is_known() -> None:
    search = BOHBSearch({"x": tune.uniform(0, 1)}, "loss", "min", seed=0)
    for i in range(3):
        search.add_evaluated_point({"x": i / 3}, float(i))
    search.suggest("a")
    search.on_trial_result("a", {"loss": 7.0, "training_iteration": 1})
    search.on_trial_result("a", {"loss": 6.0, "training_iteration": 3, BUDGET: 3.0})
    assert search._model is not None
    (seen,) = search._model.to_json()["seen"]
    assert (seen[0], sorted(row[2] for row in seen[1])) == (3.0, [0, 1, 2, 6])


@pytest.mark.parametrize("workers", [1, 4])
def test_it_finds_the_optimum_and_repeats_itself(tmp_path: Path, workers: int) -> None:
    def once(name: str) -> list[float]:
        scheduler = HyperBand(metric="loss", mode="min", max_t=9)
        search: Any = _searched(tmp_path / name, scheduler, count=50, workers=workers)
        return list(search.suggested)

    suggested = once("a")
    assert suggested == once("b")
    late = [abs(x - 0.3) for x in suggested[25:]]
    assert sorted(late)[len(late) // 3] < 0.1


def test_a_limiter_does_not_stop_it(tmp_path: Path) -> None:
    search = BOHBSearch({"x": tune.uniform(0, 1)}, metric="loss", mode="min", seed=0)
    limited = ConcurrencyLimiter(search, max_concurrent=2)
    done = simulate(
        _Trained,
        search_alg=limited,
        scheduler=HyperBand(metric="loss", mode="min", max_t=9, brackets=1),
        workers=2,
        steps=60,
        storage=tmp_path,
    )
    assert done.steps == 60


def _conditional() -> ConfigurationSpace:
    space = ConfigurationSpace()
    kind = CategoricalHyperparameter("opt/kind", ["sgd", "adam"])
    momentum = UniformFloatHyperparameter("opt/momentum", 0.0, 0.99)
    depth = OrdinalHyperparameter("depth", [1, 2, 4])
    space.add(kind, momentum, depth, Constant("epochs", 9))
    space.add(EqualsCondition(momentum, kind, "sgd"))
    space.add(
        ForbiddenAndConjunction(
            ForbiddenEqualsClause(kind, "adam"), ForbiddenEqualsClause(depth, 4)
        )
    )
    return space


def test_conditions_constants_and_forbidden_clauses_are_kept() -> None:
    search = BOHBSearch(_conditional(), metric="loss", mode="min", seed=1)
    for number in range(60):
        config = search.suggest(str(number))
        assert config is not None
        assert json.loads(json.dumps(config)) == config
        assert config["epochs"] == 9
        assert ("momentum" in config["opt"]) == (config["opt"]["kind"] == "sgd")
        assert (config["opt"]["kind"], config["depth"]) != ("adam", 4)
        search.on_trial_complete(str(number), {"loss": config["depth"], "training_iteration": 1})


def test_quantised_domains_choices_of_anything_and_nesting() -> None:
    space = {
        "model": {"width": tune.qrandint(8, 64, 8), "act": tune.choice([("relu", 1), None])},
        "dropout": tune.quniform(0.0, 0.5, 0.1),
        "lr": tune.qloguniform(1e-4, 1e-1, 1e-4),
    }
    search = BOHBSearch(space, metric="loss", mode="max", seed=0)
    widths = set()
    for number in range(40):
        config = search.suggest(str(number))
        assert config is not None
        width = config["model"]["width"]
        assert width % 8 == 0
        assert 8 <= width <= 64
        assert isinstance(width, int)
        assert config["dropout"] in [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
        assert config["lr"] * 1e4 == pytest.approx(round(config["lr"] * 1e4))
        assert config["model"]["act"] in [("relu", 1), None]
        widths.add(width)
        search.on_trial_complete(str(number), {"loss": width, "training_iteration": 1})
    assert len(widths) > 2


def test_a_limiter_does_not_count_those_that_wait(tmp_path: Path) -> None:
    """Else two at a time would be a rung of two, whatever the brackets say."""

    class Nine(BOHBSearch):
        left = 9

        def suggest(self, trial_id: str) -> Any:
            if not self.left:
                return "FINISHED"
            config = super().suggest(trial_id)
            self.left -= config is not None
            return config

    search = Nine({"x": tune.uniform(0, 0.9)}, metric="loss", mode="min", seed=0)
    simulate(
        _Trained,
        search_alg=ConcurrencyLimiter(search, max_concurrent=2),
        scheduler=HyperBand(metric="loss", mode="min", max_t=9, brackets=1),
        workers=4,
        storage=tmp_path,
    )
    assert search._model is not None
    assert search._model.counts() == {1: 9, 3: 3, 9: 1}
    assert not search._paused
    first = BOHBSearch({"x": tune.uniform(0, 1)}, metric="loss", mode="min", seed=0)
    limited = ConcurrencyLimiter(first, max_concurrent=2)
    assert [limited.suggest(n) is None for n in "abc"] == [False, False, True]
    limited.on_pause("a")
    assert limited.suggest("c") is not None
    again = BOHBSearch({"x": tune.uniform(0, 1)}, metric="loss", mode="min", seed=0)
    again.set_state(json.loads(json.dumps(first.get_state())))
    again.set_max_concurrency(2)
    assert again.suggest("d") is None
    again.on_trial_complete("b", error=True)
    assert again.suggest("d") is not None


def test_results_before_the_first_rung_are_none_of_its_model(tmp_path: Path) -> None:
    """Epochs and seconds are no budgets of one kind: 2,000 epochs would outrank 400 seconds."""
    scheduler = HyperBand(
        "time_total_s", metric="loss", mode="min", max_t=0.09, min_t=0.01, brackets=1
    )

    class Quick(_Trained):
        def step(self) -> dict[str, Any]:
            return {**super().step(), "seconds": 0.001}

    search = BOHBSearch({"x": tune.uniform(0, 0.9)}, metric="loss", mode="min", seed=0)
    simulate(Quick, search_alg=search, scheduler=scheduler, workers=4, steps=400, storage=tmp_path)
    assert search._model is not None
    assert list(search._model.counts())[:2] == pytest.approx([0.01, 0.03])
    assert len(search._model.counts()) <= 3


def test_a_failure_before_the_first_rung_is_remembered_at_it() -> None:
    search = BOHBSearch({"x": tune.uniform(0, 1)}, metric="loss", mode="min", seed=0)
    for name in "ab":
        search.suggest(name)
    search.on_trial_complete("a", error=True)
    search.on_trial_result("b", {"loss": 1.0, "training_iteration": 50})
    search.on_trial_result("b", {"loss": 1.0, "training_iteration": 99, "hyperband_budget": 40.0})
    assert search._model is not None
    assert search._model.counts() == {40.0: 2}


class _Ill(_Trained):
    """The best, above .9, are ill from some epoch on: they raise, or report what is no number."""

    def __init__(self, config: dict[str, Any], how: Any, since: int) -> None:
        super().__init__(config)
        self.how, self.since = how, since

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        if self.config["x"] <= 0.9 or self.epoch < self.since:
            return {"loss": 1 - self.config["x"], "seconds": 1.0}
        if self.how == "raise":
            raise RuntimeError("as planned")
        return {"seconds": 1.0, **({} if self.how == "missing" else {"loss": self.how})}


@pytest.mark.parametrize("since", [1, 2])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("limited", [False, True])
def test_however_a_trial_fails_it_teaches_the_same(
    tmp_path: Path, asynchronous: bool, limited: bool, since: int
) -> None:
    """Ray says at which result a trial is at its end, and of a crash not even how far it was."""

    def learned(how: Any) -> list[Any]:
        points = [{"x": 0.95 if i in (3, 10, 15) else i / 20} for i in range(17)]

        class Counted(BOHBSearch):
            left = 24

            def suggest(self, trial_id: str) -> Any:
                if not self.left:
                    return "FINISHED"
                config = super().suggest(trial_id)
                self.left -= config is not None
                return config

        search = Counted({"x": tune.uniform(0, 1)}, "loss", "min", points, seed=0)
        simulate(
            lambda config: _Ill(config, how, since),
            search_alg=ConcurrencyLimiter(search, max_concurrent=2) if limited else search,
            scheduler=HyperBand(metric="loss", mode="min", max_t=9, asynchronous=asynchronous),
            storage=tmp_path / str(how),
        )
        assert search._model is not None
        seen = search._model.to_json()["seen"]
        return [(budget, [row[1:] for row in rows]) for budget, rows in seen]

    crashed = learned("raise")
    failures = {budget for budget, rows in crashed for row in rows if row[-1] is None}
    assert failures == {1: {1, 3, 9}, 2: {3, 9}}[since]  # of the brackets' first rungs, or seconds
    for how in (math.nan, math.inf, -math.inf, None, "missing"):
        assert learned(how) == crashed


def test_a_failure_is_remembered_at_the_rung_that_a_scheduler_names() -> None:
    search = BOHBSearch({"x": tune.uniform(0, 1)}, metric="loss", mode="min", seed=0)
    for name in "abc":
        search.suggest(name)
    search.on_trial_result("a", {"loss": 1.0, "training_iteration": 1, BUDGET: 1.0})
    search.on_failure("a", 3.0)
    search.on_failure("b", 9.0)
    for name in "ab":
        search.on_trial_complete(name, error=True)
    search.on_failure("a stranger", 27.0)
    search.on_trial_result("c", {"loss": 1.0, "training_iteration": 2})  # at no rung
    assert search._model is not None
    assert search._model.counts() == {1: 1, 3: 1, 9: 1}
    assert search.get_state()["live"].keys() == {"c"}


class _Whole(_Trained):
    def step(self) -> dict[str, Any]:
        return {**super().step(), "done": self.epoch >= 9}


def test_a_trainable_that_ends_itself_at_the_last_rung_is_seen_there(tmp_path: Path) -> None:
    search = BOHBSearch({"x": tune.uniform(0.1, 0.9)}, metric="loss", mode="min", seed=0)
    scheduler = HyperBand(metric="loss", mode="min", max_t=9, brackets=1)
    simulate(_Whole, search_alg=search, scheduler=scheduler, steps=60, storage=tmp_path)
    assert search._model is not None
    assert search._model.counts()[9] >= 1


@pytest.mark.parametrize(
    "choices",
    [
        [{"kind": "sgd", "momentum": 0.9}, {"kind": "adam"}],
        [len, max],
        list(np.arange(3)),
        [np.zeros(2), np.ones(3)],
        [[1, 2], [3]],
        [(1, 2), None],
        [True, 1, 0, False],
    ],
)
def test_choices_of_anything_are_suggested_saved_and_restored(choices: list[Any]) -> None:
    space = {"x": tune.uniform(0, 1), "deep": {"what": tune.choice(choices)}}
    search, other = (
        BOHBSearch(space, metric="loss", mode="min", seed=s, random_fraction=0) for s in (0, 1)
    )
    for number in range(12):
        config = search.suggest(str(number))
        assert config is not None
        assert any(config["deep"]["what"] is choice for choice in choices)
        search.on_trial_complete(str(number), {"loss": number % 3, "training_iteration": 1})
    other.set_state(json.loads(json.dumps(search.get_state())))
    for name in ("a", "b", "c", "d"):
        mine, theirs = search.suggest(name), other.suggest(name)
        assert mine is not None
        assert theirs is not None
        assert mine["x"] == theirs["x"]
        assert mine["deep"]["what"] is theirs["deep"]["what"]


def test_a_choice_that_json_cannot_hold_needs_the_space_at_a_restore() -> None:
    space = {"act": tune.choice([len, max])}
    state = json.loads(json.dumps(BOHBSearch(space, metric="loss", mode="min").get_state()))
    with pytest.raises(StateError, match="given the same space"):
        BOHBSearch(metric="loss", mode="min").set_state(state)


def test_numpy_in_points_and_ordinals_is_saved() -> None:
    space = ConfigurationSpace()
    space.add(OrdinalHyperparameter("depth", [np.int64(1), np.int64(2)]))
    points = [{"depth": np.int64(2), "other": len}]
    search = BOHBSearch(space, metric="loss", mode="min", points_to_evaluate=points, seed=0)
    state = json.dumps(search.get_state())
    assert search.suggest("a") == {"depth": 2}
    again = BOHBSearch(space, metric="loss", mode="min", seed=1)
    again.set_state(json.loads(state))
    assert again.suggest("a") == {"depth": 2}


def test_points_come_first_and_the_callers_list_is_left_alone() -> None:
    points = [{"x": 0.25}, {"x": 0.5}]
    space = {"x": tune.uniform(0, 1)}
    search = BOHBSearch(space, metric="loss", mode="min", points_to_evaluate=points, seed=0)
    assert [search.suggest("a"), search.suggest("b")] == [{"x": 0.25}, {"x": 0.5}]
    assert points == [{"x": 0.25}, {"x": 0.5}]
    with pytest.raises(InvalidValueError, match="points_to_evaluate"):
        BOHBSearch(space, points_to_evaluate=[{"x": 7.0}])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"top": 2}, InvalidValueError, "top"),
        ({"samples": 1.5}, InvalidTypeError, "samples"),
        ({"time_attr": ""}, InvalidTypeError, "time_attr"),
        ({"budgets": 9}, InvalidTypeError, "budgets"),
        ({"budgets": []}, InvalidValueError, "budgets"),
        ({"budgets": [1, 0]}, InvalidValueError, "budgets"),
        ({"space": {"x": 1}}, InvalidValueError, "empty"),
        ({"space": {"x": tune.grid_search([1, 2])}}, InvalidValueError, "grid"),
        ({"points_to_evaluate": {"x": 1}}, InvalidTypeError, "points_to_evaluate"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        BOHBSearch(**options)


def test_a_state_of_another_space_changes_nothing() -> None:
    search = BOHBSearch({"x": tune.uniform(0, 1)}, metric="loss", mode="min", seed=0)
    search.suggest("a")
    before = json.dumps(search.get_state())
    other = json.loads(before)
    other["model"]["parameters"] = ["y"]
    with pytest.raises(StateError):
        search.set_state(other)
    assert json.dumps(search.get_state()) == before
