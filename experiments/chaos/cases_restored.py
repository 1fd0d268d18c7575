"""Drivers of Ray's that are killed and restored, and two that meet, on the simulated clock.

A driver is killed at any step of Ray's loop, and what Ray had saved then is restored by Ray's own
code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from experiments.chaos import studies
from experiments.chaos.outcome import Ended, Outcome, case
from experiments.chaos.simulated import MINIMUM, Fault, R, System, is_number
from experiments.chaos.simulated import SYSTEMS as ALL
from tests.raytune.interrupted import Run
from tune_ext.benchmark.simulation import SimulationStuck
from tune_ext.errors import StateError

SUGGESTIONS = 24


def _limited(search: Any) -> Any:
    """A searcher that ends after so many suggestions, also over restores; see `_play`."""
    from ray.tune.search import Searcher

    suggest = search.suggest
    box = search.__dict__.setdefault("_chaos", {"left": SUGGESTIONS})

    def next_one(trial_id: str) -> Any:
        if not box["left"]:
            return Searcher.FINISHED
        box["left"] -= 1
        return suggest(trial_id)

    search.suggest = next_one
    return search


def _bohb(seed: int) -> tuple[Any, Any]:
    from tune_ext.raytune import BOHBSearch, HyperBand

    space = {"x": tune.uniform(0.0, 1.0)}
    return _limited(BOHBSearch(space, seed=seed, **MINIMUM)), HyperBand(max_t=R, **MINIMUM)


class _Restorable:
    """Ray's TuneBOHB with a count of suggestions that it saves with the rest."""

    @staticmethod
    def make(seed: int) -> tuple[Any, Any]:
        from ray.tune.schedulers import HyperBandForBOHB
        from ray.tune.search import Searcher
        from ray.tune.search.bohb import TuneBOHB

        class Limited(TuneBOHB):  # type: ignore[misc] # Ray's classes are untyped
            left = SUGGESTIONS

            def suggest(self, trial_id: str) -> Any:
                if not self.left:
                    return Searcher.FINISHED
                self.left -= 1
                return super().suggest(trial_id)

        np.random.seed(seed)  # noqa: NPY002 (hpbandster draws from it)
        space = TuneBOHB.convert_search_space({"x": tune.uniform(0.0, 1.0)})
        return Limited(space, **MINIMUM, seed=seed), HyperBandForBOHB(max_t=R, **MINIMUM)


RESTORED = {
    "ours: autoHyper": ALL["ours: autoHyper"],
    "ours: ExpTest": ALL["ours: ExpTest"],
    "ours: HyperBand + BOHBSearch": System("ours: HyperBand + BOHBSearch", _bohb),
    "ours: ImageGrowthSearch": ALL["ours: ImageGrowthSearch"],
    "ray: HyperBandForBOHB + TuneBOHB": System(
        "ray: HyperBandForBOHB + TuneBOHB", _Restorable.make, slow=True
    ),
}


class Restored:
    """A run that is killed at a step of Ray's loop and restored from what Ray had saved then."""

    def __init__(self, system: System, home: Path, seed: int) -> None:
        self.system, self.home, self.seed = system, home, seed
        self.fault = Fault()

    def _begin(self, after: Any = None) -> Run:
        search, scheduler = self.system.make(self.seed)
        run = Run(
            lambda config: self.system.trainable(config, self.fault),
            search,
            scheduler,
            storage=self.home,
            after=after,
        )
        if after is not None and "_chaos" in search.__dict__:
            search._chaos["left"] = SUGGESTIONS - after.generator["counter"]
        return run

    def whole(self) -> tuple[Any, int]:
        """The answer without a fault, and the steps that it takes."""
        run = self._begin()
        run.step()
        return self.system.answer(run.searcher, run.trials()), run.controller._iteration

    def killed(self, step: int) -> tuple[Any, int, int]:
        """The answer after a kill; results lost; finished trials that trained again."""
        run = self._begin()
        saved = run.step(step)
        if saved is None:
            return self.system.answer(run.searcher, run.trials()), 0, 0
        ended = {t.trial_id: _result(t) for t in run.trials() if t.status == "TERMINATED"}
        names = {i: (t.config, dict(self.fault.steps)) for i, t in _by_id(run).items()}
        run = self._begin(saved)
        run.step()
        now = _by_id(run)
        lost = sum(i not in now or _result(now[i]) != ended[i] for i in ended)
        again = sum(
            self._trained(now[i]) > self._trained_before(names[i]) for i in ended if i in now
        )
        return self.system.answer(run.searcher, run.trials()), lost, again

    def _name(self, config: Any) -> str:
        return self.system.trainable(config, Fault()).name()

    def _trained(self, trial: Any) -> int:
        name = self._name(trial.config)
        return sum(times for (n, _), times in self.fault.steps.items() if n == name)

    def _trained_before(self, kept: tuple[Any, Any]) -> int:
        name = self._name(kept[0])
        return sum(times for (n, _), times in kept[1].items() if n == name)


