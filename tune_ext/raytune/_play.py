"""A stand-in for Ray's control loop: calls searchers and schedulers as Ray 2.60 does.

It starts no process, so that a conformance suite runs in seconds. What it imitates is Ray's
side of the contract: the order of the calls, arguments by keyword, the last result of a stopped
trial reaching the searcher only at completion, retries without a call, flat results.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

__all__ = [
    "CRASH",
    "INVALID",
    "MISSING",
    "FakeController",
    "Played",
    "fake_trial",
    "global_random_state",
    "play",
    "raises",
]

MISSING = "missing"
"""An objective returns this for a trial whose results lack the metric."""
CRASH = "crash"
"""An objective returns this for a trial that ends with an error."""

INVALID = (float("nan"), None, float("inf"), -float("inf"), MISSING, CRASH)
"""What a trial may report instead of a number."""

Objective = Callable[[dict[str, Any]], Any]
Report = Callable[[Mapping[str, Any], Any, int], Mapping[str, Any]]


@dataclass
class Played:
    """One trial of a played run."""

    trial_id: str
    config: dict[str, Any]
    value: Any
    epoch: int = 0


@dataclass
class _Session:
    searcher: Any
    objective: Objective
    metric: str
    epochs: int
    stopped: bool
    report: Report | None = None
    trials: list[Played] = field(default_factory=list)
    running: list[Played] = field(default_factory=list)
    finished: bool = False

    def start(self, trial_id: str) -> bool:
        """Ask for one trial; tell whether there was one."""
        config = self.searcher.suggest(trial_id)
        if config is None or config == Searcher.FINISHED:
            self.finished = config is not None
            return False
        trial = Played(trial_id, config, self.objective(config))
        self.trials.append(trial)
        self.running.append(trial)
        return True

    def advance(self, trial: Played) -> None:
        """Report one more epoch of a trial, or its end."""
        trial.epoch += 1
        if trial.value == CRASH:
            self.running.remove(trial)
            self.searcher.on_trial_complete(trial.trial_id, error=True)
            return
        result = self.result(trial)
        last = trial.epoch >= self.epochs
        if not (last and self.stopped):
            self.searcher.on_trial_result(trial.trial_id, dict(result))
        if last:
            self.running.remove(trial)
            result["done"] = True
            self.searcher.on_trial_complete(trial_id=trial.trial_id, result=result, error=False)

    def result(self, trial: Played) -> dict[str, Any]:
        """A flat result, as Ray hands it on."""
        result = {"training_iteration": trial.epoch, "trial_id": trial.trial_id, "done": False}
        if self.report is not None:
            result.update(flatten_dict(dict(self.report(trial.config, trial.value, trial.epoch))))
        elif trial.value != MISSING:
            result[self.metric] = trial.value
        return {**result, **flatten_dict({"config": trial.config})}


def play(
    searcher: Any,
    objective: Objective,
    *,
    trials: int,
    metric: str = "loss",
    epochs: int = 3,
    workers: int = 1,
    stopped: bool = True,
    first: int = 0,
    report: Report | None = None,
) -> tuple[list[Played], bool]:
    """Run trials as Ray would.

    Args:
        searcher: Any Ray searcher.
        objective: Configuration → the metric of every epoch, or `MISSING`, or `CRASH`.
        trials: Start at most this many.
        metric: The name under which the objective's value is reported.
        epochs: Results of each trial.
        workers: Trials that run at once; they report in turn.
        stopped: The scheduler says STOP at the last result, so that only the completion
            shows it to the searcher.
        first: The number of the first trial, which makes its id.
        report: Configuration, the objective's value and the epoch → what the trial reports, for
            searchers that read more than a metric. None: the value, under `metric`.

    Returns:
        The trials, and whether the searcher said that it has finished.

    Raises:
        AssertionError: The searcher gave None while nothing ran: Ray would block.
    """
    session = _Session(searcher, objective, metric, epochs, stopped, report)
    while True:
        while len(session.trials) < trials and len(session.running) < workers:
            if session.finished or not session.start(f"trial{first + len(session.trials):03d}"):
                break
        if not session.running:
            assert session.finished or len(session.trials) >= trials, (
                "suggest() gave None with no trial running: Ray blocks until it gives one"
            )
            return session.trials, session.finished
        for trial in list(session.running):
            session.advance(trial)


class FakeController:
    """What a scheduler may ask of Ray's controller."""

    def __init__(self) -> None:
        self.trials: list[Any] = []
        self.completed: dict[str, Any] = {}
        self.search_alg = self

    def get_trials(self) -> list[Any]:
        """All trials."""
        return self.trials

    def get_live_trials(self) -> set[Any]:
        """The trials that have not ended."""
        return {trial for trial in self.trials if not trial.is_finished()}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Take what a scheduler tells the search algorithm."""
        self.completed[trial_id] = result

    def stop_trial(self, trial: Any) -> None:
        """End a trial on a scheduler's demand."""
        trial.set_status(Trial.TERMINATED)

    def pause_trial(self, trial: Any, should_checkpoint: bool = True) -> None:
        """Pause a trial on a scheduler's demand."""
        trial.set_status(Trial.PAUSED)

    def add(self, scheduler: Any, trial: Any) -> Any:
        """Add a trial as Ray does: first to the list, then by the callback."""
        self.trials.append(trial)
        scheduler.on_trial_add(self, trial)
        return trial

    def report(self, scheduler: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Hand a result to the scheduler and act on what it says, as Ray does."""
        trial.set_status(Trial.RUNNING)
        flat = {"trial_id": trial.trial_id, **flatten_dict(dict(result))}
        decision = scheduler.on_trial_result(self, trial, flat)
        trial.update_last_result({"trial_id": trial.trial_id, **result})
        if decision == scheduler.STOP:
            scheduler.on_trial_complete(self, trial, flatten_dict(trial.last_result))
            trial.set_status(Trial.TERMINATED)
        elif decision == scheduler.PAUSE:
            trial.set_status(Trial.PAUSED)
        return str(decision)


def fake_trial(storage: Any, config: Mapping[str, Any], trial_id: str | None = None) -> Any:
    """A trial of Ray's that no cluster knows.

    Args:
        storage: The experiment's storage context, shared by its trials.
        config: Its configuration; also what counts as suggested.
        trial_id: Its id; None makes one up.
    """
    trial = Trial(
        "tune_ext_conformance",
        config=dict(config),
        trial_id=trial_id,
        evaluated_params=flatten_dict(dict(config)),
        experiment_tag="0",
        storage=storage,
        stub=True,
    )
    trial.placement_group_factory = PlacementGroupFactory([{"CPU": 1}])
    return trial


def global_random_state() -> tuple[Any, ...]:
    """Everything about Python's and numpy's global generators."""
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 (only read)
    return random.getstate(), state["key"].tolist(), state["pos"]


def raises(call: Callable[[], Any]) -> bool:
    """Whether a call ends in an exception of any kind."""
    try:
        call()
    except Exception:
        return True
    return False
