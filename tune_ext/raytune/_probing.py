"""Searchers that measure things in short trials, and then train their answer in long ones.

`ProbingSearch` does what AutoHyperSearch and ExpTestSearch share: which trial is for what, when
there is something to suggest, when to wait, when to measure ahead, when to end, and what is saved.
What to measure, how a result is read and what the answer is belong to the pure core and to the
class over it.
"""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from ray.tune.search import Searcher

from tune_ext._checks import check_count
from tune_ext._explanation import Explanation
from tune_ext._random import check_seed
from tune_ext.errors import InvalidValueError
from tune_ext.raytune._base import (
    IF_RESTORED,
    PendingLimit,
    Polls,
    StatefulSearcher,
    check_name,
    has_room,
)

__all__ = ["Ledger", "ProbingSearch"]

logger = logging.getLogger(__name__)

_UNLIMITED = 1_000_000  # Ray expresses num_samples=-1 as a very large number
_MAX_PENDING = 64  # more than any core asks for at once
_PATIENCE = 20
"""Ray's slow polls, a second each, after which a trial of this run is not running: Ray tells
no one of a trial that could not reuse an actor. A loop that is slow for another reason costs a
trial that is run twice, and no answer."""
_PATIENCE_RESTORED = 5
"""The same for trials of an earlier session, some of which Ray is known to skip."""


@dataclass
class Ledger:
    """What the searcher knows of one of its trials.

    Attributes:
        role: What it is for: the class's `ROLE`, or "final".
        probe: The core's number of what it measures.
        live: It has not ended.
        told: The core knows what came out.
        restored: It belongs to an earlier session, and has not been heard of in this one.
    """

    role: str
    probe: int | None = None
    live: bool = True
    told: bool = False
    restored: bool = False


class Core(Protocol):
    """What is common to the pure cores."""

    @property
    def finished(self) -> bool:
        """Whether there is an answer."""

    def ask(self, n: int | None = None) -> list[Any]:
        """What to measure: None, what the next decision needs; else up to n, also ahead."""

    def forget(self, number: int, /) -> None:
        """Take back what was asked for."""

    def explain(self) -> Explanation:
        """The account of the search."""

    def state_dict(self) -> dict[str, Any]:
        """The search as plain JSON."""


