"""Simulated makespan of autoHyper with 1 to 16 workers on measured response curves.

    python experiments/autohyper/makespan.py --out experiments/autohyper

The curves (tests/data/response_curves.json) are responses after 5 epochs on Fashion-MNIST;
between the measured learning rates they are interpolated over log lr. Two parameters add
a weight decay, which these curves do not have: once without an effect (all ties), once raising
the response a little, once lowering it. A probe takes one unit of time, or, "uneven", between
.5 and 1.5 by a hash of its point. "noisy" repeats the uneven runs with noise on the responses,
of standard deviation .06·√(Z(1 − Z)) (.03 in the middle, as between seeds; none at 0 and 1), and
gives the smallest and the median speed-up over seeds. Everything is deterministic: noise and
durations are hashes, and the numbers are the same every time.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tune_ext.autohyper import AutoHyper, Parameter, Probe

CURVES = Path(__file__).parents[2] / "tests" / "data" / "response_curves.json"
WORKERS = (1, 2, 4, 8, 16)
SEEDS = range(10)
NOISE = 0.06
EFFECTS = {"none": 0.0, "raises": 0.01, "lowers": -0.01}  # of weight decay, per decade

Response = Callable[[dict[str, float]], float]
Duration = Callable[[Probe], float]


def curve(name: str, effect: float = 0.0) -> Response:
    """The measured response at any learning rate (and weight decay)."""
    rows = json.loads(CURVES.read_text())["curves"][name]["rows"]
    pairs = dict((row[0], row[1]) for row in rows)  # a rate measured twice has one value
    x, z = np.log(list(pairs)), np.array(list(pairs.values()))

    def response(values: dict[str, float]) -> float:
        decades = math.log10(max(values.get("weight_decay", 0.0), 1e-8)) + 8
        clean = float(np.interp(math.log(values["lr"]), x, z))
        return min(max(clean * (1 + effect * decades), 0.0), 1.0)

    return response


def _hash(values: dict[str, float], salt: str = "") -> float:
    """In (0, 1), the same for the same point."""
    text = salt + ",".join(f"{v:.6e}" for v in values.values())
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") + 0.5) / 2**32


def noisy(response: Response, seed: int) -> Response:
    """A response with the noise of one seed."""
    normal = statistics.NormalDist()

    def with_noise(values: dict[str, float]) -> float:
        z = response(values)
        away = NOISE * math.sqrt(z * (1 - z)) * normal.inv_cdf(_hash(values, f"{seed}:"))
        return min(max(z + away, 0.0), 1.0)

    return with_noise


def unit(probe: Probe) -> float:
    """Every probe takes the same time."""
    return 1.0


def uneven(probe: Probe) -> float:
    """Between .5 and 1.5, the same for the same point."""
    return 0.5 + _hash(probe.values)


def simulate(search: AutoHyper, response: Response, workers: int, duration: Duration) -> dict:
    """Run a search to its end on simulated workers.

    Returns:
        makespan: When the search had its answer.
        probes: How many probes had been started by then.
        best: The answer.
    """
    now, started = 0.0, 0
    running: list[tuple[float, int, Probe]] = []
    while not search.finished:
        for probe in search.ask(workers - len(running)):
            heapq.heappush(running, (now + duration(probe), probe.id, probe))
            started += 1
        now, _, probe = heapq.heappop(running)
        search.tell(probe.id, response(probe.values))
    return {"makespan": now, "probes": started, "best": search.best}


def problems() -> dict[str, tuple[list[Parameter], Response]]:
    """Every curve with one parameter, and with two for each effect of weight decay."""
    lr, wd = Parameter.learning_rate(upper=10.0), Parameter.weight_decay(upper=1.0)
    found = {}
    for name in json.loads(CURVES.read_text())["curves"]:
        found[f"{name}, lr"] = ([lr], curve(name))
        for effect, size in EFFECTS.items():
            found[f"{name}, lr + wd ({effect})"] = ([lr, wd], curve(name, size))
    return found


def measure(workers: tuple[int, ...] = WORKERS) -> list[dict]:
    """One row for each problem, kind of duration and number of workers."""
    rows = []
    for problem, (parameters, response) in problems().items():
        for duration in (unit, uneven):
            serial = simulate(AutoHyper(parameters), response, 1, duration)
            for w in workers:
                run = simulate(AutoHyper(parameters), response, w, duration)
                if run["best"] != serial["best"]:
                    raise RuntimeError(f"{problem}: {w} workers changed the answer")
                rows.append(
                    {
                        "problem": problem,
                        "durations": duration.__name__,
                        "workers": w,
                        "speedup": round(serial["makespan"] / run["makespan"], 3),
                        "makespan": round(run["makespan"], 3),
                        "probes": run["probes"],
                        "best": run["best"],
                    }
                )
    return rows


def measure_noisy(workers: tuple[int, ...] = (2, 8), seeds: range = SEEDS) -> list[dict]:
    """One row for each problem and number of workers: speed-ups over noise seeds."""
    rows = []
    for problem, (parameters, response) in problems().items():
        speedups: dict[int, list[float]] = {w: [] for w in workers}
        for seed in seeds:
            f = noisy(response, seed)
            serial = simulate(AutoHyper(parameters), f, 1, uneven)["makespan"]
            for w in workers:
                run = simulate(AutoHyper(parameters), f, w, uneven)
                speedups[w].append(serial / run["makespan"])
        rows += [
            {
                "problem": problem,
                "workers": w,
                "seeds": len(seeds),
                "smallest": round(min(values), 3),
                "median": round(statistics.median(values), 3),
            }
            for w, values in speedups.items()
        ]
    return rows


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for ax, durations in zip(axes, ("unit", "uneven"), strict=True):
        for problem in dict.fromkeys(r["problem"] for r in rows):
            line = [r for r in rows if r["problem"] == problem and r["durations"] == durations]
            style = "--" if "sgd" in problem else "-"
            ax.plot(
                [r["workers"] for r in line], [r["speedup"] for r in line], style, label=problem
            )
        ax.plot(WORKERS, WORKERS, ":", color="grey")
        ax.set(xscale="log", yscale="log", title=f"{durations} durations", xlabel="workers")
        ax.set_xticks(WORKERS, map(str, WORKERS))
        ax.set_yticks(WORKERS, map(str, WORKERS))
    axes[0].set_ylabel("speed-up over one worker")
    axes[0].legend(fontsize=5.5)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rows = measure()
    for r in rows:
        print(
            f"{r['problem']:42} {r['durations']:7} {r['workers']:3} workers: "
            f"{r['makespan']:7.2f}  ×{r['speedup']:5.2f}  {r['probes']:4} probes"
        )
    noisy_rows = measure_noisy()
    for r in noisy_rows:
        print(
            f"{r['problem']:42} noisy   {r['workers']:3} workers: "
            f"×{r['smallest']:5.2f} to a median of ×{r['median']:5.2f} over {r['seeds']} seeds"
        )
    parts = {"rows": rows, "noisy": noisy_rows}
    text = {k: ",\n  ".join(map(json.dumps, v)) for k, v in parts.items()}
    body = ",\n ".join(f'"{k}": [\n  {v}\n ]' for k, v in text.items())
    (out / "makespan.json").write_text(f"{{\n {body}\n}}\n")
    plot(rows, out / "makespan.png")


if __name__ == "__main__":
    main()
