"""Faults of the processes of trials, on a real Ray: they are killed, or hang."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from experiments.chaos.outcome import Outcome, case
from experiments.chaos.real import OURS, RAYS, drive
from tune_ext.raytune import StallGuard

KILLS = ((1, "training"), (1, "saving"), (2, "saved"), (2, "reported"), (3, "training"))
HANG = ((2, "hang"),)


def _start() -> None:
    from tests import own_ray

    own_ray.start(num_cpus=2)


@case(
    "killed",
    "SIGKILL: in training, in the middle of saving, saved but not reported, just after a report",
    seconds=900,
)
def killed(directory: Path, seed: int) -> Iterator[Outcome]:
    _start()
    for system in (*OURS, RAYS[0]):
        yield drive("killed", system, directory / system.name.replace(" ", "-"), KILLS)


@case("hangs", "a trial hangs for ever; with StallGuard", seconds=900)
def hangs(directory: Path, seed: int) -> Iterator[Outcome]:
    _start()
    for system in OURS:
        guard = StallGuard(20, first=60)
        home = directory / system.name.replace(" ", "-")
        outcome = drive("hangs", system, home, HANG, callbacks=[guard])
        told = f"StallGuard(20, first=60) ended {len(guard.ended)} process(es)"
        yield replace(outcome, note="; ".join(filter(None, (told, outcome.note))))


@case("hangs, Ray's", "a trial hangs for ever; Ray's with time_budget_s", seconds=900)
def rays_hang(directory: Path, seed: int) -> Iterator[Outcome]:
    _start()
    system = RAYS[1]
    outcome = drive("hangs, Ray's", system, directory / "run", HANG, time_budget_s=120)
    yield replace(outcome, note=f"time_budget_s=120 ends everything: {outcome.note}")
