"""ExpTestScheduler on a real Ray: whatever happens, a trial's rate goes as in one process."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from tests.raytune.test_restore import Ends, drive, let_ray_end
from tests.raytune.trainables import notes
from tests.raytune.tuning_trainables import EPOCH, Class, Regression, function
from tune_ext import ExpTestScheduler, LossMonitor, Tuner
from tune_ext._loss_monitor import read_statistics
from tune_ext.raytune import _state_copy

KEEP_ALL = tune.CheckpointConfig(checkpoint_frequency=1)


def alone(lr: float, epochs: int) -> list[tuple[int, float]]:
    """The rate of every epoch, when one process trains and asks a `Tuner` after each."""
    model, tuner = Regression(lr, LossMonitor({"lr": lr})), Tuner(lr, EPOCH)
    rates = []
    for epoch in range(1, epochs + 1):
        rates.append((epoch, model.lr))
        statistics = read_statistics(model.train())
        assert statistics is not None
        tuner.tell(statistics)
        model.lr = tuner.lr
    return rates


def trained(home: Path) -> dict[str, list[tuple[int, float]]]:
    """The rate of every epoch of every trial; of those trained twice, the second time."""
    rates: dict[str, dict[int, float]] = {}
    for entry in notes(home):
        epochs = rates.setdefault(entry["trial"], {})
        assert entry["epoch"] <= max(epochs, default=0) + 1, "an epoch was left out"
        epochs[entry["epoch"]] = entry["lr"]
    return {trial: sorted(epochs.items()) for trial, epochs in rates.items()}


@pytest.fixture
def tuned(run: Any, tmp_path: Path) -> Any:
    """`run` with ExpTestScheduler and a rate that is too large to the end."""

    def start(trainable: Any, config: dict[str, Any] | None = None, **options: Any) -> Any:
        config = {"lr": 0.2, "home": str(tmp_path), **(config or {})}
        defaults = {"scheduler": ExpTestScheduler(max_t=16), "num_samples": 1, "config": config}
        return run(trainable, **{**defaults, **options})

    return start


def test_the_rate_of_running_trials_goes_down_under_any_searcher(
    tuned: Any, tmp_path: Path
) -> None:
    scheduler = ExpTestScheduler(max_t=16)
    analysis = tuned(
        function,
        {"l2": tune.uniform(0, 1)},
        scheduler=scheduler,
        search_alg=OptunaSearch(metric="loss", mode="min", seed=0),
        num_samples=3,
    )
    expected = alone(0.2, 16)
    assert len({rate for _, rate in expected}) == 3
    assert list(trained(tmp_path).values()) == [expected] * 3
    last = analysis.trials[0].last_result
    assert last["config"]["lr"] == last["exptest"]["lr"] == expected[-1][1]
    assert last["training_iteration"] == 16
    rows = [r for r in scheduler.explain().to_rows() if r["event"] == "decay"]
    assert {r["trial"] for r in rows} == {t.trial_id for t in analysis.trials}
    assert len(rows) == 6
    assert "0.066 after" in scheduler.debug_string()


@pytest.mark.parametrize(("trainable", "what"), [(function, "crash"), (Class, "kill")])
def test_a_retry_goes_on_with_its_rate(
    tuned: Any, tmp_path: Path, trainable: Any, what: str
) -> None:
    tuned(
        trainable,
        {what: 5},
        max_failures=1,
        reuse_actors=False,
        scheduler=ExpTestScheduler(max_t=8),
        checkpoint_config=KEEP_ALL if trainable is Class else None,
    )
    assert (tmp_path / what).exists()
    assert {entry["started"] for entry in notes(tmp_path)} == {0, 2, 4}
    assert list(trained(tmp_path).values()) == [alone(0.2, 8)]


def test_paused_trials_go_on_before_new_ones_start(tuned: Any, tmp_path: Path) -> None:
    tuned(function, num_samples=4, scheduler=ExpTestScheduler(max_t=4))
    lines = [entry["trial"] for entry in notes(tmp_path)]
    order = list(dict.fromkeys(lines))
    starts = {trial: lines.index(trial) for trial in order}
    ends = {trial: line for line, trial in enumerate(lines)}
    for later, earlier in zip(order[2:], order, strict=False):
        assert ends[earlier] < starts[later], "a new trial took the place of a paused one"
    assert list(trained(tmp_path).values()) == [alone(0.2, 4)] * 4


def test_what_cannot_go_on_is_left_alone(
    tuned: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        analysis = tuned(
            function,
            {"every": tune.grid_search([0, 3])},
            scheduler=ExpTestScheduler(max_t=6),
        )
    never, seldom = (t.trial_id for t in sorted(analysis.trials, key=lambda t: t.config["every"]))
    rates = trained(tmp_path)
    assert rates[never] == [(epoch, 0.2) for epoch in range(1, 7)]
    assert [rate for _, rate in rates[seldom]] == [0.2] * 3 + [0.2 * 0.33] * 3
    assert {e["started"] for e in notes(tmp_path) if e["trial"] == never} == {0}
    assert caplog.text.count("no checkpoint to go on from") == 1


def test_a_diverged_trial_goes_back(tuned: Any, tmp_path: Path) -> None:
    scheduler = ExpTestScheduler(max_t=12, window=2 * EPOCH)
    config = {"breaks": tune.grid_search([1, 9]), "limit": 0.05}
    analysis = tuned(function, config, scheduler=scheduler)
    first, later = (t.trial_id for t in sorted(analysis.trials, key=lambda t: t.config["breaks"]))
    told = [(e["epoch"], e["lr"], e["started"]) for e in notes(tmp_path) if e["trial"] == first]
    once, twice = 0.2 * 0.33, 0.2 * 0.33 * 0.33
    assert told[:4] == [(1, 0.2, 0), (1, once, 0), (1, twice, 0), (2, twice, 0)]
    events = [r for r in scheduler.explain().to_rows() if r["trial"] == later]
    back = next(i for i, r in enumerate(events) if r["event"] == "restore")
    window_start = max(r["iteration"] for r in events[:back] if r["event"] in ("keep", "decay"))
    again = [e for e in notes(tmp_path) if e["trial"] == later and e["lr"] == events[back]["lr"]]
    assert events[back]["iteration"] == 9
    assert (again[0]["epoch"], again[0]["started"]) == (window_start + 1, window_start)
    assert [t.last_result["training_iteration"] for t in analysis.trials] == [12, 12]
    assert all(t.last_result["loss"] < 1 for t in analysis.trials)


class Unpickled:
    """Something for which Ray puts a placeholder into the configurations that it saves."""


def test_a_restored_experiment_goes_on_with_its_rates(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    monkeypatch.setattr(_state_copy, "_SHARE", 0.0)
    space = {"lr": 0.2, "home": str(tmp_path), "object": Unpickled()}
    tuner = tune.Tuner(
        function,
        param_space=space,
        tune_config=tune.TuneConfig(scheduler=ExpTestScheduler(max_t=8), reuse_actors=True),
        run_config=tune.RunConfig(
            name="experiment",
            storage_path=str(tmp_path),
            verbose=0,
            callbacks=[Ends(tmp_path, 5)],
        ),
    )
    with pytest.raises(Exception, match="the driver ends here"):
        tuner.fit()
    let_ray_end(tmp_path / "experiment")
    before = len(notes(tmp_path))
    restored = tune.Tuner.restore(
        str(tmp_path / "experiment"), trainable=function, param_space=space
    )
    result = restored.fit()[0]
    assert notes(tmp_path)[before]["started"] >= 3
    assert list(trained(tmp_path).values()) == [alone(0.2, 8)]
    assert result.config["lr"] == alone(0.2, 8)[-1][1]
    files = list((tmp_path / "experiment" / "exptest-tuning").glob("*.json"))
    assert [json.loads(file.read_text())["version"] for file in files] == [1]


@pytest.mark.slow
def test_a_killed_driver_goes_on_with_its_rates(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.write_text("9")
    drive(tmp_path, "tuning", more=9, saves=3)
    hold.unlink()
    before = len(notes(tmp_path))
    drive(tmp_path, "tuning", more=None)
    assert notes(tmp_path)[before]["started"] >= 2, "the rate had changed by then"
    assert list(trained(tmp_path).values()) == [alone(0.2, 12)]
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert (row["lr"], row["epochs"]) == (alone(0.2, 12)[-1][1], 12)
