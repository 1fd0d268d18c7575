"""Disks that are full or read-only for a while: the study waits, says so, and loses nothing.

The disks are small ones in memory (tmpfs), mounted for the case and unmounted after it; where that
is not allowed there is no outcome to tell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.chaos import studies
from experiments.chaos.cases_drivers import _until
from experiments.chaos.outcome import Outcome, case
from tune_ext import _array_files
from tune_ext.benchmark import _saving
from tune_ext.benchmark._storage import Mirror, Storage
from tune_ext.benchmark.records import RecordStore
from tune_ext.errors import InvalidValueError
from tune_ext.raytune._base import write_json

Fault = Callable[[Path], Callable[[], Any]]
"""Injures a disk; what it returns heals it."""


@contextlib.contextmanager
def small_disk(at: Path, size: str = "1m") -> Iterator[Path]:
    """A disk of its own, in memory; OSError where none can be mounted."""
    at.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise OSError("no disk can be mounted here")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], capture_output=True)


def full(disk: Path) -> Callable[[], Any]:
    """Fill a disk to its last byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"0" * 4096):
            pass
    return filler.unlink


def marked(disk: Path) -> Callable[[], Any]:
    """As if a disk were read-only, see `heeds_mark`: with a file open a disk cannot be made so."""
    mark = disk / "read-only"
    mark.touch()
    return mark.unlink


def heeds_mark(disk: Path) -> Callable[[], None]:
    """Let a driver write no record while its disk is marked."""

    def before() -> None:
        write = RecordStore._write

        def refused(self: RecordStore, data: bytes) -> None:
            if (disk / "read-only").exists():
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self.path))
            write(self, data)

        RecordStore._write = refused  # type: ignore[method-assign]

    return before


def read_only(disk: Path) -> Callable[[], Any]:
    """Let nobody write; a file that is open for writing keeps that from happening at once."""

    def remount(how: str) -> int:
        command = ["mount", "-o", f"remount,{how}", str(disk)]
        return subprocess.run(command, capture_output=True).returncode

    _until(lambda: remount("ro") == 0, 20)
    return lambda: remount("rw")


def _well(out: Path, expected: Any) -> tuple[int, int, bool]:
    """Cells lost, cells recorded twice, and whether all else is as expected."""
    found = studies.answers(out)
    twice = studies.cells_in(studies.lines(out)) - len(found)
    return len(expected.keys() - found.keys()), twice, found == expected


def records_disk(name: str, directory: Path, fault: Fault, after: int, how: str) -> Outcome:
    """The disk of the records fails when some cells are recorded, and is healed when told."""
    expected = _undisturbed(directory)
    with small_disk(directory / how / "disk") as disk:
        out = disk / "study"
        # what a driver says goes elsewhere, as to a terminal
        said = directory / how / "said.txt"
        out.with_suffix(".txt").symlink_to(said)
        said.touch()
        driver = studies.start(out, jobs=2, before=heeds_mark(disk))
        _until(lambda: studies.cells_in(studies.lines(out)) >= after)
        heal = fault(disk)
        _until(lambda: "waits for room" in said.read_text() or _is_over(driver))
        kept = studies.cells_in(studies.lines(out))
        time.sleep(2.0)
        heal()
        code = studies.wait_for(driver, 200)
        lost, twice, same = _well(out, expected)
        words = " ".join(said.read_text().split())[:150]
    return Outcome(
        name,
        f"tune-ext compare, --out {how}",
        1,
        int(code == 0 and same and not lost and not twice),
        lost,
        twice,
        same,
        "hung" if code is None else "finished" if code == 0 else "crashed",
        note=f"{kept} of {len(expected)} cells were written before; says: {words}",
    )


def _is_over(pid: int) -> bool:
    return studies._Forked(pid).poll() is not None


def _undisturbed(directory: Path) -> Any:
    whole = directory / "undisturbed"
    if not whole.exists():
        studies.wait_for(studies.start(whole, jobs=2), 200)
    return studies.answers(whole)


