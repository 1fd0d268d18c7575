"""Idle worker time of our searchers and schedulers and of Ray's, with trials of uneven length.

    python experiments/cluster/utilisation.py [--seeds 5] [--out DIRECTORY] [--real]

On the simulated clock, in Ray's own control loop, with 2, 4 and 8 workers: an epoch takes
exp(0.8 z) seconds, z normal by a hash of the configuration and the seed; or the same, and the
fifth configuration takes twenty times as long. HyperBand and BOHB (R = 27, η = 3), ours and Ray's,
and ASHA run `CONFIGURATIONS` of them; autoHyper searches a learning rate and a weight decay on a
measured response curve, ExpTest climbs a ladder of rates for a linear regression. Beside these
two, random search of as many trials, all as long as theirs.

Of the time of all workers, two shares: idle; and "avoidable", the part of it in which something
could have been trained: a configuration not begun yet, a trial that the scheduler's own rule
promotes, a probe or rung that the search would hand out, if asked. The rest is, of HyperBand,
BOHB, ASHA and random search, the end, when no configuration is left to begin; of autoHyper and
ExpTest the wait for the result that decides what comes next.

`--real` runs the same on a Ray of this machine, where trials sleep `TICK` times as long; idle is
then what is missing from workers × time between the first trial's start and the end.
`utilisation_plot.py` draws the picture and the table.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
)
from ray.tune.search import Searcher
from ray.tune.search.bohb import TuneBOHB

from tune_ext import (
    AutoHyperScheduler,
    AutoHyperSearch,
    ExpTestScheduler,
    ExpTestSearch,
    LossMonitor,
)
from tune_ext.benchmark.records import provenance
from tune_ext.benchmark.simulation import SimulationStuck, simulate
from tune_ext.raytune import BOHBSearch, HyperBand

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "speed"), str(HERE.parent / "autohyper")]

import hyperband  # noqa: E402 (experiments/speed)
import makespan  # noqa: E402 (experiments/autohyper)

WORKERS = (2, 4, 8)
KINDS = ("lognormal", "straggler")
CONFIGURATIONS = 48
R, SIGMA, STRAGGLER, SLOWER = hyperband.R, 0.8, 5, 20.0
TICK = 0.3
MINIMUM = hyperband.MINIMUM
SPACE = {"level": tune.uniform(0, 1), "other": tune.uniform(0, 1)}
BOTH = {"lr": tune.loguniform(1e-6, 10.0), "weight_decay": tune.loguniform(1e-8, 1.0)}
CURVE = next(iter(json.loads(makespan.CURVES.read_text())["curves"]))
PROBE, STEPS, PART = 5, 60, 20


@dataclass
class Pace:
    """How long an epoch takes.

    Args:
        seed: Of the durations.
        straggler: Whether the fifth configuration is slow.
    """

    seed: int
    straggler: bool
    order: list[str] = field(default_factory=list)

    def __call__(self, config: dict[str, Any]) -> float:
        """Seconds of an epoch of this configuration."""
        numbers = [f"{k}={v:.6e}" for k, v in sorted(config.items()) if isinstance(v, float)]
        name = f"{self.seed}:" + ",".join(numbers)
        if name not in self.order:
            self.order.append(name)
        share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") + 0.5
        seconds = math.exp(SIGMA * NormalDist().inv_cdf(share / 2**48))
        slow = self.straggler and self.order.index(name) == STRAGGLER - 1
        return seconds * (SLOWER if slow else 1.0)


class Work:
    """A trial whose epochs are looked up; subclasses say what it reports."""

    def __init__(self, config: dict[str, Any], pace: Pace) -> None:
        self.config, self.epoch, self.seconds = config, 0, pace(config)

    def step(self) -> dict[str, Any]:
        """One more epoch."""
        self.epoch += 1
        return {**self.report(), "seconds": self.seconds}

    def report(self) -> dict[str, Any]:
        """A loss that falls to a level; R epochs."""
        return {"loss": self.config["level"] + 0.5 / self.epoch, "done": self.epoch >= R}

    def state(self) -> int:
        """What a resumed trial needs."""
        return self.epoch

    def load(self, state: int) -> None:
        """Go on from there."""
        self.epoch = state


class Probe(Work):
    """A few epochs that show a response."""

    response = staticmethod(makespan.curve(CURVE, 0.01))

    def report(self) -> dict[str, Any]:
        """Its response."""
        values = {name: self.config[name] for name in BOTH}
        return {"response_mean": self.response(values), "done": self.epoch >= PROBE}


def losses(lr: float) -> Iterator[float]:
    """Those of plain SGD on a linear regression, always over the same batches."""
    random = np.random.default_rng(0)
    truth, weights = random.normal(size=8), np.zeros(8)
    while True:
        x = random.normal(size=(16, 8)) * np.linspace(0.2, 1.5, 8)
        error = x @ (weights - truth) - 0.3 * random.normal(size=16)
        with np.errstate(over="ignore", invalid="ignore"):  # never around a yield: numpy crashes
            loss = float(np.mean(error**2))
            weights = weights - lr * 2 * x.T @ error / 16
        yield loss


class Rung(Work):
    """A few steps at a learning rate, `PART` of them a report."""

    def __init__(self, config: dict[str, Any], pace: Pace) -> None:
        super().__init__(config, pace)
        self.monitor, self.losses = LossMonitor(config), losses(config["lr"])

    def report(self) -> dict[str, Any]:
        """What ExpTest reads of the losses."""
        ended = False
        for _ in range(PART):
            ended = ended or bool(self.monitor.step(next(self.losses)))
        done = ended or self.epoch * PART >= STEPS
        return {**self.monitor.report(), "done": done}


class Short(Work):
    """What stands beside probes and rungs: as many epochs, and no more is learned of it."""

    epochs = PROBE

    def report(self) -> dict[str, Any]:
        """A loss."""
        return {"loss": self.config["level"], "done": self.epoch >= self.epochs}


class ShortRung(Short):
    """As long as a rung."""

    epochs = STEPS // PART


class Random(hyperband.Random):
    """Configurations at random."""

    def suggest(self, trial_id: str) -> Any:
        """Draw one."""
        return {name: float(self.random.random()) for name in SPACE}


def ours(seed: int) -> Searcher:
    return BOHBSearch(SPACE, **MINIMUM, seed=seed)


def rays(seed: int) -> Searcher:
    np.random.seed(seed)  # noqa: NPY002 (hpbandster draws from it)
    return TuneBOHB(TuneBOHB.convert_search_space(SPACE), **MINIMUM, seed=seed)


def autohyper(workers: int) -> Searcher:
    return AutoHyperSearch(BOTH, probe_epochs=PROBE, final_trials=0, max_concurrent=workers)


def exptest(workers: int) -> Searcher:
    space = {"lr": tune.loguniform(1e-5, 10.0)}
    return ExpTestSearch(
        space, **MINIMUM, bound=0.5, steps=STEPS, final_trials=0, max_concurrent=workers
    )


@dataclass(frozen=True)
class System:
    """What is run.

    Args:
        scheduler: Makes one.
        searcher: Makes one from the seed and the workers.
        trial: What trains.
        trials: How many; None: it ends by itself; a name: as many as that system.
    """

    scheduler: Callable[[], Any]
    searcher: Callable[[int, int], Searcher]
    trial: type[Work] = Work
    trials: int | str | None = CONFIGURATIONS


def seeded(make: Callable[[int], Searcher]) -> Callable[[int, int], Searcher]:
    return lambda seed, workers: make(seed)


SYSTEMS = {
    "autoHyper": System(
        lambda: AutoHyperScheduler(probe_epochs=PROBE, max_t=100),
        lambda seed, workers: autohyper(workers),
        Probe,
        None,
    ),
    "random, as many as autoHyper": System(FIFOScheduler, seeded(Random), Short, "autoHyper"),
    "ExpTest": System(
        lambda: ExpTestScheduler(max_t=100),
        lambda seed, workers: exptest(workers),
        Rung,
        None,
    ),
    "random, as many as ExpTest": System(FIFOScheduler, seeded(Random), ShortRung, "ExpTest"),
    "our HyperBand": System(lambda: HyperBand(max_t=R, **MINIMUM), seeded(Random)),
    "our HyperBand, asynchronous": System(
        lambda: HyperBand(max_t=R, asynchronous=True, **MINIMUM), seeded(Random)
    ),
    "Ray's HyperBand": System(lambda: HyperBandScheduler(max_t=R, **MINIMUM), seeded(Random)),
    "Ray's ASHA": System(
        lambda: AsyncHyperBandScheduler(max_t=R, reduction_factor=3, **MINIMUM), seeded(Random)
    ),
    "our BOHB": System(lambda: HyperBand(max_t=R, **MINIMUM), seeded(ours)),
    "Ray's BOHB": System(lambda: HyperBandForBOHB(max_t=R, **MINIMUM), seeded(rays)),
}


class Idle(hyperband.Idle):
    """Also of searches that end by themselves, and of schedulers that pause nothing."""

    def more(self) -> bool:
        """Whether there is something that has not been begun."""
        if hasattr(self.search, "left"):
            return super().more()
        core = self.search._core
        return not core.finished and bool(self.search._queue or copy.deepcopy(core).ask(1))

    def promotable(self, controller: Any) -> bool:
        """Whether a trial that is paused may go on by the rule."""
        pauses = isinstance(self.scheduler, HyperBand | HyperBandScheduler)
        return pauses and super().promotable(controller)


def simulated(name: str, seed: int, workers: int, kind: str, trials: int | None) -> dict[str, Any]:
    """One run on the simulated clock; "hung" is true where it would never end."""
    system, pace = SYSTEMS[name], Pace(seed, kind == "straggler")
    scheduler, search = system.scheduler(), system.searcher(seed, workers)
    if trials is not None:
        search = hyperband.limited(search, trials)
    idle = Idle(scheduler, search, workers)
    told = {"system": name, "workers": workers, "kind": kind, "seed": seed, "hung": False}
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as storage:
        try:
            done = simulate(
                lambda config: system.trial(config, pace),
                search_alg=search,
                scheduler=scheduler,
                workers=workers,
                storage=storage,
            )
        except SimulationStuck:
            return {**told, "hung": True}
    total = done.clock * workers
    return {
        **told,
        "idle": 1 - done.busy / total,
        "avoidable": idle.avoidable / total,
        "seconds": done.clock,
        "trials": done.trials,
    }


class Span(Callback):
    """When trials began and what they slept."""

    def __init__(self) -> None:
        self.begun = self.ended = self.slept = 0.0
        self.trials = 0

    def on_trial_start(self, **_: Any) -> None:
        """Remember the first start."""
        self.trials += 1
        self.begun = self.begun or time.monotonic()

    def on_trial_result(self, result: dict[str, Any], **_: Any) -> None:
        """Add up."""
        self.slept += result["seconds"] * TICK
        self.ended = time.monotonic()


def sleeper(kind: type[Work], seed: int, slow: bool) -> type[tune.Trainable]:
    """The trial as a class for Ray: its epochs take as long as they say."""

    class Sleeper(tune.Trainable):
        """See `sleeper`."""

        def setup(self, config: dict[str, Any]) -> None:
            """Begin."""
            pace = Pace(seed, False)
            self.work = kind(config, pace)
            number = int(self.trial_id.rsplit("_", 1)[-1]) if slow else -1
            if number == STRAGGLER - 1:
                self.work.seconds *= SLOWER

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Another trial in the same process."""
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            """Sleep through an epoch."""
            told = self.work.step()
            time.sleep(told["seconds"] * TICK)
            return told

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            """Where it stands."""
            return {"epoch": self.work.epoch}

        def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            """Go on."""
            self.work.load(checkpoint["epoch"])

    return Sleeper


