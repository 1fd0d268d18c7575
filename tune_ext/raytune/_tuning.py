"""One trial's `tune_ext.Tuner`, and what it was at earlier iterations of the trial.

A trial may go back: after a crash, a restart of the experiment, or a divergence it continues from
a checkpoint, and reports some iterations a second time. The tuner then has to be what it was at
the iteration of the checkpoint, or these steps would count twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tune_ext.errors import StateError
from tune_ext.exptest import Action, Tuner

__all__ = ["Tuning"]

_VERSION = 1
_RECENT = 32
"""How many of the last moments are kept; of the earlier ones, those where the rate changed."""


@dataclass(frozen=True)
class _Moment:
    """The tuner after the results of an iteration.

    Attributes:
        iteration: Which one; 0 is before the first.
        window_start: The iteration after which its present window began.
        lr: The rate that it wanted.
        state: The tuner's state without its rows; None before there was one.
        rows: How many of the rows of `Tuning` were its own.
    """

    iteration: int
    window_start: int = 0
    lr: float | None = None
    state: Mapping[str, Any] | None = None
    rows: int = 0


class Tuning:
    """The tuner of one trial.

    >>> tuning = Tuning(lambda lr, window: Tuner(lr, window))
    >>> flat = {"n": 9, "first": 0.0, "last": 0.0, "rise": 0.0, "sty": 0.0, "sqy": 0.0}
    >>> constant = {**flat, "syy": 0.0, "sdd": 0.0, "diverged": False}
    >>> for iteration in (1, 2):
    ...     action = tuning.tell(iteration, constant, 0.1, 9)
    >>> action.kind, round(tuning.lr, 3)
    ('decay', 0.033)
    >>> tuning.rewind(1)
    >>> tuning.lr
    0.1

    Args:
        make: Makes the tuner from a learning rate and a window.

    Attributes:
        action: What followed from the last result.
        iteration: That of the last result.
        window_start: The iteration after which the present window began.
    """

    def __init__(self, make: Callable[[float, int], Tuner]) -> None:
        self._make = make
        self._tuner: Tuner | None = None
        self._rows: list[dict[str, Any]] = []
        self._moments = [_Moment(0)]
        self._used: float | None = None
        self.action: Action | None = None
        self.iteration = 0
        self.window_start = 0

    @property
    def waits(self) -> bool:
        """Whether the trial trained with another rate than it should, at its last result."""
        return self.lr not in (None, self._used)

    @property
    def lr(self) -> float | None:
        """The rate that the trial should have; None before its first result."""
        return None if self._tuner is None else self._tuner.lr

    @property
    def window(self) -> int | None:
        """Steps of the present window."""
        return None if self._tuner is None else self._tuner.window

    @property
    def restores(self) -> int:
        """How often the loss was not finite."""
        return 0 if self._tuner is None else self._tuner.restores

    def rows(self) -> list[dict[str, Any]]:
        """Every test of a window, as `Tuner.explain` has it, with the trial's iteration."""
        return [dict(row) for row in self._rows]

    def tell(
        self, iteration: int, statistics: Mapping[str, Any], lr: float, window: int
    ) -> Action | None:
        """Take the statistics of an iteration.

        While the trial still trains with another rate than it should, nothing is tested.

        Args:
            iteration: One that was told before means that the trial has gone back.
            statistics: What `Tuner.tell` takes.
            lr: The rate that the trial trained with.
            window: Steps of the first window, for the first result.

        Returns:
            As `Tuner.tell`. After "restore" say by `go_back` where the trial has gone.

        Raises:
            StateError: The statistics are damaged; nothing has been taken then.
        """
        if iteration <= self.iteration:
            self.rewind(iteration - 1)
        self.action, self._used = None, lr
        if self.waits and not statistics.get("diverged"):
            self.iteration = iteration
            return None
        fresh = self._tuner is None
        tuner = self._tuner or self._make(lr, window)
        self.action = tuner.tell(statistics)
        if fresh:
            self.window_start = iteration - 1
        self._tuner, self.iteration = tuner, iteration
        new = tuner.explain().rows[len(self._rows) :]
        self._rows += [{"iteration": iteration, **row} for row in new]
        if self.action is None or self.action.kind != "restore":
            self.window_start = self.window_start if self.action is None else iteration
            self._remember()
        return self.action

    def rewind(self, iteration: int) -> None:
        """Become what it was after an iteration, or after the last one before it that is known."""
        self._moments = [m for m in self._moments if m.iteration <= iteration] or [_Moment(0)]
        moment = self._moments[-1]
        self._rows = self._rows[: moment.rows]
        self._tuner = None
        if moment.state is not None:
            self._tuner = Tuner.from_state_dict({**moment.state, "rows": self._tuner_rows()})
        self.iteration, self.window_start = moment.iteration, moment.window_start

    def go_back(self, iteration: int) -> None:
        """Stay what it is, while the trial goes back to a checkpoint of this iteration."""
        self._moments = [m for m in self._moments if m.iteration < iteration] or [_Moment(0)]
        self.iteration = self.window_start = iteration
        self._remember()

    def forget(self) -> None:
        """Keep the rows, but no earlier moment: the trial has ended."""
        self._moments = self._moments[-1:]

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "version": _VERSION,
            "moments": [dict(vars(moment)) for moment in self._moments],
            "rows": self._rows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            StateError: It is damaged, or of another version; nothing has changed then.
        """
        before = self._moments, self._rows
        try:
            if state["version"] != _VERSION:
                raise StateError(f"unknown version {state['version']!r}")
            moments = [_Moment(**moment) for moment in state["moments"]]
            self._moments, self._rows = moments, [dict(row) for row in state["rows"]]
            self.rewind(moments[-1].iteration)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self._moments, self._rows = before
            raise StateError(f"this is not the state of a trial's tuner: {error!r}") from error

    def _tuner_rows(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "iteration"} for row in self._rows]

    def _remember(self) -> None:
        tuner, state = self._tuner, None
        if tuner is not None:
            state = tuner.state_dict()
            del state["rows"]  # they are the longest part, and kept once
        self._moments.append(
            _Moment(self.iteration, self.window_start, self.lr, state, len(self._rows))
        )
        old, recent = self._moments[:-_RECENT], self._moments[-_RECENT:]
        changed = [m for i, m in enumerate(old) if i == 0 or m.lr != old[i - 1].lr]
        self._moments = changed + recent
