"""What Hyperband's rungs remember while they are in play."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

from tune_ext._bracket_table import CLOSE

__all__ = ["Level", "Play"]

_Ranked = tuple[float, int, str]  # loss, order of entry, trial


@dataclass
class Level:
    """A rung in play: how many entered it, what came of them, who was let through.

    Ranks are kept as results come: a question costs a search among them and not another sort.

    Attributes:
        entered: How many trials came here.
        known: Of how many of these the outcome is known.
        outcome: The loss of each of them; None where it failed.
        promoted: How many were let through.
        decided: Whether nobody else will be.
    """

    entered: int = 0
    known: int = 0
    outcome: dict[str, float | None] = field(default_factory=dict)
    promoted: int = 0
    decided: bool = False
    _finite: list[_Ranked] = field(default_factory=list)
    _waiting: list[_Ranked] = field(default_factory=list)

    @property
    def unknown(self) -> int:
        """How many have still to report or to fail."""
        return self.entered - self.known

    def settle(self, trial: str, loss: float | None, number: int) -> None:
        """Note what came of a trial; a later outcome replaces the one before."""
        if trial not in self.outcome:
            self.known += 1
        elif (before := self.outcome[trial]) is not None:
            _discard(self._finite, (before, number, trial))
        self.outcome[trial] = loss
        if loss is not None:
            bisect.insort(self._finite, (loss, number, trial))

    def forget(self, trial: str, *, free: bool) -> None:
        """Let a trial come again; its place is free again, or counts as that of a failed one."""
        known = trial in self.outcome
        self.outcome.pop(trial, None)
        if free and not self.decided:
            self.entered -= 1
            self.known -= known
            self._finite = [ranked for ranked in self._finite if ranked[2] != trial]
        elif not known:
            self.known += 1

    def wait(self, trial: str, number: int) -> None:
        """A trial with a finite outcome waits here for its promotion."""
        loss = self.outcome[trial]
        if loss is not None:
            bisect.insort(self._waiting, (loss, number, trial))

    def leave(self, trial: str, number: int) -> None:
        """It waits no longer."""
        loss = self.outcome.get(trial)
        if loss is not None:
            _discard(self._waiting, (loss, number, trial))

    def waiting(self) -> list[str]:
        """Trials that wait, the lowest loss first, then by entry."""
        return [trial for _, _, trial in self._waiting]

    def places(self, members: int, eta: float) -> int:
        """How many of so many members may go on."""
        return math.floor(members / eta * (1 + CLOSE))

    def best_within(self, places: int) -> str | None:
        """The best trial that waits, if it is among the best `places` of all that were here."""
        if not self._waiting or bisect.bisect_left(self._finite, self._waiting[0]) >= places:
            return None
        return self._waiting[0][2]


@dataclass
class Play:
    """A bracket in play.

    Attributes:
        kind: Which one of the table.
        levels: Its rungs.
        closed: Whether nobody else will enter.
    """

    kind: int
    levels: list[Level]
    closed: bool = False

    def unsettled(self, index: int) -> bool:
        """Whether a result may still come to a rung or, from below it, enter it."""
        return any(level.unknown for level in self.levels[: index + 1])


def _discard(ranking: list[_Ranked], entry: _Ranked) -> None:
    place = bisect.bisect_left(ranking, entry)
    if place < len(ranking) and ranking[place] == entry:
        del ranking[place]
