"""Faults of trials, on the simulated clock: they raise, once or always, or report no number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.chaos.outcome import Outcome, case
from experiments.chaos.simulated import (
    KINDS,
    SYSTEMS,
    Always,
    Fault,
    Once,
    PlannedError,
    Played,
    Response,
    System,
    play,
    tally,
)
from tests.raytune.exptest_trainables import serial
from tune_ext.autohyper import AutoHyper, Parameter

SEEDS = 3
EPOCHS = (1, 2)


def quick() -> list[System]:
    return [system for system in SYSTEMS.values() if not system.slow]


def slow() -> list[System]:
    return [system for system in SYSTEMS.values() if system.slow]


def without_a_fault(system: System, directory: Path, seed: int) -> Any:
    """The answer of a run in which all goes well."""
    return play(system, Fault(), directory, seed=seed).answer


def raises(
    name: str, systems: Sequence[System], directory: Path, seeds: Sequence[int]
) -> Iterator[Outcome]:
    """Trials of a region raise always: at their first epoch, or at their second."""
    for system in systems:
        runs = []
        for seed in seeds:
            expected = told_of_failures(system)
            if expected is None and not system.models:
                expected = without_a_fault(system, directory, seed)
            for epoch in EPOCHS:
                played = play(system, Always(epoch=epoch), directory, seed=seed)
                runs += [(played, expected)] if played.hurt else []
        yield tally(name, system, runs)


def told_of_failures(system: System) -> Any:
    """What the pure core of a search answers if it is told of the failures one by one."""
    if system.name == "ours: ExpTest":
        return {"lr": serial(crash_above=0.2).lr}
    if system.name != "ours: autoHyper":
        return None
    search = AutoHyper([Parameter.learning_rate(upper=1.0)])
    while not search.finished:
        for probe in search.ask():
            config = {"lr": probe.values["lr"], "tune_ext": {"role": "probe"}}
            try:
                value = Response(config, Always()).step()["response_mean"]
            except PlannedError:
                value = None
            search.tell(probe.id, value)
    return search.best


def not_a_number(
    name: str, systems: Sequence[System], directory: Path, seeds: Sequence[int]
) -> Iterator[Outcome]:
    """As `raises`, and the answer is the one of trials that raise there."""
    for system in systems:
        runs: list[tuple[Played, Any]] = []
        for seed in seeds:
            for epoch in EPOCHS[:1] if system.slow else EPOCHS:
                reference = play(system, Always(epoch=epoch), directory, seed=seed)
                if not reference.hurt:
                    continue
                for value in KINDS.values():
                    fault = Always(instead=value, epoch=epoch)
                    runs.append((play(system, fault, directory, seed=seed), reference.answer))
        yield tally(name, system, runs)


@case("raises", "trials of a region raise at their first or second epoch", short=True, here=True)
def raises_short(directory: Path, seed: int) -> Iterator[Outcome]:
    yield from raises("raises", quick(), directory, [seed])


@case("raises, more", "the same with more seeds, SMAC and TuneBOHB", seconds=900)
def raises_long(directory: Path, seed: int) -> Iterator[Outcome]:
    yield from raises("raises, more", slow(), directory, [seed])
    yield from raises("raises, more", quick(), directory, range(seed, seed + SEEDS))


@case(
    "not a number",
    "trials of a region report NaN, ±inf, None, or no metric, from their first or second epoch",
    short=True,
    here=True,
)
def not_a_number_short(directory: Path, seed: int) -> Iterator[Outcome]:
    yield from not_a_number("not a number", quick(), directory, [seed])


@case("not a number, more", "the same with more seeds, SMAC and TuneBOHB", seconds=900)
def not_a_number_long(directory: Path, seed: int) -> Iterator[Outcome]:
    yield from not_a_number("not a number, more", slow(), directory, [seed])
    yield from not_a_number("not a number, more", quick(), directory, range(seed, seed + SEEDS))


def raises_once(
    name: str, systems: Sequence[System], directory: Path, seeds: Sequence[int]
) -> Iterator[Outcome]:
    """Every third trial dies at one of its first three epochs; Ray tries it again."""
    for system in systems:
        runs = []
        for seed in seeds:
            # Ray starts what it has staged before it tries a trial again: a model sees the results
            # in another order, and suggests something else.
            expected = None if system.models else without_a_fault(system, directory, seed)
            for offset in (0,) if system.slow else (0, 1, 2):
                fault = Once(seed=offset)
                runs.append((play(system, fault, directory, seed=seed, retries=1), expected))
        yield tally(name, system, runs)


@case("raises once", "every third trial dies, and is tried again", short=True, here=True)
def raises_once_short(directory: Path, seed: int) -> Iterator[Outcome]:
    yield from raises_once("raises once", quick(), directory, [seed])


@case("raises once, more", "the same with more seeds, SMAC and TuneBOHB", seconds=900)
def raises_once_long(directory: Path, seed: int) -> Iterator[Outcome]:
    yield from raises_once("raises once, more", slow(), directory, [seed])
    yield from raises_once("raises once, more", quick(), directory, range(seed, seed + SEEDS))
