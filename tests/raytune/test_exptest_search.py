"""ExpTestSearch by itself: arguments, spaces, what is asked for and when, state."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ConfigSpace import ConfigurationSpace, Float
from ray import cloudpickle, tune
from ray.tune.search import ConcurrencyLimiter, Searcher

from tests.raytune.exptest_trainables import SPACE, losses, rung_result, serial
from tune_ext import ExpTestSearch, LossMonitor, learning_rate_bound
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune import _base, _probing
from tune_ext.raytune._play import CRASH, MISSING, Played, play


def searched(**options: Any) -> ExpTestSearch:
    return ExpTestSearch(SPACE, **{"bound": 0.01, **options})


def trained(config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What a rung has reported after so many steps."""
    monitor = LossMonitor(config, lr=config["tune_ext"]["lr"])
    for _, loss in zip(range(steps), losses(config["lr"]), strict=False):
        monitor.step(loss)
    return flat(monitor.report())


def flat(report: Mapping[str, Any]) -> dict[str, Any]:
    return {f"exptest/{key}": value for key, value in report["exptest"].items()}


def run(search: ExpTestSearch, **options: Any) -> tuple[list[Played], bool]:
    """Play trials that train a third of a rung an epoch."""

    def report(config: Mapping[str, Any], value: Any, epoch: int) -> Mapping[str, Any]:
        return {} if value == MISSING else trained(config, 20 * epoch)

    given: dict[str, Any] = {"trials": 99, "report": report, **options}
    return play(search, given.pop("objective", lambda config: 0), **given)


