"""A made-up study of several tasks, with everything that a report can show."""

import numpy as np

from tests.benchmark.examples import make_record, make_study
from tune_ext.benchmark.study import TaskSpec

METHODS = ("default", "random", "asha", "bohb", "autohyper", "exptest")


def several_study(tasks=7, methods=METHODS, seeds=6):
    specs = tuple(TaskSpec("fake", {"n": i}, label=f"task {i}") for i in range(tasks))
    return make_study(
        title="A study <b>of</b> several tasks",
        tasks=specs,
        methods=methods,
        seeds=tuple(range(seeds)),
        budget=100,
        unit="epochs",
    )


def several_records(tasks=7, methods=METHODS, seeds=6):
    """Methods are better the later they are named, but for exptest, which fails on task 2."""
    rng = np.random.default_rng(0)
    for task in range(tasks):
        for place, method in enumerate(methods):
            for seed in range(seeds):
                failed = method == "exptest" and task == 2
                end = 0.3 / (1 + place) + 0.02 * task + 0.03 * rng.random()
                points = [[u, 2.0 * u, end + 0.5 / u] for u in (1, 3, 10, 30, 80)]
                yield make_record(
                    method,
                    seed,
                    () if failed else (end,),
                    task={"name": "fake", "options": {"n": task}},
                    label=f"task {task}",
                    budget=100,
                    epochs_used=100 if place else 0,
                    incumbents=points if place and not failed else [],
                    clock="simulated",
                    workers=4,
                    makespan=200.0,
                    busy_seconds=600.0,
                    regret_range=(0.01 + 0.02 * task, 0.4),
                    failures=["<script>alert(1)</script>"] if failed else [],
                    provenance={"git": "abc<i>", "versions": {"ray": "2.60"}, "hardware": {}},
                    recommendation={"config": {"lr": 0.01 * (seed + 1), "kind": "</script>"}},
                )
