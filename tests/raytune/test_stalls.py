"""StallGuard: which trials are taken for hung, and when (with a real Ray: experiments/chaos)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

import tune_ext
from tune_ext.errors import InvalidTypeError, InvalidValueError
from tune_ext.raytune import _stalls


class Loop:
    """Ray's loop, a step a second."""

    def __init__(self, guard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guard, self.time, self.killed = guard, 0.0, []
        self.trials: list[Any] = []
        guard._clock = lambda: self.time
        monkeypatch.setattr(_stalls.ray, "kill", self.killed.append)

    def start(self, name: str) -> Any:
        state = SimpleNamespace(ray_actor=f"actor of {name}")
        trial = SimpleNamespace(trial_id=name, status="RUNNING", temporary_state=state)
        self.trials.append(trial)
        self.guard.on_trial_start(0, self.trials, trial)
        return trial

    def result(self, trial: Any) -> None:
        self.guard.on_trial_result(0, self.trials, trial, {"loss": 1.0})

    def steps(self, count: int, seconds: float = 1.0) -> None:
        for _ in range(count):
            self.time += seconds
            self.guard.on_step_end(iteration=0, trials=self.trials)


def test_the_silent_one_is_ended_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tune_ext.StallGuard(10), monkeypatch)
    loop.steps(1)
    silent, lively = loop.start("silent"), loop.start("lively")
    for _ in range(4):
        loop.steps(5)
        loop.result(lively)
    assert loop.killed == ["actor of silent"]
    assert loop.guard.ended == ["silent"]
    loop.steps(9)
    assert loop.killed == ["actor of silent"]  # once, and the other is within its time
    loop.steps(2)
    assert loop.killed == ["actor of silent", "actor of lively"]
    loop.guard.on_trial_start(0, loop.trials, silent)  # Ray tries it again
    loop.steps(11)
    assert loop.killed[2:] == ["actor of silent"]


def test_trials_that_do_not_run_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tune_ext.StallGuard(10), monkeypatch)
    loop.steps(1)
    trial = loop.start("a")
    trial.status = "PAUSED"
    loop.steps(50)
    trial.status = "RUNNING"
    loop.guard.on_trial_restore(0, loop.trials, trial)
    loop.steps(9)
    loop.guard.on_trial_save(0, loop.trials, trial)
    loop.steps(9)
    assert loop.killed == []
    loop.steps(2)
    assert loop.killed == ["actor of a"]


def test_the_first_result_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tune_ext.StallGuard(3, first=20), monkeypatch)
    loop.steps(1)
    trial = loop.start("a")
    loop.steps(19)
    loop.result(trial)
    loop.steps(3)
    assert loop.killed == []
    loop.steps(1)
    assert loop.killed == ["actor of a"]


def test_a_driver_that_slept_blames_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tune_ext.StallGuard(10), monkeypatch)
    loop.steps(1)
    loop.start("a")
    loop.steps(1, seconds=3600.0)
    loop.steps(1, seconds=-3600.0)
    loop.steps(5)
    assert loop.killed == []
    loop.steps(1)
    assert loop.killed == ["actor of a"]


def test_a_copy_watches_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Loop(tune_ext.StallGuard(10), monkeypatch)
    first.guard._clock = abs  # the test's own does not pickle
    copy = cloudpickle.loads(cloudpickle.dumps(first.guard))
    loop = Loop(copy, monkeypatch)
    loop.start("a")
    loop.steps(12)
    assert loop.killed == ["actor of a"]


@pytest.mark.parametrize(("value", "error"), [(0, InvalidValueError), ("1", InvalidTypeError)])
def test_impossible_times(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="seconds"):
        tune_ext.StallGuard(value)
    with pytest.raises(error, match="first"):
        tune_ext.StallGuard(1, first=value)