class ProbingSearch(StatefulSearcher):
    """A searcher over a pure ask/tell core; see the module.

    Args:
        metric: The result that the searcher reads; None takes Ray's.
        mode: "min" or "max"; None takes Ray's.
        max_concurrent: Most short trials at a time; None for what the cluster has room for.
        final_trials: How many trials train the answer to the end.
        seed: Checked; the cores draw no random numbers.
        time_attr: The result that counts time.

    Raises:
        InvalidValueError: An argument cannot work; the message says which.
        InvalidTypeError: An argument of the wrong type.
    """

    ROLE: ClassVar[str]
    """The role of a short trial in its configuration."""
    WHAT: ClassVar[str]
    """What a short trial is called, in the plural."""

    def __init__(
        self,
        metric: str | None,
        mode: str | None,
        *,
        max_concurrent: int | None,
        final_trials: int,
        seed: int | None,
        time_attr: str,
    ) -> None:
        super().__init__(metric, mode)
        check_seed(seed)
        check_name("time_attr", time_attr)
        self.final_trials = check_count("final_trials", final_trials, 0)
        if max_concurrent is not None:
            check_count("max_concurrent", max_concurrent, 1)
        self.max_concurrent = max_concurrent
        self.time_attr = time_attr
        self._core: Any = None
        self._own_space = False
        self._queue: list[Any] = []
        self._trials: dict[str, Ledger] = {}
        self._polls = Polls()
        self._num_samples: int | None = None
        self._outer_limit: int | None = None
        # What was reported that is of no use, until something useful has been.
        self._seen = False
        self._unread = 0
        self._problem: str | None = None

    @abstractmethod
    def _take_space(self, space: Mapping[str, Any]) -> bool:
        """Build the core over the space of the experiment; False where there is another."""

    @abstractmethod
    def _load_core(self, state: Mapping[str, Any]) -> Core:
        """The core that a saved state describes."""

    @abstractmethod
    def _short(self, item: Any) -> tuple[int, dict[str, Any]]:
        """The number and the configuration of something that the core asked for."""

    @abstractmethod
    def _long(self) -> dict[str, Any] | None:
        """The configuration of a final trial; None if nothing worked."""

    @abstractmethod
    def _observe(self, trial: Ledger, result: Mapping[str, Any]) -> None:
        """Read a result of a trial that goes on."""

    @abstractmethod
    def _conclude(self, trial: Ledger, result: Mapping[str, Any] | None, error: bool) -> None:
        """Read the last result of a trial that has ended."""

    @property
    def searcher(self) -> PendingLimit:
        """The end of the chain along which Ray looks for a limit of pending trials."""
        return PendingLimit(self, self.max_concurrent or _MAX_PENDING)

    def explain(self) -> Explanation:
        """Everything that was measured and decided, each with its reason; `str()` is a table."""
        if self._core is None:
            return Explanation(())
        account: Explanation = self._core.explain()
        return account

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Learn of an outer ConcurrencyLimiter, which goes on doing the limiting itself."""
        self._outer_limit = max_concurrent
        return False

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        """Take the space of the experiment, unless the constructor was given one."""
        self._fill_metric_and_mode(metric, mode)
        self._set_num_samples(spec.get("num_samples"))
        return False if self._own_space else self._take_space(config)

    def _set_num_samples(self, num_samples: Any) -> None:
        finite = isinstance(num_samples, int) and 0 < num_samples < _UNLIMITED
        self._num_samples = num_samples if finite else None
        if self._num_samples is not None and self._num_samples < 3:
            warnings.warn(
                f"num_samples={self._num_samples} leaves {type(self).__name__} no room for a "
                "search; use num_samples=-1, the search ends the run by itself",
                stacklevel=3,
            )

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next configuration, None for "nothing now", or `Searcher.FINISHED`."""
        core = self._ready()
        item = self._next(core)
        if item is not None:
            number, config = self._short(item)
            self._trials[trial_id] = Ledger(self.ROLE, number)
            self._polls = Polls()
            return config
        awaited = [trial for trial in self._trials.values() if self._awaited(trial)]
        if core.finished or not awaited:
            return self._next_final(trial_id)
        restored = all(trial.restored for trial in awaited)
        if self._polls.blocked() >= (_PATIENCE_RESTORED if restored else _PATIENCE):
            self._take_back(core, awaited)
        return None

    def _ready(self) -> Core:
        name = type(self).__name__
        if self._problem is not None and self._unread > 1 and not self._seen:
            raise InvalidValueError(self._problem)
        if self._core is None:
            raise InvalidValueError(
                f"{name} has no search space: pass param_space (config in tune.run) with at "
                f"least one range, or {name}(space=...). {IF_RESTORED}"
            )
        core: Core = self._core
        return core

    def _next(self, core: Core) -> Any:
        """What to measure now, or None."""
        if core.finished or self._measured() >= self._limit():
            return None
        live = sum(trial.live for trial in self._trials.values() if trial.role == self.ROLE)
        if self.max_concurrent is not None and live >= self.max_concurrent:
            return None
        self._queue += core.ask()
        if not self._queue and self._may_speculate(live):
            self._queue += core.ask(1)
        return self._queue.pop(0) if self._queue else None

    def _may_speculate(self, live: int) -> bool:
        """Whether a worker would otherwise stand idle, as far as one can tell from here."""
        if self._outer_limit is not None and live >= self._outer_limit:
            return False
        if self._num_samples is not None:  # what is counted is kept for what is needed
            return False
        return self.max_concurrent is not None or has_room(live)

    def _measured(self) -> int:
        return sum(trial.role == self.ROLE for trial in self._trials.values())

    def _limit(self) -> int:
        """Most short trials of this run."""
        if self._num_samples is None:
            return _UNLIMITED
        return max(self._num_samples - self.final_trials, 1)

    def _awaited(self, trial: Ledger) -> bool:
        """Whether the search goes on, or may, when this trial reports or ends."""
        cut = self._measured() >= self._limit()
        return trial.role == self.ROLE and trial.live and not (trial.told and cut)

    def _take_back(self, core: Core, lost: Sequence[Ledger]) -> None:
        """Measure again what Ray skips, or has lost, without a word."""
        logger.warning(
            "Of %d %s Ray neither runs the trials nor has it said that they ended; they are "
            "asked for again.",
            len(lost),
            self.WHAT,
        )
        for trial in lost:
            trial.live, trial.told = False, True
            if trial.probe is not None:
                core.forget(trial.probe)

    def _next_final(self, trial_id: str) -> dict[str, Any] | str:
        config = self._long()
        finals = sum(trial.role == "final" for trial in self._trials.values())
        if config is None and not finals and self._trials:
            logger.warning(
                "None of the %s worked: there is no configuration to recommend.", self.WHAT
            )
        if config is None or finals >= self.final_trials:
            return str(Searcher.FINISHED)
        self._trials[trial_id] = Ledger("final")
        return config

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Read a result as soon as it says what is to be known of its trial."""
        trial = self._trials.get(trial_id)
        if trial is not None:
            trial.restored = False
            self._observe(trial, result)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Read the last result, unless an earlier one has said it all; a crash is a failure."""
        trial = self._trials.get(trial_id)
        if trial is not None:
            trial.live = trial.restored = False
            self._conclude(trial, result, error)

    def on_pause(self, trial_id: str) -> None:
        """Do nothing: a paused trial is still one that will report."""

    def on_unpause(self, trial_id: str) -> None:
        """Do nothing: see `on_pause`."""

    def _state(self) -> dict[str, Any]:
        return {
            "metric": self._metric,
            "mode": self._mode,
            "time_attr": self.time_attr,
            "final_trials": self.final_trials,
            "max_concurrent": self.max_concurrent,
            "own_space": self._own_space,
            "num_samples": self._num_samples,
            "seen": self._seen,
            "unread": self._unread,
            "problem": self._problem,
            "core": None if self._core is None else self._core.state_dict(),
            "trials": {trial_id: asdict(trial) for trial_id, trial in self._trials.items()},
        }

    def _load_state(self, state: Mapping[str, Any]) -> None:
        core = None if state["core"] is None else self._load_core(state["core"])
        trials = {str(i): Ledger(**trial) for i, trial in state["trials"].items()}
        for trial in trials.values():
            trial.restored = trial.live
        plain = (state["final_trials"], state["max_concurrent"], state["time_attr"])
        metric, mode = state["metric"], state["mode"]
        own, num_samples = bool(state["own_space"]), state["num_samples"]
        seen, unread, problem = bool(state["seen"]), int(state["unread"]), state["problem"]
        # Nothing above has changed the searcher: a damaged state leaves it as it was.
        self._core, self._trials, self._queue = core, trials, []
        if core is not None:
            running = {trial.probe for trial in trials.values() if trial.live}
            for number in self._pending():
                if number not in running:
                    core.forget(number)
        self.final_trials, self.max_concurrent, self.time_attr = plain
        self._set_metric(metric)
        self._mode = mode
        self._own_space, self._num_samples = own, num_samples
        self._seen, self._unread, self._problem = seen, unread, problem

    @abstractmethod
    def _pending(self) -> list[int]:
        """The numbers of what the core has asked for and not been told."""
