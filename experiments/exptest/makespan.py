"""How long the ladder takes with 1 to 8 workers, simulated and on Ray.

    python experiments/exptest/makespan.py --out experiments/exptest/results/makespan [--ray]

Rungs are trained for real (60 steps of batch 32 on the handwritten digits, in scikit-learn's
wheel; a network of one hidden layer, and a convolutional one with BatchNorm; SGD, SGD with
momentum, Adam), once a rate. The simulation then lets W workers ask for the next rung whenever
one is idle; a rung takes one unit of time, or, "uneven", between .5 and 1.5 by a hash of its
rate. It raises if the answer depends on the number of workers. With `--ray`, ExpTestSearch and
ExpTestScheduler run the first problem on a local Ray, every rung made to last 10 seconds; the
time is that from the first rung's start to the final trial's.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import heapq
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from tune_ext.exptest import Ladder, Rung, RungResult, RungTest, learning_rate_bound

WORKERS = (1, 2, 4, 8)
STARTS = ("bound", 0.1, 1e-3)
RANGE = {"lower": 1e-6, "upper": 10.0}
STEPS, BATCH = 60, 32
SECONDS = 10.0  # of a rung on Ray

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adam": torch.optim.Adam,
}


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]


def network(name: str) -> nn.Module:
    """The initial weights, the same for every rung."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "mlp":
            return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            nn.Flatten(),
            nn.Linear(512, 10),
        )


def rung_result(model: str, optimizer: str, lr: float) -> RungResult:
    """What a rung at this rate shows."""
    net, (x, y), test = copy.deepcopy(network(model)), digits(), RungTest(STEPS)
    optim = OPTIMIZERS[optimizer](net.parameters(), lr=lr)
    for step in range(STEPS):
        rows = slice(step % 56 * BATCH, (step % 56 + 1) * BATCH)
        loss = functional.cross_entropy(net(x[rows]), y[rows])
        if test.update(loss.item()):
            break
        optim.zero_grad()
        loss.backward()
        optim.step()
    return test.result()


def unit(rung: Rung) -> float:
    """Every rung takes the same time."""
    return 1.0


def uneven(rung: Rung) -> float:
    """Between .5 and 1.5, the same for the same rate."""
    digest = hashlib.sha256(f"{rung.lr:.6e}".encode()).digest()
    return 0.5 + int.from_bytes(digest[:4], "big") / 2**32


def simulate(
    ladder: Ladder,
    result: Callable[[float], RungResult],
    workers: int,
    duration: Callable[[Rung], float],
) -> dict[str, Any]:
    """Climb a ladder on simulated workers.

    Returns:
        makespan: When it had its answer; rungs: how many had been begun; lr: the answer.
    """
    now, begun = 0.0, 0
    running: list[tuple[float, int, Rung]] = []
    while not ladder.finished:
        for rung in ladder.ask(workers - len(running)):
            heapq.heappush(running, (now + duration(rung), begun, rung))
            begun += 1
        now, _, rung = heapq.heappop(running)
        ladder.tell(rung.index, result(rung.lr))
    return {"makespan": round(now, 3), "rungs": begun, "lr": ladder.lr}


def measure() -> list[dict[str, Any]]:
    """One row for each problem, start, kind of duration and number of workers."""
    bound, rows = learning_rate_bound([digits()[0]], loss="cross_entropy"), []
    known = cache(rung_result)
    for model in ("mlp", "cnn"):
        for optimizer in OPTIMIZERS:
            for start in STARTS:
                for duration in (unit, uneven):
                    runs = {}
                    for workers in WORKERS:
                        runs[workers] = simulate(
                            Ladder(bound if start == "bound" else start, steps=STEPS, **RANGE),
                            lambda lr, m=model, o=optimizer: known(m, o, lr),
                            workers,
                            duration,
                        )
                        if runs[workers]["lr"] != runs[1]["lr"]:
                            raise RuntimeError(f"{workers} workers changed the answer")
                        rows.append(
                            {
                                "problem": f"{model}, {optimizer}, from {start}",
                                "durations": duration.__name__,
                                "workers": workers,
                                "speedup": round(
                                    runs[1]["makespan"] / runs[workers]["makespan"], 3
                                ),
                                **runs[workers],
                            }
                        )
    return rows


def trial(config: dict[str, Any]) -> None:
    """A rung, or a short final trial, on Ray."""
    from ray import tune

    from tune_ext import LossMonitor

    torch.set_num_threads(1)
    monitor, net = LossMonitor(config), copy.deepcopy(network("mlp"))
    optimizer, (x, y) = torch.optim.SGD(net.parameters(), lr=config["lr"]), digits()
    for step in range(STEPS):
        rows = slice(step % 56 * BATCH, (step % 56 + 1) * BATCH)
        loss = functional.cross_entropy(net(x[rows]), y[rows])
        ended = monitor.step(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(SECONDS / STEPS if config["tune_ext"]["role"] == "rung" else 0)
        if ended or (step + 1) % (STEPS // 6) == 0:
            tune.report(monitor.report())
        if ended:
            return


def measure_on_ray() -> list[dict[str, Any]]:
    """The same on Ray, with as many workers as the trials' share of the CPUs says."""
    import ray
    from ray import tune

    from tune_ext import ExpTestScheduler, ExpTestSearch

    class Clock(tune.Callback):
        begun: float | None = None
        ended = 0.0

        def on_trial_start(self, trial: Any, **info: Any) -> None:
            self.begun = self.begun or time.monotonic()
            if trial.config["tune_ext"]["role"] == "final":
                self.ended = time.monotonic()

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    rows = []
    for workers in WORKERS[:3]:
        search, clock = ExpTestSearch(bound=0.1), Clock()
        with tempfile.TemporaryDirectory() as folder:
            analysis = tune.run(
                tune.with_resources(trial, {"cpu": 8 / workers}),
                config={"lr": tune.loguniform(1e-6, 10.0)},
                search_alg=search,
                scheduler=ExpTestScheduler(),
                num_samples=-1,
                reuse_actors=True,
                storage_path=folder,
                callbacks=[clock],
                verbose=0,
            )
        begun = [t for t in analysis.trials if t.last_result]
        rows.append(
            {
                "workers": workers,
                "seconds": round(clock.ended - (clock.begun or 0.0), 2),
                "rungs_needed": len([r for r in search.explain().rows if r["event"] == "rung"]),
                "rungs_begun": len(begun) - 1,
                "lr": (search.best_config or {}).get("lr"),
            }
        )
    ray.shutdown()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/exptest-makespan"))
    parser.add_argument("--ray", action="store_true", help="also on a local Ray (two minutes)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure()
    document: dict[str, Any] = {"rows": rows}
    for durations in ("unit", "uneven"):
        for w in WORKERS:
            some = [r for r in rows if (r["durations"], r["workers"]) == (durations, w)]
            faster = [r["speedup"] for r in some]
            print(
                f"{durations:6} {w} workers: {min(faster):.2f} to {max(faster):.2f} times as fast "
                f"as one, median {median(faster):.2f}; a median of "
                f"{median(r['rungs'] for r in some):g} rungs begun ({len(some)} ladders)"
            )
    if arguments.ray:
        os.environ.setdefault("RAY_worker_niceness", "0")
        document["ray"] = measure_on_ray()
        for r in document["ray"]:
            print(r)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = {k: ",\n  ".join(map(json.dumps, v)) for k, v in document.items()}
    body = ",\n ".join(f'"{k}": [\n  {v}\n ]' for k, v in text.items())
    (arguments.out / "makespan.json").write_text(f"{{\n {body}\n}}\n")


if __name__ == "__main__":
    main()