def _by_id(run: Run) -> dict[str, Any]:
    return {t.trial_id: t for t in run.trials()}


def _result(trial: Any) -> Any:
    result = trial.last_result or {}
    told = result.get("loss", result.get("response_mean"))
    return result.get("training_iteration"), told if is_number(told) else None


def restored(name: str, system: System, directory: Path, seed: int, kills: int) -> Outcome:
    """Kill a run at so many steps of Ray's loop, evenly over its life."""
    home = directory / system.name.replace(" ", "-").replace(":", "")
    home.mkdir(parents=True)
    expected, steps = Restored(system, home, seed).whole()
    lost = again = survived = other = hung = crashed = 0
    said = ""
    moments = np.unique(np.linspace(1, steps - 1, kills).astype(int))
    for step in moments:
        try:
            answer, gone, twice = Restored(system, home, seed).killed(int(step))
        except SimulationStuck:
            hung += 1
            continue
        except Exception as error:  # what becomes of it is the result
            crashed, said = (
                crashed + 1,
                f"; {type(error).__name__}: {str(error).splitlines()[-1][:90]}",
            )
            continue
        lost, again, other = lost + gone, again + twice, other + (answer != expected)
        survived += not gone and not twice and answer == expected
    ended: Ended = "hung" if hung else "crashed" if crashed else "finished"
    told = f"{hung} hang, {crashed} crash, {other} with another answer{said}"
    return Outcome(
        name,
        system.name,
        len(moments),
        survived,
        lost,
        again,
        other == 0 if hung + crashed < len(moments) else None,
        ended,
        note="" if survived == len(moments) else told,
    )


@case("restored, short", "a driver killed at 5 steps, restored by Ray", short=True, here=True)
def restored_shortly(directory: Path, seed: int) -> Iterator[Outcome]:
    """Some steps of each of ours."""
    for system in RESTORED.values():
        if not system.slow:
            yield restored("restored, short", system, directory, seed, 5)


@case("restored", "a driver killed at 50 steps of Ray's loop, restored by Ray", seconds=900)
def restored_often(directory: Path, seed: int) -> Iterator[Outcome]:
    """Ours, and Ray's TuneBOHB."""
    for system in RESTORED.values():
        yield restored("restored", system, directory, seed, 50)


def _slowly(run: Run) -> None:
    """Drive a run for as long as this process lives."""
    while True:
        if not run.controller.is_finished():
            run.controller.step()
        time.sleep(1.0)


@case("two drivers of an experiment", "a second driver in the same directory of Ray's")
def two_of_an_experiment(directory: Path, seed: int) -> Iterator[Outcome]:
    """The second is told; Ray's own write over each other."""
    for name in (
        "ours: autoHyper",
        "ours: ExpTest",
        "ours: HyperBand + BOHBSearch",
        "ray: HyperBandForBOHB + TuneBOHB",
    ):
        system, home = RESTORED[name], directory / name.replace(" ", "-").replace(":", "")
        home.mkdir()
        both = [Restored(system, home, seed)._begin() for _ in range(2)]
        pid = os.fork()
        if pid == 0:
            studies._ends(lambda run=both[0]: _slowly(run))
        told = ""
        began = time.monotonic()
        time.sleep(2.0)
        try:
            both[1].step()
        except StateError as error:
            told = str(error)
        except Exception as error:  # Ray wraps what its callbacks raise
            told = str(error) if "another driver" in str(error) else ""
        studies.kill(pid)
        yield Outcome(
            "two drivers of an experiment",
            name,
            1,
            int(bool(told)),
            ended="clear error" if told else "finished",
            note=f"told after {time.monotonic() - began:.0f} s: {' '.join(told.split())[:140]}"
            if told
            else "not told: both run in one directory, and a restore finds parts of each",
        )
