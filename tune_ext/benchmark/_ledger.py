"""The epochs of a search whose trials run on other machines: who may train, what was trained.

On one machine trials share a file (`_permits`). On a cluster they ask an actor, which lives on
the driver's node and holds a `Ledger`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["Ledger", "RemotePermits", "count_epochs", "start_ledger"]


class Ledger:
    """Counts the epochs of a search. Every one of them needs a permit, which a trial holds.

    Args:
        number: How many permits there are; None does not limit them.
        grace: Seconds for which results of the last epochs may be on their way.
        clock: Seconds.

    >>> ledger = Ledger(1)
    >>> ledger.take("a"), ledger.take("b")
    ('train', 'wait')
    >>> ledger.lose("a")  # its node is gone, and the epoch was not trained
    >>> ledger.take("b")
    'train'
    """

    def __init__(
        self,
        number: int | None,
        grace: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._number, self._grace, self._clock = number, grace, clock
        self._holders: set[str] = set()
        self._trained = 0
        self._seen: dict[str, int] = {}
        self._behind: dict[str, int] = {}
        self._full_since: float | None = None
        self._closed = False

    def take(self, trial: str) -> str:
        """Ask for an epoch: "train", "wait" and ask again, or "over"."""
        if self._closed:
            return "over"
        if trial in self._holders:
            return "train"
        if self._number is None or self._trained + len(self._holders) < self._number:
            self._holders.add(trial)
            return "train"
        if self._holders:
            self._full_since = None
            return "wait"
        # All were trained, and yet the search does not end: a result was never asked for.
        if self._full_since is None:
            self._full_since = self._clock()
        return "over" if self._clock() - self._full_since > self._grace else "wait"

    def give_back(self, trial: str) -> None:
        """The epoch was not trained."""
        self._holders.discard(trial)

    def trained(self, trial: str) -> None:
        """The epoch was trained."""
        if trial in self._holders:
            self._holders.remove(trial)
            self._trained += 1

    def count(self) -> int:
        """How many epochs were trained."""
        return self._trained

    def tell(self, trial: str, epoch: int) -> None:
        """The driver has the result of a trial's epoch."""
        self._seen[trial] = epoch

    def lose(self, trial: str) -> None:
        """A trial was lost with its process; perhaps it begins again from its checkpoint."""
        self._holders.discard(trial)
        self._behind[trial] = self._seen.get(trial, 0)

    def catch_up(self, trial: str) -> int:
        """Up to which epoch a trial that begins again has to train what is known already."""
        return self._behind.pop(trial, 0)

    def close(self) -> None:
        """The search is over: nobody waits any longer."""
        self._closed = True


def start_ledger(number: int | None) -> Any:
    """An actor with a `Ledger`, on the node of this process; it needs no processor."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Ledger).remote(number)
    ray.get(actor.count.remote())
    return actor


def count_epochs(ledger: Any) -> int:
    """How many epochs were trained."""
    import ray

    return int(ray.get(ledger.count.remote()))


class RemotePermits:
    """A trial's side of a ledger.

    Args:
        ledger: The actor.
        trial: Which trial asks.
        poll: Seconds between two questions while waiting.
    """

    def __init__(self, ledger: Any, trial: str, poll: float = 0.1) -> None:
        self._ledger, self._trial, self._poll = ledger, trial, poll

    def _ask(self, method: str) -> Any:
        import ray

        return ray.get(getattr(self._ledger, method).remote(self._trial))

    def wait(self) -> bool:
        """Take a permit, or wait for the end of the search; False when it is over."""
        while (answer := self._ask("take")) == "wait":
            time.sleep(self._poll)
        return bool(answer == "train")

    def give_back(self) -> None:
        """The epoch was not trained."""
        self._ask("give_back")

    def trained(self) -> None:
        """The epoch was trained."""
        self._ask("trained")

    def catch_up(self) -> int:
        """See `Ledger.catch_up`."""
        return int(self._ask("catch_up"))
