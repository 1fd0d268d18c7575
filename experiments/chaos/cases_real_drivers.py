"""Drivers killed on a real Ray: `tune-ext compare` while it trains, and `Tuner.restore`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.chaos import studies
from experiments.chaos.outcome import Outcome, case
from tests.raytune import test_restore
from tests.raytune.trainables import answer, environment, notes
from tune_ext.benchmark.processes import descendants

STUDY = """
title = "Killed while it trains"
[[tasks]]
name = "digits-mlp"
[compare]
methods = ["default", "random", "tpe"]
seeds = 1
budget = 12
"""

COMPARE = [sys.executable, "-m", "tune_ext.cli", "compare"]


def compare(study: Path, out: Path, after: float | None) -> int:
    """Run the command, and kill it after so many seconds; its exit code."""
    command = [*COMPARE, str(study), "--out", str(out), "--jobs", "1"]
    with out.with_suffix(".txt").open("ab") as said:
        driver = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment()
        )
        try:
            return driver.wait(timeout=after)
        except subprocess.TimeoutExpired:
            driver.kill()
            return driver.wait()


def timeless(told: Any) -> Any:
    """Without what a clock has measured."""
    if isinstance(told, dict):
        return {k: timeless(v) for k, v in told.items() if not k.endswith("seconds")}
    return [timeless(each) for each in told] if isinstance(told, list | tuple) else told


@case("driver killed while it trains", "SIGKILL at seeded moments of real trainings", seconds=1200)
def while_it_trains(directory: Path, seed: int) -> Iterator[Outcome]:
    """A study of the digits, killed three times, by the command line."""
    study = directory / "study.toml"
    study.write_text(STUDY)
    began = time.monotonic()
    compare(study, directory / "whole", None)
    seconds = time.monotonic() - began
    expected = studies.answers(directory / "whole")
    random, out = np.random.default_rng(seed), directory / "killed"
    kills = lost = 0
    before: list[bytes] = []
    for share in (*random.uniform(0.2, 0.8, 3), None):
        code = compare(study, out, None if share is None else float(share) * seconds)
        kills += code == -signal.SIGKILL
        now = studies.lines(out)
        lost += sum(a != b for a, b in zip(before, now, strict=False)) + max(
            0, len(before) - len(now)
        )
        before = now
    found = studies.answers(out)
    twice = studies.cells_in(studies.lines(out)) - len(found)
    same = {k: timeless(v[:2]) for k, v in found.items()} == {
        k: timeless(v[:2]) for k, v in expected.items()
    }
    yield Outcome(
        "driver killed while it trains",
        "tune-ext compare",
        kills,
        kills if same and not lost and not twice and code == 0 else 0,
        lost + len(expected.keys() - found.keys()),
        twice,
        same,
        "finished" if code == 0 else "crashed",
        note=f"{len(expected)} cells of digits-mlp, {seconds:.0f} s undisturbed",
    )


def lives(
    home: Path, kind: str, moments: list[int], bound: float
) -> tuple[int, bool, list[tuple[int, set[float]]]]:
    """Drive an experiment, and kill the driver when its trials have left so many more notes.

    Returns:
        How often it was killed, whether it came to its end within its time, and for each kill how
        many notes there were, and the rates of probes that had finished.
    """
    kills, seen = 0, []
    for more in (*moments, None):
        before, done = len(notes(home)), False
        with (home / "driver.log").open("ab") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "tests.raytune.driver", str(home), kind],
                env=environment(),
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
            end = time.monotonic() + bound
            while driver.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
                ready = test_restore.saved(home / "experiment")
                if more is not None and ready and len(notes(home)) - before >= more:
                    test_restore.kill(driver, home / "experiment")
                    break
            done = driver.poll() == 0
            for victim in (*descendants(driver.pid), driver.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            driver.wait()
        if done:
            return kills, True, seen
        kills += more is not None
        seen.append((len(notes(home)), test_restore.recorded(home / "experiment")))
    return kills, False, seen


@case("Tuner.restore", "SIGKILL of drivers on a real Ray", seconds=1500)
def restore(directory: Path, seed: int) -> Iterator[Outcome]:
    """autoHyper, killed at seeded moments; then restored by Ray until it ends."""
    random, home = np.random.default_rng(seed), directory / "autohyper"
    home.mkdir()
    moments = [int(n) for n in random.integers(1, 14, 4)]
    kills, ended, seen = lives(home, "autohyper", moments, 300)
    rows: list[Any] = []
    if (home / "results.json").exists():
        rows = json.loads((home / "results.json").read_text())
    final = [r["lr"] for r in rows if r["tune_ext"]["role"] == "final"]
    same = final == [answer()["lr"]]
    entries = notes(home)
    known = sum(len(test_restore.probed(entries[count:]) & had) for count, had in seen)
    yield Outcome(
        "Tuner.restore",
        "ours: autoHyper",
        kills,
        kills if ended and same and not known else 0,
        0,
        known,
        same,
        "finished" if ended else "hung",
        note=f"killed after {[count for count, _ in seen]} epochs of its trials",
    )
