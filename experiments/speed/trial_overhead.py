"""What a probe costs beyond its training, with and without reused actors.

    python experiments/speed/trial_overhead.py [--json FILE] [--quick]

A probe is a trial of five epochs on the handwritten digits, as autoHyper makes them; each
epoch reports. The overhead of a probe is the time from the last result of the trial before it
to its own last result, less the seconds that its epochs took inside the trainable: starting
or resetting, building the network, reporting, deciding. The first trial of a run, which pays
for the process and the data, is left out. One trial at a time, one core, one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

PROBE_EPOCHS = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "Ray's default": {"reuse": False, "loggers": True, "trials": 6},
    "reuse_actors=True": {"reuse": True, "loggers": True, "trials": 40},
    "reuse_actors=True, loggers off": {"reuse": True, "loggers": False, "trials": 40},
}


def run_trials(trials: int, *, reuse: bool, loggers: bool) -> dict[str, Any]:
    """Run that many probes; returns each one's overhead and training seconds."""
    from ray import tune

    from tune_ext.benchmark.methods import Setup
    from tune_ext.benchmark.study import TaskSpec
    from tune_ext.benchmark.tune_parts import BudgetStopper, StreamSearch, TaskTrainable

    spec = TaskSpec("digits-cnn", {"epochs": 10, "parameters": ["lr"]})
    setup = Setup(spec.create(), budget=10**9, seed=0)  # the searcher ends the run
    training: dict[str, float] = {}
    last: dict[str, float] = {}

    def note(trial_id: str, result: dict[str, Any]) -> None:
        training[trial_id] = training.get(trial_id, 0.0) + result["train_seconds"]
        last[trial_id] = time.perf_counter()

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "0" if loggers else "1"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as storage:
        tune.run(
            tune.with_parameters(TaskTrainable, task=spec, seed=0),
            search_alg=StreamSearch(setup, limit=trials),
            stop=BudgetStopper(setup.budget, PROBE_EPOCHS, note),
            num_samples=-1,
            reuse_actors=reuse,
            resources_per_trial={"cpu": 1},
            storage_path=storage,
            verbose=0,
        )
    wall = time.perf_counter() - started
    order = sorted(last, key=last.__getitem__)
    overheads = [
        last[now] - last[before] - training[now] for before, now in itertools.pairwise(order)
    ]
    return {
        "reuse_actors": reuse,
        "loggers": loggers,
        "trials": trials,
        "wall_s": wall,
        "training_s": sum(training.values()),
        "overhead_s_per_probe_median": statistics.median(overheads),
        "overhead_s_per_probe_mean": statistics.fmean(overheads),
        "overheads_s": overheads,
        "training_s_per_probe_median": statistics.median(training.values()),
    }


def start_ray(directory: str) -> None:
    """A small Ray of its own."""
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=80 * 1024**2,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=directory,
    )


def main() -> None:
    """Measure every setting, print a table, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--trials", type=int, help="for every setting (default: 6 or 40)")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    os.environ |= {"TUNE_RESULT_BUFFER_LENGTH": "1", "TUNE_GLOBAL_CHECKPOINT_S": "3600"}
    from tune_ext.benchmark.records import provenance

    scratch = tempfile.mkdtemp(prefix="tune-ext-")
    start_ray(scratch)
    import ray

    try:
        load = os.getloadavg()
        results = {
            name: run_trials(
                arguments.trials or setting["trials"],
                reuse=setting["reuse"],
                loggers=setting["loggers"],
            )
            for name, setting in SETTINGS.items()
        }
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{'setting':<32} {'trials':>6} {'overhead a probe: median':>26} {'mean':>9}")
    for name, result in results.items():
        median, mean = (result[f"overhead_s_per_probe_{kind}"] for kind in ("median", "mean"))
        print(f"{name:<32} {result['trials']:>6} {median:>24.3f} s {mean:>7.3f} s")
    if arguments.json:
        document = {
            "probe_epochs": PROBE_EPOCHS,
            "load_average_before": load,
            "settings": results,
            "provenance": provenance(),
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
