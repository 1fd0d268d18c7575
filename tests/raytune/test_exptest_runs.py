"""Whole ExpTest searches on a real Ray."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.tune.search import ConcurrencyLimiter

import tune_ext
from tests.raytune import exptest_trainables as trainables
from tests.raytune.exptest_trainables import SPACE, serial
from tests.raytune.test_restore import Ends, drive, let_ray_end
from tests.raytune.trainables import notes
from tune_ext import ExpTestScheduler, ExpTestSearch
from tune_ext.errors import InvalidValueError
from tune_ext.raytune.exptest_scheduler import RUNGS_FILE


def by_role(analysis: Any, role: str) -> list[Any]:
    return [t for t in analysis.trials if t.config["tune_ext"]["role"] == role]


def rungs(analysis: Any) -> set[int]:
    """The rungs that were begun, each one once."""
    begun = [t.config["tune_ext"]["rung"] for t in by_role(analysis, "rung")]
    assert len(set(begun)) == len(begun)
    return set(begun)


def given(home: Path, **more: Any) -> dict[str, Any]:
    return {**SPACE, "home": str(home), **more}


@pytest.mark.parametrize(
    "share",
    [{"cpu": 2}, {"cpu": 1, "gpu": 0.5}, {"cpu": 0.5, "gpu": 0.25}],
    ids=["1 worker", "2 workers", "4 workers"],
)
def test_the_answer_depends_on_no_number_of_workers(
    run: Any, tmp_path: Path, share: dict[str, float]
) -> None:
    search = ExpTestSearch(bound=0.01)
    analysis = run(
        tune.with_resources(trainables.function, share),
        config=given(tmp_path),
        search_alg=search,
        scheduler=ExpTestScheduler(max_t=5),
    )
    ladder = serial()
    assert search.best_config == {"lr": ladder.lr}
    (final,) = by_role(analysis, "final")
    assert final.config["lr"] == ladder.lr
    assert final.last_result["training_iteration"] == 2
    assert final is analysis.trials[-1]
    begun, needed = rungs(analysis), set(ladder.results)
    assert needed <= begun
    if share == {"cpu": 2}:
        assert begun == needed
    table = search.explain().to_rows()
    assert [r["rung"] for r in table if r["event"] == "rung"] == list(ladder.results)


def test_a_rung_that_nobody_needs_any_more_ends_early(run: Any, tmp_path: Path) -> None:
    search, needed = ExpTestSearch(bound=0.01), list(serial().results)
    run(
        trainables.cancelled_ahead,
        config=given(tmp_path, needed=needed),
        search_alg=search,
        scheduler=ExpTestScheduler(max_t=5),
    )
    assert search.best_config == {"lr": serial().lr}
    steps: dict[int, int] = {}
    for entry in notes(tmp_path):
        if entry["role"] == "rung":
            steps[entry["rung"]] = max(entry["step"], steps.get(entry["rung"], 0))
    ahead = [step for rung, step in steps.items() if rung not in needed]
    assert ahead, "two workers, and no rung was ever tried ahead"
    assert max(ahead) < 60  # cancelled at 20 steps, it may go on until it reports again
    assert {steps[rung] for rung in needed} == {60}
    assert not [row for row in search.explain().to_rows() if row["verdict"] == "failed"]


def test_by_name_in_a_nested_space_under_a_limit(run: Any, tmp_path: Path) -> None:
    tune_ext.register()
    search = tune.create_searcher("exptest", lr="optimizer/lr", bound=0.01, final_trials=2)
    scheduler = tune.create_scheduler("exptest", max_t=5)
    analysis = run(
        trainables.nested,
        config={"optimizer": {**SPACE, "momentum": 0.0}, "home": str(tmp_path)},
        search_alg=ConcurrencyLimiter(search, 1),
        scheduler=scheduler,
        metric="loss",
        mode="min",
    )
    assert search.best_config == {"optimizer": {"lr": serial().lr}}
    assert rungs(analysis) == set(serial().results)
    finals = by_role(analysis, "final")
    assert [t.config["optimizer"] for t in finals] == [{"lr": serial().lr, "momentum": 0.0}] * 2


def test_without_the_scheduler_rungs_end_by_themselves(run: Any, tmp_path: Path) -> None:
    search = ExpTestSearch(bound=0.01)
    analysis = run(trainables.function, config=given(tmp_path), search_alg=search, num_samples=4)
    assert len(by_role(analysis, "rung")) == 3
    (final,) = by_role(analysis, "final")
    assert final.config["lr"] == search.best_config["lr"] == serial(max_rungs=3).lr


def test_crashes_and_retries_change_nothing(run: Any, tmp_path: Path) -> None:
    search = ExpTestSearch(bound=0.01, max_concurrent=1)
    limit = 0.15  # above it, rungs crash in every life
    analysis = run(
        trainables.fails_once,
        config=given(tmp_path, crash_above=limit),
        search_alg=search,
        scheduler=ExpTestScheduler(max_t=5),
        max_failures=1,
    )
    assert (tmp_path / "failed").exists()
    assert search.best_config == {"lr": serial(crash_above=limit).lr}
    assert "ERROR" in {t.status for t in by_role(analysis, "rung")}
    assert len(by_role(analysis, "final")) == 1


def test_a_trainable_that_reports_no_statistics(run: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"monitor = LossMonitor\(config\)"):
        run(
            trainables.nothing,
            search_alg=ExpTestSearch(bound=0.01),
            scheduler=ExpTestScheduler(max_t=5),
        )


def finished(home: Path) -> set[float]:
    """The rates of the rungs that are known to have finished."""
    path = home / "experiment" / RUNGS_FILE
    known = json.loads(path.read_text())["rungs"].values() if path.exists() else []
    return {rung["values"]["lr"] for rung in known}


def tried(entries: list[dict[str, Any]]) -> set[float]:
    return {entry["lr"] for entry in entries if entry["role"] == "rung"}


def test_a_restored_run_goes_on_as_if_nothing_had_happened(cluster: str, tmp_path: Path) -> None:
    tuner = tune.Tuner(
        trainables.function,
        param_space=given(tmp_path),
        tune_config=tune.TuneConfig(
            search_alg=ExpTestSearch(bound=0.01),
            scheduler=ExpTestScheduler(max_t=5),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="experiment",
            storage_path=str(tmp_path),
            verbose=0,
            callbacks=[Ends(tmp_path, after=8)],
        ),
    )
    with pytest.raises(Exception, match="the driver ends here"):
        tuner.fit()
    let_ray_end(tmp_path / "experiment")
    before, known = len(notes(tmp_path)), finished(tmp_path)
    assert known
    restored = tune.Tuner.restore(str(tmp_path / "experiment"), trainable=trainables.function)
    results = restored.fit()
    assert not tried(notes(tmp_path)[before:]) & known
    ran = [r for r in results if r.config]  # not those that were cancelled before they did
    final = [r for r in ran if r.config["tune_ext"]["role"] == "final"]
    assert [(r.config["lr"], r.metrics["training_iteration"]) for r in final] == [(serial().lr, 2)]


@pytest.mark.slow
def test_a_killed_driver_gives_the_same_answer(tmp_path: Path) -> None:
    drive(tmp_path, "exptest", more=8)
    before, known = len(notes(tmp_path)), finished(tmp_path)
    assert known
    drive(tmp_path, "exptest", more=None)
    assert not tried(notes(tmp_path)[before:]) & known
    results = json.loads((tmp_path / "results.json").read_text())
    final = [r for r in results if r["tune_ext"]["role"] == "final"]
    answer = serial(lower=1e-6, upper=1.0).lr
    assert [(r["lr"], r["epochs"]) for r in final] == [(answer, 2)]
    search = ExpTestSearch()
    search.restore(str(max((tmp_path / "experiment").glob("searcher-state-*.json"))))
    assert search.best_config == {"lr": answer}


GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "exptest-ray.md"

PROJECT = """
import torch

