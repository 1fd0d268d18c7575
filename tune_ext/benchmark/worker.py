"""The process in which cells run: its own small Ray, one thread, one trial at a time or a few.

The runner starts it as `python -m tune_ext.benchmark.worker FD SCRATCH RUNNER`, in a process
group of its own, and talks to it over the pipe FD. One worker runs many cells, so that Ray and
torch start once. Messages are (kind, payload) pairs:

* to the worker: ("search", dict), ("evaluate", dict), ("stop", None)
* from it: ("alive", what), ("epoch", dict), ("history", dict), ("searched", dict),
  ("final", dict), ("evaluated", list), ("failed", text) after which it can go on, and
  ("error", text) after which it is better replaced

A task that is trained tells every epoch at once. One that is looked up runs in this process,
on a simulated clock and without a Ray, and tells its history now and then and at its end.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tune_ext.benchmark._cluster import call, if_nodes_are_lost, on_cluster
from tune_ext.benchmark._cost import epoch_cost, epoch_seconds, trains_on_cpu
from tune_ext.benchmark._final import tested, train_and_test, train_and_test_remotely
from tune_ext.benchmark._ledger import count_epochs, start_ledger
from tune_ext.benchmark._permits import Permits
from tune_ext.benchmark._storage import Storage
from tune_ext.benchmark.methods import METHODS, Search, Setup
from tune_ext.benchmark.study import TaskSpec
from tune_ext.benchmark.tally import Tally, epochs_allowed
from tune_ext.benchmark.tasks import Task
from tune_ext.errors import InvalidValueError

__all__ = ["main"]

_RAY_STARTS = 3

_TELL_EVERY = 0.5
"""Seconds between two messages from a simulated search."""


def main() -> None:
    """Serve cells until told to stop, or until the runner is gone."""
    pipe = Connection(int(sys.argv[1]))
    scratch = Path(sys.argv[2])
    parent = int(sys.argv[3])  # it may be gone by now
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
        except Exception as error:
            # Whatever went wrong belongs into the cell's record; the runner decides.
            traceback.print_exc()
            simulated = TaskSpec(**payload["task"]).create().simulated
            what = " ".join(f"{type(error).__name__}: {error}".split())
            pipe.send(("failed" if simulated else "error", what))
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
        self._epoch_seconds: dict[str, float] = {}

    def close(self) -> None:
        if self._ray_runs:
            import ray

            ray.shutdown()

    def _start_ray(self, place: Mapping[str, Any], workers: int) -> None:
        """Start this worker's own Ray, or connect to a cluster; tried again when it fails.

        Several workers look for free ports at the same time. One that loses the race must
        not count as a failure of the method that was to run.
        """
        if self._ray_runs:
            return
        import ray

        own: dict[str, Any] = {
            "address": "local",
            "num_cpus": max(1, math.ceil(workers * place["cpus_per_trial"])),
            "num_gpus": math.ceil(workers * place["gpus_per_trial"]),
            "include_dashboard": False,
            "object_store_memory": 80 * 1024**2,
            "_temp_dir": str(self._scratch / "ray"),
        }
        where = own if place["address"] is None else on_cluster(place["address"])
        for attempt in range(1, _RAY_STARTS + 1):
            self._pipe.send(("alive", f"starting Ray, attempt {attempt}"))
            try:
                ray.init(**where, log_to_driver=False, logging_level="ERROR")
                break
            except (OSError, RuntimeError):
                traceback.print_exc()
                ray.shutdown()
                if attempt == _RAY_STARTS:
                    raise
        self._ray_runs = True
        self._pipe.send(("alive", "Ray started"))

    def search(self, request: dict[str, Any]) -> None:
        """Run one method's search, and tell its epochs."""
        spec = TaskSpec(**request["task"])
        task = spec.create()
        if not task.simulated:
            self._start_ray(request["place"], request["workers"])
        build = METHODS[request["method"]].build
        if build is None:
            raise RuntimeError(f"method {request['method']!r} has no search")
        budget = self._epochs(task, spec, request)
        setup = Setup(task, budget, request["seed"], workers=request["workers"])
        # Ray's TuneBOHB draws from numpy's global generator: only a seed there makes it
        # repeatable. This process serves nothing but cells, so the global state is its own.
        np.random.seed(request["seed"] % 2**32)  # noqa: NPY002
        search = build(setup)
        tally = Tally(task, request["unit"], search.answer)
        run = self._simulate if task.simulated else self._tune
        ended = run(search, setup, tally, request)
        answer = ended.pop("answer") if "answer" in ended else search.answer()
        schedule = getattr(search, "schedule", None)
        self._pipe.send(
            (
                "searched",
                {
                    "answer": None if answer is None else dict(answer),
                    "schedule": None if schedule is None else schedule(),
                    "details": search.details(),
                    "incumbent": tally.look(ended["makespan"]),
                    **ended,
                },
            )
        )

    def _epochs(self, task: Task, spec: TaskSpec, request: Mapping[str, Any]) -> int:
        """How many epochs the budget allows, for methods that plan with them.

        A budget in seconds is divided by what an epoch costs: the median over the first epochs
        of some random configurations where epochs are looked up, else the time of an epoch
        of the default configuration, trained here outside the budget.
        """
        allowed = epochs_allowed(request["budget"], request["unit"], task.max_epochs)
        if allowed is not None:
            return allowed
        if spec.label not in self._epoch_seconds:
            if request["place"]["address"] and not task.simulated:
                timed = call(epoch_seconds, task, request["place"], self._tell_alive)
            else:
                timed = epoch_seconds(task)
            self._epoch_seconds[spec.label] = timed
        return max(1, int(request["budget"] / self._epoch_seconds[spec.label]))

    def _stopper(
        self,
        search: Search,
        setup: Setup,
        request: Mapping[str, Any],
        watch: Any,
        report: Any,
        on_end: Callable[[bool], None] = lambda overran: None,
    ) -> Any:
        from tune_ext.benchmark.tune_parts import BudgetStopper

        full_length = None if search.stops_trials else setup.max_epochs
        cost = partial(epoch_cost, trains_on_cpu(setup.task))
        if request["unit"] == "seconds":
            return BudgetStopper(
                request["budget"], full_length, report, lambda: watch.hopeless, cost, on_end
            )
        return BudgetStopper(
            setup.budget, full_length, report, lambda: watch.hopeless, on_end=on_end
        )

    def _simulate(
        self, search: Search, setup: Setup, tally: Tally, request: Mapping[str, Any]
    ) -> dict[str, Any]:
        from tune_ext.benchmark.simulation import simulate
        from tune_ext.benchmark.tune_parts import LookupTrainable, Watch

        watch = Watch()
        told = time.monotonic()

        def report(trial_id: str, result: dict[str, Any]) -> None:
            nonlocal told
            cost = result["simulated_busy"] - tally.cost  # what is under way counts up to now
            tally.add(trial_id, result, result["simulated_time"], cost)
            if time.monotonic() - told > _TELL_EVERY:
                self._tell_history(tally)
                told = time.monotonic()

        try:
            done = simulate(
                lambda config: LookupTrainable(setup.task, setup.seed, config),
                search_alg=search.search_alg,
                scheduler=search.scheduler,
                stopper=self._stopper(search, setup, request, watch, report),
                callbacks=[watch],
                workers=request["workers"],
                storage=str(self._scratch / "storage"),
                **self._limit(setup, request),
            )
        finally:
            self._tell_history(tally)
        if watch.hopeless:
            raise RuntimeError(f"{len(done.errors)} trials crashed: {done.errors[-1]}")
        return {
            "makespan": done.clock,
            "busy_seconds": done.busy,
            "errors": list(done.errors),
            "epochs": done.begun if request["unit"] != "seconds" else done.steps,
        }

    def _limit(self, setup: Setup, request: Mapping[str, Any]) -> dict[str, Any]:
        """The budget, for `simulate`."""
        if request["unit"] == "evaluations":
            return {"trials": request["budget"]}
        seconds = request["unit"] == "seconds"
        return {"seconds": request["budget"]} if seconds else {"steps": setup.budget}

    def _tell_alive(self, why: str) -> None:
        self._pipe.send(("alive", why))

    def _tell_history(self, tally: Tally) -> None:
        self._pipe.send(("history", {"history": tally.history, "incumbents": tally.incumbents}))

    def _tune(
        self, search: Search, setup: Setup, tally: Tally, request: Mapping[str, Any]
    ) -> dict[str, Any]:
        from ray import tune

        from tune_ext.benchmark.tune_parts import TaskTrainable, Watch

        started = time.monotonic()
        cost = partial(epoch_cost, trains_on_cpu(setup.task))
        epochs, place = _Epochs(setup, request), request["place"]
        watch = Watch(epochs.ledger, None if epochs.ledger is None else self._tell_alive)
        cut: dict[str, Any] = {}
        answer, budget = search.answer, float(request["budget"])  # Ray pickles what stops a run

        def on_end(overran: bool) -> None:
            if overran:  # what the method would say without the result that had no room
                cut.update(answer=answer(), busy_seconds=budget)
            epochs.close()

        def report(trial_id: str, result: dict[str, Any]) -> None:
            seconds = time.monotonic() - started
            epochs.tell(trial_id, result["epoch"])
            incumbent = tally.add(trial_id, result, seconds, cost(result))
            row = {k: v for k, v in result.items() if isinstance(v, int | float)}
            told = {"trial_id": trial_id, "config": tally.config_of(result), "result": row}
            self._pipe.send(("epoch", {**told, "seconds": seconds, "incumbent": incumbent}))

        storage = place["storage"] or str(self._scratch / "storage")
        name = f"cell-{os.getpid()}-{time.time_ns()}"
        try:
            tune.run(
                tune.with_parameters(
                    TaskTrainable,
                    task=TaskSpec(**request["task"]),
                    seed=setup.seed,
                    journal=request["journal"],
                    **epochs.of_trials,
                ),
                name=name,
                search_alg=search.search_alg,
                scheduler=search.scheduler,
                stop=self._stopper(search, setup, request, watch, report, on_end),
                callbacks=[watch],
                num_samples=request["budget"] if request["unit"] == "evaluations" else -1,
                reuse_actors=True,
                resources_per_trial={
                    "cpu": place["cpus_per_trial"],
                    "gpu": place["gpus_per_trial"],
                },
                storage_path=storage,
                verbose=0,
                raise_on_failed_trial=False,
                **(if_nodes_are_lost() if epochs.ledger is not None else {}),
            )
        finally:
            if place["storage"] is not None:
                with contextlib.suppress(OSError, InvalidValueError):  # it costs room, no more
                    Storage(storage).remove(name)
        if watch.hopeless:
            raise RuntimeError(f"{len(watch.errors)} trials crashed: {watch.errors[-1]}")
        makespan, counted = time.monotonic() - started, epochs.counted()
        told = {"makespan": makespan, "busy_seconds": tally.cost, "errors": watch.errors}
        return {**told, **counted, **cut}

    def evaluate(self, request: dict[str, Any]) -> None:
        """Test a configuration once a seed, each time trained in full from scratch.

        A simulated task has nothing to train: its test errors are looked up, one where all
        seeds have the same.
        """
        task = TaskSpec(**request["task"]).create()
        if task.simulated:
            found = [_look_up(task, request["config"], seed) for seed in request["seeds"]]
            same = all({**f, "seed": 0} == {**found[0], "seed": 0} for f in found)
            self._pipe.send(("evaluated", found[:1] if same else found))
            return
        place = request.get("place") or {}
        if place.get("address"):
            self._start_ray(place, len(request["seeds"]))
            tests = train_and_test_remotely(request, lambda *told: self._pipe.send(told))
            self._pipe.send(("evaluated", tests))
            return
        tests = []
        for number in range(len(request["seeds"])):
            for told in train_and_test(request, number):
                if "test" in told:
                    tests.append(told["test"])
                elif told["epoch"]:
                    self._pipe.send(("final", {"number": number, "epoch": told["epoch"]}))
        self._pipe.send(("evaluated", tests))


