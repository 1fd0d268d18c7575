"""Faults of results, on the simulated clock: late, twice, out of order, of unknown trials.

Ray's loop has one thread, so a trial's results come in order and once. What comes otherwise comes
from retries (epochs again), from restores (trials of an earlier session, completions again), and
from whatever else drives a searcher. Here the methods that Ray calls are wrapped, and more is
delivered than Ray would.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.experiment import Trial

from experiments.chaos.cases_trials import quick, slow
from experiments.chaos.outcome import Outcome, case
from experiments.chaos.simulated import Fault, System, play, tally
from tune_ext.raytune._play import fake_trial

HOUR = 3600.0


class Noise:
    """Delivers what was delivered before once more, and what nobody ever asked for.

    Args:
        seed: Of what is delivered when.
        twice: Results and completions again, at once and later, also of trials that have ended.
        strangers: Results, failures and completions of trials that were never suggested.
        late: Results of trials that go on are held back until after the next event.
    """

    def __init__(
        self, seed: int, *, twice: bool = False, strangers: bool = False, late: bool = False
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.twice, self.strangers, self.late = twice, strangers, late
        self.count = 0
        self._old: list[Callable[[], Any]] = []
        self._held: dict[str, list[Callable[[], Any]]] = {}

    def __call__(self, search: Any, scheduler: Any) -> None:
        """Wrap what Ray calls."""
        self._search(search)
        if not self.late:  # what a scheduler decides late would be another rule
            self._schedule(scheduler)

    def _search(self, search: Any) -> None:
        tell, end = search.on_trial_result, search.on_trial_complete

        def result(trial_id: str, result: dict[str, Any]) -> None:
            self._deliver(trial_id, tell, trial_id, result=copy.deepcopy(result))
            self._stranger(tell, end, result)

        def complete(trial_id: str, result: Any = None, error: bool = False) -> None:
            self._release(trial_id)
            end(trial_id, result=copy.deepcopy(result), error=error)
            self._again(end, trial_id, result=copy.deepcopy(result), error=error)

        search.on_trial_result, search.on_trial_complete = result, complete

    def _deliver(self, trial_id: str, call: Callable[..., Any], *given: Any, **named: Any) -> None:
        held = [name for name in self._held if self.random.random() < 0.5]
        if self.late and self.random.random() < 0.4:
            self.count += 1
            self._held.setdefault(trial_id, []).append(lambda: call(*given, **named))
        else:
            call(*given, **named)
            self._again(call, *given, **named)
        for name in held:
            self._release(name)

    def _release(self, trial_id: str) -> None:
        """Deliver what was held back of a trial, out of order."""
        calls = self._held.pop(trial_id, [])
        for index in self.random.permutation(len(calls)):
            calls[index]()

    def _again(self, call: Callable[..., Any], *given: Any, **named: Any) -> None:
        if not self.twice:
            return
        self._old.append(lambda: call(*given, **copy.deepcopy(named)))
        for old in (self._old[-1], self._old[int(self.random.integers(len(self._old)))]):
            if self.random.random() < 0.5:
                self.count += 1
                old()

    def _stranger(
        self, tell: Callable[..., Any], end: Callable[..., Any], result: dict[str, Any]
    ) -> None:
        if not self.strangers or self.random.random() > 0.3:
            return
        self.count += 1
        name = f"stranger{self.count}"
        tell(name, result=copy.deepcopy(result))
        failed = self.random.random() < 0.5
        end(name, result=None if failed else copy.deepcopy(result), error=failed)

    def _schedule(self, scheduler: Any) -> None:
        tell, end = scheduler.on_trial_result, scheduler.on_trial_complete

        def result(tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            before = copy.deepcopy(result)
            decision = tell(tune_controller, trial, result)
            self._again(tell, tune_controller, trial, result=before)
            if self.strangers and self.random.random() < 0.3:
                self.count += 1
                stranger = fake_trial(trial.storage, trial.config, f"stranger{self.count}")
                stranger.set_status(Trial.RUNNING)
                tell(tune_controller, stranger, copy.deepcopy(before))
                scheduler.on_trial_error(tune_controller, stranger)
                end(tune_controller, stranger, copy.deepcopy(before))
            return str(decision)

        def complete(tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            end(tune_controller, trial, result)
            self._again(end, tune_controller, trial, result=copy.deepcopy(result))

        scheduler.on_trial_result, scheduler.on_trial_complete = result, complete


def noisy(
    name: str, systems: list[System], directory: Path, seeds: range, **kinds: bool
) -> Iterator[Outcome]:
    """Runs under one kind of noise; the answer is that of the run without."""
    for system in systems:
        runs = []
        for seed in seeds:
            expected = play(system, Fault(), directory, seed=seed, workers=2).answer
            noise, fault = Noise(seed, **kinds), Fault()
            played = play(system, fault, directory, seed=seed, workers=2, meddle=noise)
            # A model that sees a result later suggests something else in between.
            free = kinds.get("late", False) and system.models
            counted = {**vars(played), "hurt": noise.count}
            runs.append((type(played)(**counted), None if free else expected))
        yield tally(name, system, runs)


@case("results twice", "results and completions come again", short=True, here=True)
def twice(directory: Path, seed: int) -> Iterator[Outcome]:
    yield from noisy("results twice", quick(), directory, range(seed, seed + 2), twice=True)


@case("results of strangers", "of trials that were never suggested", short=True, here=True)
def strangers(directory: Path, seed: int) -> Iterator[Outcome]:
    seeds = range(seed, seed + 2)
    yield from noisy("results of strangers", quick(), directory, seeds, strangers=True)


@case("results late", "late and out of order", short=True, here=True)
def late(directory: Path, seed: int) -> Iterator[Outcome]:
    yield from noisy("results late", quick(), directory, range(seed, seed + 2), late=True)


@case("results, more", "twice, of strangers, late: SMAC and TuneBOHB", seconds=900)
def more(directory: Path, seed: int) -> Iterator[Outcome]:
    for what in ("twice", "strangers", "late"):
        label = f"results, more ({what})"
        yield from noisy(label, slow(), directory, range(seed, seed + 1), **{what: True})


class Leaps:
    """`time.time` leaps an hour forward or back, again and again.

    Args:
        seed: Of when and where to.
    """

    def __init__(self, seed: int) -> None:
        self.random, self.count, self.offset = np.random.default_rng(seed), 0, 0.0
        self._true = time.time

    def __call__(self) -> float:
        """The time, as a clock that leaps shows it."""
        if self.random.random() < 0.02:
            self.count += 1
            self.offset = float(self.random.choice([-HOUR, 0.0, HOUR]))
        return self._true() + self.offset

    def __enter__(self) -> Leaps:
        time.time = self
        return self

    def __exit__(self, *error: object) -> None:
        time.time = self._true


@case("clock leaps", "the clock on the wall leaps by an hour in the driver", short=True, here=True)
def leaps(directory: Path, seed: int) -> Iterator[Outcome]:
    """On the simulated clock, so that what is left of the wall's is what decides nothing."""
    for system in quick():
        runs = []
        for number in range(seed, seed + 2):
            expected = play(system, Fault(), directory, seed=number, workers=2).answer
            with Leaps(number) as clock:
                played = play(system, Fault(), directory, seed=number, workers=2)
            runs.append((type(played)(**{**vars(played), "hurt": clock.count}), expected))
        yield tally("clock leaps", system, runs)
