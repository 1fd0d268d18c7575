"""What planning a network costs, beside what building it with weights costs.

    python experiments/speed/plan.py [--json FILE] [--rounds N] [--quick]

Each network is made and planned in ways of its own, one thread, in a process of its own:

* plan: the module is built on the meta device, traced (torch.export) and planned, as
  `ArchitectureScaledSearch` does once for every architecture;
* build: the module is built with torch's initial weights, which a trial has to do anyway;
* forward: the module is built and one example runs through it, forward and backward, which is
  the least that a way without tracing would have to do.

Seconds are medians over the rounds, processor time of the thread and wall-clock time. Memory is
what the peak of the process's resident memory rose by over what it was before, in the first
round; a small network has been planned and run before then, so that what torch loads is not
counted. For graphs from strings (`plan_of_dag`), which need no module, the time is given as well.
The time of the moments alone shows that the number of paths does not matter.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torchvision
from torch import Tensor, nn

from tune_ext import scaling
from tune_ext._paths import moments
from tune_ext.benchmark.records import provenance
from tune_ext.models import CellNetwork, DagMLP

DAG = "2_12_112_2112"
CELL = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+"
    "|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
)
WAYS = ("plan", "build", "forward")


def imagenet(name: str) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    return (lambda: getattr(torchvision.models, name)(weights=None)), (1, 3, 224, 224)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dag-mlp": (lambda: DagMLP(DAG, 784, 1024, 10), (1, 784)),
    "nas-bench-201": (lambda: CellNetwork(CELL, 3, 10), (1, 3, 32, 32)),
    "vgg16_bn": imagenet("vgg16_bn"),
    "mobilenet_v2": imagenet("mobilenet_v2"),
    "resnet18": imagenet("resnet18"),
    "resnet34": imagenet("resnet34"),
    "resnet50": imagenet("resnet50"),
    "densenet121": imagenet("densenet121"),
}


def planned(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> scaling.Plan:
    with torch.device("meta"):
        model = make()
    return scaling.plan(model, torch.empty(shape, device="meta"))


def run(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Tensor:
    # One example is too few for batch normalisation in training mode.
    answer: Tensor = make().eval()(torch.zeros(shape))
    answer.sum().backward()
    return answer


def resident(field: str) -> int:
    """Bytes of resident memory now ("VmRSS") or at its peak ("VmHWM"); 0 where Linux is not."""
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found.group(1)) if found else 0


def measure(name: str, way: str, rounds: int) -> dict[str, object]:
    """One network in one way, in this process."""
    make, shape = NETWORKS[name]
    ways: dict[str, Callable[[], object]] = {
        "plan": lambda: planned(make, shape),
        "build": make,
        "forward": lambda: run(make, shape),
    }
    small = (lambda: CellNetwork("|nor_conv_3x3~0|", 3, 10, width=2, cells=1)), (1, 3, 8, 8)
    planned(*small), run(*small)
    before, times = resident("VmRSS"), []
    for turn in range(rounds):
        wall, cpu = time.perf_counter(), time.thread_time()
        ways[way]()
        times.append((time.perf_counter() - wall, time.thread_time() - cpu))
        if turn == 0:
            peak = resident("VmHWM") - before
    row: dict[str, object] = {
        "wall_s": median(wall for wall, _ in times),
        "cpu_s": median(cpu for _, cpu in times),
        "first_cpu_s": times[0][1],
        "peak_bytes": max(0, peak),
    }
    if way == "plan":
        row |= details(name)
    return row


def details(name: str) -> dict[str, object]:
    plan = planned(*NETWORKS[name])
    start = time.thread_time()
    for aggregate in ("sum", "mean"):
        moments(plan.graph, aggregate)
    seconds = time.thread_time() - start
    with torch.device("meta"):
        weights = sum(p.nbytes for p in NETWORKS[name][0]().parameters())
    return {
        "layers": len(plan.graph.layers),
        "paths": moments(plan.graph, "sum").count,
        "moments_cpu_s": seconds,
        "weights_bytes": weights,
    }


def of_string(rounds: int) -> float:
    """Processor seconds of planning a graph from its string alone."""
    times = []
    for _ in range(10 * rounds):
        start = time.thread_time()
        scaling.plan_of_dag(DAG, inputs=784, width=1024)
        times.append(time.thread_time() - start)
    return median(times)


def in_process(name: str, way: str, rounds: int) -> dict[str, object]:
    command = [sys.executable, __file__, "--one", name, way, "--rounds", str(rounds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return row


def show(rows: list[dict[str, object]]) -> None:
    print("processor seconds (median), peak memory in MB\n")
    print(
        f"{'network':15}{'layers':>7}{'paths':>9}{'weights':>9}"
        f"{'plan':>16}{'build':>16}{'forward':>16}{'moments':>10}"
    )
    for row in rows:
        cells = ""
        for way in WAYS:
            cost = row[way]
            assert isinstance(cost, dict)
            cells += f"{cost['cpu_s']:9.3f}{cost['peak_bytes'] / 1e6:7.0f}"
        facts = row["plan"]
        assert isinstance(facts, dict)
        print(
            f"{row['network']:15}{facts['layers']:7}{float(facts['paths']):9.2g}"
            f"{facts['weights_bytes'] / 1e6:9.1f}{cells}{1e3 * facts['moments_cpu_s']:7.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="1 round, without the large networks")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="only these")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 1 if arguments.quick else arguments.rounds
    if arguments.one:
        print(json.dumps(measure(*arguments.one, rounds)))
        return
    load = os.getloadavg()
    names = arguments.networks or list(NETWORKS)[: 2 if arguments.quick else None]
    rows: list[dict[str, object]] = [
        {"network": name, **{way: in_process(name, way, rounds) for way in WAYS}} for name in names
    ]
    string = of_string(rounds)
    print(f"one thread, load average before {load[0]:.1f}, {rounds} rounds")
    show(rows)
    print(f"\na graph from its string (plan_of_dag): {1e3 * string:.2f} ms")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "threads": torch.get_num_threads(),
            "load_average_before": load,
            "rounds": rounds,
            "rows": rows,
            "plan_of_dag_cpu_s": string,
            "provenance": provenance(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
