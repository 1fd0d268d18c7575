"""One rate for all topologies of the study: which of them train, and with which scaling.

Run it as `python experiments/scaling_search/one_rate.py`. It writes `results/one_rate.md`.
"""

from __future__ import annotations

import itertools
import statistics
import warnings
from pathlib import Path

from tune_ext import scaling
from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks.dag import dag_string

RATE = 0.1
SEEDS = range(3)
DEPTHS, DENSITIES, SKIPS = (2, 4, 6), (0.0, 0.5, 1.0), ("identity", "layer")
WAYS = {
    "one rate": ("default", None),
    "weights": ("scaled", None),
    "weights, rate by mean": ("scaled", "mean"),
    "weights, rate by sum": ("scaled", "sum"),
}
OUT = Path(__file__).parent / "results" / "one_rate.md"


def factor(dag: str, aggregate: str | None) -> float:
    """Of the rate of a topology."""
    return 1.0 if aggregate is None else scaling.plan_of_dag(dag, aggregate=aggregate).factor()


def error(task: tasks.Task, config: dict[str, object], seed: int) -> float:
    """Validation error after a full training; .9 where it diverged."""
    run = task.start(config, seed=seed)
    for _ in range(task.max_epochs):
        metrics = run.train_epoch()
        if metrics["diverged"]:
            return 0.9
    return float(metrics["validation_error"])


def main() -> None:
    """Train every topology each way."""
    warnings.simplefilter("ignore", scaling.ScalingWarning)
    task = tasks.create("digits-dag", epochs=4, batch_size=32)
    lines = [
        "| depth | density | skips | factor: mean | sum | " + " | ".join(WAYS) + " |",
        "|" + "---|" * (5 + len(WAYS)),
    ]
    for depth, density, skip in itertools.product(DEPTHS, DENSITIES, SKIPS):
        if density == 0 and skip == "layer":
            continue
        shape = {"depth": depth, "density": density, "skip": skip}
        dag = dag_string(depth, density, skip)
        cells = [f"{factor(dag, a):.2f}" for a in ("mean", "sum")]
        for weights, aggregate in WAYS.values():
            lr = RATE * factor(dag, aggregate)
            config = {**shape, "lr": lr, "initialization": weights}
            found = statistics.median(error(task, config, seed) for seed in SEEDS)
            cells.append(f"{100 * found:.1f}")
        lines.append(
            f"| {depth} | {density:g} | {skip if density else '-'} | {' | '.join(cells)} |"
        )
        print(lines[-1], flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
