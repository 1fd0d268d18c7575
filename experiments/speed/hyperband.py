"""How long workers are idle: our HyperBand beside Ray's, on the simulated clock.

    python experiments/speed/hyperband.py [--json FILE] [--trials N] [--seeds N]

Random search over trials whose epochs take between 1 and 9 seconds (log-uniform, the same for
both), η = 3, R = 27 epochs, 2, 4 and 8 workers; Ray's own control loop. A run has a number of
configurations and ends when the last of them does. Told are the share of the workers' time in
which nothing was trained, how many configurations got everything, and the epochs that were
trained. Medians over the seeds. A run that would hang is counted as such.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ray.tune import Callback
from ray.tune.schedulers import HyperBandForBOHB, HyperBandScheduler
from ray.tune.search import Searcher

from tune_ext.benchmark.records import provenance
from tune_ext.benchmark.simulation import SimulationStuck, simulate
from tune_ext.raytune import HyperBand

R = 27
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ours": lambda: HyperBand(metric="loss", mode="min", max_t=R),
    "ours, asynchronous": lambda: HyperBand(metric="loss", mode="min", max_t=R, asynchronous=True),
    "Ray's HyperBandScheduler": lambda: HyperBandScheduler(metric="loss", mode="min", max_t=R),
    "Ray's HyperBandForBOHB": lambda: HyperBandForBOHB(metric="loss", mode="min", max_t=R),
}


class Random(Searcher):
    """So many configurations at random."""

    def __init__(self, seed: int, trials: int) -> None:
        super().__init__(metric="loss", mode="min")
        self.random, self.left = np.random.default_rng(seed), trials

    def suggest(self, trial_id: str) -> Any:
        """Draw one, as long as there are any left."""
        if not self.left:
            return Searcher.FINISHED
        self.left -= 1
        return {"level": self.random.random(), "seconds": float(9 ** self.random.random())}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is learned."""

    def on_pause(self, trial_id: str) -> None:
        """HyperBandForBOHB wants to tell."""

    def on_unpause(self, trial_id: str) -> None:
        """Likewise."""


class Curve:
    """A loss that falls to a level; an epoch takes as long as the configuration says."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.epoch = config, 0

    def step(self) -> dict[str, Any]:
        """Look one epoch up."""
        self.epoch += 1
        loss = self.config["level"] + 0.5 / self.epoch
        return {"loss": loss, "seconds": self.config["seconds"], "done": self.epoch >= R}

    def state(self) -> int:
        """What a resumed trial needs."""
        return self.epoch

    def load(self, state: int) -> None:
        """Go on from there."""
        self.epoch = state


class Longest(Callback):
    """How many trials came to R."""

    def __init__(self) -> None:
        self.whole = 0

    def on_trial_result(self, result: dict[str, Any], **_: Any) -> None:
        """Count the last epoch."""
        self.whole += result["training_iteration"] == R


def run(name: str, seed: int, workers: int, trials: int) -> dict[str, float] | None:
    """One run; None if it hangs."""
    longest = Longest()
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as storage:
        try:
            done = simulate(
                Curve,
                search_alg=Random(seed, trials),
                scheduler=SCHEDULERS[name](),
                callbacks=[longest],
                workers=workers,
                storage=storage,
            )
        except SimulationStuck:
            return None
    idle = 1 - done.busy / (done.clock * workers)
    return {"idle": idle, "whole": longest.whole, "epochs": done.steps, "seconds": done.clock}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for workers in (2, 4, 8):
        for name in SCHEDULERS:
            runs = [run(name, seed, workers, options.trials) for seed in range(options.seeds)]
            ended = [r for r in runs if r is not None]
            row: dict[str, Any] = {"scheduler": name, "workers": workers}
            row["hung"] = len(runs) - len(ended)
            for key in ("idle", "whole", "epochs", "seconds") if ended else ():
                row[key] = median(r[key] for r in ended)
            rows.append(row)
            said = (
                f"idle {row['idle']:.1%}, {row['whole']:g} whole, {row['epochs']:g} epochs, "
                + (f"{row['seconds']:.0f} s" if ended else "")
                if ended
                else ""
            )
            print(f"{workers} workers, {name}: {said} ({row['hung']} of {len(runs)} hung)")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "trials": options.trials,
            "seeds": options.seeds,
            "max_t": R,
            "rows": rows,
            "provenance": provenance(),
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
