"""Ray Tune on a simulated clock: Ray's own control loop, with actors that only look things up.

`simulate` runs Ray's `TuneController`, with the searcher, scheduler, stopper and callbacks
that `tune.run` would be given. What is replaced is the manager of its actors: a simulated
actor lives in this process, and each of its training steps ends when the simulated clock
says so. No Ray is started, nothing waits, and a run that took hours takes milliseconds.

What is the same as in a real run: every decision and every call that Ray makes, in Ray's
order. What differs: starting, stopping, saving and restoring take no time; events that end at
the same moment are handled in the order in which they began (Ray draws lots); nothing is
written for a later restore; and a run in which nothing can ever happen again raises
`SimulationStuck` where a real one would hang.
"""

from __future__ import annotations

import copy
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray._private.dict import flatten_dict, merge_dicts
from ray.tune import PlacementGroupFactory, Trainable
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher, SearchGenerator
from ray.tune.search.variant_generator import _resolve_nested_dict, format_vars

from tune_ext._checks import check_count
from tune_ext.benchmark._simulated_actors import Actors, SimulatedTrainable
from tune_ext.errors import StateError

__all__ = ["Simulated", "SimulatedTrainable", "SimulationStuck", "simulate"]

_PATIENCE = 20
"""Steps of Ray's loop without any event after which the run counts as stuck."""


class SimulationStuck(StateError):  # noqa: N818 # a state of the run, as Ray's own names
    """Nothing can happen any more, and the run is not over: a real one would hang."""


@dataclass(frozen=True)
class Simulated:
    """How a simulated run went.

    Args:
        clock: Simulated seconds from the start to the end.
        busy: Simulated seconds of training, over all workers; what was cut off counts in part,
            so that a run that ends with its budget in seconds has used exactly that.
        trials: How many trials were created.
        steps: How many training steps were reported.
        begun: How many were begun; those that a scheduler cut off are among them.
        errors: The errors of trials that crashed, in order.
    """

    clock: float
    busy: float
    trials: int
    steps: int
    begun: int
    errors: tuple[str, ...]


def simulate(
    trainable: Callable[[dict[str, Any]], SimulatedTrainable],
    *,
    search_alg: Any,
    scheduler: Any = None,
    stopper: Any = None,
    callbacks: Sequence[Any] = (),
    workers: int = 1,
    steps: int | None = None,
    seconds: float | None = None,
    trials: int | None = None,
    storage: str | Path,
    name: str = "simulated",
) -> Simulated:
    """Run an experiment as `tune.run` does, on a simulated clock.

    Results carry `time_total_s` and `time_this_iter_s` of the simulated training, and
    `simulated_time`, the clock when they were reported.

    Args:
        trainable: Called with a trial's configuration; an exception is the trial's crash.
        search_alg: A Ray searcher.
        scheduler: A Ray scheduler; None for first in, first out.
        stopper: A Ray stopper.
        callbacks: Ray callbacks.
        workers: How many trials train at the same time.
        steps: The run ends with its so many-th training step. A step is paid for when it
            begins: no other begins then, and those that are under way are finished.
        seconds: The run ends when so many seconds were trained, by all workers together; a
            step that is under way then is cut off, and nobody sees its result.
        trials: So many are created at most.
        storage: A directory for whatever Ray insists on writing.
        name: Of the experiment.

    Raises:
        SimulationStuck: The run would hang.
        InvalidValueError: `workers` is not a positive whole number.
    """
    check_count("workers", workers)
    experiment = Experiment(
        name, _Placeholder, num_samples=trials or sys.maxsize, storage_path=str(storage)
    )
    # Ray asks its session where trials may write, and there is none.
    experiment.storage._get_session_path = _Session(str(storage))
    search = search_alg
    if not isinstance(search, SearchGenerator):
        search = _Generator(search)
    search.add_configurations([experiment])
    actors = Actors(trainable, workers, steps, seconds)
    controller = _Controller(
        actors,
        search_alg=search,
        scheduler=scheduler or FIFOScheduler(),
        stopper=stopper,
        callbacks=list(callbacks),
        storage=experiment.storage,
        checkpoint_period=1e9,
        reuse_actors=False,
    )
    controller.setup_experiments([experiment], search.total_samples)
    try:
        while not controller.is_finished():
            controller.step()
    finally:
        controller.end_experiment_callbacks()
    return Simulated(
        actors.clock,
        actors.busy(),
        len(controller.get_trials()),
        actors.steps,
        actors.begun,
        tuple(actors.errors),
    )


@dataclass(frozen=True)
class _Session:
    """Where the session would be; not a closure, as Ray copies storages."""

    path: str

    def __call__(self) -> str:
        return self.path


class _Placeholder(Trainable):  # type: ignore[misc] # Ray's classes are untyped
    """What Ray believes it starts."""


class _Worker(PlacementGroupFactory):  # type: ignore[misc] # Ray's classes are untyped
    """What every simulated trial needs: one worker. There is one instance of it.

    Ray compares the needs of trials several times a step, and bundles one by one.
    """

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


_WORKER = _Worker([{"CPU": 1}])


