"""Do activations keep their size? Coordinate checks over depth and width, and both d_in.

python experiments/scaling/coordinates.py checks        # pictures and a table; half a minute
python experiments/scaling/coordinates.py conventions   # d_in of the node entered or left
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from _ensemble import images
from residual import VARIANTS, ResidualStack
from torch import nn
from width import initialise, multipliers, network

from tune_ext import scaling
from tune_ext._random import derive_seed
from tune_ext.models import DagMLP, random_dags

RESULTS = Path(__file__).parent / "results"
DEPTHS, WIDTHS = (4, 8, 16, 32), (32, 64, 128, 256, 512)
INPUTS, BATCH = 14 * 14, 256


def chain(layers: int) -> str:
    """A graph that is one path."""
    return "_".join("0" * k + "2" for k in range(layers))


def planned_chain(layers: int) -> tuple[nn.Module, scaling.Plan]:
    sizes = {"inputs": INPUTS, "width": 256, "classes": 10}
    return DagMLP(chain(layers), **sizes), scaling.plan_of_dag(chain(layers), **sizes)


def torch_chain(layers: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = planned_chain(layers)[0]
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def stack(name: str) -> Callable[[int], nn.Module]:
    """Residual stacks, which the check plans itself."""
    return lambda blocks: ResidualStack(blocks, VARIANTS[name])


def stream(blocks: int) -> tuple[nn.Module, scaling.Plan]:
    """The same, all blocks taken as one sum."""
    model = ResidualStack(blocks, VARIANTS["stream"])
    return model, scaling.plan(model, torch.zeros(2, 1, 14, 14), in_degree="stream")


def wide(rule: str) -> Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]:
    """Networks of `width.py` with the rates of a rule."""

    def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = network(width)
        initialise(model, rule, int(torch.randint(2**31, ())))
        factors = multipliers(model, rule)
        groups = [
            {"params": [p], "lr": 0.1 * factors.get(name, 1.0)}
            for name, p in model.named_parameters()
        ]
        return model, torch.optim.SGD(groups)

    return make


CHECKS = {
    "depth: a chain, torch's own": (torch_chain, DEPTHS),
    "depth: a chain, planned": (planned_chain, DEPTHS),
    "depth: residual, planned": (stack("target"), DEPTHS),
    "depth: residual as one stream, planned": (stream, DEPTHS),
    "depth: residual with batch norm, planned": (stack("resnet, batch norm"), DEPTHS),
    "width: standard": (wide("standard"), WIDTHS),
    "width: ours": (wide("ours"), WIDTHS),
    "width: mup": (wide("mup"), WIDTHS),
}


def checks() -> None:
    x, y = images(6400)
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))[:3]
    print("| check | activations | worst layer, slope | their changes | worst layer, slope |")
    print("|---|---|---|---|---|")
    for name, (make, sizes) in CHECKS.items():
        found = scaling.coordinate_check(make, sizes, batches, lr=0.1, steps=3)
        cells = []
        for change in (False, True):
            layer, slope = found.worst(change=change)
            cells.append(f"{found.judge(change=change)} | {layer}, {slope:+.2f}")
        print("|", name, "|", " | ".join(cells), "|", flush=True)
        file = name.replace(": ", "-").replace(",", "").replace("'", "").replace(" ", "-")
        found.plot(RESULTS / f"coordinates-{file}.png")
        (RESULTS / f"coordinates-{file}.txt").write_text(found.table() + "\n")


def start_size(dag: str, convention: Literal["target", "source"], seed: int) -> float:
    """RMS of what enters the read-out over that of what the stem gives, at the start."""
    sizes = {"inputs": INPUTS, "width": 256, "classes": 10}
    model = DagMLP(dag, **sizes)
    plan = scaling.plan_of_dag(dag, **sizes, in_degree=convention)
    plan.initialize_(model, derive_seed(seed, "weights", dag))
    with torch.no_grad():
        stem = model.stem(images(6400)[0][:BATCH].flatten(1))
        last = model.graph(stem)
    return float((last.square().mean() / stem.square().mean()).sqrt())


def conventions() -> None:
    print("| nodes | convention | mean size | largest | smallest | std of log2 |")
    print("|---|---|---|---|---|---|")
    for nodes in (4, 6, 8):
        dags = random_dags(nodes, 30, seed=0)
        for convention in ("target", "source"):
            sizes = [start_size(dag, convention, s) for dag in dags for s in range(3)]
            logs = np.log2(np.array(sizes).reshape(len(dags), 3)).mean(1)
            print(
                f"| {nodes} | {convention} | {2 ** logs.mean():.2f} | {2 ** logs.max():.2f} "
                f"| {2 ** logs.min():.2f} | {logs.std(ddof=1):.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["checks", "conventions"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", scaling.ScalingWarning)
    checks() if options.what == "checks" else conventions()


if __name__ == "__main__":
    main()
