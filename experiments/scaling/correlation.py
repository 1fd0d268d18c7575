"""Does the rule predict the largest good learning rate? Prediction against grid search.

For depths, graph topologies and kernel sizes this trains DAG networks for one epoch at each rate
of one absolute grid (2^(k/2) for whole k, the same for every network; no prediction decides what
is tried) and compares the best rate with what `tune_ext.scaling` predicts.

    python experiments/scaling/correlation.py run [FAMILY…]   # goes on where it ended
    python experiments/scaling/correlation.py report          # tables, correlation.json, a plot
    python experiments/scaling/correlation.py run --data cifar10 --results DIRECTORY

What is recorded is each network's losses; what the best rate is decides the report.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _dag_training import (
    DATA,
    Images,
    Network,
    append,
    as_record,
    chain,
    load,
    read,
    start,
    train,
    versions,
)

from tune_ext.models import random_dags

HERE = Path(__file__).parent
SIDE = 14
# Training images and images of a batch: 64 steps for either.
SIZES = {"mlp": (4096, 64), "cnn": (1024, 16)}
LOWEST, HIGHEST = -17, 3  # exponents k of the rates 2^(k/2)
Known = Mapping[int, Mapping[int, float]]  # exponent → seed → running loss


@dataclass(frozen=True)
class Family:
    """Networks that are compared with each other.

    Attributes:
        networks: The architectures.
        init: What sets the initial weights, a key of `INITS`.
        seeds: How many.
        staged: Whether the rates are looked for in stages: even exponents with the first seed,
            then all seeds around the best. Otherwise each rate of the grid with all seeds.
    """

    networks: tuple[Network, ...]
    init: str = "target-in"
    seeds: int = 5
    staged: bool = False


def families() -> dict[str, Family]:
    """All families, the most important ones first."""
    mlp = Network("mlp", "2", width=64)
    cnn = Network("cnn", "2", width=16, kernel=3)
    dags, fewer = random_dags(5, 32, seed=0), random_dags(5, 12, seed=1)
    plain = without_identities(32, seed=2)
    depths = tuple(replace(mlp, dag=chain(n)) for n in (1, 2, 3, 4, 6, 8, 11, 14, 18, 24))
    topologies = tuple(replace(mlp, dag=dag) for dag in dags)
    cnn_topologies = Family(tuple(replace(cnn, dag=dag) for dag in fewer), seeds=2, staged=True)
    kernels = tuple(replace(cnn, dag=dag, kernel=k) for k in (3, 5, 7) for dag in ("2", "2_02"))
    out = {
        "mlp-depth": Family(depths, seeds=4, staged=True),
        "mlp-topology": Family(topologies),
        "mlp-layers": Family(tuple(replace(mlp, dag=dag) for dag in plain), seeds=4, staged=True),
        "cnn-topology": cnn_topologies,
        "cnn-kernel": replace(cnn_topologies, networks=kernels),
        "cnn-depth": replace(
            cnn_topologies, networks=tuple(replace(cnn, dag=chain(n)) for n in (1, 2, 3, 4, 6))
        ),
    }
    some = {name: out[name].networks[:16] for name in ("mlp-layers", "mlp-topology")}
    for name, init in (
        ("mlp-layers", "target-out"),
        ("mlp-topology", "published"),
        ("mlp-layers", "published"),
        ("mlp-topology", "source-out"),
        ("mlp-topology", "source-in"),
        ("mlp-topology", "target-out"),
        ("mlp-layers", "he"),
        ("mlp-topology", "torch"),
    ):
        out[f"{name}, {init}"] = Family(some[name], init, seeds=2, staged=True)
    for init in ("published", "torch"):
        out[f"mlp-depth, {init}"] = Family(depths, init, seeds=2, staged=True)
    for name in ("mlp-depth", "mlp-layers"):
        gelu = tuple(replace(n, activation="gelu") for n in out[name].networks[:16])
        out[f"{name}, gelu"] = Family(gelu, seeds=2, staged=True)
    return out


def without_identities(count: int, seed: int) -> list[str]:
    """Random graphs of five nodes that have layers only: what the theory is about."""
    found: dict[str, None] = {}
    while len(found) < count:
        seed += 1000
        found |= dict.fromkeys(d for d in random_dags(5, 4000, seed=seed) if "1" not in d)
    return list(found)[:count]


def capped(loss: float | None) -> float:
    """A loss, at most that of ten equal guesses: None, infinity and more count as that."""
    return math.log(10) if loss is None or not loss < math.log(10) else loss


def wanted(known: Known, seeds: int, *, staged: bool) -> tuple[list[int], list[int]]:
    """The exponents and the seeds to train next; two empty lists when all is there.

    In stages: every second exponent with seed 0; then, around the best exponent, all within 3
    with all seeds, until the best of those has been surrounded so.

    Args:
        known: The losses so far.
        seeds: How many there are.
        staged: See `Family`.
    """
    everyone = range(seeds)
    if not staged:
        grid = range(LOWEST, HIGHEST + 1)
        missing = [k for k in grid if not set(everyone) <= set(known.get(k, ()))]
        return missing, list(everyone) if missing else []
    coarse = [k for k in range(LOWEST, HIGHEST + 1) if k % 2 == 0 and 0 not in known.get(k, ())]
    if coarse:
        return coarse, [0]
    full = {k: v for k, v in known.items() if set(everyone) <= set(v)}
    pool = full or known
    best = min(pool, key=lambda k: (sum(capped(v) for v in pool[k].values()) / len(pool[k]), -k))
    around = range(max(LOWEST, best - 3), min(HIGHEST, best + 3) + 1)
    for seed in everyone:
        missing = [k for k in around if seed not in known.get(k, ())]
        if missing:
            return missing, [seed]
    return [], []


def _mean(losses: Mapping[int, float]) -> float:
    return sum(capped(v) for v in losses.values()) / len(losses)


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a record is about: the network and its initial weights."""
    return (*record["network"].values(), record["init"])


