"""Actors that only look things up, and the simulated clock that says when they are done."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pyarrow.fs import LocalFileSystem
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint

__all__ = ["Actors", "SimulatedTrainable"]

_FILES = LocalFileSystem()


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


class _Memory(Checkpoint):  # type: ignore[misc] # Ray's classes are untyped
    """A checkpoint that holds a state and no files."""

    def __init__(self, state: Any) -> None:
        super().__init__("simulated", filesystem=_FILES)
        self.state = state


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


class Actors:
    """Stands in for Ray's `RayActorManager`: the same methods, over a queue of events."""

    def __init__(
        self,
        make: Callable[[dict[str, Any]], SimulatedTrainable],
        workers: int,
        most_steps: int | None = None,
        most_seconds: float | None = None,
    ) -> None:
        self._make, self._workers = make, workers
        self._most_steps, self._most_seconds = most_steps, most_seconds
        self._order = itertools.count()
        self._events: list[_Event] = []
        self._pending: dict[TrackedActor, dict[str, Any]] = {}
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[_Actor, None]] = {}
        self._busy = 0.0
        self.clock = 0.0
        self.steps = 0
        self.begun = 0
        self.exhausted = False
        self.errors: list[str] = []

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way."""
        return not self._events and not self._pending

    def busy(self) -> float:
        """Seconds of training so far; what is under way counts up to now."""
        return self._busy + sum(self.clock - e.begun for e in self._events)

    def next(self, timeout: float | None = None) -> bool:
        """Start what can be started, then handle the earliest event that the budget allows."""
        self._start()
        if not self._events:
            self.exhausted = self._no_step_left
            return False
        if self._cut_off():
            return False
        event = heapq.heappop(self._events)
        self.clock = event.time
        self._busy += event.time - event.begun
        event.call()
        return True

    @property
    def _no_step_left(self) -> bool:
        return self._most_steps is not None and self.begun >= self._most_steps

    def _cut_off(self) -> bool:
        """Stop the clock where the seconds are used up, if that is before the next event."""
        if self._most_seconds is None or self.exhausted:
            return self.exhausted
        span = self._events[0].time - self.clock
        left = self._most_seconds - self.busy()
        training = sum(e.time > e.begun for e in self._events)
        if training * span > left + 1e-12 * self._most_seconds:
            self.clock += max(0.0, left) / training
            self.exhausted = True
        return self.exhausted

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
        train = method_name == "train"
        if train and self._no_step_left:
            return None  # it waits for the end of the run
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
        if train:
            self.begun += 1
            seconds = result["time_this_iter_s"]
        self._schedule(tracked_actor, seconds, lambda: self._done(tracked_actor, result, on_result))
        return None

    def _done(
        self, actor: TrackedActor, result: Any, on_result: Callable[..., None] | None
    ) -> None:
        if isinstance(result, dict):
            self.steps += 1
            result["simulated_time"] = result["timestamp"] = self.clock
            result["simulated_busy"] = self.busy()
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
