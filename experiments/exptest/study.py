"""Train every task with every method and seed; a killed run goes on where it was.

    python experiments/exptest/study.py                        # all that is here; hours
    python experiments/exptest/study.py --tasks logistic-128 mlp-128 --seeds 5
    python experiments/exptest/study.py --tasks vgg16-cifar10 --data DIR --methods exptest
    python experiments/exptest/study.py --lattice --seeds 1    # width × depth
    python experiments/exptest/report.py                       # tables and pictures

One process, one thread. One line of JSON a finished cell (task × method × seed), with
versions and conditions; finished cells are not repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from baselines import Known, Method, lattice_methods, methods
from tasks import Options, Task, tasks
from training import Prepared

from tune_ext.benchmark.records import provenance

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from experiments.lines import append, read  # noqa: E402

RECORDS = "records.jsonl"
LARGE = ("vgg16-cifar10",)  # only by name
Record = dict[str, Any]
Key = tuple[str, str, int]


def with_needs(names: Iterable[str], every: dict[str, Method]) -> list[str]:
    """The methods, each after those that it needs."""
    wanted: list[str] = []
    for name in names:
        wanted += [n for n in (*every[name].needs, name) if n not in wanted]
    return wanted


def cells(
    chosen: list[Task], names: list[str], seeds: Iterable[int]
) -> Iterator[tuple[Task, int, str]]:
    """Task by task, seed by seed: what is there at any time is useful, and data loads once."""
    for task in chosen:
        for seed in seeds:
            for name in names:
                yield task, seed, name


@cache
def _conditions() -> dict[str, Any]:
    known = provenance()
    del known["finished"]  # of this process's first cell, not of each
    return {
        **known,
        "threads": torch.get_num_threads(),
        "packages": _packages(),
    }


def _packages() -> dict[str, str | None]:
    from importlib import metadata

    found: dict[str, str | None] = {}
    for name in ("prodigyopt", "dadaptation", "schedulefree", "torch-lr-finder", "dog-optimizer"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def train(prepared: Prepared, name: str, method: Method, known: Known) -> Record:
    """Train one cell and return its record."""
    begun = time.perf_counter()
    outcome = method.train(prepared, known)
    task = prepared.task
    return {
        "task": task.name,
        "method": name,
        "seed": prepared.seed,
        "metric": task.metric,
        **outcome.to_json(),
        "run_steps": prepared.steps,
        "epoch_steps": prepared.epoch,
        "seconds": round(time.perf_counter() - begun, 3),
        "batch_size": task.batch_size,
        "epochs": task.epochs,
        "early_stopping": task.early_stopping,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "conditions": _conditions(),
    }


def run(
    chosen: list[Task], every: dict[str, Method], names: list[str], seeds: Iterable[int], path: Path
) -> None:
    """Train every cell that `path` lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done: dict[Key, Record] = {(r["task"], r["method"], r["seed"]): r for r in read(path)}
    todo = list(cells(chosen, with_needs(names, every), seeds))
    prepared: Prepared | None = None
    for number, (task, seed, name) in enumerate(todo, 1):
        if (task.name, name, seed) in done:
            continue
        if prepared is None or (prepared.task.name, prepared.seed) != (task.name, seed):
            prepared = Prepared.of(task, seed)
        known = {m: r for (t, m, s), r in done.items() if (t, s) == (task.name, seed)}
        record = train(prepared, name, every[name], known)
        append(path, record)
        done[task.name, name, seed] = record
        print(f"[{number}/{len(todo)}] {_line(record)}", flush=True)


def _line(record: Record) -> str:
    found = record["metrics"]
    values = " ".join(
        f"{k} {found[k]:.4f}" for k in ("train_loss", "validation", "test") if k in found
    )
    return (
        f"{record['task']:15} {record['method']:20} seed {record['seed']} "
        f"{values or 'diverged'} ({record['seconds']:.1f} s)"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="see tasks.py; default: all")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--data", help="where the data sets lie")
    parser.add_argument("--lattice", action="store_true", help="width × depth and its rates")
    parser.add_argument("--full", action="store_true", help="the lattice at full size")
    parser.add_argument("--list", action="store_true", help="list tasks and methods, and stop")
    return parser.parse_args()


def _choose(arguments: argparse.Namespace, every: dict[str, Task]) -> list[Task]:
    """The tasks asked for that can run here; says which cannot."""
    default = [n for n in every if n.startswith("lattice") == arguments.lattice and n not in LARGE]
    chosen = [every[name] for name in arguments.tasks or default]
    for task in chosen:
        if (missing := task.missing()) is not None:
            print(f"left out {task.name}: {missing}", file=sys.stderr)
    return [task for task in chosen if task.missing() is None]


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    every = tasks(Options(arguments.data, arguments.full))
    known = lattice_methods() if arguments.lattice else methods()
    if arguments.list:
        for name, task in every.items():
            print(f"{name:20} {task.missing() or task.description}")
        for name, method in known.items():
            print(f"{name:20} {method.text}")
        return 0
    unknown = {*(arguments.tasks or ())} - set(every) | {*(arguments.methods or ())} - set(known)
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; --list shows what there is", file=sys.stderr)
        return 2
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    names = arguments.methods or list(known)
    run(_choose(arguments, every), known, names, seeds, arguments.out / RECORDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
