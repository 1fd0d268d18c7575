"""What a ladder finds from a bound that is wrong by up to four orders of magnitude.

    python experiments/exptest/wrong_bounds.py     # 5 min on one core

Trainings of the study (`tasks.py`), each with SGD and Adam, three seeds, and the same batches in
every rung or others in each. The bound of the inputs is multiplied by 1e-4 … 1e4. Written to
results/wrong_bounds: how many rungs the ladder needs, how many rungs away its choice is from
the one that it makes from the bound itself, and the choice's end loss over that one's.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import chain, product, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tasks import Batches, Data, Pair, Task, fully_connected, tasks

from tune_ext.exptest import Ladder, RungResult, RungTest, learning_rate_bound

FACTORS = (1.0, 1e-4, 1e-2, 1e2, 1e4)
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
SEEDS = (0, 1, 2)


def trainings() -> dict[str, Task]:
    """Linear, shallow and deep; small batches and usual ones."""
    known = tasks()
    logistic, mlp = known["logistic-128"], known["mlp-128"]
    deep = replace(mlp, make=lambda: fully_connected((784, *[64] * 4, 10)))
    shallow = replace(mlp, make=lambda: fully_connected((784, 64, 10)))
    found = {"logistic": logistic, "one hidden layer": shallow, "four hidden layers": deep}
    return {
        **{f"{name}, batches of {b}": replace(t, batch_size=b)
           for name, t in found.items() for b in (8, 128)},
        "Friedman's function 1, batches of 64": known["friedman1"],
    }  # fmt: skip


@cache
def load(name: str, seed: int) -> Data:
    return trainings()[name].load(seed)


def batches(task: Task, data: Pair, seed: int) -> Iterator[Pair]:
    stream = Batches(data, task.batch_size, seed)
    return chain.from_iterable(repeat(stream))


def measure(name: str, optimizer: str, seed: int, lr: float, order: int) -> RungResult:
    """One rung; `order` decides the batches."""
    task = trainings()[name]
    network, test = task.network(seed).train(), RungTest()
    rule = OPTIMIZERS[optimizer](network.parameters(), lr=lr)
    for x, y in batches(task, load(name, seed).train, order):
        loss = task.loss_fn(network(x), y)
        if test.update(loss.item()):
            return test.result()
        rule.zero_grad()
        loss.backward()
        rule.step()
    raise AssertionError("there is no end of batches")


def climb(name: str, optimizer: str, seed: int, bound: float, shared: bool) -> Ladder:
    ladder = Ladder(bound)
    while not ladder.finished:
        (rung,) = ladder.ask()
        order = seed if shared else 1000 * (seed + 1) + rung.index
        ladder.tell(rung.index, measure(name, optimizer, seed, rung.lr, order))
    return ladder


def rows() -> Iterator[dict[str, Any]]:
    for name, optimizer, shared in product(trainings(), OPTIMIZERS, (True, False)):
        for seed in SEEDS:
            task, first = trainings()[name], None
            inputs = [x for x, _ in Batches(load(name, seed).train, 100, seed)]
            bound = learning_rate_bound(inputs, loss=task.loss)
            for factor in FACTORS:
                ladder = climb(name, optimizer, seed, bound * factor, shared)
                first = first or ladder
                row: dict[str, Any] = {
                    "training": name, "optimizer": optimizer, "shared batches": shared,
                    "seed": seed, "factor": factor, "rungs": len(ladder.results),
                    "lr": ladder.lr, "distance": None, "loss ratio": None,
                }  # fmt: skip
                if ladder.best is not None and first.best is not None:
                    end = ladder.results[ladder.best.index].end_loss
                    base = first.results[first.best.index].end_loss
                    row["distance"] = abs(math.log(ladder.lr / first.lr)) / -math.log(ladder.beta)
                    row["loss ratio"] = end / base
                yield row


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "# Bounds that are wrong",
        "",
        "`python experiments/exptest/wrong_bounds.py`, all trainings, optimisers and seeds "
        "together; conditions in wrong_bounds.json.",
        "",
        "| bound × | same batches | ladders | rungs: median (most) | no answer "
        "| rungs away: median (most) | end loss ×: median (most) |",
        "|---|---|---|---|---|---|---|",
    ]
    for factor, shared in product(FACTORS, (True, False)):
        group = [r for r in found if (r["factor"], r["shared batches"]) == (factor, shared)]
        worked = [r for r in group if r["distance"] is not None]
        cells = [f"{factor:g}", "yes" if shared else "no", len(group)]
        for values, digits in (
            ([r["rungs"] for r in group], 0),
            (None, 0),
            ([r["distance"] for r in worked], 1),
            ([r["loss ratio"] for r in worked], 2),
        ):
            if values is None:
                cells.append(len(group) - len(worked))
            else:
                cells.append(f"{median(values):.{digits}f} ({max(values):.{digits}f})")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Ladders from bounds that are wrong.")
    default = Path(__file__).parent / "results" / "wrong_bounds"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    found = list(rows())
    conditions = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"conditions": conditions, "rows": found}, indent=1)
    (out / "wrong_bounds.json").write_text(text + "\n", encoding="utf-8")
    (out / "wrong_bounds.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
