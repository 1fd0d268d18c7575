"""AutoHyperSearch by itself: arguments, decisions about when to ask, state."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ConfigSpace import ConfigurationSpace, Float
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher

from tests.raytune.trainables import answer, response
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError
from tune_ext.raytune import AutoHyperSearch, _base, _probing
from tune_ext.raytune._play import CRASH, play

SPACE = {"lr": tune.loguniform(1e-6, 1.0)}


def searched(**options: Any) -> AutoHyperSearch:
    return AutoHyperSearch(SPACE, **{"probe_epochs": 3, **options})


def result(value: Any, epoch: int = 3, **more: Any) -> dict[str, Any]:
    return {"response_mean": value, "training_iteration": epoch, **more}


def objective(config: dict[str, Any]) -> float:
    return response(config["lr"])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"mode": "least"}, InvalidValueError, "mode must be one of 'min', 'max'"),
        ({"metric": 3}, InvalidTypeError, "metric must be the name"),
        ({"probe_epochs": 0}, InvalidValueError, "probe_epochs must be at least 1, got 0"),
        ({"probe_epochs": 2.5}, InvalidTypeError, "probe_epochs must be a whole number"),
        ({"final_trials": -1}, InvalidValueError, "final_trials must be at least 0"),
        ({"max_concurrent": 0}, InvalidValueError, "max_concurrent must be at least 1"),
        ({"seed": -1}, InvalidValueError, "seed must not be negative"),
        ({"start": 0.1}, InvalidTypeError, "start must map parameters to numbers"),
        ({"start": {"rate": 1}}, InvalidValueError, "start names rate"),
        ({"start": {"lr": 5.0}}, InvalidValueError, "start of parameter 'lr'"),
        ({"region": "ball"}, InvalidValueError, "region must be one of"),
        ({"constants": {"rate": 1}}, InvalidValueError, "constants names rate"),
        ({"constants": {"plateau": 2.0}}, InvalidValueError, "plateau must be"),
        ({"points_to_evaluate": [{"lr": 7.0}]}, InvalidValueError, "lr in initial_points"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        AutoHyperSearch(SPACE, **options)


def test_an_empty_space_is_an_error_before_the_run() -> None:
    with pytest.raises(InvalidValueError, match="search space is empty"):
        AutoHyperSearch({"batch": 32})
    with pytest.raises(InvalidValueError, match="search space is empty"):
        AutoHyperSearch().set_search_properties(None, None, {"batch": 32})
    with pytest.raises(InvalidValueError, match="no search space"):
        AutoHyperSearch().suggest("a")


def test_a_config_space_and_the_converted_space_are_the_same_search() -> None:
    config_space = ConfigurationSpace({"lr": Float("lr", (1e-6, 1.0), log=True)})
    for space in (config_space, AutoHyperSearch.convert_search_space(SPACE)):
        search = AutoHyperSearch(space, probe_epochs=3)
        play(search, objective, trials=99, metric="response_mean")
        assert search.best_config == answer()


def test_its_own_space_wins_and_the_experiments_metric_does_not_replace_its_own() -> None:
    search = searched()
    assert not search.set_search_properties("loss", "max", {"lr": tune.uniform(0, 1)})
    assert search.metric == "response_mean"
    assert search.mode == "min"


def test_a_used_searcher_takes_the_same_space_only() -> None:
    search = AutoHyperSearch()
    assert search.set_search_properties(None, None, SPACE)
    assert search.set_search_properties(None, None, SPACE)
    assert not search.set_search_properties(None, None, {"x": tune.uniform(0, 1)})


def test_rays_strict_check_leaves_the_metric_alone() -> None:
    metric = searched().metric
    assert {metric: 1}["response_mean"] == 1
    assert metric == "response_mean"
    checks = metric != "_metric"  # so the controller asks whether to end the run without it
    assert not checks


def test_what_the_next_move_needs_is_suggested_at_once_and_no_more() -> None:
    search = searched()
    first = [search.suggest(f"t{i}") for i in range(4)]
    assert [c["lr"] for c in first[:3]] == pytest.approx([1e-4 / 1.45, 1e-4, 1.45e-4])
    assert first[3] is None
    ours = {"role": "probe", "probe": 0, "continue_from": None}
    assert first[0]["tune_ext"] == ours


def test_idle_workers_probe_ahead_as_far_as_the_cluster_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_probing, "has_room", lambda live: live < 5)
    search = searched()
    assert [search.suggest(f"t{i}") is None for i in range(6)] == [False] * 5 + [True]
    limited = searched()
    ConcurrencyLimiter(limited, 4)
    assert [limited.suggest(f"t{i}") is None for i in range(5)] == [False] * 4 + [True]


def test_a_finite_number_of_samples_is_kept_for_what_is_needed() -> None:
    search = AutoHyperSearch(max_concurrent=9)
    search.set_search_properties(None, None, SPACE, num_samples=20)
    assert [search.suggest(f"t{i}") is None for i in range(4)] == [False] * 3 + [True]


def test_max_concurrent_counts_all_probes() -> None:
    search = searched(max_concurrent=2)
    assert [search.suggest(f"t{i}") is None for i in range(3)] == [False, False, True]
    assert search.searcher.max_concurrent == 2


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_answer_depends_on_no_number_of_workers(workers: int) -> None:
    search = searched(max_concurrent=workers)
    trials, finished = play(search, objective, trials=200, metric="response_mean", workers=workers)
    assert finished
    assert search.best_config == answer()
    final = trials[-1].config
    assert final["tune_ext"]["role"] == "final"
    winner = next(t for t in trials if t.trial_id == final["tune_ext"]["continue_from"])
    assert winner.config["lr"] == final["lr"] == answer()["lr"]


def test_the_response_is_that_of_the_probes_last_epoch() -> None:
    one, other = searched(), searched()
    for i in range(3):
        one.suggest(f"t{i}")
        other.suggest(f"t{i}")
        one.on_trial_result(f"t{i}", result(0.1, epoch=1))
        one.on_trial_result(f"t{i}", result(0.9 - i / 10, epoch=3))
        one.on_trial_result(f"t{i}", result(0.2, epoch=4))
        one.on_trial_complete(f"t{i}", result(0.3, epoch=50))
        other.on_trial_complete(f"t{i}", result(0.9 - i / 10, epoch=2))
    assert one.explain().to_rows() == other.explain().to_rows()
    assert one.suggest("next") == other.suggest("next")


def test_the_probe_is_known_before_its_trial_ends() -> None:
    search = searched()
    for i in range(3):
        search.suggest(f"t{i}")
    for i in range(3):
        assert search.suggest("too early") is None
        search.on_trial_result(f"t{i}", result(0.9))
    assert search.suggest("next") is not None


def test_a_metric_that_is_no_response_stops_the_run_with_advice() -> None:
    for bad, said in ((None, "not among the reported"), (3.2, r"is 3\.2, which is no response")):
        search = searched()
        last = {"loss": 1.0} if bad is None else result(bad)
        for i in range(2):
            assert isinstance(search.suggest(f"t{i}"), dict), "one such probe is no proof"
            search.on_trial_complete(f"t{i}", last)
        with pytest.raises(InvalidValueError, match=said):
            search.suggest("t2")


def test_values_that_are_not_there_yet_are_no_mistake_of_the_users() -> None:
    for value in (None, float("nan")):
        search = searched(max_probes=5)
        trials, finished = play(search, lambda c, v=value: v, trials=99, metric="response_mean")
        assert finished
        assert trials


def test_once_the_metric_is_known_a_result_without_it_is_a_failure() -> None:
    search = searched()
    for i in range(3):
        search.suggest(f"t{i}")
    search.on_trial_complete("t0", result(0.9))
    search.on_trial_complete("t1", {"loss": 1.0})
    search.on_trial_complete("t2", result(7.0))
    assert search.suggest("t3") is not None
    assert search.best_config == {"lr": pytest.approx(1e-4 / 1.45)}


@pytest.mark.parametrize(("samples", "probes", "finals"), [(1, 1, 0), (2, 1, 1), (6, 5, 1)])
def test_finite_samples_end_with_the_final_trial(samples: int, probes: int, finals: int) -> None:
    search = AutoHyperSearch(probe_epochs=3)
    if samples < 3:
        with pytest.warns(UserWarning, match="num_samples=-1"):
            search.set_search_properties(None, None, SPACE, num_samples=samples)
    else:
        search.set_search_properties(None, None, SPACE, num_samples=samples)
    trials, _ = play(search, objective, trials=samples, metric="response_mean", workers=2)
    roles = [trial.config["tune_ext"]["role"] for trial in trials]
    assert (roles.count("probe"), roles.count("final")) == (probes, finals)
    assert search.best_config is not None


def test_when_all_fail_there_is_no_answer_and_no_final_trial() -> None:
    search = searched(max_probes=5)
    trials, finished = play(search, lambda c: CRASH, trials=99, metric="response_mean")
    assert finished
    assert search.best_config is None
    assert all(trial.config["tune_ext"]["role"] == "probe" for trial in trials)


def test_final_trials_repeat_the_answer_or_are_left_out() -> None:
    for number in (0, 3):
        search = searched(final_trials=number)
        trials, _ = play(search, objective, trials=99, metric="response_mean")
        finals = [t.config for t in trials if t.config["tune_ext"]["role"] == "final"]
        assert [c["lr"] for c in finals] == [answer()["lr"]] * number


def test_repeated_trials_are_averaged_by_rays_repeater() -> None:
    search = searched(final_trials=0)
    trials, finished = play(
        Repeater(search, repeat=2), objective, trials=99, metric="response_mean"
    )
    assert finished
    assert search.best_config == answer()
    assert trials[0].config["lr"] == trials[1].config["lr"]


def test_nothing_to_say_before_the_first_probe() -> None:
    assert AutoHyperSearch().best_config is None
    assert str(AutoHyperSearch().explain()) == "nothing has been probed yet"


def test_state_is_versioned_json(tmp_path: Path) -> None:
    search = searched()
    play(search, objective, trials=5, metric="response_mean")
    search.save_to_dir(str(tmp_path), "2026-01-01")
    (file,) = tmp_path.iterdir()
    assert file.name == "searcher-state-2026-01-01.json"
    state = json.loads(file.read_text())
    assert (state["kind"], state["version"]) == ("AutoHyperSearch", 2)
    blank = AutoHyperSearch()
    blank.restore_from_dir(str(tmp_path))
    assert blank.get_state() == search.get_state()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {**s, "version": 99}, "version 99"),
        (lambda s: {**s, "kind": "Other"}, "not the state of a AutoHyperSearch"),
        (lambda s: {k: v for k, v in s.items() if k != "trials"}, "damaged: KeyError"),
        (lambda s: {**s, "trials": 3}, "damaged"),
        (lambda s: {**s, "core": {**s["core"], "version": 7}}, "version 7"),
        (lambda s: [s], "not the state"),
    ],
)
def test_a_state_that_cannot_be_read_changes_nothing(
    tmp_path: Path, change: Any, said: str
) -> None:
    search = searched()
    play(search, objective, trials=5, metric="response_mean")
    path = tmp_path / "state.json"
    path.write_text(json.dumps(change(search.get_state())))
    before, text = search.get_state(), path.read_text()
    with pytest.raises(StateError, match=said):
        search.restore(str(path))
    assert search.get_state() == before
    assert path.read_text() == text


def test_what_ray_did_not_restore_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    search = searched()
    lost = [search.suggest(f"t{i}")["lr"] for i in range(3)]
    restored = searched()
    restored.set_state(json.loads(json.dumps(search.get_state())))
    clock = iter(range(100))
    monkeypatch.setattr(_base, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    asked = [restored.suggest(f"new{i}") for i in range(20)]
    given = [config["lr"] for config in asked if config is not None]
    assert given == lost
    assert asked[:5] == [None] * 5, "given up before the restored trials had time to report"


def test_restored_trials_that_report_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    search = searched()
    for i in range(3):
        search.suggest(f"t{i}")
    restored = searched()
    restored.set_state(search.get_state())
    restored.on_trial_result("t1", result(0.9, epoch=1))
    clock = iter(range(100))
    monkeypatch.setattr(_base, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert [restored.suggest(f"new{i}") for i in range(20)] == [None] * 20


def test_the_published_constants_can_be_changed() -> None:
    search = searched(constants={"plateau": 0.05})
    play(search, objective, trials=99, metric="response_mean")
    assert search.best_config == answer(plateau=0.05) != answer()


def test_finished_is_said_as_ray_expects_it() -> None:
    search = searched(max_probes=3, final_trials=0)
    play(search, objective, trials=99, metric="response_mean")
    assert search.suggest("x") == Searcher.FINISHED == "FINISHED"
    assert math.isfinite(search.best_config["lr"])