def roles(trials: list[Played]) -> list[str]:
    return [trial.config["tune_ext"]["role"] for trial in trials]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"mode": "least"}, InvalidValueError, "mode must be one of 'min', 'max'"),
        ({"metric": 3}, InvalidTypeError, "metric must be the name"),
        ({"lr": ""}, InvalidTypeError, "lr must be the name"),
        ({"lr": None}, InvalidTypeError, "lr must be the name of the learning rate"),
        ({"time_attr": None}, InvalidTypeError, "time_attr must be the name of a reported"),
        ({"bound": -1.0}, InvalidValueError, "bound must be positive"),
        ({"bound": math.nan}, InvalidValueError, "bound must be a number"),
        ({"bound": "high"}, InvalidTypeError, "bound must be a number, got 'high'"),
        ({"loss": "hinge"}, InvalidValueError, "loss must be one of 'mse', 'cross_entropy'"),
        ({"steps": 2}, InvalidValueError, "steps must be at least 3"),
        ({"steps": 2.5}, InvalidTypeError, "steps must be a whole number"),
        ({"alpha": 1.0}, InvalidValueError, "alpha must be positive and below 1"),
        ({"beta": 1.5}, InvalidValueError, "beta must be positive and below 1"),
        ({"max_rungs": 0}, InvalidValueError, "max_rungs must be at least 1"),
        ({"final_trials": -1}, InvalidValueError, "final_trials must be at least 0"),
        ({"max_concurrent": 0}, InvalidValueError, "max_concurrent must be at least 1"),
        ({"seed": -1}, InvalidValueError, "seed must not be negative"),
        ({"points_to_evaluate": [{"lr": 1.0}]}, InvalidValueError, "give either bound or one"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        searched(**options)


@pytest.mark.parametrize(
    ("points", "error", "said"),
    [
        ([3], InvalidTypeError, "must hold dictionaries, got 3"),
        ([{"rate": 0.1}], InvalidValueError, "gives no learning rate under 'lr'"),
        ([{"lr": "high"}], InvalidTypeError, "of points_to_evaluate must be a number, got 'high'"),
        ([{"lr": -1}], InvalidValueError, "'lr' of points_to_evaluate must be positive"),
        ([{"lr": 0.1}, {"lr": 0.2}], InvalidValueError, "2 configurations"),
    ],
)
def test_a_start_that_cannot_work_is_named(points: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        ExpTestSearch(points_to_evaluate=points)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"batch": 32}, "no range for the learning rate 'lr'"),
        ({"lr": 0.1}, "no range for the learning rate 'lr'"),
        ({"rate": tune.loguniform(1e-5, 1)}, "no range for .*'lr' .there are ranges for rate"),
        ({**SPACE, "width": tune.choice([1, 2])}, 'also searches width.*"exptest"'),
        ({**SPACE, "o": {"wd": tune.uniform(0, 1)}}, "also searches o/wd.*resolve"),
        ({"lr": tune.choice([0.1, 0.2])}, "'lr' is a choice"),
        ({"lr": tune.grid_search([0.1, 0.2])}, "'lr' is a grid"),
        ({"lr": tune.quniform(0, 1, 0.1)}, "'lr' is quantised"),
        ({"lr": tune.randint(1, 3)}, "'lr' is an integer"),
        ({"lr": tune.uniform(-1, 1)}, "'lr' is negative"),
    ],
)
def test_a_space_that_cannot_be_searched_is_an_error_before_the_run(space: Any, said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        ExpTestSearch(space)
    with pytest.raises(InvalidValueError, match=said):
        ExpTestSearch().set_search_properties(None, None, space)


def test_without_a_space_the_first_suggestion_is_an_error() -> None:
    with pytest.raises(InvalidValueError, match="ExpTestSearch has no search space"):
        ExpTestSearch().suggest("a")


def test_a_config_space_and_the_converted_space_are_the_same_search() -> None:
    config_space = ConfigurationSpace({"lr": Float("lr", (1e-5, 10.0), log=True), "batch": 32})
    for space in (config_space, ExpTestSearch.convert_search_space(SPACE)):
        search = ExpTestSearch(space, bound=0.01)
        run(search)
        assert search.best_config == {"lr": serial().lr}
    assert ExpTestSearch(config_space).suggest("a")["batch"] == 32


def test_constants_of_its_own_space_are_part_of_every_suggestion() -> None:
    space = {"optimizer": {"lr": tune.uniform(0, 1), "name": "sgd"}, "batch": 32}
    search = ExpTestSearch(space, lr="optimizer/lr")
    restored = ExpTestSearch()
    restored.set_state(json.loads(json.dumps(search.get_state())))
    for each in (search, restored):
        config = each.suggest("a")
        assert config["optimizer"] == {"lr": 0.1, "name": "sgd"}
        assert config["batch"] == 32
    assert "batch" in space
    with pytest.raises(InvalidTypeError, match="put it into param_space"):
        ExpTestSearch({**space, "model": object()}, lr="optimizer/lr")


def test_a_used_searcher_takes_the_same_space_only() -> None:
    search = ExpTestSearch()
    assert search.set_search_properties("accuracy", "max", SPACE)
    assert (search.metric, search.mode) == ("accuracy", "max")
    assert search.set_search_properties(None, None, SPACE)
    assert not ExpTestSearch(SPACE).set_search_properties(None, None, {"lr": tune.uniform(0, 1)})


@pytest.mark.parametrize(
    ("bound", "rate"),
    [(None, 0.1), (0.3, 0.3), (np.float32(0.25), 0.25), (1e-9, 1e-5), (50, 10.0)],
)
def test_the_ladder_starts_at_the_bound_within_the_range(bound: Any, rate: float) -> None:
    search = searched(bound=bound)
    config = search.suggest("a")
    json.dumps(search.get_state())
    assert config["lr"] == pytest.approx(rate)
    assert config["tune_ext"]["ladder"]["bound"] == config["lr"]


def test_a_bound_may_be_taken_of_batches_and_a_start_of_a_point() -> None:
    batches = list(np.random.default_rng(0).normal(size=(3, 10, 4)))
    for loss in ("mse", "cross_entropy"):
        bound = learning_rate_bound(batches, loss=loss)
        search = searched(bound=iter(batches), loss=loss)
        cloudpickle.dumps(search)  # nothing of the batches is kept
        assert search.suggest("a")["lr"] == bound
    nested = {"optimizer": {"lr": tune.loguniform(1e-5, 1)}}
    for point in ({"optimizer": {"lr": 0.5}}, {"optimizer/lr": 0.5, "batch": 3}):
        search = ExpTestSearch(nested, lr="optimizer/lr", points_to_evaluate=[point])
        assert search.suggest("a")["optimizer"]["lr"] == 0.5


def test_what_the_next_decision_needs_is_suggested_and_no_more() -> None:
    search = searched()
    config = search.suggest("t0")
    assert config["lr"] == 0.01
    assert config["tune_ext"] == {
        "role": "rung",
        "rung": 0,
        "steps": 60,
        "lr": "lr",
        "ladder": serial().state_dict()["arguments"],
        "continue_from": None,
    }
    assert search.suggest("t1") is None


def test_idle_workers_try_rungs_ahead_as_far_as_the_cluster_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_probing, "has_room", lambda live: live < 3)
    search, limited = searched(), searched()
    ConcurrencyLimiter(limited, 2)
    rungs = [(search.suggest(f"t{i}") or {}).get("tune_ext", {}).get("rung") for i in range(4)]
    assert rungs[0] == 0
    assert rungs[3] is None
    assert len(set(rungs[:3])) == 3
    assert [limited.suggest(f"t{i}") is None for i in range(3)] == [False, False, True]


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_answer_depends_on_no_number_of_workers(workers: int) -> None:
    search = searched(max_concurrent=workers)
    trials, finished = run(search, workers=workers)
    assert finished
    assert search.best_config == {"lr": serial().lr}
    assert roles(trials)[-1] == "final"
    assert trials[-1].config["lr"] == serial().lr
    assert trials[-1].config["tune_ext"]["rung"] == serial().best.index
    rungs = [trial.config["tune_ext"]["rung"] for trial in trials[:-1]]
    assert len(set(rungs)) == len(rungs)
    if workers == 1:
        assert rungs == list(serial().results)