def until_the_end(name: str, directory: Path) -> Outcome:
    """The disk stays full: the driver gives up, and says where its last records are."""
    expected = _undisturbed(directory)
    with small_disk(directory / "end" / "disk") as disk:
        out, said = disk / "study", directory / "end" / "said.txt"
        out.with_suffix(".txt").symlink_to(said)
        said.touch()

        def impatient() -> None:
            _saving.PATIENCE = 3.0

        driver = studies.start(out, jobs=2, before=impatient)
        _until(lambda: studies.cells_in(studies.lines(out)) >= 2)
        heal = full(disk)
        code = studies.wait_for(driver, 200)
        heal()
        words = said.read_text()
        rescued = [line.partition("cat ")[2] for line in words.splitlines() if "cat " in line]
        moved = 0
        for line in rescued:
            source = Path(line.partition(" >> ")[0])
            with (out / "records.jsonl").open("ab") as file:
                file.write(source.read_bytes())
            moved += studies.cells_in(source.read_bytes().split(b"\n"))
        before = studies.cells_in(studies.lines(out))
        again = studies.wait_for(studies.start(out, jobs=2), 200)
        lost, twice, same = _well(out, expected)
        told = " ".join(words.split())[-220:]
    return Outcome(
        name,
        "tune-ext compare, --out full to the end",
        1,
        int(code == 2 and again == 0 and same and not lost and not twice),
        lost,
        twice,
        same,
        "clear error" if code == 2 else "crashed",
        note=f"{moved} of {before} finished cells were in the file that it names; says: {told}",
    )


def storage_disk(name: str, directory: Path, fault: Fault, how: str) -> Outcome:
    """The disk of --storage fails for a while: records are whole here, and there in the end."""
    expected = _undisturbed(directory)
    with small_disk(directory / f"storage {how}" / "disk") as disk:
        out, bucket = directory / f"storage {how}" / "study", disk / "bucket"

        def mirror() -> Mirror:
            from tune_ext.benchmark import _storage

            _storage._EVERY = 0.1
            return Mirror(out, Storage(bucket))

        driver = studies.start(out, jobs=2, mirror=mirror)
        _until(lambda: (bucket / "records.jsonl").exists() and len(studies.lines(out)) > 3)
        heal = fault(disk)
        _until(lambda: len(studies.lines(out)) > 8 or _is_over(driver))
        heal()
        code = studies.wait_for(driver, 200)
        lost, twice, same = _well(out, expected)
        there = (bucket / "records.jsonl").read_bytes() == (out / "records.jsonl").read_bytes()
        left = [p.name for p in bucket.iterdir() if p.name.startswith("records.jsonl.")]
    return Outcome(
        name,
        f"tune-ext compare, --storage {how}",
        1,
        int(code == 0 and same and there and not lost and not twice),
        lost,
        twice,
        same,
        "hung" if code is None else "finished" if code == 0 else "crashed",
        note=f"the storage has {'all' if there else 'not all'} in the end"
        + (f"; left there: {left}" if left else ""),
    )


def cache_disk(name: str, directory: Path) -> Outcome:
    """The disk of cached arrays is full: a clear error, nothing left; later it is made."""
    values = np.zeros((300, 100, 100), np.uint8)

    def read(folder: Path) -> Any:
        return _array_files.open_or_make(
            "images", "origin", lambda: (values.shape, values.dtype, [values]), directory=folder
        )

    with small_disk(directory / "cache", "2m") as disk:
        told = ""
        try:
            read(disk)
        except InvalidValueError as error:
            told = str(error)
        left = [path.name for path in disk.iterdir() if path.suffix in (".npy", ".tmp")]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], capture_output=True)
        same = bool((read(disk) == values).all())
    well = bool(told) and not left and same
    return Outcome(
        name, "ours: cached arrays", 1, int(well), same_answer=same, ended="clear error", note=told
    )


def state_disk(name: str, directory: Path) -> Outcome:
    """The disk of a searcher's state is full: the state that was there stays whole."""
    injected = survived = 0
    with small_disk(directory / "state") as disk:
        path = disk / "state"
        write_json(path, {"version": 1, "values": [0]})
        before = path.read_bytes()
        for fault in (full, read_only):
            heal = fault(disk)
            injected += 1
            try:
                write_json(path, {"version": 1, "values": list(range(10_000))})
            except OSError:
                survived += path.read_bytes() == before
            heal()
        left = [p.name for p in disk.iterdir() if p != path]
    return Outcome(
        name,
        "ours: a searcher's state",
        injected,
        survived if not left else 0,
        same_answer=True,
        ended="clear error",
        note="the old state stays; Ray is told, and decides",
    )


@case("storage", "a disk is full or read-only for a while, or to the end", seconds=600)
def storage(directory: Path, seed: int) -> Iterator[Outcome]:
    """Disks of records, of --storage, of cached arrays and of states."""
    yield records_disk("storage", directory, full, 3, "full for a while")
    yield records_disk("storage", directory, marked, 3, "read-only for a while")
    yield until_the_end("storage", directory)
    yield storage_disk("storage", directory, full, "full for a while")
    yield storage_disk("storage", directory, read_only, "read-only for a while")
    yield cache_disk("storage", directory)
    yield state_disk("storage", directory)