def real(name: str, seed: int, workers: int, trials: int | None) -> dict[str, Any]:
    """One run on Ray, lognormal durations."""
    system, span = SYSTEMS[name], Span()
    search = system.searcher(seed, workers)
    if trials is not None:
        search = hyperband.limited(search, trials)
    with tempfile.TemporaryDirectory(prefix="tune-ext-") as storage:
        tune.run(
            sleeper(system.trial, seed, False),
            search_alg=search,
            scheduler=system.scheduler(),
            num_samples=-1,
            resources_per_trial={"cpu": 8 / workers},
            storage_path=storage,
            callbacks=[span],
            reuse_actors=True,
            verbose=0,
            raise_on_failed_trial=False,
        )
    total = (span.ended - span.begun) * workers
    return {
        "system": name,
        "workers": workers,
        "kind": "real",
        "seed": seed,
        "idle": 1 - span.slept / total,
        "seconds": span.ended - span.begun,
        "trials": span.trials,
    }


def count(name: str, done: dict[tuple[Any, ...], int], *place: Any) -> int | None:
    """How many trials a system is given."""
    trials = SYSTEMS[name].trials
    return done[(trials, *place)] if isinstance(trials, str) else trials


def measure(seeds: int) -> list[dict[str, Any]]:
    """A row for each run on the simulated clock."""
    rows, done = [], {}
    for kind in KINDS:
        for workers in WORKERS:
            for name in SYSTEMS:
                for seed in range(seeds):
                    place = (workers, kind, seed)
                    row = simulated(name, seed, workers, kind, count(name, done, *place))
                    done[(name, *place)] = row.get("trials", 0)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    return rows


