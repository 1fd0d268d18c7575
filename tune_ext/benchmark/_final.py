"""The evaluation of a recommendation: trained in full with other seeds, each tested once.

On a cluster the trainings run where trials do, all seeds at once: the driver's machine may have
no GPU. A training that is lost with its node begins again on another one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.tasks import Task, TaskRun

__all__ = ["tested", "train_and_test", "train_and_test_remotely"]

_LOSSES = 3
"""How often a training begins again on another node."""

Tell = Callable[[str, Any], None]


def train_and_test(request: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """Train with the so many-th of the request's seeds, and test.

    Args:
        request: What the runner asks for: task, config, schedule, seeds.
        number: Which seed.

    Yields:
        `{"epoch": n}` when the training has begun (0) and after every epoch, and then
        `{"test": …}`, what belongs into the record.

    Raises:
        RuntimeError: The schedule names no configuration for the first epoch, or the task has
            no epoch.
    """
    yield {"epoch": 0}
    task, seed = TaskSpec(**request["task"]).create(), request["seeds"][number]
    started = time.monotonic()
    run: TaskRun | None = None
    metrics: dict[str, Any] = {}
    switches = dict(request.get("schedule") or [(0, request["config"])])
    for epoch in range(task.max_epochs):
        if epoch in switches:
            run = _switch(task, run, switches[epoch], seed)
        if run is None:
            raise RuntimeError(f"the schedule {switches} does not begin at epoch 0")
        metrics = run.train_epoch()
        yield {"epoch": epoch + 1}
        if metrics.get("diverged") or metrics.get("ended"):
            break
    if run is None:
        raise RuntimeError(f"{task.name} has no epoch to train")
    test = {} if metrics.get("diverged") else run.test()
    found = {
        **tested(seed, test, metrics),
        "response_mean": _finite(metrics.get("response_mean")),
        "epochs": run.epoch,
        "seconds": round(time.monotonic() - started, 3),
    }
    yield {"test": found}


def train_and_test_remotely(request: Mapping[str, Any], tell: Tell) -> list[dict[str, Any]]:
    """Train with all seeds at once, on the cluster that this process is connected to.

    Args:
        request: As that of `train_and_test`, and the place.
        tell: Called with ("final", an epoch that is done) and, while no node has room,
            ("alive", why).

    Returns:
        What `train_and_test` yields last, for each seed.
    """
    import ray
    from ray.exceptions import NodeDiedError, RayTaskError, WorkerCrashedError

    place = request["place"]
    train = ray.remote(
        num_cpus=place["cpus_per_trial"],
        num_gpus=place["gpus_per_trial"],
        max_retries=0,
        num_returns="streaming",
    )(train_and_test)
    tests: dict[int, dict[str, Any]] = {}
    running = {n: train.remote(request, n) for n in range(len(request["seeds"]))}
    began: set[int] = set()
    losses = 0
    while running:
        ready, _ = ray.wait(list(running.values()), timeout=5.0)
        if not ready and not began & set(running):
            tell("alive", "waiting for a node with room")
        for number in [n for n, stream in running.items() if stream in ready]:
            try:
                told = ray.get(next(running[number]))
            except (WorkerCrashedError, NodeDiedError):
                losses += 1
                if losses > _LOSSES:
                    raise
                began.discard(number)
                running[number] = train.remote(request, number)
                continue
            except RayTaskError as error:
                raise error.as_instanceof_cause() from None
            if "test" in told:
                tests[number] = told["test"]
                del running[number]
                continue
            began.add(number)
            if told["epoch"]:
                tell("final", {"number": number, "epoch": told["epoch"]})
    return [tests[number] for number in sorted(tests)]


def _switch(task: Task, run: TaskRun | None, config: Mapping[str, Any], seed: int) -> TaskRun:
    """Go on with another configuration; without a run, begin."""
    new = task.start(config, seed=seed)
    if run is not None:
        new.load_state_dict(run.state_dict())
    return new


def tested(seed: int, test: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of a test."""
    return {
        "seed": seed,
        "test_error": _finite(test.get("test_error")),
        "test_loss": _finite(test.get("test_loss")),
        "validation_error": _finite(metrics.get("validation_error")),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
