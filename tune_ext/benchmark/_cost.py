"""What an epoch costs in seconds, for budgets that count them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tune_ext.benchmark._method import Setup
from tune_ext.benchmark.tasks import Task

__all__ = ["epoch_cost", "epoch_seconds", "trains_on_cpu"]

_PILOTS = 32
"""Random configurations whose first epochs say what an epoch of a simulated task costs."""


def trains_on_cpu(task: Task) -> bool:
    """Whether it is the processor that trains."""
    return task.options.get("device") == "cpu"


def epoch_cost(on_cpu: bool, result: Mapping[str, Any]) -> float:
    """Seconds that an epoch was trained: measured, or on the simulated clock.

    Where the processor trains they are its own, so that other work on the machine costs a search
    nothing; several threads are not counted one by one.

    Args:
        on_cpu: Whether the processor trains.
        result: Has `train_seconds`, on the clock, and perhaps `cpu_seconds`; or, of a task that
            is looked up, `seconds`.

    >>> epoch_cost(True, {"train_seconds": 3.0, "cpu_seconds": 2.0})
    2.0
    """
    if "train_seconds" not in result:
        return float(result["seconds"])
    seconds = float(result["train_seconds"])
    return min(seconds, float(result.get("cpu_seconds", seconds))) if on_cpu else seconds


def epoch_seconds(task: Task) -> float:
    """What an epoch costs.

    Where epochs are looked up it is the median over the first ones of some random
    configurations; else one of the default configuration is trained here.
    """
    if task.simulated:
        drawn = Setup(task, 1, 0).configurations()
        runs = [task.start(next(drawn), seed=0) for _ in range(_PILOTS)]
        return float(np.median([run.train_epoch()["seconds"] for run in runs]))
    run = task.start(task.default_config, seed=0)
    costs = []
    for _ in range(min(2, task.max_epochs)):  # the first one loads the data
        started, processed = time.perf_counter(), time.process_time()
        run.train_epoch()
        measured = {"train_seconds": time.perf_counter() - started}
        measured["cpu_seconds"] = time.process_time() - processed
        costs.append(epoch_cost(trains_on_cpu(task), measured))
    return min(costs)
