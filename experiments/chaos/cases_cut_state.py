"""Ray's own files of an experiment are cut off, as by a kill while Ray copies them over the last.

The driver ends in the middle of a real run. Then the end of one file of its state is cut off, and
the experiment is resumed: until it goes on, at most twice for a file.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ray import tune

from experiments.chaos.cases_processes import _start
from experiments.chaos.outcome import Ended, Outcome, case
from experiments.chaos.real import OURS, RAYS, System, accounts, expected, noted, train
from tests.raytune.test_restore import Ends, wait_for_copies
from tune_ext import repair_experiment
from tune_ext.errors import StateError
from tune_ext.raytune import _state_copy

STATE = "experiment_state-*.json"
FILES = {
    True: (STATE, "search_gen_state-*.json", "searcher-state-*.json"),
    False: (STATE, "basic-variant-state-*.json"),
}
"""What Ray keeps of searches in searchers, and of a grid."""


def run(system: System, home: Path, *, resume: bool, after: int = -1) -> tuple[Any, str]:
    """The options and trials of a run, and how it ended if not by itself."""
    given = system.options()
    given["config"] = {**given["config"], "home": str(home), "plan": [], "seconds": 0.02}
    where = {"storage_path": str(home), "name": "experiment", "callbacks": [Ends(home, after)]}
    limits: dict[str, Any] = {"raise_on_failed_trial": False, "verbose": 0, "reuse_actors": True}
    try:
        trials = tune.run(train, **{**given, **limits, **where, "resume": resume}).trials
    except Exception as crash:  # whatever a system under test raises is its result
        return (given, []), f"{type(crash).__name__}: {crash}"
    finally:
        wait_for_copies()
    return (given, trials), ""


def from_the_start(home: Path, before: int) -> int:
    """Trials that were begun again although several of their epochs had been reported."""
    lines = noted(home)
    known = {name for name, epoch, what in lines[:before] if what == "reported" and epoch >= 3}
    return len({name for name, epoch, what in lines[before:] if epoch == 1} & known)


def cut_and_resume(system: System, home: Path, pattern: str, after: int, share: float) -> Outcome:
    """One driver, one file that is cut, and what comes of it."""
    home.mkdir(parents=True)
    experiment, began = home / "experiment", time.monotonic()
    run(system, home, resume=False, after=after)
    with contextlib.suppress(StateError):  # nothing is kept of Ray's own
        repair_experiment(experiment)
    before = len(noted(home))
    path = max(experiment.glob(pattern))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    (given, trials), told = run(system, home, resume=True)
    first = told
    if first:
        (given, trials), told = run(system, home, resume=True)
    how = "an error, then it went on" if first and not told else told or "no error"
    ended: Ended = "crashed" if told else "finished"
    again = from_the_start(home, before)
    lost, _ = accounts(home, trials, 2)
    same = bool(trials) and system.answer(given, trials) == expected(system)
    well = same and not (told or again or lost)
    return Outcome(
        "state cut",
        system.name,
        1,
        int(well),
        lost,
        again,
        same,
        ended,
        time.monotonic() - began,
        f"{pattern}: {how}{', and it began again' if again else ''}",
    )


def _cases(directory: Path, seed: int, systems: Any, times: int) -> Iterator[Outcome]:
    random = np.random.default_rng(seed)
    _start()
    for system in systems:
        own = system.name.startswith("ours")
        home = directory / system.name.replace(" ", "-")
        whole = cut_and_resume(system, home / "whole", STATE, 18, 1.0)
        rows = []
        for pattern in FILES[own]:
            for turn in range(times):
                after, share = int(random.integers(14, 24)), float(random.uniform(0, 0.98))
                where = home / f"{pattern.partition('-')[0]} {turn}"
                rows.append(cut_and_resume(system, where, pattern, after, share))
        control = "goes on" if whole.is_well else "does not go on"
        yield Outcome(
            "state cut",
            system.name,
            len(rows),
            sum(row.survived for row in rows),
            sum(row.lost_results for row in rows),
            sum(row.repeated_trials for row in rows),
            all(bool(row.same_answer) for row in rows),
            "crashed" if any(row.ended == "crashed" for row in rows) else "finished",
            sum(row.seconds for row in rows),
            "; ".join(dict.fromkeys([f"uncut, it {control}", *(row.note for row in rows)])),
        )


@case("state cut", "Ray's copy of its state is cut off: each file at seeded places", seconds=1800)
def state_cut(directory: Path, seed: int) -> Iterator[Outcome]:
    """Ours and Ray's, three times for every kind of file."""
    # As often as Ray saves, which is a hundred times as often as ever.
    often = mock.patch.object(_state_copy, "_SHARE", 0.0)
    with often, mock.patch.dict(os.environ, TUNE_GLOBAL_CHECKPOINT_S="0.1"):
        yield from _cases(directory, seed, (*OURS, *RAYS), 3)
