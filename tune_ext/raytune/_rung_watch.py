"""The scheduler's own ladders, which tell it which rungs nobody needs any more.

They are rebuilt from the configurations and the results of the rungs' trials, so that the
scheduler needs to know nothing of the searcher, and nothing is lost when it starts afresh.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial

from tune_ext.raytune._base import RESERVED_KEY
from tune_ext.raytune._records import identity
from tune_ext.raytune._trial_ladder import TrialLadder

__all__ = ["RungWatch"]


class RungWatch:
    """Follows the trials whose role is to be a rung."""

    def __init__(self) -> None:
        self._ladders: dict[str, TrialLadder] = {}
        self._live: dict[str, Any] = {}
        self._errors: set[str] = set()

    def add(self, trial: Any) -> None:
        """Follow a trial, or follow it again."""
        self._live[trial.trial_id] = trial
        if trial.status == Trial.ERROR:
            self.errored(trial)

    def errored(self, trial: Any) -> None:
        """Note an error, after which Ray may try again.

        Trials that could not reuse an actor end in an error of which Ray tells no one: nothing is
        known of their rungs, and the searcher asks for them again.
        """
        self._errors.add(trial.trial_id)

    def reported(self, trial: Any, result: Mapping[str, Any]) -> bool:
        """Read a result; tell whether it was the rung's last."""
        return self._ladder(trial).reported(_index(trial), result)

    def ended(self, trial: Any, result: Mapping[str, Any]) -> None:
        """Read the last result of a trial that has ended without an error."""
        self._live.pop(trial.trial_id, None)
        self._ladder(trial).ended(_index(trial), result)

    def unneeded(self) -> list[Any]:
        """The trials whose ladders have ended without them."""
        for trial in list(self._live.values()):
            if trial.is_finished():
                del self._live[trial.trial_id]
                if trial.status == Trial.ERROR and trial.trial_id in self._errors:
                    self._ladder(trial).failed(_index(trial))
        return [t for t in self._live.values() if self._ladder(t).finished]

    def _ladder(self, trial: Any) -> TrialLadder:
        arguments = trial.config[RESERVED_KEY]["ladder"]
        key = json.dumps([identity(trial.storage), arguments], sort_keys=True)
        if key not in self._ladders:
            self._ladders[key] = TrialLadder.of(arguments)
        return self._ladders[key]


def _index(trial: Any) -> int:
    return int(trial.config[RESERVED_KEY]["rung"])
