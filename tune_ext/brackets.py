"""Hyperband's brackets as a state machine: who trains how long, who goes on, who stops.

Source: Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar, "Hyperband: A Novel Bandit-Based Approach
to Hyperparameter Optimization", JMLR 18 (2018), algorithm 1; for `asynchronous=True` the promotion
rule of Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, algorithm 2.

========  ==================================  ===============================================
paper     here                                meaning
========  ==================================  ===============================================
R         `max_budget`                        the most that one configuration gets
η         `reduction_factor`                  1 of η goes on to the next rung
s         index into `bracket_table`          a bracket; the first one starts the most trials
n_i       `Rung.size`                         how many configurations rung i takes
r_i       `Rung.budget`                       what each of them has had when it is over
========  ==================================  ===============================================

Nothing here knows Ray, time or files. Events go in (`add`, `report`, `fail`, `end`, `close`),
decisions come out (`Decision`, `promote`, `dismiss`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tune_ext._bracket_level import Level
from tune_ext._bracket_rules import Decision, Rules
from tune_ext._bracket_table import CLOSE, Rung, bracket_table
from tune_ext._checks import as_number, check_flag, check_list, check_state
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = ["Brackets", "Decision", "Rung", "bracket_table"]

_STATE = "brackets"
_STATE_VERSION = 1


class Brackets(Rules):
    """Which trials pause, go on and stop, by Hyperband's rules.

    A trial enters by `add`, which opens a bracket whenever those open are full: new
    configurations never wait for a rung that others still train in. `report` says what
    becomes of the trial that reports; `promote` names a paused one that may go on, `dismiss`
    those that never will.

    * Synchronous: a rung is decided when each of its members has a result or has failed; the
      best ⌊n_i/η⌋ of those that can go on, and whose loss is finite, are promoted.
    * Asynchronous: a member may go on as soon as it is among the best 1/η of all results that
      its rung has so far. The rungs of equal brackets are one, and nobody waits.

    Failed, removed and ended trials count for n_i and are not promoted.

    Args:
        table: From `bracket_table`.
        reduction_factor: η.
        asynchronous: Which rule.

    Raises:
        InvalidTypeError: `table` is not one.
        InvalidValueError: `table` is empty, or the factor is not above 1.

    Example:
        >>> play = Brackets(bracket_table(9, 3), 3)
        >>> for name in "abc":
        ...     budget = play.add(name)
        >>> [play.report(name, 1, loss).value for name, loss in zip("abc", (.3, .1, .2))]
        ['pause', 'pause', 'pause']
        >>> play.promote() is None  # nine start in this bracket, three have
        True
        >>> play.close()
        >>> play.promote(), play.budget("b"), play.dismiss()
        ('b', 3.0, ['a', 'c'])
    """

    def __init__(
        self,
        table: tuple[tuple[Rung, ...], ...],
        reduction_factor: float = 3,
        *,
        asynchronous: bool = False,
    ) -> None:
        brackets = [check_list("a bracket", one, "rungs") for one in check_list("table", table)]
        if not brackets or not all(brackets):
            raise InvalidValueError(f"table must have brackets, and these rungs, got {table!r}")
        if not all(isinstance(rung, Rung) for bracket in table for rung in bracket):
            raise InvalidTypeError(f"table must come from bracket_table, got {table!r}")
        eta = as_number("reduction_factor", reduction_factor)
        if not eta > 1:
            raise InvalidValueError(f"reduction_factor must be above 1, got {eta}")
        super().__init__(table, eta, check_flag("asynchronous", asynchronous))

    # --- events

    def add(self, trial: str) -> float:
        """Let a new trial in.

        Returns:
            The budget at which it will be judged first.

        Raises:
            InvalidValueError: The trial is in already.
        """
        if trial in self._home:
            raise InvalidValueError(f"trial {trial!r} is in a bracket already")
        play = self._open_play()
        self._plays[play].levels[0].entered += 1
        self._home[trial] = (play, 0)
        self._number[trial] = self._started
        self._started += 1
        self._closed = False
        return self.budget(trial)

    def report(self, trial: str, budget: float, loss: float | None) -> Decision:
        """Take a result of a trial that trains.

        Args:
            trial: Which.
            budget: What it has had so far.
            loss: Lower is better; None, NaN and infinities are never promoted.

        Returns:
            CONTINUE below the rung's budget and when it is itself the next to go on; else
            PAUSE, and STOP when nothing is left for it: after the last rung, without a finite
            loss, or when it has been dismissed.
        """
        if trial not in self._home or trial in self._gone:
            return Decision.STOP
        play, index = self._home[trial]
        bracket = self._rungs(play)
        if trial in self._paused:  # it should not have gone on
            return Decision.PAUSE
        if budget < bracket[index].budget * (1 - CLOSE):
            return Decision.CONTINUE
        level = self._plays[play].levels[index]
        if trial not in level.outcome:
            level.settle(trial, _finite(loss), self._number[trial])
        if index + 1 == len(bracket) or level.outcome[trial] is None:
            self._gone.add(trial)
            self._decide(play)
            return Decision.STOP
        self._pause(trial)
        self._decide(play)
        return self._go_on_at_once(trial)

    def fail(self, trial: str) -> float | None:
        """A trial has failed or was removed: it is out, and holds nobody up.

        Returns:
            The budget of the next result that it would have been judged by; None if it is not
            in, or nothing was to come of it.
        """
        if trial not in self._home:
            return None
        play, index = self._home[trial]
        level, due = self._plays[play].levels[index], None
        if trial not in self._gone:
            self._failed.add(trial)
            due = float(self._rungs(play)[index + (trial in level.outcome)].budget)
        self._leave(trial)
        if not level.decided:
            level.settle(trial, None, self._number[trial])
        self._decide(play)
        return due

    def end(self, trial: str, loss: float | None) -> None:
        """A trial has ended by itself before its rung did; it cannot go on."""
        if trial not in self._home or trial in self._gone:
            return
        play, index = self._home[trial]
        level = self._plays[play].levels[index]
        if trial not in level.outcome:
            level.settle(trial, _finite(loss), self._number[trial])
        self._leave(trial)
        self._decide(play)

    def close(self) -> None:
        """No more trials will come: rungs that are not full are decided with what they have."""
        self._closed = True
        for play in range(self._first_unclosed, len(self._plays)):
            self._plays[play].closed = True
            self._decide(play)
        self._first_unclosed = len(self._plays)

    def forget(self, trial: str) -> None:
        """Let a failed trial's name be added again; in the first rung its place is free again."""
        if trial not in self._home:
            return
        self._leave(trial)
        play, index = self._home.pop(trial)
        for level in self._plays[play].levels[: index + 1]:
            level.forget(trial, free=index == 0)
        self._gone.discard(trial)
        self._failed.discard(trial)
        self._first_open = min(self._first_open, play)
        self._decide(play)

    # --- answers

    def __contains__(self, trial: object) -> bool:
        """Whether a trial has been added."""
        return trial in self._home

    @property
    def closed(self) -> bool:
        """Whether no trial has been added since the last `close`."""
        return self._closed

    def budgets(self) -> list[float]:
        """All budgets at which trials are compared, ascending."""
        return sorted({rung.budget for bracket in self._table for rung in bracket})

    def is_paused(self, trial: str) -> bool:
        """Whether a trial waits."""
        return trial in self._paused

    def promote(self) -> str | None:
        """Let one paused trial go on, and name it; None if none may.

        Those that have come farthest go first.
        """
        if self._asynchronous:
            return self._promote_asynchronously()
        if not self._ready:
            return None
        trial = self._ready.pop(0)
        self._paused.discard(trial)
        return trial

    def dismiss(self) -> list[str]:
        """Paused trials that will never go on, in order; they are out from now on."""
        if self._asynchronous:
            over = self._closed and not self._training() and self._best_waiting() is None
            out = self.waiting() if over else []
        else:
            out = sorted(self._losers, key=self.order)
        for trial in out:
            self._leave(trial)
        return out

    # --- state

    def memory(self, trial: str) -> dict[str, Any]:
        """What has become of one trial, JSON-able: all trials' memories are the state.

        Raises:
            KeyError: The trial is not in.
        """
        play, index = self._home[trial]
        levels = self._plays[play].levels[: index + 1]
        losses = [level.outcome[trial] for level in levels if trial in level.outcome]
        return {
            "number": self._number[trial],
            "bracket": play,
            "rung": index,
            "losses": losses,
            "waits": trial in self._paused,
            "out": trial in self._gone,
            "failed": trial in self._failed,
        }

    def recall(self, memories: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on, with nothing in yet, where others with these memories stood.

        Args:
            memories: Of each trial, in any order; one of a trial that was promoted may be from
                before its promotion. A trial that has died since is to be failed.

        Raises:
            StateError: They are not what `memory` returned, or belong to another table.
        """
        try:
            order = sorted(memories, key=lambda trial: int(memories[trial]["number"]))
            for trial in order:
                self._recall(trial, memories[trial])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise StateError(f"what trials remember of their brackets is damaged: {error!r}") from (
                error
            )
        for play in range(len(self._plays)):
            if not self._asynchronous:
                self._let_the_others_through(play)
            self._decide(play)

    def _recall(self, trial: str, memory: Mapping[str, Any]) -> None:
        play, index = int(memory["bracket"]), int(memory["rung"])
        losses = [_finite(loss) for loss in memory["losses"]]
        if self._asynchronous and not self._plays:
            self._asynchronous_play()
        while not self._asynchronous and len(self._plays) <= play:
            self._new_play()
        levels = self._plays[play].levels
        if not 0 <= index < len(levels) or not index <= len(losses) <= index + 1:
            raise ValueError(f"trial {trial!r} cannot be in rung {index} after {len(losses)}")
        self._home[trial] = (play, index)
        number = self._number[trial] = int(memory["number"])
        self._started = max(self._started, number + 1)
        for level, loss in zip(levels, losses, strict=False):
            level.settle(trial, loss, number)
        for level in levels[: index + 1]:
            level.entered += 1
        for level in levels[:index]:
            level.promoted += 1
            level.decided = not self._asynchronous
        if memory["out"]:
            self._recall_out(trial, levels[index], failed=bool(memory["failed"]))
        elif memory["waits"]:
            self._pause(trial)
            if len(losses) == index:
                self._release([trial])

    def _recall_out(self, trial: str, level: Level, *, failed: bool) -> None:
        self._gone.add(trial)
        if failed:
            self._failed.add(trial)
        if trial not in level.outcome:
            level.settle(trial, None, self._number[trial])

    def to_json(self) -> dict[str, Any]:
        """The state as JSON-able values."""
        return {
            "kind": _STATE,
            "version": _STATE_VERSION,
            "table": [[[rung.size, rung.budget] for rung in bracket] for bracket in self._table],
            "reduction_factor": self._eta,
            "asynchronous": self._asynchronous,
            "closed": self._closed,
            "trials": {trial: self.memory(trial) for trial in self._home},
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Brackets:
        """Go on from what `to_json` returned.

        Raises:
            StateError: It is not that, or of an unknown version, or damaged.
        """
        check_state(state, _STATE, _STATE_VERSION, "Hyperband's brackets")
        try:
            table = tuple(
                tuple(Rung(int(size), budget) for size, budget in bracket)
                for bracket in state["table"]
            )
            made = cls(table, state["reduction_factor"], asynchronous=state["asynchronous"])
            made.recall(state["trials"])
            if state["closed"]:
                made.close()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"the state of Hyperband's brackets is damaged: {error!r}") from error
        return made


def _finite(loss: float | None) -> float | None:
    if loss is None:
        return None
    number = float(loss)
    return number if math.isfinite(number) else None
