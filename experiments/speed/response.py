"""How long does the response of a network take, beside an SVD of every unfolding?

    python experiments/speed/response.py [--json FILE] [--repeats N] [--quick]

Three ways, side by side and taking turns, on one thread, for the convolutions of ResNet-34
and of WRN-28-10, once as initialised and once with structure in them as after training:

* ours: `ResponseMeter.measure()`, everything included;
* the SVD way: `torch.svd(u)` of both unfoldings of every layer, as the published code calls
  it (nothing but the SVDs is counted); its cheaper relatives are measured once;
* the floor: unfolding, Gram matrix and eigenvalues, float32, without any factorisation.

The targets are ours ≥ 12 × faster than the SVD way and ≤ 1.5 × the floor. Other work on the
machine disturbs wall-clock times, so that the processor time of the thread stands beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import scipy
import torch
import torchvision
from torch import Tensor, nn

from tune_ext.lowrank import ResponseMeter

FASTER_THAN_SVD, TIMES_THE_FLOOR = 12.0, 1.5


def wide_resnet(depth: int = 28, width: int = 10) -> nn.ModuleList:
    """The convolutions of a wide ResNet (arXiv 1605.07146), in their order."""
    layers = [nn.Conv2d(3, 16, 3)]
    channels = 16
    for group in range(3):
        out = 16 * width * 2**group
        for block in range((depth - 4) // 6):
            layers += [nn.Conv2d(channels, out, 3), nn.Conv2d(out, out, 3)]
            if block == 0:
                layers.append(nn.Conv2d(channels, out, 1))
            channels = out
    return nn.ModuleList(layers)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-34": torchvision.models.resnet34,
    "WRN-28-10": wide_resnet,
}


def add_structure(weights: list[Tensor]) -> None:
    """A quarter of the directions above the noise, from three times its level to a third."""
    for weight in weights:
        flat = weight.flatten(1)
        rank = max(1, len(flat) // 4)
        levels = torch.linspace(3.0, 0.3, rank) ** 2
        signal = (torch.randn(len(flat), rank) * levels) @ torch.randn(rank, flat.shape[1])
        flat += flat.std() * signal / rank**0.5


def unfoldings(weights: list[Tensor]) -> list[Tensor]:
    return [u for w in weights for u in (w.transpose(0, 1).flatten(1), w.flatten(1))]


def floor(weights: list[Tensor]) -> None:
    for u in unfoldings(weights):
        wide = u if u.shape[0] <= u.shape[1] else u.T
        torch.linalg.eigvalsh(wide @ wide.T)


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of one call."""
    wall, cpu = time.perf_counter(), time.thread_time()
    function()
    return time.perf_counter() - wall, time.thread_time() - cpu


def peak_memory(function: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator held at once beyond those before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    return int(np.cumsum([nbytes for _, nbytes in changes]).max())


def measure(name: str, structured: bool, repeats: int, relatives: bool) -> dict[str, object]:
    """All ways on one network; times are medians, ratios are medians of paired ratios."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    weights = [p.detach() for p in model.parameters() if p.ndim == 4]
    if structured:
        add_structure(weights)
    meter = ResponseMeter(model)
    whole = unfoldings(weights)
    ways: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(weights),
        "ours": meter.measure,
        "svd": lambda: [torch.svd(u) for u in whole],
    }
    ways["floor"](), ways["ours"]()  # warm
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, function in ways.items():
            times[way].append(timed(function))
    row: dict[str, object] = {
        "network": name,
        "weights": "with structure" if structured else "as initialised",
        "convolutions": len(weights),
        "response": meter.measure()["response"],
        "knowledge_gain": meter.measure()["knowledge_gain"],
        "peak_extra_over_largest_unfolding": peak_memory(meter.measure)
        / (4 * max(w.numel() for w in weights)),
    }
    for kind, clock in enumerate(("wall", "cpu")):
        seconds = {way: [t[kind] for t in times[way]] for way in ways}
        row |= {f"{way}_{clock}_s": median(seconds[way]) for way in ways}
        pairs = list(zip(seconds["svd"], seconds["ours"], seconds["floor"], strict=True))
        row[f"faster_than_svd_{clock}"] = median(svd / ours for svd, ours, _ in pairs)
        row[f"times_the_floor_{clock}"] = median(ours / low for _, ours, low in pairs)
    if relatives:
        wide = [u if u.shape[0] <= u.shape[1] else u.T for u in whole]
        others: dict[str, Callable[[], object]] = {
            "torch.svd(u.T)": lambda: [torch.svd(u.T) for u in wide],
            "svdvals(u)": lambda: [torch.linalg.svdvals(u) for u in wide],
            "svdvals(u.T)": lambda: [torch.linalg.svdvals(u.T.contiguous()) for u in wide],
        }
        row["other_svds_cpu_s"] = {way: timed(function)[1] for way, function in others.items()}
    return row


def conditions() -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
    }


def show(rows: list[dict[str, object]], clock: str) -> None:
    print(f"\n{'wall-clock' if clock == 'wall' else 'processor'} seconds, medians")
    print(
        f"{'network':11}{'weights':17}{'SVD way':>9}{'floor':>8}{'ours':>8}"
        f"{'faster than SVD':>20}{'times the floor':>20}"
    )
    for row in rows:
        faster = float(str(row[f"faster_than_svd_{clock}"]))
        times = float(str(row[f"times_the_floor_{clock}"]))
        verdicts = [
            f"{value:.2f} × ({'meets' if met else 'misses'} {target:g})"
            for value, met, target in (
                (faster, faster >= FASTER_THAN_SVD, FASTER_THAN_SVD),
                (times, times <= TIMES_THE_FLOOR, TIMES_THE_FLOOR),
            )
        ]
        seconds = [float(str(row[f"{way}_{clock}_s"])) for way in ("svd", "floor", "ours")]
        print(
            f"{row['network']!s:11}{row['weights']!s:17}{seconds[0]:9.2f}{seconds[1]:8.3f}"
            f"{seconds[2]:8.3f}{verdicts[0]:>20}{verdicts[1]:>20}"
        )


def show_rest(rows: list[dict[str, object]]) -> None:
    for row in rows:
        text = f"{row['network']} {row['weights']}: response {float(str(row['response'])):.2f}, "
        text += "peak extra memory "
        text += f"{float(str(row['peak_extra_over_largest_unfolding'])):.2f} × largest unfolding"
        others = row.get("other_svds_cpu_s")
        if isinstance(others, dict):
            text += "; processor seconds of other SVDs (u wide): "
            text += ", ".join(f"{way} {seconds:.2f}" for way, seconds in others.items())
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="ResNet-34 as initialised only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in NETWORKS:
        for structured in (False, True):
            if arguments.quick and (structured or name != "ResNet-34"):
                continue
            print(f"measuring {name}, {'with structure' if structured else 'as initialised'} ...")
            rows.append(measure(name, structured, arguments.repeats, relatives=not structured))
    where = conditions()
    print("\n" + ", ".join(f"{key} {value}" for key, value in where.items()))
    for clock in ("wall", "cpu"):
        show(rows, clock)
    print()
    show_rest(rows)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"conditions": where, "repeats": arguments.repeats, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
