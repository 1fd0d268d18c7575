"""Do rankings of architectures change when each is trained with its own rate and weights?

Random DAG networks are trained for a few epochs under several protocols; each takes its base
rate from one small network (one hidden layer, one epoch, the published way):

* shared: torch's initial weights, the base rate for all, as benchmarks do;
* scaled: the rule's initial weights and the base rate times the rule's factor ("sum", "mean");
* published: the same with the in-degrees of the published code ("source").

Each protocol is also run with half and twice its base rate, to know how much hangs on that, and
what each architecture reaches with the best of the three.

    python experiments/scaling/ranking.py run        # goes on where it ended
    python experiments/scaling/ranking.py report     # tables, ranking.json and a plot
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _dag_training import (
    DATA,
    Images,
    Network,
    append,
    load,
    plan_of,
    read,
    start,
    train,
    versions,
)
from correlation import capped, finite

from tune_ext.models import random_dags

HERE = Path(__file__).parent
SIDE, TRAIN, TEST, BATCH, EPOCHS = 14, 4096, 5000, 64, 2
SEEDS = 4
BASE = Network("mlp", "2", width=64)
BASE_EXPONENTS = tuple(range(-12, 3))  # of the rates 2^(k/2)
STEPS = (-2, 0, 2)  # half octaves around the base rate


@dataclass(frozen=True)
class Protocol:
    """How a rate and initial weights are given to an architecture.

    Attributes:
        init: A key of `INITS`.
        aggregate: What the rate is scaled by; None: one rate for all.
    """

    init: str
    aggregate: str | None = None


PROTOCOLS = {
    "shared": Protocol("torch"),
    "scaled, sum": Protocol("target-in", "sum"),
    "scaled, mean": Protocol("target-in", "mean"),
    "published": Protocol("source-in", "sum"),
}


def networks(kind: str, count: int = 30) -> list[Network]:
    """The architectures: "any" random graphs, or "layers": graphs without identities."""
    from correlation import families

    dags = {
        "any": random_dags(5, count, seed=0),
        "layers": [n.dag for n in families()["mlp-layers"].networks[:count]],
    }[kind]
    return [Network("mlp", dag, width=BASE.width) for dag in dags]


def factor(network: Network, protocol: Protocol) -> float:
    """The architecture's rate over that of the base."""
    if protocol.aggregate is None:
        return 1.0
    own, base = (plan_of(n, aggregate=protocol.aggregate) for n in (network, BASE))
    return own.factor(base)


def measure(
    network: Network, init: str, rates: list[float], images: Images, epochs: int
) -> dict[str, Any]:
    """Train with each rate and seed.

    Returns:
        "loss", "running" and "accuracy" as rates × seeds.
    """
    begun = time.perf_counter()
    models = [start(network, init, seed, images) for seed in range(SEEDS)]
    count = len(rates)
    results = train(
        models * count,
        [rate for rate in rates for _ in range(SEEDS)],
        list(range(SEEDS)) * count,
        images,
        batch=BATCH,
        epochs=epochs,
        side_by_side=True,
    )
    rows = [results[i : i + SEEDS] for i in range(0, len(results), SEEDS)]
    return {
        "rates": rates,
        "loss": [[finite(r.loss) for r in row] for row in rows],
        "running": [[finite(r.running) for r in row] for row in rows],
        "accuracy": [[round(r.accuracy, 4) for r in row] for row in rows],
        "seconds": round(time.perf_counter() - begun, 2),
    }


def base_exponent(record: Mapping[str, Any]) -> int:
    """The best base rate: smallest mean training loss of the epoch, the larger of equals."""
    losses = np.array([[capped(v) for v in row] for row in record["running"]]).mean(axis=1)
    return BASE_EXPONENTS[len(losses) - 1 - int(np.argmin(losses[::-1]))]


def bases(images: Images, path: Path) -> dict[str, int]:
    """The base exponent of each initialisation, measured where it is not on record."""
    found: dict[str, int] = {}
    for init in dict.fromkeys(p.init for p in PROTOCOLS.values()):
        records = [r for r in read(path) if r["kind"] == "base" and r["init"] == init]
        if not records:
            rates = [2 ** (k / 2) for k in BASE_EXPONENTS]
            record = {"kind": "base", "init": init, **measure(BASE, init, rates, images, 1)}
            append(path, record)
            records = [record]
        found[init] = base_exponent(records[-1])
    return found


def run(kinds: list[str], data: str, data_dir: str | None, path: Path) -> None:
    """Train what is missing, architecture by architecture."""
    images = load(data, SIDE, TRAIN, TEST, data_dir)
    base = bases(images, path)
    done = {(r["dag"], r["protocol"]) for r in read(path) if r["kind"] == "cell"}
    for network in [n for kind in kinds for n in networks(kind)]:
        for name, protocol in PROTOCOLS.items():
            if (network.dag, name) in done:
                continue
            scale = factor(network, protocol)
            rates = [2 ** ((base[protocol.init] + step) / 2) * scale for step in STEPS]
            record = {
                "kind": "cell",
                "dag": network.dag,
                "protocol": name,
                **asdict(protocol),
                "factor": scale,
                **measure(network, protocol.init, rates, images, EPOCHS),
            }
            append(path, record)
            middle = np.mean(record["accuracy"][len(STEPS) // 2])
            print(
                f"{network.dag} {name:13} rate {rates[len(STEPS) // 2]:.4f} "
                f"accuracy {middle:.4f} ({record['seconds']:.0f} s)",
                flush=True,
            )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("kind", nargs="*", help="any, layers; without, both")
    parser.add_argument("--data", choices=sorted(DATA), default="fashion-mnist")
    parser.add_argument("--data-dir", help="where the data is, if not in a usual place")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "ranking")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    path = args.results / "trainings.jsonl"
    if args.what == "run":
        run(args.kind or ["any", "layers"], args.data, args.data_dir, path)
    else:
        from ranking_report import report  # beside this file

        report(read(path), args.results, versions())
    return 0


if __name__ == "__main__":
    sys.exit(main())
