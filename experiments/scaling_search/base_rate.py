"""The learning rate of the network with one hidden layer, which `study.toml` gives to all.

Run it as `python experiments/scaling_search/base_rate.py`.
"""

from __future__ import annotations

import statistics

from tune_ext.benchmark import tasks

RATES = (0.02, 0.05, 0.1, 0.2, 0.5)
SEEDS = range(5)


def main() -> None:
    """Print the final training loss of each rate, the median over seeds."""
    task = tasks.create("digits-dag", epochs=4, batch_size=32)
    for initialization in ("default", "scaled"):
        for lr in RATES:
            config = {"depth": 1, "lr": lr, "initialization": initialization}
            losses = []
            for seed in SEEDS:
                run = task.start(config, seed=seed)
                losses.append([run.train_epoch() for _ in range(4)][-1]["train_loss"])
            print(f"{initialization:8} {lr:5} {statistics.median(losses):.4f}")


if __name__ == "__main__":
    main()
