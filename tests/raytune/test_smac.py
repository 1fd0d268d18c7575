"""SMACSearch: the conformance suite, spaces, failures, and what it leaves behind."""

from __future__ import annotations

import importlib.util
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ConfigSpace import (
    Categorical,
    ConfigurationSpace,
    EqualsCondition,
    Float,
    Integer,
    OrdinalHyperparameter,
)
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher

from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune._play import CRASH, INVALID, play
from tune_ext.raytune.smac import SMACSearch
from tune_ext.raytune.testing import SearcherConformance

pytestmark = pytest.mark.skipif(importlib.util.find_spec("smac") is None, reason="needs smac")

SPACE = {"lr": tune.loguniform(1e-6, 1.0)}


def searched(space: Any = SPACE, **options: Any) -> SMACSearch:
    given = {"metric": "loss", "mode": "min", "seed": 0, "n_trials": 8}
    return SMACSearch(space, **{**given, **options})


def valley(config: dict[str, Any]) -> float:
    return abs(math.log10(config["lr"]) + 2.0)


class TestSMACSearch(SearcherConformance):
    trials = 4

    def make(self, **options: Any) -> Any:
        return SMACSearch(n_trials=8, **options)

    def test_another_process_gives_the_same_run(self) -> None:
        pytest.skip("a process takes seconds, and other searchers' classes start some")


def test_it_finds_the_valley_and_is_better_than_its_initial_design() -> None:
    trials, finished = play(searched(n_trials=16), valley, trials=22)
    assert not finished
    assert min(t.value for t in trials[4:]) < min(t.value for t in trials[:4])
    assert min(t.value for t in trials) < 0.3


def test_every_kind_of_domain_is_searched_and_comes_back_as_it_was() -> None:
    space = {
        "width": tune.lograndint(4, 65),
        "depth": tune.randint(1, 4),
        "net": {"act": tune.choice(["relu", None, ("a", 1)]), "drop": tune.uniform(0, 0.5)},
        "constant": 3,
    }
    trials, _ = play(searched(space, n_trials=40), lambda c: c["net"]["drop"], trials=11)
    configs = [t.config for t in trials]
    assert {type(c["width"]) for c in configs} == {int}
    assert {c["depth"] for c in configs} <= {1, 2, 3}
    assert {c["net"]["act"] for c in configs} == {"relu", None, ("a", 1)}
    assert all(0 <= c["net"]["drop"] <= 0.5 and 4 <= c["width"] <= 64 for c in configs)
    assert "constant" not in configs[0]


def test_choices_survive_a_restore(tmp_path: Path) -> None:
    space = {"act": tune.choice(["relu", ("a", 1)]), "x": tune.uniform(0, 1)}
    one, other = searched(space), SMACSearch()
    play(one, lambda c: c["x"], trials=3)
    one.save(str(tmp_path / "state"))
    other.restore(str(tmp_path / "state"))
    assert [t.config for t in play(one, lambda c: c["x"], trials=6, first=9)[0]] == [
        t.config for t in play(other, lambda c: c["x"], trials=6, first=9)[0]
    ]


def test_a_config_space_with_conditions_ordinals_and_integers() -> None:
    space = ConfigurationSpace()
    kind = Categorical("kind", ["sgd", "adam"])
    momentum = Float("momentum", (0.0, 0.99))
    space.add(kind, momentum, Integer("width", (1, 9)), OrdinalHyperparameter("size", [8, 16]))
    space.add(EqualsCondition(momentum, kind, "sgd"))
    trials, _ = play(searched(space, n_trials=36), lambda c: c["width"], trials=10)
    for trial in trials:
        assert ("momentum" in trial.config) == (trial.config["kind"] == "sgd")
        assert type(trial.config["kind"]) is str
        assert type(trial.config["size"]) is int
    space.seed(1)
    before = space.sample_configuration()
    space.seed(1)
    searched(space).suggest("a")
    assert space.sample_configuration() == before, "the caller's space was drawn from"


def test_conditions_and_several_workers_survive_a_restore(tmp_path: Path) -> None:
    space = ConfigurationSpace()
    kind, momentum = Categorical("kind", ["sgd", "adam"]), Float("momentum", (0.0, 0.99))
    space.add(kind, momentum, Integer("width", (1, 99)))
    space.add(EqualsCondition(momentum, kind, "sgd"))
    one, other = searched(space, n_trials=12), SMACSearch()
    before, _ = play(one, lambda c: c["width"], trials=6, workers=3, epochs=1)
    running = {name: one.suggest(name) for name in ("a", "b")}
    one.save(str(tmp_path / "state"))
    other.restore(str(tmp_path / "state"))
    after = []
    for search in (one, other):
        for name in ("b", "a"):  # in another order than they were asked for
            search.on_trial_complete(name, {"loss": running[name]["width"]})
        after.append([search.suggest(f"c{i}") for i in range(2)])
    assert after[0] == after[1]
    configs = [json.dumps(c) for c in [*(t.config for t in before), *running.values(), *after[0]]]
    assert len(set(configs)) == len(configs) == 10


