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

import functools
import heapq
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pyarrow.fs import LocalFileSystem
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, Trainable
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import SearchGenerator

from tune_ext._checks import check_count
from tune_ext.errors import StateError

__all__ = ["Simulated", "SimulatedTrainable", "SimulationStuck", "simulate"]

_FILES = LocalFileSystem()

_PATIENCE = 20
"""Steps of Ray's loop without any event after which the run counts as stuck."""


class SimulationStuck(StateError):  # noqa: N818 # a state of the run, as Ray's own names
    """Nothing can happen any more, and the run is not over: a real one would hang."""


class SimulatedTrainable(Protocol):
    """What a simulated actor holds: like a Ray `Trainable`, without files and clocks."""

    def step(self) -> dict[str, Any]:
        """One training step; `seconds` in the result is how long it takes on the clock."""
        ...

    def state(self) -> Any:
        """What `load` needs to go on from here."""
        ...

    def load(self, state: Any) -> None:
        """Go on from a state."""
        ...


@dataclass(frozen=True)
class Simulated:
    """How a simulated run went.

    Args:
        clock: Simulated seconds from the start to the end.
        busy: Simulated seconds of training, over all workers; what was cut off counts in part.
        trials: How many trials were created.
        steps: How many training steps were reported.
        errors: The errors of trials that crashed, in order.
    """

    clock: float
    busy: float
    trials: int
    steps: int
    errors: tuple[str, ...]


