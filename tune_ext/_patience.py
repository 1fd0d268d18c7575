"""Stop when nothing has been gained for some epochs: the rule, without Ray.

Hinz et al. (arXiv 1807.07362) stop a training when the validation does not improve for 5 epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tune_ext._checks import as_number, check_choice, check_count
from tune_ext.errors import InvalidValueError, StateError

__all__ = ["NoGain"]


class NoGain:
    """Watches one number of one training, epoch by epoch.

    Nothing that is not a finite number is ever a gain, and the first finite number always is one.
    A training that goes on from an earlier epoch, after a crash, is watched from there: what came
    after that epoch is forgotten.

    Args:
        patience: Epochs without gain that end the training.
        mode: "min" or "max": what is better.
        min_gain: Less than this is no gain.
        grace_period: The training does not end before this epoch.

    Raises:
        InvalidTypeError: An argument is not of its type.
        InvalidValueError: An argument has an impossible value.

    >>> rule = NoGain(patience=2)
    >>> [rule.add(epoch, loss) for epoch, loss in enumerate([0.9, 0.5, 0.6, 0.4, 0.5, 0.4], 1)]
    [False, False, False, False, False, True]
    >>> rule.best_epoch, rule.best
    (4, 0.4)
    """

    def __init__(
        self, patience: int = 5, mode: str = "min", min_gain: float = 0.0, grace_period: int = 0
    ) -> None:
        self.patience = check_count("patience", patience)
        check_choice("mode", mode, ("min", "max"))
        self._sign = 1.0 if mode == "min" else -1.0
        self._min_gain = as_number("min_gain", min_gain)
        if not 0 <= self._min_gain < math.inf:
            raise InvalidValueError(f"min_gain must be at least 0 and finite, got {min_gain!r}")
        self._grace = check_count("grace_period", grace_period, 0)
        self._gains: list[tuple[int, float]] = []
        self._first: int | None = None

    def add(self, epoch: int, value: float | None) -> bool:
        """Take the number of an epoch; tell whether the training ends here.

        Args:
            epoch: Which one, counted as you like; they need not come one by one.
            value: None where there is none.
        """
        if self._first is None or epoch < self._first:
            self._first = epoch
        while self._gains and self._gains[-1][0] >= epoch:  # trained again
            self._gains.pop()
        if value is not None and math.isfinite(value):
            loss = self._sign * value
            if not self._gains or loss < self._gains[-1][1] - self._min_gain:
                self._gains.append((epoch, loss))
        since = self._gains[-1][0] if self._gains else self._first - 1
        return epoch - since >= self.patience and epoch >= self._grace

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the last gain; None before the first."""
        return self._gains[-1][0] if self._gains else None

    @property
    def best(self) -> float | None:
        """The number at that epoch."""
        return self._sign * self._gains[-1][1] if self._gains else None

    def state(self) -> dict[str, Any]:
        """What was seen, as JSON-able values."""
        return {"first": self._first, "gains": [list(gain) for gain in self._gains]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            StateError: It is something else.
        """
        try:
            gains = [(int(epoch), float(loss)) for epoch, loss in state["gains"]]
            first = None if state["first"] is None else int(state["first"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state of a patience is damaged: {error!r}") from error
        self._gains, self._first = gains, first
