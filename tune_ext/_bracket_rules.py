"""Hyperband's rules: which bracket a trial enters, who is let through, who waits in vain.

`tune_ext.brackets` has the sources and the names; what happens from outside comes in there.
"""

from __future__ import annotations

import enum

from tune_ext._bracket_level import Level, Play
from tune_ext._bracket_table import Rung

__all__ = ["Decision", "Rules"]


class Decision(enum.Enum):
    """What becomes of a trial that has reported."""

    CONTINUE = "continue"
    PAUSE = "pause"
    STOP = "stop"


class Rules:
    """Where every trial is, and what follows when one of them has moved."""

    def __init__(self, table: tuple[tuple[Rung, ...], ...], eta: float, asynchronous: bool) -> None:
        self._table, self._eta, self._asynchronous = table, eta, bool(asynchronous)
        self._plays: list[Play] = []
        self._home: dict[str, tuple[int, int]] = {}  # trial → play and level that it trains for
        self._paused: set[str] = set()
        self._gone: set[str] = set()
        self._failed: set[str] = set()
        self._ready: list[str] = []  # promoted, and not resumed yet
        self._losers: list[str] = []  # paused for good
        self._first_open = self._first_unclosed = 0  # plays before these are full, or closed
        self._number: dict[str, int] = {}  # order of entry, which settles ties
        self._started = 0
        self._closed = False

    def order(self, trial: str) -> int:
        """When a trial was added, counted from 0; after all others if it was not."""
        return self._number.get(trial, self._started)

    def budget(self, trial: str) -> float:
        """What a trial has had when it is judged next.

        Raises:
            KeyError: The trial is not in.
        """
        play, index = self._home[trial]
        return float(self._rungs(play)[index].budget)

    def waiting(self) -> list[str]:
        """Paused trials, in order of entry."""
        return sorted(self._paused, key=self.order)

    def _rungs(self, play: int) -> tuple[Rung, ...]:
        return self._table[self._plays[play].kind]

    def _go_on_at_once(self, trial: str) -> Decision:
        """Whether the trial that has just paused is the one that would be resumed now."""
        if self._asynchronous:
            best = self._best_waiting()
            if best is not None and best[2] == trial:
                self._promote_asynchronously()
                return Decision.CONTINUE
        elif trial in self._ready and self.budget(trial) >= self.budget(self._ready[0]):
            self._ready.remove(trial)
            self._paused.discard(trial)
            return Decision.CONTINUE
        return Decision.STOP if trial in self._gone else Decision.PAUSE

    def _pause(self, trial: str) -> None:
        self._paused.add(trial)
        play, index = self._home[trial]
        level = self._plays[play].levels[index]
        if trial in level.outcome:
            level.wait(trial, self._number[trial])

    def _leave(self, trial: str) -> None:
        """It is out, whatever it was."""
        self._gone.add(trial)
        if trial not in self._paused:
            return
        self._paused.discard(trial)
        play, index = self._home[trial]
        self._plays[play].levels[index].leave(trial, self._number[trial])
        for names in (self._ready, self._losers):
            if trial in names:
                names.remove(trial)

    def _open_play(self) -> int:
        """The bracket that a new trial enters; the published sequence, again and again."""
        if self._asynchronous:
            return self._asynchronous_play()
        while self._first_open < len(self._plays):
            play = self._plays[self._first_open]
            full = play.levels[0].entered >= self._rungs(self._first_open)[0].size
            if not full and not play.closed and not play.levels[0].decided:
                return self._first_open
            self._first_open += 1
        return self._new_play()

    def _new_play(self) -> int:
        kind = len(self._plays) % len(self._table)
        self._plays.append(Play(kind, [Level() for _ in self._table[kind]]))
        return len(self._plays) - 1

    def _asynchronous_play(self) -> int:
        if not self._plays:
            self._plays = [Play(k, [Level() for _ in b]) for k, b in enumerate(self._table)]
        sizes = [bracket[0].size for bracket in self._table]
        place = self._started % sum(sizes)
        for kind, size in enumerate(sizes):
            if place < size:
                return kind
            place -= size
        raise AssertionError("unreachable")

    def _decide(self, play: int) -> None:
        """Decide every rung of a synchronous bracket that can be decided."""
        if self._asynchronous:
            return
        bracket, state = self._rungs(play), self._plays[play]
        for index, level in enumerate(state.levels):
            if level.decided:
                continue
            full = index > 0 or state.closed or level.entered >= bracket[0].size
            if not full or level.unknown or not level.entered:
                return
            level.decided = True
            if index + 1 < len(bracket):
                self._let_through(play, index)

    def _let_the_others_through(self, play: int) -> None:
        """Of rungs that some have left upwards: those that were promoted together with them."""
        for index, level in enumerate(self._plays[play].levels[:-1]):
            if level.decided:
                self._let_through(play, index)

    def _let_through(self, play: int, index: int) -> None:
        levels = self._plays[play].levels
        level, above = levels[index], levels[index + 1]
        places = max(1, level.places(level.entered, self._eta)) - level.promoted
        waiting = level.waiting()
        promoted = waiting[: max(0, places)]
        for trial in waiting:
            level.leave(trial, self._number[trial])
        for trial in promoted:
            self._home[trial] = (play, index + 1)
        level.promoted += len(promoted)
        above.entered += len(promoted)
        self._losers.extend(waiting[len(promoted) :])
        if not level.promoted:
            for higher in levels[index + 1 :]:
                higher.decided = True
        self._release(promoted)

    def _release(self, trials: list[str]) -> None:
        self._ready.extend(trials)
        self._ready.sort(key=lambda t: (-self.budget(t), self._number[t]))

    def _best_waiting(self) -> tuple[int, int, str] | None:
        """The play, the level and the trial that goes on next, farthest rungs first."""
        found: list[tuple[float, int, int, str]] = []
        for play, state in enumerate(self._plays):
            for index, level in enumerate(state.levels[:-1]):
                places = level.places(level.known, self._eta)
                if self._closed and not state.unsettled(index):
                    places = max(1, places)
                trial = level.best_within(places)
                if trial is not None:
                    found.append((-self._table[state.kind][index].budget, play, index, trial))
        if not found:
            return None
        _, play, index, trial = min(found, key=lambda f: f[:3])
        return play, index, trial

    def _promote_asynchronously(self) -> str | None:
        best = self._best_waiting()
        if best is None:
            return None
        play, index, trial = best
        levels = self._plays[play].levels
        levels[index].leave(trial, self._number[trial])
        levels[index].promoted += 1
        levels[index + 1].entered += 1
        self._home[trial] = (play, index + 1)
        self._paused.discard(trial)
        return trial

    def _training(self) -> bool:
        """Whether any trial has still to report or to fail."""
        return any(level.unknown for play in self._plays for level in play.levels)
