"""A ladder whose rungs are trials; the searcher and the scheduler follow it alike."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from tune_ext._loss_monitor import read_rung
from tune_ext.errors import StateError
from tune_ext.exptest import Ladder, Rung

__all__ = ["TrialLadder"]

logger = logging.getLogger(__name__)


class TrialLadder(Ladder):
    """Reads the results of trials, and knows that a trial may end before the rung is complete.

    It may have been cancelled because nobody needed it: then nothing is known of the rung, and
    nothing has to be. Only if the ladder comes to need it after all it is a failure, whatever
    it has reported until then: a loop that ends by itself may have met a loss that is not finite.
    """

    def __init__(self, bound: float, **options: Any) -> None:
        self._cut: dict[int, int] = {}
        self._quiet = False
        super().__init__(bound, **options)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> TrialLadder:
        """A second ladder like the one that a rung's configuration describes; it says nothing."""
        upper = arguments.get("upper")
        ladder = cls(**{**arguments, "upper": math.inf if upper is None else upper})
        ladder._quiet = True
        return ladder

    @property
    def arguments(self) -> dict[str, Any]:
        """What `of` takes, JSON-able."""
        return dict(super().state_dict()["arguments"])

    def reported(self, index: int, result: Mapping[str, Any]) -> bool:
        """Read a result of a trial; tell whether it completes the rung."""
        found = read_rung(result)
        if found is not None:
            self.tell(index, found)
            self._settle()
        return found is not None

    def ended(self, index: int, result: Mapping[str, Any] | None) -> None:
        """Read the last result of a trial that has ended without an error."""
        if index not in self.results and not self.reported(index, result or {}):
            steps = read_rung(result or {}, partial=True)
            self._cut[index] = 0 if steps is None else steps.steps
            self._settle()

    def failed(self, index: int) -> None:
        """Take in that a trial has ended with an error."""
        self.tell(index, None)
        self._settle()

    def _settle(self) -> None:
        while (index := min(self.needed, default=None)) is not None and index in self._cut:
            steps = self._cut.pop(index)
            self.tell(index, None)
            if not self._quiet:
                logger.warning(
                    "Rung %d ended after %d of its %d steps, and counts as failed. A rung has to "
                    "train until LossMonitor.step returns True (the steps of ExpTestSearch set "
                    "when): neither the end of the loop, nor a scheduler (or its max_t), nor the "
                    "stop of the run may come before.",
                    index,
                    steps,
                    self.steps,
                )

    @property
    def pending(self) -> tuple[Rung, ...]:
        """The rungs whose trials have not ended."""
        return tuple(rung for rung in super().pending if rung.index not in self._cut)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {**super().state_dict(), "cut": [list(item) for item in self._cut.items()]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrialLadder:
        """The ladder that `state_dict` described.

        Raises:
            StateError: The state is damaged, of another version, or of something else.
        """
        found = super().from_state_dict(state)
        assert isinstance(found, cls)
        try:
            found._cut = {int(index): int(steps) for index, steps in state["cut"]}
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state of the ladder is damaged: {error!r}") from error
        return found
