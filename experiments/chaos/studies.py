"""Studies in processes that are forked: a driver starts in milliseconds, and so do its workers.

What runs is what `tune-ext compare` runs, `run_study` with real workers on tasks that are looked
up; only the starts of processes differ, as all that they would import is there already.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from tune_ext.benchmark import runner, worker
from tune_ext.benchmark._storage import Mirror
from tune_ext.benchmark.processes import WorkerProcess
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.benchmark.study import Study, TaskSpec
from tune_ext.errors import TuneExtError

STUDY = Study(
    title="Killed",
    tasks=(TaskSpec("function-branin"), TaskSpec("function-currin")),
    methods=("default", "random", "asha", "our-bohb"),
    seeds=(0, 1),
    budget=3,
    unit="trainings",
    workers=2,
)


class _Forked:
    """What `WorkerProcess` needs of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        """The exit code, if there is one."""
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for it, ten seconds where nothing else is said."""
        end = time.monotonic() + (10.0 if timeout is None else timeout)
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        return self.returncode


class ForkedWorker(WorkerProcess):
    """A real worker, forked."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        import tempfile

        self.scratch = Path(tempfile.mkdtemp(prefix="tune-ext-", dir="/tmp"))
        self.pipe, theirs = Pipe()
        parent = os.getpid()
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for number in (1, 2):
                os.dup2(output, number)
            pipe = theirs.fileno()
            os.closerange(3, pipe)  # the driver's lock would live as long as this process
            os.closerange(pipe + 1, 1024)
            sys.argv = ["worker", str(pipe), str(self.scratch), str(parent)]
            _ends(worker.main)
        os.close(output)
        theirs.close()
        self._process: Any = _Forked(pid)


def _ends(function: Callable[[], Any]) -> None:
    """Call a function in a forked process, and end that."""
    code = 1
    try:
        function()
        code = 0
    except TuneExtError as error:
        print(f"tune-ext: {error}", file=sys.stderr, flush=True)
        code = 2
    except BaseException:  # this process has no one else to tell
        traceback.print_exc()
    finally:
        os._exit(code)


class Quiet:
    """An observer that says nothing."""

    def begin(self, *args: Any) -> None:
        """Nothing."""

    unavailable = tick = finish_cell = begin


def start(
    out: Path,
    *,
    before: Callable[[], Any] = lambda: None,
    jobs: int = 1,
    mirror: Callable[[], Mirror | None] = lambda: None,
    study: Study = STUDY,
) -> int:
    """Fork a driver of a study; its process id.

    Args:
        out: Of the records; what it says goes into `out` with ".txt" behind it.
        before: Called in it first, to injure it.
        jobs: As `run_study`.
        mirror: Makes the mirror.
        study: What is run.
    """
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    said = os.open(out.with_suffix(".txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in (1, 2):
        os.dup2(said, number)
    runner.WorkerProcess = ForkedWorker  # type: ignore[misc]

    def drive() -> None:
        before()
        kept = mirror()
        runner.run_study(study, RecordStore(out), Quiet(), jobs=jobs, mirror=kept)
        if kept is not None:
            kept.finish()

    _ends(drive)
    raise AssertionError("not reached")


def wait_for(pid: int, seconds: float) -> int | None:
    """The exit code of a driver; None where it is not over in time, and then it is killed."""
    process = _Forked(pid)
    if process.wait(seconds) is None:
        kill(pid)
        return None
    return process.returncode


def kill(pid: int) -> None:
    """End a driver as the system would; its workers see to themselves."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def wait_for_lock(out: Path, seconds: float = 60.0) -> None:
    """Wait until nobody holds a study: a worker that was being forked has its driver's lock."""
    path, end = out / "lock", time.monotonic() + seconds
    while path.exists() and time.monotonic() < end:
        with path.open("a") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)


def said(out: Path) -> str:
    """What drivers have said."""
    path = out.with_suffix(".txt")
    return path.read_text(errors="replace") if path.exists() else ""


def lines(out: Path) -> list[bytes]:
    """The whole lines of the records."""
    path = out / "records.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def answers(out: Path) -> dict[Any, Any]:
    """What each cell says, without its times: what no fault may change."""
    return {r.key: _answer(r) for r in RecordStore(out).load()}


def _answer(record: CellRecord) -> Any:
    told = (record.recommendation, record.tests, record.epochs_used, record.failures)
    return (*told, record.incumbents, [t["config"] for t in record.trials])


def cells_in(found: list[bytes]) -> int:
    """How many of some lines are of cells."""
    return sum(b'"schema":"tune-ext.cell"' in line for line in found)
