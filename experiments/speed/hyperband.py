"""How long workers are idle: our HyperBand and BOHB beside Ray's, on the simulated clock.

    python experiments/speed/hyperband.py [--json FILE] [--trials N] [--seeds N]

Trials whose epochs take between 1 and 9 seconds (log-uniform, by the configuration), η = 3,
R = 27 epochs, 2, 4 and 8 workers; Ray's own control loop; configurations at random, or from BOHB's
model. A run has a number of configurations and ends when the last of them does. Told are, of the
time of all workers, the share in which nothing was trained, and the part of it in which something
could have been: a configuration that had not been started yet, or a trial that had been promoted,
or should have been by the scheduler's own rule, which is worked out here a second time from what
the trials remember. Then how many configurations got everything, and the epochs that were trained.
Medians over the seeds. A run that would hang is counted as such.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandForBOHB, HyperBandScheduler
from ray.tune.search import Searcher
from ray.tune.search.bohb import TuneBOHB

from tune_ext.benchmark.records import provenance
from tune_ext.benchmark.simulation import SimulationStuck, simulate
from tune_ext.raytune import BOHBSearch, HyperBand

R = 27
ETA = 3
MINIMUM: dict[str, Any] = {"metric": "loss", "mode": "min"}
SPACE = {"level": tune.uniform(0, 1), "seconds": tune.loguniform(1, 9)}
CLOSE = 1 + 1e-9


class Random(Searcher):
    """Configurations at random."""

    def __init__(self, seed: int) -> None:
        super().__init__(**MINIMUM)
        self.random = np.random.default_rng(seed)

    def suggest(self, trial_id: str) -> Any:
        """Draw one."""
        return {"level": self.random.random(), "seconds": float(9 ** self.random.random())}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is learned."""

    def on_pause(self, trial_id: str) -> None:
        """HyperBandForBOHB wants to tell."""

    def on_unpause(self, trial_id: str) -> None:
        """Likewise."""


def ours(seed: int) -> Searcher:
    return BOHBSearch(SPACE, **MINIMUM, seed=seed)


def rays(seed: int) -> Searcher:
    np.random.seed(seed)  # noqa: NPY002 (hpbandster draws from it)
    return TuneBOHB(TuneBOHB.convert_search_space(SPACE), **MINIMUM, seed=seed)


def limited(search: Searcher, trials: int) -> Searcher:
    """It ends after so many suggestions, and says how many are left."""
    suggest = search.suggest
    search.left = trials

    def next_one(trial_id: str) -> Any:
        if not search.left:
            return Searcher.FINISHED
        search.left -= 1
        return suggest(trial_id)

    search.suggest = next_one
    return search


SETUPS: dict[str, tuple[Callable[[], Any], Callable[[int], Searcher]]] = {
    "ours": (lambda: HyperBand(max_t=R, **MINIMUM), Random),
    "ours, asynchronous": (lambda: HyperBand(max_t=R, asynchronous=True, **MINIMUM), Random),
    "ours with BOHBSearch": (lambda: HyperBand(max_t=R, **MINIMUM), ours),
    "Ray's HyperBandScheduler": (lambda: HyperBandScheduler(max_t=R, **MINIMUM), Random),
    "Ray's HyperBandForBOHB": (lambda: HyperBandForBOHB(max_t=R, **MINIMUM), Random),
    "Ray's with TuneBOHB": (lambda: HyperBandForBOHB(max_t=R, **MINIMUM), rays),
}


