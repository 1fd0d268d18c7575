"""ExpTestScheduler and the rungs of a ladder: when they end, and which of them it cancels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial

from tests.raytune.exptest_trainables import losses, serial
from tune_ext import ExpTestScheduler, LossMonitor
from tune_ext.raytune._play import FakeController, fake_trial
from tune_ext.raytune.exptest_scheduler import RUNGS_FILE


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    return StorageContext(str(tmp_path), experiment_dir_name="experiment")


class Rungs:
    """Trials of a ladder under a scheduler."""

    def __init__(self, storage: Any, **options: Any) -> None:
        self.storage, self.controller = storage, FakeController()
        self.scheduler = ExpTestScheduler(**options)
        self.ladder = serial()
        self.trials: dict[int, Any] = {}

    def config(self, index: int) -> dict[str, Any]:
        ours = {
            "role": "rung",
            "rung": index,
            "steps": 60,
            "lr": "lr",
            "ladder": self.ladder.state_dict()["arguments"],
            "continue_from": None,
        }
        return {"lr": self.ladder.rate(index), "tune_ext": ours}

    def add(self, index: int, trial_id: str | None = None) -> Any:
        trial = fake_trial(self.storage, self.config(index), trial_id or f"rung{index}")
        self.trials[index] = trial
        return self.controller.add(self.scheduler, trial)

    def results(self, index: int, every: int = 20) -> Iterator[str]:
        """Train a rung; stop when told to."""
        trial = self.trials[index]
        monitor = LossMonitor(trial.config)
        for step, loss in enumerate(losses(trial.config["lr"]), 1):
            monitor.step(loss)
            if step % every == 0:
                epoch = {"training_iteration": step // every, **monitor.report()}
                yield self.controller.report(self.scheduler, trial, epoch)

    def run(self, index: int) -> None:
        self.add(index)
        assert list(next_until_stop(self.results(index)))[-1] == "STOP"

    def statuses(self) -> dict[int, str]:
        self.scheduler.choose_trial_to_run(self.controller)
        return {index: trial.status for index, trial in self.trials.items()}


def next_until_stop(results: Iterator[str]) -> Iterator[str]:
    for said in results:
        yield said
        if said == "STOP":
            return


@pytest.mark.parametrize(("every", "epochs"), [(20, 3), (7, 9), (100, 1)])
def test_a_rung_ends_with_its_last_step(storage: Any, every: int, epochs: int) -> None:
    rungs = Rungs(storage)
    rungs.add(0)
    said = list(next_until_stop(rungs.results(0, every)))
    assert said == ["CONTINUE"] * (epochs - 1) + ["STOP"]


def test_rungs_that_nobody_needs_are_cancelled(storage: Any) -> None:
    rungs = Rungs(storage)
    needed = [row["rung"] for row in rungs.ladder.explain().rows if row["event"] == "rung"]
    idle = min(needed) - 1, min(needed) - 2, min(needed) - 3
    for index in idle:
        rungs.add(index)
    next(rungs.results(idle[0]))
    rungs.trials[idle[1]].set_status(Trial.PAUSED)
    for index in needed[:-1]:
        rungs.run(index)
    assert [rungs.statuses()[i] for i in idle] == ["RUNNING", "PAUSED", "PENDING"]
    rungs.run(needed[-1])
    assert set(rungs.statuses().values()) == {"TERMINATED"}
    late = rungs.add(min(needed) - 4)
    assert (rungs.statuses()[min(needed) - 4], late.status) == ("TERMINATED", "TERMINATED")


def test_a_crashed_rung_has_failed_but_a_retried_one_has_not(storage: Any) -> None:
    rungs = Rungs(storage)
    needed = [row["rung"] for row in rungs.ladder.explain().rows if row["event"] == "rung"]
    spare = rungs.add(min(needed) - 1)
    last = needed.pop()
    for index in needed:
        rungs.run(index)
    trial = rungs.add(last)
    rungs.scheduler.on_trial_error(rungs.controller, trial)
    rungs.scheduler.on_trial_add(rungs.controller, trial)
    assert rungs.statuses()[last] == "PENDING"
    trial.set_status(Trial.ERROR)
    rungs.statuses()
    assert spare.status == "TERMINATED", "the rung that failed was the last one"


def test_finished_rungs_are_known_after_a_restart(cluster: str, storage: Any) -> None:
    before = Rungs(storage)
    needed = [row["rung"] for row in before.ladder.explain().rows if row["event"] == "rung"]
    for index in needed[:-1]:
        before.run(index)
    document = json.loads((Path(storage.experiment_fs_path) / RUNGS_FILE).read_text())
    assert len(document["rungs"]) == len(needed) - 1
    after = Rungs(storage)
    spare = after.add(min(needed) - 1)
    for index in needed[:-1]:
        # The first one Ray has forgotten: the searcher asks for it again, in a new trial.
        trial = after.add(index, "new" if index == needed[0] else None)
        assert trial.status == "TERMINATED"
        assert after.controller.completed[trial.trial_id]["exptest/complete"] is True
    assert spare.status == "PENDING"
    after.run(needed[-1])
    after.statuses()
    assert spare.status == "TERMINATED"


def test_a_rung_that_max_t_ends_is_said_once(
    storage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rungs = Rungs(storage, max_t=2)
    for index in (0, 1):
        rungs.add(index)
        results = rungs.results(index)
        assert [next(results), next(results)] == ["CONTINUE", "STOP"]
    assert caplog.text.count("as it needs more time than max_t=2 (training_iteration)") == 1


def test_a_rung_that_ray_dropped_without_a_word_has_not_failed(storage: Any) -> None:
    rungs = Rungs(storage)
    needed = [row["rung"] for row in rungs.ladder.explain().rows if row["event"] == "rung"]
    spare = rungs.add(min(needed) - 1)
    for index in needed[:-1]:
        rungs.run(index)
    rungs.add(needed[-1]).set_status(Trial.ERROR)
    rungs.statuses()
    assert spare.status == "PENDING", "the searcher asks for the dropped rung again"
    trial = rungs.trials[needed[-1]]
    rungs.scheduler.on_trial_add(rungs.controller, trial)  # restored, with an error
    rungs.statuses()
    assert spare.status == "TERMINATED"
