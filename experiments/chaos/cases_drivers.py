"""Drivers that are killed, and two that meet.

A driver of a comparison is killed at seeded moments of its life, and at chosen ones: with half a
record written, before the disk has it, before its settings are in place. The same command goes on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.chaos import studies
from experiments.chaos.outcome import Outcome, case
from tune_ext.benchmark._storage import Mirror, Storage
from tune_ext.benchmark.records import RecordStore

Moment = Callable[[], None]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_record(n: int, share: float) -> Moment:
    """Die while the n-th record from now is written, with a share of it on the disk."""

    def before() -> None:
        write, count = RecordStore._write, iter(range(n, 0, -1))

        def dies(self: RecordStore, data: bytes) -> None:
            if next(count) == 1:
                with self.path.open("ab") as file:
                    file.write(data[: int(len(data) * share)])
                _die()
            write(self, data)

        RecordStore._write = dies  # type: ignore[method-assign]

    return before


def before_call(owner: Any, name: str, n: int) -> Moment:
    """Die when a function is called for the n-th time."""

    def before() -> None:
        function, count = getattr(owner, name), iter(range(n, 0, -1))

        def dies(*args: Any, **named: Any) -> Any:
            if next(count) == 1:
                _die()
            return function(*args, **named)

        setattr(owner, name, dies)

    return before


def chosen_moments(rounds: int) -> list[Moment]:
    """The moments at which a file is between two states."""
    found: list[Moment] = []
    for n in range(1, rounds + 1):
        shares = (0.0, 0.01 * n, 0.5, 0.99)
        found += [half_a_record(n, share) for share in shares]
        found.append(before_call(os, "fsync", n))
    return [*found, before_call(Path, "replace", 1)]


class Killed:
    """Counts what drivers lose that are killed.

    Args:
        directory: For the studies.
        jobs: Cells at once.
    """

    def __init__(self, directory: Path, jobs: int = 2) -> None:
        self.directory, self.jobs = directory, jobs
        self.injected = self.lost = self.repeated = self.studies = self.hung = 0
        self.differs = 0
        began = time.monotonic()
        self.whole = directory / "undisturbed"
        code = studies.wait_for(studies.start(self.whole, jobs=jobs), 200)
        if code != 0:
            raise RuntimeError(
                f"the undisturbed study ended with {code}: {studies.said(self.whole)}"
            )
        self.seconds = time.monotonic() - began
        self.expected = studies.answers(self.whole)

    def life(self, out: Path, moment: Moment | None, after: float | None) -> bool:
        """One life of a driver; whether the study is over."""
        before = studies.lines(out)
        studies.wait_for_lock(out)
        pid = studies.start(out, before=moment or (lambda: None), jobs=self.jobs)
        if after is not None:
            end = time.monotonic() + after
            process = studies._Forked(pid)
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.001)
            code = process.returncode
            if code is None:
                studies.kill(pid)
                code = -signal.SIGKILL
        else:
            code = studies.wait_for(pid, 200)
        now = studies.lines(out)
        self.lost += sum(a != b for a, b in zip(before, now, strict=False))
        self.lost += max(0, len(before) - len(now))
        self.injected += code == -signal.SIGKILL
        self.hung += code is None
        if code not in (0, None, -signal.SIGKILL):
            raise RuntimeError(f"a driver ended with {code}: {studies.said(out)[-2000:]}")
        return code in (0, None)

    def check(self, out: Path) -> None:
        """Count what a study that is over has lost, in the end."""
        self.studies += 1
        found = studies.answers(out)
        self.lost += len(self.expected.keys() - found.keys())
        self.repeated += studies.cells_in(studies.lines(out)) - len(found)
        self.differs += found != self.expected

    def outcome(self, name: str) -> Outcome:
        """What it counted."""
        bad = self.lost + self.repeated + self.differs + self.hung
        return Outcome(
            name,
            "tune-ext compare",
            self.injected,
            self.injected if not bad else max(0, self.injected - bad),
            self.lost,
            self.repeated,
            not self.differs,
            "hung" if self.hung else "finished",
            note=f"{self.studies} studies of {len(self.expected)} cells, {self.jobs} at once, "
            "begun again with the same command until they ended; looked-up tasks",
        )


def killed_at_random(name: str, directory: Path, seed: int, kills: int) -> Outcome:
    """Kill drivers at seeded moments until so many were."""
    killed, random = Killed(directory), np.random.default_rng(seed)
    while killed.injected < kills:
        out = directory / f"study{killed.studies}"
        while not killed.life(out, None, float(random.uniform(0, 0.7)) * killed.seconds):
            pass
        killed.check(out)
    return killed.outcome(name)


def killed_in_writing(name: str, directory: Path, seed: int, rounds: int) -> Outcome:
    """Kill drivers when a file is between two states."""
    killed = Killed(directory)
    moments = chosen_moments(rounds)
    while moments:
        out, over = directory / f"study{killed.studies}", False
        while moments and not over:
            over = killed.life(out, moments.pop(0), None)
        while not over:
            over = killed.life(out, None, None)
        killed.check(out)
    return killed.outcome(name)


@case("driver killed, short", "SIGKILL while a record is written", short=True, seconds=200)
def short(directory: Path, seed: int) -> Iterator[Outcome]:
    """A few moments of writing."""
    yield killed_in_writing("driver killed, short", directory, seed, 1)


@case("driver killed at random", "SIGKILL at 60 seeded moments of a comparison", seconds=900)
def at_random(directory: Path, seed: int) -> Iterator[Outcome]:
    """Any moment of a driver's life, its start included."""
    yield killed_at_random("driver killed at random", directory, seed, 60)


