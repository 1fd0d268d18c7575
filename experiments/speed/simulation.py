"""Trials a second: real Ray with reused actors, the simulated clock, a whole recorded study.

    python experiments/speed/simulation.py [--json FILE] [--quick] [--trials N] [--times N]

The same trials of random search on a published table (five steps each), on one core, in one
run of this script: by `tune.run` with reused actors and no loggers, beside trials that do
nothing there, which is what Ray takes for itself; by `simulate`, which is
Ray's control loop without its processes; and as a study of `tune-ext compare`, every cell
searched, evaluated and written to the disk (the worker process that it starts, which takes
about 3 s to import what it needs, is in the time of its 4,000 trials, 20 times N); the last
also on NAS-Bench-201 (three steps) and on Branin's function (27 steps). Medians over the
repetitions, by the clock on the wall and by what the processors worked: on a busy machine the
first says what else was running. Of real Ray the
work is the driver's alone, which decides and records; the first trial, which pays for the
process, is in the time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASK = "hpobench-car"


def worked() -> float:
    """Seconds that this process and the children that have ended have worked."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def per_trial(run: Callable[[], int]) -> dict[str, float]:
    """What a trial costs in a run that says how many it had."""
    wall, work = time.perf_counter(), worked()
    trials = run()
    wall, work = time.perf_counter() - wall, worked() - work
    return {"seconds": wall / trials, "cpu_seconds": work / trials}


def real(trials: int) -> int:
    """Trials under `tune.run`."""
    from ray import tune

    from tune_ext.benchmark.methods import Setup
    from tune_ext.benchmark.study import TaskSpec
    from tune_ext.benchmark.tune_parts import BudgetStopper, StreamSearch, TaskTrainable

    spec = TaskSpec(TASK, {})
    setup = Setup(spec.create(), budget=10**9, seed=0)
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as storage:
        tune.run(
            tune.with_parameters(TaskTrainable, task=spec, seed=0),
            search_alg=StreamSearch(setup, limit=trials),
            stop=BudgetStopper(10**9, setup.task.max_epochs, lambda trial_id, result: None),
            num_samples=-1,
            reuse_actors=True,
            resources_per_trial={"cpu": 1},
            storage_path=storage,
            verbose=0,
        )
    return trials


def bare(trials: int) -> int:
    """Trials under `tune.run` of a trainable that does nothing, five steps each: Ray alone."""
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    class Empty(tune.Trainable):  # type: ignore[misc] # Ray's classes are untyped
        """Reports that it was asked."""

        def step(self) -> dict[str, Any]:
            return {"epoch": self.training_iteration + 1, "done": self.training_iteration >= 4}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    with tempfile.TemporaryDirectory(prefix="tune-ext-") as storage:
        tune.run(
            Empty,
            search_alg=BasicVariantGenerator(max_concurrent=1),
            config={"x": tune.uniform(0, 1)},
            num_samples=trials,
            reuse_actors=True,
            resources_per_trial={"cpu": 1},
            storage_path=storage,
            verbose=0,
        )
    return trials


def simulated(trials: int) -> int:
    """Trials on the simulated clock."""
    from tune_ext.benchmark.methods import Setup
    from tune_ext.benchmark.simulation import simulate
    from tune_ext.benchmark.study import TaskSpec
    from tune_ext.benchmark.tune_parts import BudgetStopper, LookupTrainable, StreamSearch

    setup = Setup(TaskSpec(TASK, {}).create(), budget=10**9, seed=0)
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as storage:
        simulate(
            lambda config: LookupTrainable(setup.task, 0, config),
            search_alg=StreamSearch(setup, limit=trials),
            stopper=BudgetStopper(10**9, setup.task.max_epochs, lambda trial_id, result: None),
            storage=storage,
        )
    return trials


class _Quiet:
    """An observer that says nothing."""

    def begin(self, *arguments: Any) -> None: ...
    def unavailable(self, *arguments: Any) -> None: ...
    def tick(self, *arguments: Any) -> None: ...
    def finish_cell(self, *arguments: Any) -> None: ...


def recorded(cells: int, trials: int, task: str = TASK) -> int:
    """Trials of a whole study, from the command to the last record on the disk."""
    from tune_ext.benchmark.records import RecordStore
    from tune_ext.benchmark.runner import run_study
    from tune_ext.benchmark.study_file import parse_study

    study = parse_study(
        f'title = "speed"\n[[tasks]]\nname = "{task}"\n[compare]\nmethods = ["random"]\n'
        f'seeds = {cells}\nbudget = {trials}\nunit = "trainings"\n'
    )
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as directory:
        records = run_study(study, RecordStore(directory), _Quiet())
    return sum(len(record.trials) for record in records)


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials, once")
    parser.add_argument("--trials", type=int, default=200, help="in real Ray; the others have more")
    parser.add_argument("--times", type=int, default=3, help="how often each is measured")
    options = parser.parse_args()
    os.environ |= {
        "RAY_worker_niceness": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    }
    import ray

    from tune_ext.benchmark.provenance import provenance

    trials, times = (20, 1) if options.quick else (options.trials, options.times)
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=80 * 1024**2,
        log_to_driver=False,
        logging_level="ERROR",
    )
    cells = trials // 5
    runs: dict[str, Callable[[], int]] = {
        "real Ray": lambda: real(trials),
        "real Ray, an empty trainable": lambda: bare(trials),
        "simulated": lambda: simulated(trials * 5),
        "recorded study": lambda: recorded(cells, 100),
        "recorded study, NAS-Bench-201": lambda: recorded(cells, 100, "nasbench201-cifar10"),
        "recorded study, Branin": lambda: recorded(cells, 100, "function-branin"),
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    load = os.getloadavg()
    try:
        for _ in range(times):
            for name, run in runs.items():
                measured[name].append(per_trial(run))
    finally:
        ray.shutdown()
    table = {
        name: {
            f"{kind}_per_trial": statistics.median(value[kind] for value in values)
            for kind in ("seconds", "cpu_seconds")
        }
        | {"all": values}
        for name, values in measured.items()
    }
    print(f"{'':<32}{'wall-clock':>24}{'processor':>24}")
    for name, values in table.items():
        told = [values["seconds_per_trial"], values["cpu_seconds_per_trial"]]
        cells_of = [f"{1000 * s:8.2f} ms {1 / s:8.0f}/s" for s in told]
        print(f"{name:<32}{cells_of[0]:>24}{cells_of[1]:>24}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "load_average_before": load,
            "trials": trials,
            "times": times,
            "settings": table,
            "provenance": provenance(),
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