def simulate(
    trainable: Callable[[dict[str, Any]], SimulatedTrainable],
    *,
    search_alg: Any,
    scheduler: Any = None,
    stopper: Any = None,
    callbacks: Sequence[Any] = (),
    workers: int = 1,
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
        storage: A directory for whatever Ray insists on writing.
        name: Of the experiment.

    Raises:
        SimulationStuck: The run would hang.
        InvalidValueError: `workers` is not a positive whole number.
    """
    check_count("workers", workers)
    experiment = Experiment(name, _Placeholder, num_samples=sys.maxsize, storage_path=str(storage))
    # Ray asks its session where trials may write, and there is none.
    experiment.storage._get_session_path = _Session(str(storage))
    search = search_alg
    if not isinstance(search, SearchGenerator):
        search = SearchGenerator(search)
    search.add_configurations([experiment])
    actors = _Actors(trainable, workers)
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


class _Memory(Checkpoint):  # type: ignore[misc] # Ray's classes are untyped
    """A checkpoint that holds a state and no files."""

    def __init__(self, state: Any) -> None:
        super().__init__("simulated", filesystem=_FILES)
        self.state = state


class _Controller(TuneController):  # type: ignore[misc] # Ray's classes are untyped
    """Ray's control loop over simulated actors; nothing is saved for a later restore."""

    def __init__(self, actors: _Actors, **arguments: Any) -> None:
        super().__init__(resource_manager_factory=lambda: None, **arguments)
        self._actor_manager = actors
        self._print_trial_errors = False
        self._idle = 0

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


@dataclass(order=True)
class _Event:
    time: float
    order: int
    begun: float = field(compare=False)
    actor: TrackedActor = field(compare=False)
    call: Callable[[], None] = field(compare=False)


class _NothingYet:
    """What a trial takes for the remote call that gives its result before the first one."""

    @staticmethod
    def remote(**arguments: Any) -> dict[str, Any]:
        """No result."""
        return {}


@dataclass
class _Actor:
    """A simulated actor: the trainable and what Ray adds to its results."""

    get_auto_filled_metrics: ClassVar[type[_NothingYet]] = _NothingYet
    make: Callable[[dict[str, Any]], SimulatedTrainable]
    config: dict[str, Any]
    iteration: int = 0
    total: float = 0.0
    trainable: SimulatedTrainable | None = None
    last: dict[str, Any] = field(default_factory=dict)

    def begun(self) -> SimulatedTrainable:
        """The trainable, made when it is first needed."""
        if self.trainable is None:
            self.trainable = self.make(self.config)
        return self.trainable

    def train(self) -> dict[str, Any]:
        """One step, as `Trainable.train` reports it."""
        result = self.begun().step()
        seconds = float(result.get("seconds", 0.0))
        self.iteration += 1
        self.total += seconds
        result.setdefault("done", False)
        result |= {
            "training_iteration": self.iteration,
            "time_this_iter_s": seconds,
            "time_total_s": self.total,
            "config": self.config,
        }
        self.last = result
        return result

    def save(self) -> _TrainingResult:
        """The state, as a checkpoint."""
        state = (self.begun().state(), self.iteration, self.total)
        return _TrainingResult(checkpoint=_Memory(state), metrics=dict(self.last))

    def restore(self, saved: _TrainingResult) -> None:
        """Go on from a checkpoint."""
        state, self.iteration, self.total = saved.checkpoint.state
        self.begun().load(state)


class _Actors:
    """Stands in for Ray's `RayActorManager`: the same methods, over a queue of events."""

    def __init__(self, make: Callable[[dict[str, Any]], SimulatedTrainable], workers: int) -> None:
        self._make, self._workers = make, workers
        self._order = itertools.count()
        self._events: list[_Event] = []
        self._pending: dict[TrackedActor, dict[str, Any]] = {}
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[_Actor, None]] = {}
        self._busy = 0.0
        self.clock = 0.0
        self.steps = 0
        self.errors: list[str] = []

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way."""
        return not self._events and not self._pending

    def busy(self) -> float:
        """Seconds of training so far; what is under way counts up to now."""
        return self._busy + sum(self.clock - e.begun for e in self._events)

    def next(self, timeout: float | None = None) -> bool:
        """Start what can be started, then handle the earliest event."""
        self._start()
        if not self._events:
            return False
        event = heapq.heappop(self._events)
        self.clock = event.time
        self._busy += event.time - event.begun
        event.call()
        return True

    def _start(self) -> None:
        while self._pending and len(self._live_actors_to_ray_actors_resources) < self._workers:
            actor, kwargs = next(iter(self._pending.items()))
            del self._pending[actor]
            live = _Actor(self._make, dict(kwargs["config"]))
            self._live_actors_to_ray_actors_resources[actor] = (live, None)
            self._schedule(actor, 0.0, functools.partial(actor._on_start, actor))

    def _schedule(self, actor: TrackedActor, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(
            self._events,
            _Event(self.clock + seconds, next(self._order), self.clock, actor, call),
        )

    def add_actor(
        self,
        cls: Any,
        kwargs: dict[str, Any],
        resource_request: Any,
        *,
        on_start: Callable[[TrackedActor], None] | None = None,
        on_stop: Callable[[TrackedActor], None] | None = None,
        on_error: Callable[[TrackedActor, Exception], None] | None = None,
    ) -> TrackedActor:
        """Queue an actor; it starts when a worker is free."""
        actor = TrackedActor(
            next(self._order), on_start=on_start, on_stop=on_stop, on_error=on_error
        )
        self._pending[actor] = kwargs
        return actor

    def remove_actor(
        self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None
    ) -> bool:
        """Free the actor's worker."""
        if self._live_actors_to_ray_actors_resources.pop(tracked_actor, None) is None:
            self._pending.pop(tracked_actor, None)
            return False
        self.clear_actor_task_futures(tracked_actor)
        if tracked_actor._on_stop:
            self._schedule(tracked_actor, 0.0, lambda: tracked_actor._on_stop(tracked_actor))
        return True

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        on_result: Callable[..., None] | None = None,
        on_error: Callable[..., None] | None = None,
        _return_future: bool = False,
    ) -> Any:
        """Do it now; its callback comes when the clock says that it is done."""
        if method_name == "stop" or tracked_actor not in self._live_actors_to_ray_actors_resources:
            return None
        actor = self._live_actors_to_ray_actors_resources[tracked_actor][0]
        seconds = 0.0
        try:
            result = getattr(actor, method_name)(*(args or ()))
        except Exception as error:
            # Whatever a trainable raises is the crash of its trial, as in a real actor.
            self.errors.append(f"{type(error).__name__}: {error}")
            if on_error is not None:
                failed, failure = on_error, error
                self._schedule(tracked_actor, 0.0, lambda: failed(tracked_actor, failure))
            return None
        if method_name == "train":
            seconds = result["time_this_iter_s"]
        self._schedule(tracked_actor, seconds, lambda: self._done(tracked_actor, result, on_result))
        return None

    def _done(
        self, actor: TrackedActor, result: Any, on_result: Callable[..., None] | None
    ) -> None:
        if isinstance(result, dict):
            self.steps += 1
            result["simulated_time"] = result["timestamp"] = self.clock
        if on_result is not None:
            on_result(actor, result)

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        """Forget what the actor is doing; the time that it took is not forgotten."""
        kept = []
        for event in self._events:
            if event.actor is tracked_actor:
                self._busy += self.clock - event.begun
            else:
                kept.append(event)
        if len(kept) < len(self._events):
            self._events = kept
            heapq.heapify(self._events)

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        """Whether it has a worker."""
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        """Simulated actors do not fail; what they run may."""
        return False

    def get_live_actors_resources(self) -> dict[str, float]:
        """Workers in use."""
        return {"CPU": float(len(self._live_actors_to_ray_actors_resources))}

    @property
    def num_live_actors(self) -> int:
        """How many have a worker."""
        return len(self._live_actors_to_ray_actors_resources)

    @property
    def num_pending_actors(self) -> int:
        """How many wait for one."""
        return len(self._pending)

    @property
    def num_total_actors(self) -> int:
        """All of them."""
        return self.num_live_actors + self.num_pending_actors

    @property
    def num_actor_tasks(self) -> int:
        """How many steps are under way."""
        return len(self._events)

    def cleanup(self) -> None:
        """Forget everything."""
        self._events.clear()
        self._pending.clear()