def merge(records: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Collect the records of each network.

    Returns:
        For each key: "network", "init", and "loss" and "running" as exponent → seed → number.
    """
    out: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in records:
        entry = out.setdefault(
            key_of(r), {"network": r["network"], "init": r["init"], "loss": {}, "running": {}}
        )
        for what in ("loss", "running"):
            for k, row in zip(r["exponents"], r[what], strict=True):
                entry[what].setdefault(k, {}).update(zip(r["seeds"], row, strict=True))
    return out


def measure(
    network: Network, init: str, exponents: list[int], seeds: list[int], images: Images
) -> dict[str, Any]:
    """Train the network with each rate and seed; the record of that."""
    begun = time.perf_counter()
    models = {seed: start(network, init, seed, images) for seed in seeds}
    cells = [(k, seed) for k in exponents for seed in seeds]
    results = train(
        [models[seed] for _, seed in cells],
        [2 ** (k / 2) for k, _ in cells],
        [seed for _, seed in cells],
        images,
        batch=SIZES[network.kind][1],
        side_by_side=network.kind == "mlp",
    )
    rows = [results[i : i + len(seeds)] for i in range(0, len(results), len(seeds))]
    return {
        "network": as_record(network),
        "init": init,
        "exponents": exponents,
        "seeds": seeds,
        "loss": [[finite(r.loss) for r in row] for row in rows],
        "running": [[finite(r.running) for r in row] for row in rows],
        "seconds": round(time.perf_counter() - begun, 2),
    }


def finite(value: float) -> float | None:
    """A loss as JSON has it."""
    return round(value, 5) if math.isfinite(value) else None


def run(names: Iterable[str], data: str, data_dir: str | None, path: Path) -> None:
    """Train what is missing of these families."""
    sizes = {kind: load(data, SIDE, count, 0, data_dir) for kind, (count, _) in SIZES.items()}
    everything = families()
    for name in names:
        family = everything[name]
        for network in family.networks:
            while True:
                found = merge(read(path)).get((*as_record(network).values(), family.init), {})
                exponents, seeds = wanted(
                    found.get("running", {}), family.seeds, staged=family.staged
                )
                if not exponents:
                    break
                record = measure(network, family.init, exponents, seeds, sizes[network.kind])
                append(path, record)
                print(
                    f"{name:24} {network.dag:16.16} kernel {network.kernel} "
                    f"{len(exponents)} rates, seeds {seeds} ({record['seconds']:.0f} s)",
                    flush=True,
                )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("family", nargs="*", help="which ones to run; without, all")
    parser.add_argument("--data", choices=sorted(DATA), default="fashion-mnist")
    parser.add_argument("--data-dir", help="where the data is, if not in a usual place")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "correlation")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    path = args.results / "losses.jsonl"
    if args.what == "run":
        unknown = set(args.family) - set(families())
        if unknown:
            parser.error(f"no family {sorted(unknown)}; there are {', '.join(families())}")
        run(args.family or list(families()), args.data, args.data_dir, path)
    else:
        from correlation_report import report  # beside this file

        report(merge(read(path)), families(), args, versions())
    return 0


if __name__ == "__main__":
    sys.exit(main())