def test_a_finite_space_is_tried_once_and_then_the_run_ends() -> None:
    trials, finished = play(searched({"x": tune.randint(0, 5)}), lambda c: c["x"], trials=50)
    assert finished
    assert sorted(t.config["x"] for t in trials) == [0, 1, 2, 3, 4]


def test_given_points_come_first_and_teach_the_model() -> None:
    points = [{"lr": 0.01, "constant": 1}, {"lr": 0.5}]
    trials, _ = play(searched(points_to_evaluate=points), valley, trials=6)
    assert [t.config["lr"] for t in trials[:2]] == pytest.approx([0.01, 0.5])
    again, _ = play(searched(), valley, trials=4)
    assert [t.config for t in trials[2:4]] == [t.config for t in again[:2]]  # its own design


@pytest.mark.parametrize("bad", INVALID)
def test_a_failure_counts_as_the_worst_and_waits_until_that_is_known(bad: Any) -> None:
    search = searched(mode="max")

    def objective(config: dict[str, Any]) -> Any:
        return bad if config["lr"] > 1e-3 else -valley(config)

    trials, _ = play(search, objective, trials=8)
    costs = [value.cost for value in search._built()._facade.runhistory.values()]
    finite = [valley(t.config) for t in trials if t.config["lr"] <= 1e-3]
    assert len(finite) < len(trials) == len(costs)
    assert sorted(set(costs)) == pytest.approx(sorted(set(finite)))
    assert costs.count(min(costs)) == 1  # no failure is as good as the best


def test_nothing_but_failures_is_a_random_search() -> None:
    trials, finished = play(searched(), lambda config: CRASH, trials=8)
    assert (len({t.config["lr"] for t in trials}), finished) == (8, False)


def test_it_goes_on_under_a_limiter_with_several_workers() -> None:
    limited = ConcurrencyLimiter(searched(), max_concurrent=3)
    assert [limited.suggest(f"t{i}") is None for i in range(5)] == [False] * 3 + [True] * 2


def test_it_leaves_no_file_and_no_word(capfd: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    play(searched({"x": tune.randint(0, 4)}), lambda c: c["x"], trials=9)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["tmp"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"n_trials": 0}, InvalidValueError, "n_trials must be at least 1"),
        ({"seed": -1}, InvalidValueError, "seed must not be negative"),
        ({"mode": "least"}, InvalidValueError, "mode must be one of"),
        ({"space": [1]}, InvalidTypeError, "space must be a ConfigurationSpace or hold Tune"),
        ({"space": {"x": 3}}, InvalidValueError, "the search space is empty"),
        ({"space": {"x": tune.quniform(0, 1, 0.25)}}, InvalidValueError, "has steps of 0.25"),
        ({"space": {"x": tune.randn(0, 1)}}, InvalidValueError, "a normal distribution"),
        ({"points_to_evaluate": {"lr": 1}}, InvalidTypeError, "must be a list"),
        ({"points_to_evaluate": [3]}, InvalidTypeError, "must hold dictionaries"),
        ({"points_to_evaluate": [{"lr": 7.0}]}, InvalidValueError, "not in the space"),
        ({"points_to_evaluate": [{"rate": 7.0}]}, InvalidValueError, "not in the space"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        searched(**options)


def test_no_metric_is_told_before_the_run() -> None:
    with pytest.raises(InvalidValueError, match="needs a metric and a mode"):
        searched(metric=None).suggest("a")


def test_a_used_searcher_takes_the_same_space_only() -> None:
    search = searched(None)
    assert search.set_search_properties(None, None, SPACE)
    search.suggest("a")
    assert search.set_search_properties(None, None, SPACE)
    assert not search.set_search_properties(None, None, {"x": tune.uniform(0, 1)})
    assert not searched().set_search_properties(None, None, {"x": tune.uniform(0, 1)})


def test_without_smac_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install smac"):
        searched()


@pytest.mark.parametrize("event", [["ask"], ["tell", "a"], ["tell", "a", "x"], ["x", "a"], 3])
def test_a_state_with_an_impossible_event_changes_nothing(event: Any, tmp_path: Path) -> None:
    search = searched()
    search.suggest("a")
    path = tmp_path / "state"
    search.save(str(path))
    state = json.loads(path.read_text())
    state["events"].append(event)
    path.write_text(json.dumps(state))
    fresh = searched()
    with pytest.raises(StateError):
        fresh.restore(str(path))
    assert fresh.suggest("a") == searched().suggest("a")


def test_the_end_is_told_again_and_again() -> None:
    search = searched({"x": tune.randint(0, 2)})
    play(search, lambda c: c["x"], trials=9)
    assert [search.suggest(str(i)) for i in range(2)] == [Searcher.FINISHED] * 2
