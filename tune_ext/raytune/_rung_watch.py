"""The scheduler's own ladders, which tell it which rungs nobody needs any more.

They are rebuilt from the configurations and the results of the rungs' trials, so that the
scheduler needs to know nothing of the searcher, and nothing is lost when it starts afresh.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial

from tune_ext._loss_monitor import read_rung
from tune_ext.exptest import Ladder, RungResult
from tune_ext.raytune._base import RESERVED_KEY
from tune_ext.raytune._records import identity

__all__ = ["RungWatch"]


class _Watched:
    """A ladder, and what rungs that ended before their last step have shown."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        upper = arguments.get("upper")
        self.ladder = Ladder(**{**arguments, "upper": math.inf if upper is None else upper})
        self._partial: dict[int, RungResult | None] = {}

    def tell(self, index: int, result: RungResult | None) -> None:
        self.ladder.tell(index, result)
        self._settle()

    def tell_partial(self, index: int, result: RungResult | None) -> None:
        """Such a result counts only if the ladder needs it, as for the searcher."""
        self._partial[index] = result
        self._settle()

    def _settle(self) -> None:
        while (index := min(self.ladder.needed, default=None)) in self._partial:
            assert index is not None
            self.ladder.tell(index, self._partial.pop(index))


class RungWatch:
    """Follows the trials whose role is to be a rung."""

    def __init__(self) -> None:
        self._ladders: dict[str, _Watched] = {}
        self._live: dict[str, Any] = {}

    def add(self, trial: Any) -> None:
        """Follow a trial, or follow it again."""
        self._live[trial.trial_id] = trial

    def reported(self, trial: Any, result: Mapping[str, Any]) -> bool:
        """Read a result; tell whether it was the rung's last."""
        found = read_rung(result)
        if found is not None:
            self._ladder(trial).tell(_index(trial), found)
        return found is not None

    def ended(self, trial: Any, result: Mapping[str, Any]) -> None:
        """Read the last result of a trial that has ended without an error."""
        self._live.pop(trial.trial_id, None)
        if not self.reported(trial, result):
            self._ladder(trial).tell_partial(_index(trial), read_rung(result, partial=True))

    def unneeded(self) -> list[Any]:
        """The trials whose ladders have ended without them."""
        for trial in list(self._live.values()):
            if trial.is_finished():
                del self._live[trial.trial_id]
                if trial.status == Trial.ERROR:
                    self._ladder(trial).tell(_index(trial), None)
        return [t for t in self._live.values() if self._ladder(t).ladder.finished]

    def _ladder(self, trial: Any) -> _Watched:
        arguments = trial.config[RESERVED_KEY]["ladder"]
        key = json.dumps([identity(trial.storage), arguments], sort_keys=True)
        if key not in self._ladders:
            self._ladders[key] = _Watched(arguments)
        return self._ladders[key]


def _index(trial: Any) -> int:
    return int(trial.config[RESERVED_KEY]["rung"])