def make_model():
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))

def make_loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(320, 8, generator=generator)
    data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(dim=1))
    return torch.utils.data.DataLoader(data, batch_size=16)
"""


@pytest.fixture
def my_project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the guide imports; trials get it by value."""
    project = types.ModuleType("my_project")
    exec(PROJECT, project.__dict__)
    monkeypatch.setitem(sys.modules, "my_project", project)
    cloudpickle.register_pickle_by_value(project)
    yield
    cloudpickle.unregister_pickle_by_value(project)


def test_the_guides_code(run: Any, my_project: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search runs as it stands, for fewer epochs; the other two ways are well-formed."""
    asked: list[Any] = []
    train, *ways = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    with monkeypatch.context() as patch:
        patch.setattr(tune, "run", lambda *args, **options: asked.append((args, options)))
        for way in ways:
            exec(train + way, {})
    (args, options), tuned, mode = asked
    options["scheduler"] = ExpTestScheduler(max_t=8)
    analysis = run(*args, **options)
    rate = options["search_alg"].best_config["lr"]
    (final,) = by_role(analysis, "final")
    assert final.last_result["epoch"] == 8
    assert final.evaluated_params["lr"] == rate > 0.01
    assert isinstance(tuned[1]["scheduler"], ExpTestScheduler)
    assert mode[1]["config"]["lr"] == "exptest"
