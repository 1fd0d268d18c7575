"""Does the response after five epochs know more than the validation accuracy then?

For each learning rate, optimiser and seed this trains two networks on the first 6,400
training images of Fashion-MNIST at 14×14 pixels (a ResNet of nine convolutions):

* probe: five epochs at a constant rate, as autoHyper does. Recorded: the response, and
  the accuracy on the next 2,000 training images;
* full: 25 epochs with a cosine schedule. Recorded: the accuracy on the 10,000 test images.

    python experiments/response/study.py run        # resumes; one line a network
    python experiments/response/study.py report     # tables, report.json and response.png
    python experiments/response/study.py check      # the published curve, within 0.05
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from tune_ext.benchmark import tasks

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from experiments.lines import read  # noqa: E402

CELLS = HERE / "results" / "cells.jsonl"
PROBE_EPOCHS, FULL_EPOCHS = 5, 25
# Half decades, three and a half decades for each optimiser, around its useful range.
RATES = {
    "adam": [10 ** (k / 2) for k in range(-8, 0)],
    "sgd": [10 ** (k / 2) for k in range(-6, 2)],
}
WEIGHT_DECAY = {"adam": 0.0, "sgd": 5e-4}
# Measured before, seed 0, five epochs at a constant rate; "±0.05 between seeds is normal".
KNOWN = {
    "adam": {
        1e-5: 1.00,
        6.5e-5: 0.99,
        4.3e-4: 0.87,
        1.1e-3: 0.71,
        2.8e-3: 0.48,
        7.1e-3: 0.19,
        4.6e-2: 0.08,
    },
    "sgd": {1.7e-3: 1.00, 1.1e-2: 0.86, 2.8e-2: 0.77, 7.1e-2: 0.32, 0.18: 0.21, 1.2: 0.06},
}


def task(optimizer: str, schedule: str, epochs: int) -> tasks.Task:
    return tasks.create(
        "fashion-mnist-resnet",
        train_size=6400,
        validation_size=2000,
        subset="first",
        image_size=14,
        optimizer=optimizer,
        schedule=schedule,
        epochs=epochs,
    )


def train(optimizer: str, lr: float, seed: int, kind: str) -> dict[str, Any]:
    """Train one network and return its record."""
    probe = kind == "probe"
    epochs = PROBE_EPOCHS if probe else FULL_EPOCHS
    begun = time.perf_counter()
    config = {"lr": lr, "weight_decay": WEIGHT_DECAY[optimizer]}
    run = task(optimizer, "constant" if probe else "cosine", epochs).start(config, seed=seed)
    history = [run.train_epoch() for _ in range(epochs)]
    last = history[-1]
    return {
        "optimizer": optimizer,
        "lr": lr,
        "seed": seed,
        "kind": kind,
        "response_mean": last["response_mean"],
        "validation_accuracy": 1 - last["validation_error"],
        "test_accuracy": None if probe else 1 - run.test()["test_error"],
        "diverged": last["diverged"],
        "seconds": time.perf_counter() - begun,
        "history": history,
    }


def wanted(seeds: int) -> Iterator[tuple[str, float, int, str]]:
    """Seed by seed, so that what is there at any time is useful."""
    for seed in range(seeds):
        for optimizer, rates in RATES.items():
            for lr in rates:
                for kind in ("probe", "full"):
                    yield optimizer, lr, seed, kind


def run(seeds: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["optimizer"], r["lr"], r["seed"], r["kind"]) for r in read(path)}
    for cell in wanted(seeds):
        if cell in done:
            continue
        record = train(*cell)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(
            f"{cell[0]:5} seed {cell[2]} lr {cell[1]:9.3g} {cell[3]:5} "
            f"response {record['response_mean']:.3f} "
            f"validation {record['validation_accuracy']:.4f} "
            f"test {record['test_accuracy'] or float('nan'):.4f} "
            f"({record['seconds']:.0f} s)",
            flush=True,
        )


def check(tolerance: float = 0.05) -> int:
    """Measure the known curve again; returns how many points are off by more."""
    off = 0
    for optimizer, known in KNOWN.items():
        for lr, expected in known.items():
            measured = train(optimizer, lr, 0, "probe")["response_mean"]
            far = abs(measured - expected) > tolerance
            off += far
            print(
                f"{optimizer:5} lr {lr:8.2g}  known {expected:.2f}  measured {measured:.3f}"
                f"{'  <- off' if far else ''}",
                flush=True,
            )
    return off


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "threads": str(torch.get_num_threads()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report", "check"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=Path, default=CELLS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "run":
        run(args.seeds, args.cells)
    elif args.what == "check":
        return min(check(), 1)
    else:
        from report import report  # beside this file

        report(read(args.cells), RATES, args.cells.parent, versions())
    return 0


if __name__ == "__main__":
    sys.exit(main())