def _look_up(task: Task, config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return tested(seed, task.start(config, seed=seed).test(), {})


class _Epochs:
    """Who counts the epochs of trials that run at once: a file, or an actor on a cluster.

    Nobody where there is one trial at a time and no cluster, or for a budget in seconds: what an
    epoch takes is known when it is over.
    """

    def __init__(self, setup: Setup, request: Mapping[str, Any]) -> None:
        from tune_ext.benchmark.tune_parts import permits_of

        self.ledger: Any = None
        self._permits: Permits | None = None
        seconds = request["unit"] == "seconds"
        if request["place"]["address"]:
            self.ledger = start_ledger(None if seconds else setup.budget)
        elif request["journal"] is not None and request["workers"] > 1 and not seconds:
            self._permits = Permits(permits_of(request["journal"]), setup.budget)
            self._permits.reset()
        number = None if self._permits is None else setup.budget
        self.of_trials = {"permits": number, "ledger": self.ledger}

    def tell(self, trial: str, epoch: int) -> None:
        """A result is here."""
        if self.ledger is not None:
            self.ledger.tell.remote(trial, epoch)

    def close(self) -> None:
        """The search is over."""
        if self._permits is not None:
            self._permits.close()
        if self.ledger is not None:
            self.ledger.close.remote()

    def counted(self) -> dict[str, Any]:
        """The epochs that were trained, where the journal does not tell."""
        return {} if self.ledger is None else {"epochs": count_epochs(self.ledger)}


if __name__ == "__main__":
    main()
