"""The process in which cells run: its own small Ray, one trial at a time, one thread.

The runner starts it as `python -m tune_ext.benchmark.worker FD`, in a process group of its
own, and talks to it over the pipe FD. One worker runs many cells, so that Ray and torch
start once. Messages are (kind, payload) pairs:

* to the worker: ("search", dict), ("evaluate", dict), ("stop", None)
* from it: ("alive", what), ("epoch", dict), ("searched", dict), ("final", dict),
  ("evaluated", list), ("error", text)
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tune_ext.benchmark.methods import METHODS, Search, Setup
from tune_ext.benchmark.study import TaskSpec

__all__ = ["main"]

_RAY_STARTS = 3


def main() -> None:
    """Serve cells until told to stop, or until the runner is gone."""
    pipe = Connection(int(sys.argv[1]))
    scratch = Path(sys.argv[2])
    parent = os.getppid()
    threading.Thread(target=_die_with_parent, args=(parent, scratch), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = _Worker(pipe, scratch)
    while True:
        try:
            kind, payload = pipe.recv()
        except EOFError:
            break
        if kind == "stop":
            break
        try:
            {"search": worker.search, "evaluate": worker.evaluate}[kind](payload)
        except Exception:
            # Whatever went wrong belongs into the cell's record; the runner decides.
            traceback.print_exc()
            pipe.send(("error", traceback.format_exc().strip().splitlines()[-1]))
    worker.close()


def _die_with_parent(parent: int, scratch: Path) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


class _Worker:
    def __init__(self, pipe: Connection, scratch: Path) -> None:
        self._pipe = pipe
        self._scratch = scratch
        self._ray_runs = False

    def close(self) -> None:
        if self._ray_runs:
            import ray

            ray.shutdown()

    def _start_ray(self) -> None:
        """Start this worker's own Ray; a start that fails is tried again.

        Several workers look for free ports at the same time. One that loses the race must
        not count as a failure of the method that was to run.
        """
        if self._ray_runs:
            return
        import ray

        for attempt in range(1, _RAY_STARTS + 1):
            self._pipe.send(("alive", f"starting Ray, attempt {attempt}"))
            try:
                ray.init(
                    address="local",
                    num_cpus=1,
                    num_gpus=0,
                    include_dashboard=False,
                    object_store_memory=80 * 1024**2,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _temp_dir=str(self._scratch / "ray"),
                )
                break
            except (OSError, RuntimeError):
                traceback.print_exc()
                ray.shutdown()
                if attempt == _RAY_STARTS:
                    raise
        self._ray_runs = True
        self._pipe.send(("alive", "Ray started"))

    def search(self, request: dict[str, Any]) -> None:
        """Run one method's search, and send every epoch."""
        self._start_ray()
        task = TaskSpec(**request["task"])
        setup = Setup(task.create(), request["budget"], request["seed"])
        # Ray's TuneBOHB draws from numpy's global generator: only a seed there makes it
        # repeatable. This process serves nothing but cells, so the global state is its own.
        np.random.seed(request["seed"] % 2**32)  # noqa: NPY002
        build = METHODS[request["method"]].build
        if build is None:
            raise RuntimeError(f"method {request['method']!r} has no search")
        search = build(setup)
        errors = self._tune(search, setup, task, request["journal"])
        answer = search.answer()
        self._pipe.send(
            (
                "searched",
                {
                    "answer": None if answer is None else dict(answer),
                    "details": search.details(),
                    "errors": errors,
                },
            )
        )

    def _tune(self, search: Search, setup: Setup, task: TaskSpec, journal: str) -> list[str]:
        from ray import tune

        from tune_ext.benchmark.tune_parts import BudgetStopper, TaskTrainable, Watch

        started = time.monotonic()
        watch = Watch()
        names = set(setup.task.space.keys())

        def report(trial_id: str, result: dict[str, Any]) -> None:
            config = {k: v for k, v in result["config"].items() if k in names}
            config |= result["found"]  # what the trial has found by itself
            seconds = time.monotonic() - started
            row = {k: v for k, v in result.items() if isinstance(v, int | float)}
            self._pipe.send(
                (
                    "epoch",
                    {"trial_id": trial_id, "config": config, "result": row, "seconds": seconds},
                )
            )

        stopper = BudgetStopper(
            setup.budget,
            None if search.stops_trials else setup.max_epochs,
            report,
            lambda: watch.hopeless,
        )
        tune.run(
            tune.with_parameters(TaskTrainable, task=task, seed=setup.seed, journal=journal),
            name=f"cell-{time.time_ns()}",
            search_alg=search.search_alg,
            scheduler=search.scheduler,
            stop=stopper,
            callbacks=[watch],
            num_samples=-1,
            reuse_actors=True,
            resources_per_trial={"cpu": 1},
            storage_path=str(self._scratch / "storage"),
            verbose=0,
            raise_on_failed_trial=False,
        )
        if watch.hopeless:
            raise RuntimeError(f"{len(watch.errors)} trials crashed: {watch.errors[-1]}")
        return watch.errors

    def evaluate(self, request: dict[str, Any]) -> None:
        """Train a configuration at full length from scratch, and test it once a seed."""
        task = TaskSpec(**request["task"]).create()
        tests = []
        for number, seed in enumerate(request["seeds"]):
            started = time.monotonic()
            run = task.start(request["config"], seed=seed)
            metrics: dict[str, Any] = {}
            for epoch in range(1, task.max_epochs + 1):
                metrics = run.train_epoch()
                self._pipe.send(("final", {"number": number, "epoch": epoch}))
                if metrics.get("diverged"):
                    break
            test = {} if metrics.get("diverged") else run.test()
            tests.append(
                {
                    "seed": seed,
                    "test_error": _finite(test.get("test_error")),
                    "test_loss": _finite(test.get("test_loss")),
                    "validation_error": _finite(metrics.get("validation_error")),
                    "response_mean": _finite(metrics.get("response_mean")),
                    "epochs": run.epoch,
                    "seconds": round(time.monotonic() - started, 3),
                }
            )
        self._pipe.send(("evaluated", tests))


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


if __name__ == "__main__":
    main()