def test_a_rung_counts_once_complete_and_later_results_change_nothing() -> None:
    search = searched()
    config = search.suggest("t0")
    search.on_trial_result("t0", trained(config, 40))
    assert search.suggest("too early") is None
    search.on_trial_result("t0", trained(config, 60))
    after = search.suggest("t1")
    assert after["tune_ext"]["rung"] == 1
    search.on_trial_complete("t0", None, error=True)
    rows = search.explain().to_rows()
    assert (rows[0]["steps"], rows[0]["verdict"]) == (60, rung_result(0.01).verdict)


def test_a_trial_that_starts_over_is_judged_by_its_last_life() -> None:
    search = searched()
    config = search.suggest("t0")
    search.on_trial_result("t0", trained(config, 40))
    for steps in (20, 40):
        search.on_trial_result("t0", trained(config, steps))
    search.on_trial_complete("t0", trained(config, 60))
    assert search.explain().to_rows()[0]["end_loss"] == rung_result(0.01).end_loss


@pytest.mark.parametrize("bad", [CRASH, MISSING])
def test_a_failed_rung_never_wins_and_never_stalls(bad: str) -> None:
    def objective(config: Mapping[str, Any]) -> Any:
        return bad if config["lr"] > 0.06 and config["tune_ext"]["role"] == "rung" else 0

    search = searched()
    _, finished = run(search, objective=objective)
    assert finished
    assert search.best_config is not None
    assert search.best_config["lr"] < 0.06
    assert "failed" in str(search.explain())


def test_when_all_fail_there_is_no_answer_and_no_final_trial() -> None:
    search = searched(max_rungs=4)
    trials, finished = run(search, objective=lambda config: CRASH)
    assert finished
    assert search.best_config is None
    assert set(roles(trials)) == {"rung"}


def test_a_rung_cancelled_while_unneeded_is_no_failure_until_it_is_needed() -> None:
    search = searched(max_concurrent=3)
    configs = {i: search.suggest(i) for i in ("t0", "t1", "t2")}
    waiting = next(i for i in ("t1", "t2") if configs[i]["tune_ext"]["rung"] == 1)
    other = next(i for i in ("t1", "t2") if i != waiting)
    search.on_trial_complete(waiting, trained(configs[waiting], 20))
    search.on_trial_complete(other, None)  # cancelled before it ran
    saved = ExpTestSearch()
    saved.set_state(json.loads(json.dumps(search.get_state())))
    for each in (search, saved):
        assert each.explain().to_rows() == []
        asked = each.suggest("t3")["tune_ext"]["rung"]
        assert asked not in {c["tune_ext"]["rung"] for c in configs.values()}
        each.on_trial_complete("t0", trained(configs["t0"], 60))
        rows = each.explain().to_rows()
        assert [row["verdict"] for row in rows][:2] == [rung_result(0.01).verdict, "failed"]
    assert saved.get_state() == search.get_state()


def test_a_rung_that_ends_too_early_is_a_failure_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    search = searched(max_rungs=3)
    _, finished = run(search, epochs=2)
    assert finished
    assert search.best_config is None
    assert "Rung 0 ended after 40 of its 60 steps" in caplog.text