def measure_real(
    rows: list[dict[str, Any]], made: list[dict[str, Any]], only: list[str]
) -> Iterator[list[dict[str, Any]]]:
    """Rows of runs on Ray, of one seed: what is made already, and one more each time."""
    from nodes import started

    known = {(row["system"], row["workers"]) for row in made}

    done = {
        (row["system"], row["workers"]): row["trials"]
        for row in rows
        if row["seed"] == 0 and row["kind"] == "lognormal" and not row["hung"]
    }
    with started([{"num_cpus": 8}]):
        for workers in WORKERS:
            for name in only:
                trials = SYSTEMS[name].trials
                if isinstance(trials, str) and (trials, workers) not in done:
                    continue  # nothing says how many
                if (name, workers) in known:
                    continue
                made = [*made, real(name, 0, workers, count(name, done, workers))]
                print(json.dumps(made[-1]), flush=True)
                yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--real", action="store_true", help="on Ray; the simulated rows stay")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS))
    options = parser.parse_args()
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "utilisation.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    report |= {"configurations": CONFIGURATIONS, "max_t": R, "sigma": SIGMA, "slower": SLOWER}
    if options.real:
        simulated, made = report.get("simulated", []), report.get("real", [])
        for rows in measure_real(simulated, made, options.systems):
            report |= {"real": rows, "provenance of real": provenance(), "tick": TICK}
            path.write_text(json.dumps(report, indent=1) + "\n")
        return
    report |= {"simulated": measure(options.seeds), "provenance": provenance()}
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
