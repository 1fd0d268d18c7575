"""AutoHyperScheduler by itself: when trials end, what is recorded, where finals start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext
from ray.tune import Checkpoint
from ray.tune.experiment import Trial

from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune import AutoHyperScheduler
from tune_ext.raytune._play import FakeController, fake_trial
from tune_ext.raytune.autohyper_scheduler import FILE_NAME


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    return StorageContext(str(tmp_path), experiment_dir_name="experiment")


def probe(storage: Any, trial_id: str, lr: float = 0.1) -> Any:
    ours = {"role": "probe", "probe": 0, "continue_from": None}
    return fake_trial(storage, {"lr": lr, "tune_ext": ours}, trial_id)


def final(storage: Any, source: str | None) -> Any:
    ours = {"role": "final", "probe": None, "continue_from": source}
    return fake_trial(storage, {"lr": 0.1, "tune_ext": ours}, "final")


def leave_checkpoint(trial: Any, home: Path) -> str:
    folder = home / f"weights-{trial.trial_id}"
    folder.mkdir()
    found = _TrainingResult(Checkpoint(str(folder)), {"training_iteration": 3})
    trial.run_metadata.checkpoint_manager.register_checkpoint(found)
    return str(folder)


def epoch(number: int, value: Any = 0.5, **more: Any) -> dict[str, Any]:
    return {"training_iteration": number, "response_mean": value, **more}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"probe_epochs": 0}, InvalidValueError, "probe_epochs must be at least 1"),
        ({"max_t": 3}, InvalidValueError, "max_t must be at least probe_epochs = 5, got 3"),
        ({"max_t": "long"}, InvalidTypeError, "max_t must be a whole number"),
        ({"mode": "least"}, InvalidValueError, "mode must be one of"),
        ({"time_attr": 3}, InvalidTypeError, "time_attr"),
    ],
)
def test_arguments_that_cannot_work_are_named(options: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        AutoHyperScheduler(**options)


def test_probes_and_final_trials_end_in_time(storage: Any) -> None:
    scheduler, controller = AutoHyperScheduler(probe_epochs=2, max_t=4), FakeController()
    short = controller.add(scheduler, probe(storage, "a"))
    long = controller.add(scheduler, final(storage, None))
    other = controller.add(scheduler, fake_trial(storage, {"lr": 1}, "b"))
    said = [controller.report(scheduler, short, epoch(i)) for i in (1, 2)]
    assert said == ["CONTINUE", "STOP"]
    for trial in (long, other):
        said = [controller.report(scheduler, trial, epoch(i)) for i in (1, 2, 3, 4)]
        assert said == ["CONTINUE"] * 3 + ["STOP"]
    assert controller.report(scheduler, long, {"response_mean": 1}) == "CONTINUE"


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (epoch(1, float("nan")), "STOP"),
        (epoch(1, float("inf")), "STOP"),
        (epoch(1, 0.5, diverged=True), "STOP"),
        (epoch(1, None), "CONTINUE"),
        (epoch(1, 0.5, diverged=False), "CONTINUE"),
        ({"training_iteration": 1}, "CONTINUE"),
    ],
)
def test_a_diverged_probe_is_stopped_at_once(storage: Any, result: Any, said: str) -> None:
    scheduler, controller = AutoHyperScheduler(), FakeController()
    assert (
        controller.report(scheduler, controller.add(scheduler, probe(storage, "a")), result) == said
    )


def test_a_final_trial_starts_from_the_winners_checkpoint(storage: Any, tmp_path: Path) -> None:
    scheduler, controller = AutoHyperScheduler(probe_epochs=2), FakeController()
    winner = controller.add(scheduler, probe(storage, "a"))
    path = leave_checkpoint(winner, tmp_path)
    started = controller.add(scheduler, final(storage, "a"))
    assert started.checkpoint.path == path
    manager = started.run_metadata.checkpoint_manager
    assert manager.best_checkpoint_results == [], "Ray would count, and delete, it as the final's"
    own = leave_checkpoint(started, tmp_path)
    scheduler.on_trial_add(controller, started)
    assert started.checkpoint.path == own, "a retry must go on from its own checkpoint"


@pytest.mark.parametrize("source", [None, "a", "unknown"])
def test_without_a_checkpoint_it_starts_from_scratch(storage: Any, source: str | None) -> None:
    scheduler, controller = AutoHyperScheduler(probe_epochs=2), FakeController()
    controller.add(scheduler, probe(storage, "a"))
    assert controller.add(scheduler, final(storage, source)).checkpoint is None


def finish_one(storage: Any, home: Path) -> str:
    """In an earlier session: probe "a" finishes, and leaves a checkpoint."""
    scheduler, controller = AutoHyperScheduler(probe_epochs=2), FakeController()
    trial = controller.add(scheduler, probe(storage, "a"))
    path = leave_checkpoint(trial, home)
    controller.report(scheduler, trial, epoch(2, 0.25, layers={"conv": 0.5}))
    return path


def test_a_finished_probe_is_on_disk_at_once(storage: Any, tmp_path: Path) -> None:
    path = finish_one(storage, tmp_path)
    document = json.loads((tmp_path / "experiment" / FILE_NAME).read_text())
    assert document["version"] == 1
    record = document["probes"]["a"]
    assert record["values"] == {"lr": 0.1}
    assert record["result"]["response_mean"] == 0.25
    assert record["checkpoint"] == path


@pytest.mark.parametrize("trial_id", ["a", "another id for the same values"])
def test_after_a_restore_it_is_not_run_again(
    cluster: str, storage: Any, tmp_path: Path, trial_id: str
) -> None:
    path = finish_one(storage, tmp_path)
    scheduler, controller = AutoHyperScheduler(probe_epochs=2), FakeController()
    again = controller.add(scheduler, probe(storage, trial_id))
    assert again.status == Trial.TERMINATED
    told = controller.completed[trial_id]
    assert (told["response_mean"], told["layers/conv"]) == (0.25, 0.5)
    assert again.last_result["config"] == again.config
    assert controller.add(scheduler, final(storage, trial_id)).checkpoint.path == path
    other = controller.add(scheduler, probe(storage, "other", lr=0.2))
    once_more = controller.add(scheduler, probe(storage, "repeated"))
    assert [other.status, once_more.status] == [Trial.PENDING] * 2


def test_a_new_experiment_in_the_same_directory_starts_afresh(tmp_path: Path) -> None:
    storage = StorageContext(str(tmp_path), experiment_dir_name="experiment")
    finish_one(storage, tmp_path)
    later = StorageContext(str(tmp_path), experiment_dir_name="experiment")
    later._timestamp = "2099-01-01_00-00-00"
    scheduler, controller = AutoHyperScheduler(probe_epochs=2), FakeController()
    again = controller.add(scheduler, probe(later, "a"))
    assert again.status == Trial.PENDING
    controller.report(scheduler, again, epoch(2, 0.75))
    elsewhere = StorageContext(str(tmp_path), experiment_dir_name="another")
    controller.report(scheduler, controller.add(scheduler, probe(elsewhere, "b")), epoch(2, 0.5))
    for name, trial_id, value in (("experiment", "a", 0.75), ("another", "b", 0.5)):
        records = json.loads((tmp_path / name / FILE_NAME).read_text())["probes"]
        assert {i: r["result"]["response_mean"] for i, r in records.items()} == {trial_id: value}


def test_an_unreadable_record_is_not_the_end(storage: Any, tmp_path: Path) -> None:
    finish_one(storage, tmp_path)
    (tmp_path / "experiment" / FILE_NAME).write_text("{")
    scheduler, controller = AutoHyperScheduler(probe_epochs=2), FakeController()
    assert controller.add(scheduler, probe(storage, "a")).status == Trial.PENDING