@pytest.mark.parametrize("last", [False, True])
def test_a_trainable_without_statistics_stops_the_run_with_advice(last: bool) -> None:
    search = searched(max_concurrent=2)
    for i in ("t0", "t1"):
        assert isinstance(search.suggest(i), dict), "one such result is no proof"
        if last:
            search.on_trial_complete(i, {"loss": 1.0, "config/lr": 0.1})
        else:
            search.on_trial_result(i, {"loss": 1.0, "config/lr": 0.1})
    with pytest.raises(InvalidValueError, match=r"results \(loss\).*LossMonitor\(config\)"):
        search.suggest("t2")


def test_a_monitor_that_knows_nothing_of_its_rung_stops_the_run_with_advice() -> None:
    search = searched(max_concurrent=2)
    config = search.suggest("t0")
    for iteration in (1, 2, 3):
        assert search.suggest(f"t{iteration}") is None or iteration == 1
        monitor = LossMonitor({"lr": config["lr"]})
        for loss in itertools.islice(losses(config["lr"]), 20):
            monitor.step(loss)
        result = {**flat(monitor.report()), "training_iteration": iteration}
        search.on_trial_result("t0", result)
    with pytest.raises(InvalidValueError, match=r"LossMonitor\(config\): the key 'tune_ext'"):
        search.suggest("t4")


def test_results_without_statistics_may_come_in_turns_with_others() -> None:
    search = searched(max_concurrent=3)
    configs = {i: search.suggest(i) for i in ("t0", "t1", "t2")}
    for iteration, steps in ((1, 0), (2, 20), (3, 0), (4, 40), (5, 0), (6, 60)):
        for i, config in configs.items():
            result = trained(config, steps) if steps else {"val_loss": 1.0}
            search.on_trial_result(i, {**result, "training_iteration": iteration})
        assert search.suggest(f"u{iteration}") is None or iteration == 6
    assert len(search.explain().to_rows()) >= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda r: {**r, "exptest/verdict": None},
        lambda r: {**r, "exptest/verdict": "fine"},
        lambda r: {**r, "exptest/steps": None},
        lambda r: {**r, "exptest/steps": -3},
        lambda r: dict.fromkeys(r),
        lambda r: dict.fromkeys(r, math.nan),
        lambda r: {"exptest": None},
        lambda r: {},
    ],
)
def test_damaged_reports_are_failures_and_no_more(change: Callable[[Any], Any]) -> None:
    search = searched(bound=0.1)
    config = search.suggest("t0")
    search.on_trial_complete("t0", change(trained(config, 60)))
    assert search.suggest("t1") is not None
    assert search.explain().to_rows()[0]["verdict"] == "failed"


@pytest.mark.parametrize(("samples", "rungs", "finals"), [(1, 1, 0), (2, 1, 1), (4, 3, 1)])
def test_finite_samples_end_with_the_final_trial(samples: int, rungs: int, finals: int) -> None:
    answers = set()
    for workers in (1, 3):
        search = ExpTestSearch(bound=0.01, max_concurrent=workers)
        if samples < 3:
            with pytest.warns(UserWarning, match="num_samples=-1"):
                search.set_search_properties(None, None, SPACE, num_samples=samples)
        else:
            search.set_search_properties(None, None, SPACE, num_samples=samples)
        trials, _ = run(search, trials=samples, workers=workers)
        assert roles(trials) == ["rung"] * rungs + ["final"] * finals
        answers.add(search.best_config["lr"])
    assert len(answers) == 1


@pytest.mark.parametrize("number", [0, 3])
def test_final_trials_repeat_the_answer_or_are_left_out(number: int) -> None:
    search = searched(final_trials=number)
    trials, _ = run(search)
    finals = [t.config["lr"] for t in trials if t.config["tune_ext"]["role"] == "final"]
    assert finals == [serial().lr] * number
    assert search.suggest("x") == Searcher.FINISHED == "FINISHED"


def test_nothing_to_say_before_the_first_rung() -> None:
    assert ExpTestSearch().best_config is None
    assert str(ExpTestSearch().explain()) == "nothing has been probed yet"


