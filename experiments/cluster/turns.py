"""Who reports next: trials of a real Ray in an order that no clock and no node decides.

A search that learns from results asks for other configurations when results come in another
order. To compare runs on different numbers of nodes, every training step of a trial waits for its
turn at an actor. The driver gives the turns: when each trial that can run waits at the actor, the
one that was made first goes on. What is running then depends on the search alone.

The actor also sees which GPUs the trials that are in a step hold at the same time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import ray
from ray.tune import Callback

__all__ = ["Turns", "start_desk"]

_SETTLED = 4
"""Steps of Ray's loop without a change after which nothing more will start."""


class _Desk:
    """Where trials wait.

    Args:
        ordered: Whether they wait; else everyone may go on at once.
    """

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._waiting: dict[str, asyncio.Event] = {}
        self._holding: dict[str, tuple[str, tuple[str, ...], float]] = {}
        self._most: Counter[str] = Counter()
        self._seen: dict[str, set[str]] = {}
        self._shares: dict[str, float] = {}

    async def take(self, trial: str, node: str, devices: tuple[str, ...], share: float) -> None:
        """A trial begins a step on a node, with a share of each of these devices."""
        self._holding[trial] = (node, devices, share)
        self._seen.setdefault(node, set()).add(trial)
        for device in devices:
            here = [s for n, d, s in self._holding.values() if n == node and device in d]
            place = f"{node} {device}"
            self._most[place] = max(self._most[place], len(here))
            self._shares[place] = max(self._shares.get(place, 0.0), sum(here))
        if self._ordered:
            event = self._waiting[trial] = asyncio.Event()
            await event.wait()

    async def leave(self, trial: str) -> None:
        """The step is over."""
        self._holding.pop(trial, None)

    async def waiting(self) -> list[str]:
        """The trials that wait."""
        return list(self._waiting)

    async def let(self, trial: str) -> None:
        """A trial may go on."""
        event = self._waiting.pop(trial, None)
        if event is not None:
            event.set()

    async def seen(self) -> dict[str, Any]:
        """Trials of each node, and the most trials that held a device, and their shares of it."""
        return {
            "trials on nodes": sorted(len(trials) for trials in self._seen.values()),
            "most on a device": max(self._most.values(), default=0),
            "most of a device": round(max(self._shares.values(), default=0.0), 6),
            "devices": len(self._most),
        }


def start_desk(name: str, ordered: bool) -> Any:
    """An actor of this name, which needs no processor."""
    desk = ray.remote(num_cpus=0, max_concurrency=1000)(_Desk)
    return desk.options(name=name).remote(ordered)


class Turns(Callback):  # type: ignore[misc]
    """Lets trials go on, one after another, in the order in which they were made.

    Args:
        desk: From `start_desk`.
        workers: How many trials may run at once.
    """

    def __init__(self, desk: Any, workers: int) -> None:
        self._desk, self._workers = desk, workers
        self._last: Any = None
        self._same = 0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Give a turn where everything that can run waits for one."""
        running = [t.trial_id for t in trials if t.status == "RUNNING"]
        pending = any(t.status == "PENDING" for t in trials)
        waiting = set(ray.get(self._desk.waiting.remote()))
        state = (running, pending, waiting)
        self._same = self._same + 1 if state == self._last else 0
        self._last = state
        if not running or not waiting.issuperset(running):
            return
        full = len(running) >= self._workers
        if full or (not pending and self._same >= _SETTLED):
            ray.get(self._desk.let.remote(running[0]))
            self._last = None
