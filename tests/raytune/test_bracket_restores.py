"""HyperBand and BOHBSearch, interrupted at any step: as if nothing had happened."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from tests.raytune.interrupted import MINIMUM, Kind, Listed, Reached, Run, Snapshot, ours
from tune_ext.raytune import BOHBSearch

ASYNCHRONOUS = [False, True]


class Lossy:
    """Best at .3; a failure or NaN where asked, and epochs that take 1 to 3 s."""

    heals = False

    def __init__(self, config: dict[str, Any]) -> None:
        self.x, self.epoch = config["x"], 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        if not self.heals and (self.epoch, int(10 * self.x)) in ((1, 7), (2, 2)):
            raise RuntimeError("as planned")
        loss = math.nan if self.x > 0.93 else abs(self.x - 0.3) + 0.1 / self.epoch
        return {"loss": loss, "seconds": 1.0 + int(1000 * self.x) % 3, "done": False}

    def state(self) -> int:
        return self.epoch

    def load(self, state: int) -> None:
        self.epoch = state


class Healed(Lossy):
    heals = True


def given() -> Listed:
    return Listed([7 * i % 20 / 20 for i in range(20)])


class Counted(BOHBSearch):
    """So many suggestions, also over a restore."""

    def __init__(self, left: int = 20) -> None:
        super().__init__({"x": tune.uniform(0, 1)}, seed=3, **MINIMUM)
        self.left = left

    def suggest(self, trial_id: str) -> Any:
        if not self.left:
            return "FINISHED"
        self.left -= 1
        return super().suggest(trial_id)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "left": self.left}

    def _load_state(self, state: Any) -> None:
        super()._load_state(state)
        self.left = state["left"]


class Study:
    """Runs of one experiment, each going on from the last."""

    def __init__(self, searcher: Any, home: Path, **options: Any) -> None:
        self.searcher, self.home, self.options = searcher, home, options
        self.seen, self.snapshot = Reached(), None
        self.last: Run | None = None

    def run(self, steps: int | None, trainable: Any = Lossy, **options: Any) -> Snapshot | None:
        both: dict[str, Any] = {**self.options, **options}
        asynchronous = both.pop("asynchronous", False)
        self.last = Run(
            trainable,
            self.searcher(),
            ours(asynchronous=asynchronous),
            storage=self.home,
            callbacks=[self.seen],
            after=self.snapshot,
            **both,
        )
        self.snapshot = self.last.step(steps)
        return self.snapshot

    def outcome(self) -> tuple[dict[Any, int], Any]:
        """The budget that each configuration reached, and the configuration to recommend."""
        assert self.last is not None
        assert all(trial.is_finished() for trial in self.last.trials())
        ended = [
            t for t in self.last.trials() if math.isfinite(t.last_result.get("loss", math.nan))
        ]
        best = min(
            ended, key=lambda t: (-t.last_result["training_iteration"], t.last_result["loss"])
        )
        return self.seen.epochs, best.config["x"]


def whole(searcher: Any, home: Path, **options: Any) -> tuple[Any, int]:
    study = Study(searcher, home, **options)
    study.run(None)
    assert study.last is not None
    return study.outcome(), study.last.controller._iteration


@pytest.mark.parametrize("asynchronous", ASYNCHRONOUS)
@pytest.mark.parametrize("workers", [1, 3])
def test_promotions_after_an_interruption_are_the_same(
    tmp_path: Path, asynchronous: bool, workers: int
) -> None:
    options = {"asynchronous": asynchronous, "workers": workers}
    expected, steps = whole(given, tmp_path, **options)
    assert sorted(expected[0].values())[-1] == 9
    for first in range(3, steps, 13):
        study = Study(given, tmp_path, **options)
        study.run(first)
        study.run(first % 11)  # and once more, soon after
        study.run(None)
        assert study.outcome() == expected, first


@pytest.mark.parametrize("asynchronous", ASYNCHRONOUS)
def test_suggestions_after_an_interruption_are_the_same(tmp_path: Path, asynchronous: bool) -> None:
    """With one worker; with more, what a suggestion knows depends on when trials end.

    Ray forgets which trials it had queued: at 2 of 147 steps, asynchronously at 3 of 167, a
    suggestion is made before a result that had come before it. There is one of these here.
    """
    expected, steps = whole(Counted, tmp_path, asynchronous=asynchronous)
    assert len(expected[0]) == 18  # two fail before they report
    others = []
    for first in range(3, steps, 13):
        study = Study(Counted, tmp_path, asynchronous=asynchronous)
        study.run(first)
        study.run(None)
        assert study.last is not None
        assert len(study.last.trials()) == 20
        if study.outcome() != expected:
            others.append(first)
    assert others == ([55] if asynchronous else [])


@pytest.mark.parametrize("asynchronous", ASYNCHRONOUS)
@pytest.mark.parametrize("errored", [Kind.RESTART, Kind.RESUME])
@pytest.mark.parametrize("searcher", [given, Counted])
def test_what_has_failed_is_tried_again_and_the_others_are_left_alone(
    tmp_path: Path, asynchronous: bool, errored: Kind, searcher: Any
) -> None:
    _, steps = whole(searcher, tmp_path, asynchronous=asynchronous)
    retried = 0
    for first in range(30, steps, 25):
        study = Study(searcher, tmp_path, asynchronous=asynchronous)
        study.run(first)
        assert study.last is not None
        before = {t.config["x"]: t for t in study.last.trials()}
        failed = {x for x, trial in before.items() if trial.status == "ERROR"}
        ended = {x: study.seen.epochs[x] for x, t in before.items() if t.status == "TERMINATED"}
        retried += len(failed)
        study.run(None, Healed, errored=errored)
        epochs, _ = study.outcome()
        assert all(trial.status == "TERMINATED" for trial in study.last.trials())
        assert {x: epochs[x] for x in ended} == ended
        assert all(epochs[x] in (1, 3, 9) for x in epochs)
        assert len(epochs) == 20
    assert retried > 3