def test_state_is_versioned_json(tmp_path: Path) -> None:
    search = searched()
    run(search, trials=3)
    search.save_to_dir(str(tmp_path), "2026-01-01")
    (file,) = tmp_path.iterdir()
    state = json.loads(file.read_text())
    assert (state["kind"], state["version"]) == ("ExpTestSearch", 1)
    blank = ExpTestSearch()
    blank.restore_from_dir(str(tmp_path))
    assert blank.get_state() == search.get_state()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {**s, "version": 99}, "version 99"),
        (lambda s: {**s, "kind": "Other"}, "not the state of a ExpTestSearch"),
        (lambda s: {k: v for k, v in s.items() if k != "path"}, "damaged: KeyError"),
        (lambda s: {**s, "trials": 3}, "damaged"),
        (lambda s: {**s, "core": {**s["core"], "cut": 3}}, "damaged"),
        (lambda s: {**s, "options": {"rate": 3}}, "damaged"),
        (lambda s: {**s, "core": {**s["core"], "version": 7}}, "version 7"),
        (lambda s: [s], "not the state"),
    ],
)
def test_a_state_that_cannot_be_read_changes_nothing(
    tmp_path: Path, change: Any, said: str
) -> None:
    search = searched()
    run(search, trials=3)
    path = tmp_path / "state.json"
    path.write_text(json.dumps(change(search.get_state())))
    before, text = search.get_state(), path.read_text()
    with pytest.raises(StateError, match=said):
        search.restore(str(path))
    assert search.get_state() == before
    assert path.read_text() == text


def test_what_ray_did_not_restore_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    search = searched(max_concurrent=3)
    lost = [search.suggest(f"t{i}")["lr"] for i in range(3)]
    restored = searched()
    restored.set_state(json.loads(json.dumps(search.get_state())))
    clock = iter(range(100))
    monkeypatch.setattr(_base, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    asked = [restored.suggest(f"new{i}") for i in range(20)]
    given = [config["lr"] for config in asked if config is not None]
    assert set(given) <= set(lost)
    assert given[0] == lost[0]
    assert asked[:5] == [None] * 5, "given up before the restored trials had time to report"


def test_a_trial_that_ray_dropped_without_a_word_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = searched()
    lost = search.suggest("t0")
    clock = iter(range(100))
    monkeypatch.setattr(_base, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    asked = [search.suggest(f"new{i}") for i in range(30)]
    assert asked[:20] == [None] * 20
    given = {f"new{i}": config for i, config in enumerate(asked) if config is not None}
    ((again, config),) = given.items()
    assert config == lost
    search.on_trial_complete("t0", None)
    search.on_trial_complete(again, trained(config, 60))
    assert search.explain().to_rows()[0]["verdict"] == rung_result(0.01).verdict


def test_the_table_says_what_each_rung_was() -> None:
    search = searched()
    run(search)
    lines = str(search.explain()).splitlines()
    assert lines[0].split()[:3] == ["event", "rung", "lr"]
    assert lines[-1].startswith("choice")


GPU_HALF = {"CPU": 1.0, "GPU": 0.5}


@pytest.mark.parametrize(
    ("live", "groups", "room"),
    [
        (0, [], True),
        (1, [], False),  # it has not got its group yet
        (1, [("CREATED", GPU_HALF)], True),
        (2, [("CREATED", GPU_HALF)], False),
        (2, [("CREATED", GPU_HALF)] * 2, True),
        (4, [("CREATED", GPU_HALF)] * 4, False),  # two GPUs
        (3, [("CREATED", GPU_HALF)] * 3 + [("REMOVED", {"CPU": 9.0})], True),
        (3, [("CREATED", GPU_HALF)] * 3 + [("PENDING", {"CPU": 1.0})], False),
        (1, [("CREATED", {"CPU": 0.1})] * 2, True),
        (1, [("CREATED", {"CPU": 9.0})], False),
        (1, [("CREATED", {})], False),
        (2, [("CREATED", {"GPU": 0.6})] * 2, False),  # no trial on two GPUs
        (1, [("CREATED", {"CPU": 9.0, "GPU": 1.0})], False),  # nor on two nodes
    ],
)
def test_room_is_what_the_placement_groups_leave(
    monkeypatch: pytest.MonkeyPatch, live: int, groups: Any, room: bool
) -> None:
    table = {
        str(i): {"state": state, "bundles": {0: bundle, 1: {}}}
        for i, (state, bundle) in enumerate(groups)
    }
    monkeypatch.setattr(_base, "placement_group_table", lambda: table)
    monkeypatch.setattr(_base.ray, "is_initialized", lambda: True)
    node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    monkeypatch.setattr(_base.ray, "nodes", lambda: [node, node, {**node, "Alive": False}])
    assert _base.has_room(live) is room
    monkeypatch.setattr(_base.ray, "is_initialized", lambda: False)
    assert not _base.has_room(live)