@case("driver killed in writing", "SIGKILL between two states of a file", seconds=900)
def in_writing(directory: Path, seed: int) -> Iterator[Outcome]:
    """Every moment at which a file is neither the one nor the other."""
    yield killed_in_writing("driver killed in writing", directory, seed, 5)


# Two drivers


@case("two drivers", "a second driver on the same --out or the same --storage", short=True)
def two_drivers(directory: Path, seed: int) -> Iterator[Outcome]:
    """The second is told so at once and ends with 2; the first is not disturbed."""
    whole = directory / "whole"
    studies.wait_for(studies.start(whole), 200)
    expected = studies.answers(whole)
    for name, second, mirrored in (
        ("--out", "first", False),
        ("--storage", "other", True),
    ):
        home = directory / name.strip("-")
        home.mkdir()

        def mirror(out: Path, home: Path = home, mirrored: bool = mirrored) -> Any:
            return Mirror(out, Storage(home / "bucket")) if mirrored else None

        outs = [home / "first", home / second]
        first = studies.start(outs[0], mirror=lambda out=outs[0], m=mirror: m(out))
        _until(lambda out=outs[0]: len(studies.lines(out)) > 1)
        text = len(studies.said(outs[1]))
        began = time.monotonic()
        other = studies.wait_for(
            studies.start(outs[1], mirror=lambda out=outs[1], m=mirror: m(out)), 200
        )
        took, told = time.monotonic() - began, studies.said(outs[1])[text:]
        code = studies.wait_for(first, 200)
        same = code == 0 and studies.answers(outs[0]) == expected
        if mirrored:
            kept = (home / "bucket" / "records.jsonl").read_bytes()
            same = same and kept == (outs[0] / "records.jsonl").read_bytes()
        well = other == 2 and same
        yield Outcome(
            "two drivers",
            f"tune-ext compare, same {name}",
            1,
            int(well),
            same_answer=same,
            ended="clear error" if other == 2 else "crashed",
            note=f"told after {took:.1f} s: {' '.join(told.split())[-160:]}",
        )


def _until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("waited in vain")
        time.sleep(0.01)
