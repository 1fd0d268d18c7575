"""What the noise in the joint search's networks costs at small budgets.

The default configuration of the small space is trained with one and with three residual branches,
by the weights of Shake-Shake's paper ("uniform") and by those of the published code ("softmax"),
and with ShakeDrop at several rates. Every budget ends a cycle of the learning rate.

    python experiments/joint_search/noise.py [--seeds 3] [--epochs 9]      # prints the table
"""

from __future__ import annotations

import argparse
from statistics import mean
from typing import Any

import torch

from tune_ext.benchmark.tasks.joint import FashionMNISTJoint

NETWORKS: dict[str, tuple[int, str, float]] = {
    "one branch": (1, "uniform", 0.0),
    "one branch, death_rate .2": (1, "uniform", 0.2),
    "one branch, death_rate .5": (1, "uniform", 0.5),
    "three branches, uniform": (3, "uniform", 0.0),
    "three branches, softmax": (3, "softmax", 0.0),
}
"""Branches of each group, Shake-Shake's weights, death rate."""
LIMITS = {"initial_filters": (8, 8), "widen_factor_1": (1, 1)}


def errors(name: str, seed: int, epochs: int) -> list[float]:
    """The validation errors at the ends of the budgets."""
    branches, coefficients, rate = NETWORKS[name]
    options: dict[str, Any] = {"coefficients": coefficients, "limits": LIMITS, "epochs": epochs}
    task = FashionMNISTJoint(train_size=2_500, validation_size=2_500, **options)
    config: dict[str, Any] = {"death_rate": rate, "length": 0, "alpha": 0.0}
    for i in (1, 2, 3):
        config |= {f"res_branches_{i}": branches, f"nr_residual_blocks_{i}": 1}
    run, found = task.start(config, seed=seed), []
    for epoch in range(1, epochs + 1):
        metrics = run.train_epoch()
        if epoch in task.budgets:
            found.append(float(metrics["validation_error"]))
    return found


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in NETWORKS:
        runs = [errors(name, seed, options.epochs) for seed in range(options.seeds)]
        cells = [
            f"{mean(column):.3f} ({min(column):.3f} to {max(column):.3f})"
            for column in zip(*runs, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
