"""One rate for all topologies of the study: which of them train, and with which scaling.

Run it as `python experiments/scaling_search/one_rate.py`. It writes `results/one_rate.md`.
"""

from __future__ import annotations

import itertools
import statistics
import warnings
from pathlib import Path
from typing import Any

from tune_ext import scaling
from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks.dag import dag_string

RATE = 0.1
SEEDS = range(3)
DEPTHS, DENSITIES, SKIPS = (2, 4, 6), (0.0, 0.5, 1.0), ("identity", "layer")
WAYS: dict[str, tuple[Any, Any]] = {
    "one rate": (None, None),
    "weights": ("target", None),
    "mean": ("target", "mean"),
    "gain": ("target", "gain"),
    "sum": ("target", "sum"),
    "stream, mean": ("stream", "mean"),
    "stream, gain": ("stream", "gain"),
}
"""Which in-degree the initial weights have (None: torch's own), how paths are added up (None: the
rate is that of all)."""
OUT = Path(__file__).parent / "results" / "one_rate.md"


def factor(dag: str, way: tuple[Any, Any]) -> float:
    """Of the rate of a topology."""
    degree, aggregate = way
    if aggregate is None:
        return 1.0
    return scaling.plan_of_dag(dag, aggregate=aggregate, in_degree=degree).factor()


def error(task: tasks.Task, config: dict[str, Any], way: tuple[Any, Any], seed: int) -> float:
    """Validation error after a full training; .9 where it diverged."""
    run: Any = task.start(config, seed=seed)
    if way[0] is not None:
        network = task.build(config)
        plan = scaling.plan_of_dag(network.dag, inputs=64, width=64, in_degree=way[0])
        plan.initialize_(run._network, seed)
    for _ in range(task.max_epochs):
        metrics = run.train_epoch()
        if metrics["diverged"]:
            return 0.9
    return float(metrics["validation_error"])


def main() -> None:
    """Train every topology each way."""
    warnings.simplefilter("ignore", scaling.ScalingWarning)
    task = tasks.create("digits-dag", epochs=4, batch_size=32)
    lines = ["| depth | density | skips | " + " | ".join(WAYS) + " |"]
    lines.append("|" + "---|" * (3 + len(WAYS)))
    for depth, density, skip in itertools.product(DEPTHS, DENSITIES, SKIPS):
        if density == 0 and skip == "layer":
            continue
        dag = dag_string(depth, density, skip)
        cells = [str(depth), f"{density:g}", skip if density else "-"]
        for way in WAYS.values():
            lr = RATE * factor(dag, way)
            config = {"depth": depth, "density": density, "skip": skip, "lr": lr}
            found = statistics.median(error(task, config, way, seed) for seed in SEEDS)
            cells.append(f"{100 * found:.1f} ({lr:.2g})")
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
