"""Trials a second: real Ray with reused actors, the simulated clock, a whole recorded study.

    python experiments/speed/simulation.py [--json FILE] [--quick]

The same trials of random search on a published table (five steps each), on one core, in one
run of this script: by `tune.run` with reused actors and no loggers; by `simulate`, which is
Ray's control loop without its processes; and as a study of `tune-ext compare`, every cell
searched, evaluated and written to the disk. Medians over the repetitions; the first trial of
real Ray, which pays for the process, is in the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

TASK = "hpobench-car"


def real(trials: int) -> float:
    """Seconds a trial under `tune.run`."""
    from ray import tune

    from tune_ext.benchmark.methods import Setup
    from tune_ext.benchmark.study import TaskSpec
    from tune_ext.benchmark.tune_parts import BudgetStopper, StreamSearch, TaskTrainable

    spec = TaskSpec(TASK, {})
    setup = Setup(spec.create(), budget=10**9, seed=0)
    started = time.perf_counter()
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
    return (time.perf_counter() - started) / trials


def simulated(trials: int) -> float:
    """Seconds a trial on the simulated clock."""
    from tune_ext.benchmark.methods import Setup
    from tune_ext.benchmark.simulation import simulate
    from tune_ext.benchmark.study import TaskSpec
    from tune_ext.benchmark.tune_parts import BudgetStopper, LookupTrainable, StreamSearch

    setup = Setup(TaskSpec(TASK, {}).create(), budget=10**9, seed=0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as storage:
        simulate(
            lambda config: LookupTrainable(setup.task, 0, config),
            search_alg=StreamSearch(setup, limit=trials),
            stopper=BudgetStopper(10**9, setup.task.max_epochs, lambda trial_id, result: None),
            storage=storage,
        )
    return (time.perf_counter() - started) / trials


class _Quiet:
    """An observer that says nothing."""

    def begin(self, *arguments: Any) -> None: ...
    def unavailable(self, *arguments: Any) -> None: ...
    def tick(self, *arguments: Any) -> None: ...
    def finish_cell(self, *arguments: Any) -> None: ...


def recorded(cells: int, trials: int) -> float:
    """Seconds a trial of a whole study, from the command to the last record on the disk."""
    from tune_ext.benchmark.records import RecordStore
    from tune_ext.benchmark.runner import run_study
    from tune_ext.benchmark.study_file import parse_study

    study = parse_study(
        f'title = "speed"\n[[tasks]]\nname = "{TASK}"\n[compare]\nmethods = ["random"]\n'
        f'seeds = {cells}\nbudget = {trials}\nunit = "trainings"\n'
    )
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as directory:
        started = time.perf_counter()
        records = run_study(study, RecordStore(directory), _Quiet())
        seconds = time.perf_counter() - started
    return seconds / sum(len(record.trials) for record in records)


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials, once")
    options = parser.parse_args()
    os.environ |= {
        "RAY_worker_niceness": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    }
    import ray

    trials, times = (20, 1) if options.quick else (200, 3)
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=80 * 1024**2,
        log_to_driver=False,
        logging_level="ERROR",
    )
    measured: dict[str, list[float]] = {"real Ray": [], "simulated": [], "recorded study": []}
    try:
        for _ in range(times):
            measured["real Ray"].append(real(trials))
            measured["simulated"].append(simulated(trials * 5))
            measured["recorded study"].append(recorded(trials // 5, 25))
    finally:
        ray.shutdown()
    table = {
        name: {"seconds_per_trial": statistics.median(values), "all": values}
        for name, values in measured.items()
    }
    for name, values in table.items():
        seconds = values["seconds_per_trial"]
        print(f"{name:<16} {1000 * seconds:8.2f} ms a trial  {1 / seconds:7.0f} trials/s")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