class _Trial(Trial):  # type: ignore[misc] # Ray's classes are untyped
    """As Ray's, with the statistics over its results computed when they are asked for."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._uncounted: list[dict[str, Any]] = []
        super().__init__(*arguments, **named)

    def get_trainable_cls(self) -> type[Trainable]:
        """Ray would ask its registry."""
        return _Placeholder

    def update_last_result(self, result: dict[str, Any]) -> None:
        """Remember the result."""
        result["experiment_tag"] = self.experiment_tag
        self.run_metadata.last_result = result
        self.run_metadata.last_result_time = time.time()
        self._uncounted.append(dict(result))

    def _count(self) -> None:
        last, last_time = self.run_metadata.last_result, self.run_metadata.last_result_time
        for result in self._uncounted:
            super().update_last_result(result)
        self._uncounted.clear()
        self.run_metadata.last_result, self.run_metadata.last_result_time = last, last_time

    @property
    def metric_analysis(self) -> dict[str, Any]:
        """As Ray's: lowest, highest, mean and last value of every metric."""
        self._count()
        return dict(self.run_metadata.metric_analysis)

    @property
    def metric_n_steps(self) -> dict[str, Any]:
        """As Ray's: the last few values of every metric."""
        self._count()
        return dict(self.run_metadata.metric_n_steps)


class _Generator(SearchGenerator):  # type: ignore[misc] # Ray's classes are untyped
    """As Ray's, but a trial is not made from an experiment read as a command line."""

    def create_trial_if_possible(self, experiment_spec: dict[str, Any]) -> _Trial | None:
        """Ask the searcher, and make a trial of what it suggests."""
        trial_id = Trial.generate_id()
        suggested = self.searcher.suggest(trial_id)
        if suggested == Searcher.FINISHED:
            self.set_finished()
            return None
        if suggested is None:
            return None
        config = merge_dicts({}, copy.deepcopy(suggested))
        self._counter += 1
        return _Trial(
            experiment_spec["run"],
            config=config,
            trial_id=trial_id,
            storage=experiment_spec["storage"],
            evaluated_params=flatten_dict(suggested),
            experiment_tag=f"{self._counter}_{format_vars(_resolve_nested_dict(config))}",
            placement_group_factory=_WORKER,
        )


class _Controller(TuneController):  # type: ignore[misc] # Ray's classes are untyped
    """Ray's control loop over simulated actors; nothing is saved for a later restore."""

    def __init__(self, actors: Actors, **arguments: Any) -> None:
        super().__init__(resource_manager_factory=lambda: None, **arguments)
        self._actor_manager = actors
        self._print_trial_errors = False
        self._idle = 0
        self._unfinished: dict[Any, None] = {}
        self._choosing = False
        self._shown_to_schedulers = super()._wrapped()

    def _wrapped(self) -> Any:
        """As Ray's, which wraps itself anew several times a step."""
        return self._shown_to_schedulers

    def add_trial(self, trial: Any) -> None:
        """As Ray's; the trial is among those that are not finished."""
        self._unfinished[trial] = None
        super().add_trial(trial)

    def _set_trial_status(self, trial: Any, status: str) -> None:
        """As Ray's; a trial that has ended is no longer among those that are not finished."""
        super()._set_trial_status(trial, status)
        if trial.is_finished():
            self._unfinished.pop(trial, None)

    def _maybe_add_actors(self) -> None:
        """As Ray's, but a scheduler that chooses a trial to run need not pass all finished ones."""
        self._choosing = True
        try:
            super()._maybe_add_actors()
        finally:
            self._choosing = False

    def get_trials(self) -> list[Any]:
        """All trials; while one is chosen, those that are not finished, in the same order."""
        return list(self._unfinished) if self._choosing else list(self._trials)

    def on_step_begin(self) -> None:
        """Ray would ask the cluster for its resources here."""

    def on_step_end(self) -> None:
        """Ray would look after actors that do not stop; count the steps without an event."""
        if self._actor_manager.quiet and not self.is_finished():
            self._idle += 1
            if self._idle > _PATIENCE:
                states = Counter(t.status for t in self.get_trials())
                told = ", ".join(f"{n} {status}" for status, n in sorted(states.items()))
                raise SimulationStuck(
                    f"nothing can happen any more: no trial is running ({told or 'no trials'}), "
                    "the scheduler starts none, and the searcher is not finished"
                )
        else:
            self._idle = 0

    def _stop_experiment_if_needed(self) -> None:
        """As Ray's, and when the budget is used up."""
        if self._actor_manager.exhausted:
            self._should_stop_experiment = True
        super()._stop_experiment_if_needed()

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Nothing is saved."""

    def _schedule_trial_actor(self, trial: Any) -> None:
        """As Ray's, without the files of the trial and the class of the actor."""
        actor = self._actor_manager.add_actor(
            cls=None,
            kwargs={"config": trial.config},
            resource_request=trial.placement_group_factory,
            on_start=self._actor_started,
            on_stop=self._actor_stopped,
            on_error=self._actor_failed,
        )
        self._trial_to_actor[trial] = actor
        self._actor_to_trial[actor] = trial

    def _process_trial_failure(self, trial: Any, exception: Exception) -> None:
        """As Ray's, without the file of the error and without retries."""
        self._has_errored = True
        if trial.status in {Trial.RUNNING, Trial.PENDING}:
            self._scheduler_alg.on_trial_error(self, trial)
            self._search_alg.on_trial_complete(trial.trial_id, error=True)
            self._schedule_trial_stop(trial, exception=exception)
            self._callbacks.on_trial_error(
                iteration=self._iteration, trials=self._trials, trial=trial
            )

    def _mark_trial_to_checkpoint(self, trial: Any) -> None:
        """Nothing is saved."""

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        """As Ray's, but a searcher that would be asked again for minutes is not waited for."""
        for _ in range(_PATIENCE if blocking else 1):
            trial = self._search_alg.next_trial()
            if trial:
                self.add_trial(trial)
                return True
            if self.is_finished():
                return False
        if blocking:
            raise SimulationStuck(
                "the searcher suggests nothing although no trial is pending, running or paused"
            )
        return False
