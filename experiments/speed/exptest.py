"""What ExpTestLR costs a training loop, as a share of a training step.

    python experiments/speed/exptest.py [--json FILE] [--rounds N] [--quick]

Two trainings on the handwritten digits, batches of 32, one thread: the network of the smallest
task (digits-cnn), and a logistic regression, whose step is about as short as a step can be.
After every training step one candidate is called and timed, in turns, so that each finds the
caches as a training step leaves them:

* ExpTestLR given the loss tensor, given a number, and given the model too (a snapshot each
  window of one epoch);
* for comparison `loss.item()`, which most loops call anyway, and torch's ReduceLROnPlateau,
  called once a step as well.

A round is as many calls of each candidate as an epoch has steps: one window from the first step to
its end, the shortest there is (windows grow as the rate falls, and cost less then). A cost is the
time of a round's calls over the time of as many training steps of that round; the median over the
rounds is reported, in processor time of the thread, which other work on the machine disturbs less
than wall-clock time. The target is at most 1 % of a step of the smallest task.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tune_ext.benchmark.records import provenance
from tune_ext.benchmark.tasks.digits import DigitsCNN
from tune_ext.lr_scheduler import ExpTestLR

TARGET = 0.01
STEP = "training step"
BATCH = 32


def digits_cnn() -> nn.Module:
    return DigitsCNN()._network().to(memory_format=torch.channels_last)


def logistic_regression() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "digits-cnn": (digits_cnn, 1),
    "logistic regression": (logistic_regression, 10),
}


def batches() -> list[tuple[Tensor, Tensor]]:
    part = DigitsCNN()._split(0).train
    x, y = torch.from_numpy(part.images), torch.from_numpy(part.labels)
    whole = len(part) // BATCH * BATCH
    return list(zip(x[:whole].split(BATCH), y[:whole].split(BATCH), strict=True))


def candidates(
    model: nn.Module, optimizer: torch.optim.Optimizer, window: int
) -> dict[str, Callable[[Tensor, float], object]]:
    """Each takes the loss as a tensor and as a number; none moves the training's own rate."""

    def bystander() -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)

    def ours(own: torch.optim.Optimizer, **options: object) -> ExpTestLR:
        # Without a correction a window ends after its steps whatever the test says; a rate that
        # cannot fall leaves the training as it is.
        rate = own.defaults["lr"]
        return ExpTestLR(own, rate, window=window, min_lr=rate, correction="none", **options)

    tensor, number = ours(bystander()), ours(bystander())
    snapshot = ours(optimizer, model=model)
    plateau = ReduceLROnPlateau(bystander())
    return {
        "ExpTestLR, tensor": lambda loss, value: tensor.step(loss),
        "ExpTestLR, number": lambda loss, value: number.step(value),
        "ExpTestLR, tensor and snapshot": lambda loss, value: snapshot.step(loss),
        "loss.item()": lambda loss, value: loss.item(),
        "ReduceLROnPlateau, tensor": lambda loss, value: plateau.step(loss.detach()),
    }


def one_round(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[tuple[Tensor, Tensor]],
    calls: dict[str, Callable[[Tensor, float], object]],
) -> dict[str, float]:
    """Seconds of the calls of each candidate, as many as an epoch has steps, and of as many steps.

    One candidate is called after each training step, in turns, over as many epochs.
    """
    names, seconds = list(calls), dict.fromkeys([STEP, *calls], 0.0)
    clock = time.thread_time
    for turn, (x, y) in enumerate(data * len(names)):
        start = clock()
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds[STEP] += (clock() - start) / len(names)
        name = names[turn % len(names)]
        call, value = calls[name], loss.item() if "number" in name else 0.0
        start = clock()
        call(loss, value)
        seconds[name] += clock() - start
    return seconds


def measure(name: str, rounds: int) -> dict[str, object]:
    make, factor = NETWORKS[name]
    torch.manual_seed(0)
    model, data = make(), batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    runs = []
    for _ in range(1 + rounds * factor):
        calls = candidates(model, optimizer, window=len(data))
        runs.append(one_round(model, optimizer, data, calls))
    del runs[0]  # it warms up
    step = median(run[STEP] for run in runs) / len(data)
    return {
        "task": name,
        "batch_size": BATCH,
        "steps_per_epoch": len(data),
        "rounds": len(runs),
        "training_step_us": 1e6 * step,
        "candidates": {
            call: {
                "us_per_step": 1e6 * median(run[call] for run in runs) / len(data),
                "share_of_step": median(run[call] / run[STEP] for run in runs),
            }
            for call in calls
        },
    }


def show(row: dict[str, object]) -> None:
    print(f"\n{row['task']}: a training step takes {row['training_step_us']:.0f} µs")
    found = row["candidates"]
    assert isinstance(found, dict)
    for name, cost in found.items():
        print(f"  {name:32}{cost['us_per_step']:8.2f} µs{100 * cost['share_of_step']:8.3f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    parser.add_argument(
        "--rounds", type=int, default=20, help="of digits-cnn; 10 times for the other"
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()
    rows = [measure(name, 3 if arguments.quick else arguments.rounds) for name in NETWORKS]
    print(f"one thread, load average before {load[0]:.1f}")
    for row in rows:
        show(row)
    share = rows[0]["candidates"]["ExpTestLR, tensor"]["share_of_step"]  # type: ignore[index]
    verdict = "meets" if share <= TARGET else "misses"
    print(f"\n{100 * share:.3f} % of a step of the smallest task {verdict} {100 * TARGET:g} %")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "threads": torch.get_num_threads(),
            "load_average_before": load,
            "target_share": TARGET,
            "rows": rows,
            "provenance": provenance(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
