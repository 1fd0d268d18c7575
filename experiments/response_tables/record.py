"""Record real trainings over a grid of learning rate, weight decay and seed.

    python experiments/response_tables/record.py train RECORDS [--part 0 --of 2 --also OTHER]
    python experiments/response_tables/record.py pack RECORDS... --to tune_ext/benchmark/tasks/data

`train` appends a line a training to RECORDS and leaves out what is there or in OTHER already, so
that it can be stopped and started again; `--minutes` stops it. Seeds come one after the other, so
that every seed that is complete can be packed. `pack` writes one compressed file a network.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tune_ext.benchmark.tasks import DigitsCNN, FashionMNISTResNet, Task

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
SEEDS = 3
METRICS = (
    "train_loss",
    "validation_loss",
    "validation_error",
    "response",
    "response_mean",
    "knowledge_gain",
)


class FashionMNISTCNN(FashionMNISTResNet):
    """The images of `FashionMNISTResNet`, a plain stack of five convolutions."""

    name: ClassVar[str] = "fashion-mnist-cnn"

    def _network(self) -> nn.Module:
        from tune_ext.benchmark.tasks._networks import plain_cnn

        return plain_cnn(1, 10, (8, 16, 16, 32, 32), (1, 2, 1, 2, 1))


def _thirds(low: int, high: int) -> list[float]:
    """Three points a decade, from 10**low to 10**high."""
    return [float(f"{10 ** (i / 3):.4g}") for i in range(3 * low, 3 * high + 1)]


@dataclass(frozen=True)
class Table:
    """What is recorded for one network."""

    task: type[FashionMNISTResNet] | type[DigitsCNN]
    options: dict[str, Any]
    lrs: list[float]
    decays: list[float]

    def make(self) -> Task:
        """The task that is trained."""
        return self.task(**self.options)


_SMALL = {"image_size": 14, "train_size": 2000, "validation_size": 1000, "batch_size": 64}
_SGD_RATES = [1e-6, 1e-5, *_thirds(-4, 0)]
_ADAM_RATES = [1e-6, *_thirds(-5, -1), 0.3162, 1.0]
TABLES = {
    "digits-cnn": Table(
        DigitsCNN,
        {"optimizer": "sgd", "epochs": 12},
        _SGD_RATES,
        [1e-7, 1e-4, 1e-3, 1e-2, 3.162e-2, 1e-1],
    ),
    "fashion-cnn": Table(
        FashionMNISTCNN,
        {**_SMALL, "optimizer": "adam", "epochs": 8},
        _ADAM_RATES,
        [1e-7, 1e-3, 1e-2, 3.162e-2, 1e-1],
    ),
    "fashion-resnet": Table(
        FashionMNISTResNet,
        {**_SMALL, "optimizer": "sgd", "epochs": 8, "width": 8},
        _SGD_RATES,
        [1e-7, 1e-3, 1e-2, 3.162e-2, 1e-1],
    ),
}


def _key(record: dict[str, Any]) -> tuple[str, float, float, int]:
    return (record["table"], record["lr"], record["weight_decay"], record["seed"])


def train(task: Task, lr: float, decay: float, seed: int) -> dict[str, Any]:
    """Train once; a run that diverges ends there."""
    run = task.start({"lr": lr, "weight_decay": decay}, seed=seed)
    epochs, losses = [], []
    for _ in range(task.max_epochs):
        start = time.process_time()
        metrics = run.train_epoch()
        epochs.append(
            {name: float(metrics[name]) for name in METRICS}
            | {"seconds": time.process_time() - start}
        )
        losses.append([float(loss) for loss in run.step_losses])
        if metrics["diverged"]:
            break
    return {
        "lr": lr,
        "weight_decay": decay,
        "seed": seed,
        "epochs": epochs,
        "step_losses": losses,
        **run.test(),
    }


def jobs() -> Iterator[tuple[str, float, float, int]]:
    """All trainings, seed by seed; in each every second rate first."""
    for seed in range(SEEDS):
        for name, table in TABLES.items():
            for lr in table.lrs[::2] + table.lrs[1::2]:
                for decay in table.decays:
                    yield name, lr, decay, seed


def _revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _load(paths: list[Path]) -> list[dict[str, Any]]:
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def train_all(path: Path, also: list[Path], part: int, of: int, minutes: float) -> None:
    """Train what is missing in `path` and in the files of others."""
    import torch

    torch.set_num_threads(1)
    end = time.monotonic() + 60 * minutes
    done = {_key(record) for record in _load([path, *also])}
    revision = _revision()
    warm: set[str] = set()
    for name, lr, decay, seed in list(jobs())[part::of]:
        if (name, lr, decay, seed) in done:
            continue
        if time.monotonic() > end:
            return
        task = TABLES[name].make()
        if name not in warm:  # the first epoch in a process pays for loading and caches
            task.start({}, seed=seed).train_epoch()
            warm.add(name)
        record = {"table": name, "revision": revision, **train(task, lr, decay, seed)}
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def pack(paths: list[Path], folder: Path) -> None:
    """Write one file a table, from the seeds that are complete."""
    import torch

    records = {_key(record): record for record in _load(paths)}
    for name, table in TABLES.items():
        seeds = [
            seed
            for seed in range(SEEDS)
            if all((name, lr, wd, seed) in records for lr in table.lrs for wd in table.decays)
        ]
        if not seeds:
            print(f"{name}: no seed is complete")
            continue
        task = table.make()
        shape = (len(seeds), len(table.lrs), len(table.decays), task.max_epochs)
        batches = [task.training_inputs(seed) for seed in seeds]
        columns = {metric: np.full(shape, np.nan, np.float32) for metric in (*METRICS, "seconds")}
        step_losses = np.full((*shape, len(batches[0])), np.nan, np.float32)
        ends = {n: np.full(shape[:3], np.nan, np.float32) for n in ("test_error", "test_loss")}
        revisions = set()
        for place in np.ndindex(*shape[:3]):
            k, i, j = place
            record = records[name, table.lrs[i], table.decays[j], seeds[k]]
            revisions.add(record["revision"])
            for epoch, metrics in enumerate(record["epochs"]):
                losses = record["step_losses"][epoch]
                step_losses[(*place, epoch)][: len(losses)] = losses
                for metric, column in columns.items():
                    column[(*place, epoch)] = metrics[metric]
            for metric, end in ends.items():
                end[place] = record[metric]
        # What 2/trace needs: the mean square of an input is that of all training images.
        squares = [float(np.mean([np.mean(batch**2) for batch in bs])) for bs in batches]
        about = {
            "format": FORMAT,
            "table": name,
            "task": task.name,
            "options": task.options,
            "seeds": seeds,
            "batches": len(batches[0]),
            "features": int(np.prod(batches[0][0].shape[1:])),
            "mean_square": squares,
            "revisions": sorted(revisions),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "processor": platform.processor() or platform.machine(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.npz"
        np.savez_compressed(
            path,
            about=np.array(json.dumps(about)),
            lr=np.array(table.lrs),
            weight_decay=np.array(table.decays),
            step_losses=step_losses,
            **columns,
            **ends,
        )
        print(f"{path}: seeds {seeds}, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train")
    command.add_argument("records", type=Path)
    command.add_argument("--part", type=int, default=0)
    command.add_argument("--of", type=int, default=1)
    command.add_argument("--also", type=Path, nargs="*", default=[])
    command.add_argument("--minutes", type=float, default=1e6)
    command = commands.add_parser("pack")
    command.add_argument("records", type=Path, nargs="+")
    command.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_all(
            arguments.records, arguments.also, arguments.part, arguments.of, arguments.minutes
        )
    else:
        pack(arguments.records, arguments.to)


if __name__ == "__main__":
    main()
