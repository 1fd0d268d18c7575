"""Budgets in seconds, where the clock of a machine is set back while trials train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.raytune.interrupted import MINIMUM, Listed, R, Reached, Run
from tune_ext.raytune import AutoHyperScheduler, ExpTestScheduler, HyperBand
from tune_ext.raytune._trial_time import TrialTime

HOUR = 3600.0
VALUES = [float(7 * i % 12) for i in range(12)]


class Timed:
    """An epoch a second; the clock of some is set back in their second epoch."""

    leaps = True

    def __init__(self, config: dict[str, Any]) -> None:
        self.x, self.epoch = config["x"], 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        back = HOUR if self.leaps and self.x % 3 == 0 and self.epoch > 1 else 0.0
        # Without a leap it takes a second more, which a clock that was set back does not show.
        shown = self.epoch - back
        done = self.epoch >= 50
        return {"loss": self.x, "clock": shown, "seconds": 1.0, "done": done}

    def state(self) -> int:
        return self.epoch

    def load(self, state: int) -> None:
        self.epoch = state


class Steady(Timed):
    leaps = False


def reached(trainable: Any, scheduler: Any, home: Path) -> dict[Any, int]:
    seen = Reached()
    Run(trainable, Listed(VALUES), scheduler, storage=home, workers=3, callbacks=[seen]).step()
    return seen.epochs


@pytest.mark.parametrize("asynchronous", [False, True])
def test_brackets(tmp_path: Path, asynchronous: bool) -> None:
    """A trial gets an epoch more at most: the one in which its clock was set back."""

    def scheduler() -> HyperBand:
        return HyperBand("clock", max_t=R, asynchronous=asynchronous, **MINIMUM)

    steady = reached(Steady, scheduler(), tmp_path)
    leaping = reached(Timed, scheduler(), tmp_path)
    assert max(steady.values()) == R
    assert {x: leaping[x] - steady[x] for x in steady if leaping[x] - steady[x] not in (0, 1)} == {}


@pytest.mark.parametrize(
    "scheduler",
    [AutoHyperScheduler("clock", 3, max_t=5), ExpTestScheduler("clock", max_t=5)],
    ids=["autohyper", "exptest"],
)
def test_ends_of_trials(tmp_path: Path, scheduler: Any) -> None:
    assert set(reached(Timed, scheduler, tmp_path).values()) == {5, 6}


def test_a_trial_that_goes_on_from_a_checkpoint_is_no_leap() -> None:
    time = TrialTime("seconds")
    epochs = [(1, 10.0), (2, 20.0), (3, -3570.0), (2, -3560.0), (3, -3550.0)]
    told = [time.read("a", {"training_iteration": i, "seconds": s}) for i, s in epochs]
    assert told == [10.0, 20.0, 20.0, -3560.0, -3550.0]
    time.forget("a")
    assert time.read("a", {"training_iteration": 4, "seconds": 1.0}) == 1.0
    assert time.read("a", {"training_iteration": 5, "seconds": None}) is None
    assert time.read("a", {"seconds": 7.0}) == 7.0
