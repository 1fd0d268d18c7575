"""Which process this is, and whether one that left its name somewhere is still there."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["is_alive", "this_process"]


def this_process() -> dict[str, Any]:
    """What tells this process from all others, on any machine, as plain data.

    >>> is_alive(this_process())
    True
    """
    return dict(_named(os.getpid()))


@functools.cache
def _named(pid: int) -> dict[str, Any]:
    """Said once: a laptop that joins another network has another name, and runs on."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "started": _started(pid),
    }


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Whether a process is there; None where it is, or was, on another machine.

    Args:
        process: As `this_process` said there.
    """
    here = this_process()
    if (process.get("host"), process.get("machine")) != (here["host"], here["machine"]):
        return None
    pid = process.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    started = _started(pid)
    if started is not None:
        return bool(started == process.get("started"))
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _machine() -> str:
    """A running system and its processes' numbers; containers have numbers of their own."""
    found = ""
    try:
        found = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{found} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return found


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the system did; None if unknown, or it is over."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
