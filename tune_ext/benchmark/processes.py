"""Worker processes: started, spoken to, and ended together with everything they started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

__all__ = ["WorkerProcess", "descendants"]


def descendants(pid: int) -> list[int]:
    """Process ids of all children of `pid`, their children and so on (Linux; else empty)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; the parent is the second after it.
            parent = int(
                entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            )
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        queue.extend(new := children.get(queue.pop(), []))
        found.extend(new)
    return found


class WorkerProcess:
    """A process of its own group, with a pipe to it and a scratch directory.

    Args:
        command: Module and arguments after `python -m`; the pipe's number, the scratch
            directory and the number of this process are appended.
        environment: Added to this process's environment.
        log: A file that its output is appended to.
    """

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="tune-ext-", dir=_short_temporary()))
        self.pipe, theirs = Pipe()
        # The same modules must be found, also those of a task of the user's own.
        path = os.pathsep.join(dict.fromkeys(p or os.getcwd() for p in sys.path))
        told = (str(theirs.fileno()), str(self.scratch), str(os.getpid()))
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", *command, *told],
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, **environment, "PYTHONPATH": path},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError:
            self.pipe.close()
            shutil.rmtree(self.scratch, ignore_errors=True)
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, kind: str, payload: Any) -> None:
        """Send a message; one that cannot be sent shows as end of file on the pipe."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send((kind, payload))

    def exit_reason(self) -> str:
        """What became of the process, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        code = self._process.returncode
        if code is None:
            return "the worker process closed its pipe"
        if code < 0:
            return f"the worker process was killed by {signal.Signals(-code).name}"
        return f"the worker process ended with code {code}"

    def stop(self, patience: float = 20.0) -> None:
        """Ask it to end, and end it when it does not."""
        self.send("stop", None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience)
        self.kill()

    def kill(self) -> None:
        """End it and everything that it started, and remove its scratch directory."""
        victims = descendants(self.pid) if self._process.poll() is None else []
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for victim in victims:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(victim, signal.SIGKILL)
        self._process.wait()
        self.pipe.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _short_temporary() -> str:
    """The temporary directory, or /tmp where it is too long for the sockets inside."""
    directory = tempfile.gettempdir()
    return directory if len(directory) <= 30 or not Path("/tmp").is_dir() else "/tmp"
