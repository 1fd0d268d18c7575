"""Whole runs on a real Ray: what a user does, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search import ConcurrencyLimiter

import tune_ext
from tests.raytune import trainables
from tests.raytune.trainables import Counter, answer, notes
from tune_ext import AutoHyperScheduler, AutoHyperSearch
from tune_ext.errors import InvalidValueError


def ends(max_t: int = 6) -> AutoHyperScheduler:
    return AutoHyperScheduler(probe_epochs=3, max_t=max_t)


def epochs(analysis: Any, role: str) -> list[int]:
    """How long the trials of a role ran."""
    chosen = [t for t in analysis.trials if t.config["tune_ext"]["role"] == role]
    return [t.last_result.get("training_iteration", 0) for t in chosen]


def test_a_function_is_tuned_and_trained_to_the_end(run: Any) -> None:
    search = AutoHyperSearch(probe_epochs=3)
    analysis = run(trainables.function, search_alg=search, scheduler=ends())
    assert search.best_config == answer()
    assert set(epochs(analysis, "probe")) == {3}
    assert epochs(analysis, "final") == [6]
    assert analysis.trials[-1].config["lr"] == search.best_config["lr"]
    assert str(search.explain()).splitlines()[-1].split()[1] == "finish"


@pytest.mark.parametrize("reuse", [True, False])
def test_a_class_goes_on_from_the_winning_probe(cluster: str, tmp_path: Path, reuse: bool) -> None:
    search = AutoHyperSearch(probe_epochs=3, max_probes=3 if not reuse else None)
    tuner = tune.Tuner(
        Counter,
        param_space={"lr": tune.loguniform(1e-6, 1.0), "home": str(tmp_path)},
        tune_config=tune.TuneConfig(
            search_alg=search, scheduler=ends(), num_samples=-1, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=1, checkpoint_at_end=True, num_to_keep=1
            ),
        ),
    )
    results = tuner.fit()
    final = [n for n in notes(tmp_path) if n["role"] == "final"]
    winner = next(r for r in results if r.metrics["trial_id"] == final[0]["origin"])
    assert [n["epoch"] for n in final] == [4, 5, 6]
    assert winner.config["lr"] == search.best_config["lr"]
    state = Path(winner.checkpoint.path, "state.json")
    assert state.exists(), "Ray deleted the winner's checkpoint"


def test_a_function_goes_on_from_the_winning_probe(run: Any, tmp_path: Path) -> None:
    config = {"lr": tune.loguniform(1e-6, 1.0), "home": str(tmp_path), "checkpoints": True}
    search = AutoHyperSearch(probe_epochs=3, max_probes=3)
    analysis = run(trainables.function, config=config, search_alg=search, scheduler=ends())
    final = [n for n in notes(tmp_path) if n["role"] == "final"]
    assert [n["epoch"] for n in final][:3] == [4, 5, 6]
    assert final[0]["origin"] == analysis.trials[-1].config["tune_ext"]["continue_from"]
    assert epochs(analysis, "final") == [6]


def test_without_a_checkpoint_the_final_trial_starts_over(run: Any, tmp_path: Path) -> None:
    search = AutoHyperSearch(probe_epochs=3, max_probes=3, final_trials=2)
    analysis = run(trainables.function, search_alg=search, scheduler=ends())
    assert epochs(analysis, "final") == [6, 6]
    assert [n["epoch"] for n in notes(tmp_path) if n["role"] == "final"].count(1) == 2


def test_two_probes_run_at_the_same_time(run: Any) -> None:
    search = AutoHyperSearch(probe_epochs=3, max_probes=3, final_trials=0)
    analysis = run(trainables.meets_another, search_alg=search, scheduler=ends())
    assert [t.last_result["met"] for t in analysis.trials] == [True] * 3


def overlaps(entries: Sequence[dict[str, Any]]) -> int:
    """How many trials were under way at once; the order of the notes is that of time."""
    spans: dict[str, tuple[int, int]] = {}
    for line, n in enumerate(entries):
        first, _ = spans.get(n["trial"], (line, line))
        spans[n["trial"]] = (first, line)
    return max(sum(a <= t <= b for a, b in spans.values()) for t, _ in spans.values())


@pytest.mark.parametrize("by", ["ConcurrencyLimiter", "max_concurrent", "max_concurrent_trials"])
def test_the_users_limit_is_kept(run: Any, tmp_path: Path, by: str) -> None:
    own = {"max_concurrent": 1} if by == "max_concurrent" else {}
    search = AutoHyperSearch(probe_epochs=3, max_probes=5, final_trials=0, **own)
    limited = ConcurrencyLimiter(search, 1) if by == "ConcurrencyLimiter" else search
    rays = {"max_concurrent_trials": 1} if by == "max_concurrent_trials" else {}
    run(trainables.function, search_alg=limited, scheduler=ends(), **rays)
    assert overlaps(notes(tmp_path)) == 1
    assert search.best_config == answer(max_probes=5)


def test_fractions_of_a_gpu(run: Any) -> None:
    search = AutoHyperSearch(probe_epochs=3, max_probes=4)
    share = {"cpu": 1, "gpu": 0.5}
    analysis = run(
        tune.with_resources(trainables.function, share), search_alg=search, scheduler=ends()
    )
    assert search.best_config == answer(max_probes=4)
    assert epochs(analysis, "final") == [6]


def test_a_finite_number_of_samples_keeps_room_for_the_final_trial(run: Any) -> None:
    search = AutoHyperSearch(probe_epochs=3)
    analysis = run(trainables.function, search_alg=search, scheduler=ends(), num_samples=6)
    assert len(epochs(analysis, "probe")) == 5
    assert epochs(analysis, "final") == [6]
    assert search.best_config == answer(max_probes=5)


def test_a_retried_trial_is_one_trial(run: Any, tmp_path: Path) -> None:
    search = AutoHyperSearch(probe_epochs=3, max_probes=3)
    run(trainables.fails_once, search_alg=search, scheduler=ends(), max_failures=2)
    assert (tmp_path / "failed").exists()
    assert search.best_config == answer(max_probes=3)


def test_crashes_end_neither_the_run_nor_win(run: Any, tmp_path: Path) -> None:
    config = {"lr": tune.loguniform(1e-6, 1.0), "limit": 1.2e-4}
    search = AutoHyperSearch(probe_epochs=3, max_probes=3)
    analysis = run(trainables.fails_above, config=config, search_alg=search, scheduler=ends())
    assert search.best_config == {"lr": 1e-4}
    assert epochs(analysis, "final") == [6]
    assert "ERROR" in {t.status for t in analysis.trials}


def test_when_everything_crashes_the_run_ends_without_an_answer(run: Any) -> None:
    config = {"lr": tune.loguniform(1e-6, 1.0), "limit": 0.0}
    search = AutoHyperSearch(probe_epochs=3, max_probes=3)
    analysis = run(trainables.fails_above, config=config, search_alg=search, scheduler=ends())
    assert search.best_config is None
    assert epochs(analysis, "final") == []


@pytest.mark.parametrize("says_so", [True, False])
def test_a_diverged_probe_is_stopped_at_once(run: Any, says_so: bool) -> None:
    config = {"lr": tune.loguniform(1e-6, 1.0), "limit": 3e-4, "says_so": says_so}
    search = AutoHyperSearch(probe_epochs=3, max_probes=8)
    analysis = run(trainables.diverges_above, config=config, search_alg=search, scheduler=ends())
    assert 2e-4 < search.best_config["lr"] <= 3e-4
    assert set(epochs(analysis, "probe")) == {1, 3}


def test_trials_that_end_themselves_need_no_scheduler(run: Any) -> None:
    search = AutoHyperSearch(probe_epochs=3, max_probes=4)
    analysis = run(trainables.ends_by_itself, search_alg=search)
    assert search.best_config == answer(max_probes=4)
    assert epochs(analysis, "final") == [7]


def test_by_name_in_a_nested_space(run: Any) -> None:
    tune_ext.register()
    tune_ext.register()
    search = tune.create_searcher("autohyper", probe_epochs=3, max_probes=9)
    scheduler = tune.create_scheduler("autohyper", probe_epochs=3, max_t=5)
    space = {"lr": tune.loguniform(1e-6, 1.0), "optimizer": {"weight_decay": tune.uniform(0, 0.1)}}
    analysis = run(
        trainables.ends_by_itself,
        config={**space, "batch": 8},
        search_alg=search,
        scheduler=scheduler,
    )
    assert set(search.best_config["optimizer"]) == {"weight_decay"}
    assert analysis.trials[0].config["batch"] == 8
    assert epochs(analysis, "final") == [5]


def test_a_metric_that_nobody_reports(run: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"ResponseMeter\(model\)\.measure\(\)"):
        run(trainables.reports_loss, search_alg=AutoHyperSearch(probe_epochs=3), scheduler=ends())


def test_a_space_that_cannot_be_searched(run: Any) -> None:
    config = {"lr": tune.loguniform(1e-6, 1.0), "optimizer": tune.choice(["adam", "sgd"])}
    with pytest.raises(InvalidValueError, match="'optimizer' is a choice"):
        run(trainables.function, config=config, search_alg=AutoHyperSearch())