class Idle:
    """Looks at every step of Ray's loop whether a worker is idle, and whether it need be."""

    def __init__(self, scheduler: Any, search: Searcher, workers: int) -> None:
        self.scheduler, self.search, self.workers = scheduler, search, workers
        self.clock = self.avoidable = 0.0
        self.wasted = 0
        self.choose = scheduler.choose_trial_to_run
        scheduler.choose_trial_to_run = self

    def __call__(self, controller: Any, **options: Any) -> Any:
        """As the scheduler's; what was so before the clock went on counts until now."""
        actors = controller._actor_manager
        self.avoidable += self.wasted * (actors.clock - self.clock)
        self.clock = actors.clock
        chosen = self.choose(controller, **options)
        idle = self.workers - sum(event.time > event.begun for event in actors._events)
        self.wasted = idle if idle and (self.more() or self.promotable(controller)) else 0
        return chosen

    def more(self) -> bool:
        """Whether there is something that has not been begun."""
        return bool(self.search.left > 0)

    def promotable(self, controller: Any) -> bool:
        """Whether a trial that is paused may go on by the rule."""
        if isinstance(self.scheduler, HyperBand):
            return self.by_the_rule()
        for bracket in (b for band in self.scheduler._hyperbands for b in band if b is not None):
            trials = bracket.current_trials()
            paused = [t for t in trials if t.status == Trial.PAUSED]
            if any(trial in bracket.trials_to_unpause for trial in paused):
                return True
            full = bracket.filled() or not self.search.left
            if paused and len(paused) == len(trials) and full and bracket._halves:
                return True
        return False

    def by_the_rule(self) -> bool:
        """Published rules, from what our trials remember."""
        play, asynchronous = self.scheduler._play, self.scheduler._asynchronous
        brackets: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for trial in self.scheduler._trials:
            if trial in play:
                memory = play.memory(trial)
                brackets[memory["bracket"]].append(memory)
        for number, members in brackets.items():
            rungs = self.scheduler._table[number % len(self.scheduler._table)]
            for index in range(len(rungs) - 1):
                here = [m for m in members if m["rung"] >= index]
                known = [m for m in here if len(m["losses"]) > index or m["out"]]
                full = index > 0 or len(here) >= rungs[0].size or not self.search.left
                if not asynchronous and not (full and len(known) == len(here)):
                    break
                finite = sorted(
                    (m["losses"][index], m["number"], m["waits"] and len(m["losses"]) == index + 1)
                    for m in known
                    if len(m["losses"]) > index and m["losses"][index] is not None
                )
                places = math.floor(len(known) / ETA * CLOSE)
                if any(waits for *_, waits in finite[:places]):
                    return True
        return False


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
    schedule, searcher = SETUPS[name]
    scheduler, search = schedule(), limited(searcher(seed), trials)
    idle = Idle(scheduler, search, workers)
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as storage:
        try:
            done = simulate(
                Curve,
                search_alg=search,
                scheduler=scheduler,
                callbacks=[longest],
                workers=workers,
                storage=storage,
            )
        except SimulationStuck:
            return None
    total = done.clock * workers
    return {
        "idle": 1 - done.busy / total,
        "avoidable": idle.avoidable / total,
        "whole": longest.whole,
        "epochs": done.steps,
        "seconds": done.clock,
    }


def row(name: str, workers: int, trials: int, seeds: int) -> dict[str, Any]:
    """The medians over the seeds."""
    runs = [run(name, seed, workers, trials) for seed in range(seeds)]
    ended = [r for r in runs if r is not None]
    told: dict[str, Any] = {"setup": name, "workers": workers, "hung": len(runs) - len(ended)}
    if not ended:
        print(f"{workers} workers, {name}: all of {len(runs)} hung")
        return told
    told |= {key: median(r[key] for r in ended) for key in ended[0]}
    told["most_avoidable"] = max(r["avoidable"] for r in ended)
    print(
        f"{workers} workers, {name}: idle {told['idle']:.1%}, {told['avoidable']:.1%} avoidable "
        f"(at most {told['most_avoidable']:.1%}), {told['whole']:g} whole, "
        f"{told['epochs']:g} epochs, {told['seconds']:.0f} s ({told['hung']} of {len(runs)} hung)"
    )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    rows = [
        row(name, workers, options.trials, options.seeds)
        for workers in (2, 4, 8)
        for name in SETUPS
    ]
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
