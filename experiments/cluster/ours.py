"""What our part of a run costs as trials add up, on Ray's own control loop and a simulated clock.

    python experiments/cluster/ours.py [--only WORD] [--trials 20000] [--out DIRECTORY]

`tune_ext.benchmark.simulation` runs Ray's controller without processes. Each call of our
searcher and scheduler is timed (processor time of this process), and after every twentieth of the
trials the searcher's state is saved as Ray does. A method that is in the results is not run again;
`scale_plot.py` says the exponents.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from ray import tune
from ray.tune import Callback

import tune_ext
from tune_ext.benchmark.simulation import simulate
from tune_ext.raytune.smac import SMACSearch

HERE = Path(__file__).parent
SPACE = {"x": tune.uniform(0.0, 1.0), "y": tune.loguniform(1e-4, 1.0), "z": tune.choice("abcd")}
_CALLS = {
    "searcher": ("suggest", "on_trial_result", "on_trial_complete", "on_pause", "on_unpause"),
    "scheduler": (
        "on_trial_add",
        "on_trial_result",
        "on_trial_complete",
        "choose_trial_to_run",
    ),
}


class Formula:
    """A valley; an epoch takes a second or so."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.epoch = config, 0
        self.seconds = 1.0 + 0.1 * (hash(config["x"]) % 7)

    def step(self) -> dict[str, Any]:
        """An epoch."""
        self.epoch += 1
        config = self.config
        worse = {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.3}[config["z"]]
        loss = (config["x"] - 0.3) ** 2 + abs(math.log10(config["y"]) + 2) + worse + 1 / self.epoch
        return {"loss": loss, "seconds": self.seconds, "done": False}

    def state(self) -> int:
        """What a paused trial keeps."""
        return self.epoch

    def load(self, state: int) -> None:
        """Go on from it."""
        self.epoch = state


class Meter(Callback):  # type: ignore[misc]
    """Processor seconds of calls, by name, and the state's size, as trials add up."""

    def __init__(self, searcher: Any, scheduler: Any, folder: Path, every: int) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.points: list[dict[str, Any]] = []
        self._searcher, self._folder, self._every = searcher, folder, every
        self._started, self._trials = time.process_time(), 0
        self._apart = 0.0  # of which is the measuring
        for kind, of in (("searcher", searcher), ("scheduler", scheduler)):
            for name in _CALLS[kind]:
                if hasattr(of, name):
                    setattr(of, name, self._timed(f"{kind}.{name}", getattr(of, name)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                self.spent[name] += time.process_time() - begun

        return timed

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count it, and measure now and then."""
        if len(trials) < self._trials + self._every:
            return
        self._trials = len(trials)
        begun = time.process_time()
        self._searcher.save_to_dir(str(self._folder), "scale")
        saving = time.process_time() - begun
        self._apart += saving
        total = time.process_time() - self._started - self._apart
        point = {"trials": self._trials, "total": total, "saving": saving}
        files = [f.stat().st_size for f in self._folder.iterdir() if f.is_file()]
        self.points.append({**point, "state bytes": sum(files), **self.spent})


def _brackets(asynchronous: bool = False) -> Any:
    return tune_ext.HyperBand(metric="loss", mode="min", max_t=27, asynchronous=asynchronous)


def _bohb(n: int, asynchronous: bool = False) -> tuple[Any, Any]:
    search = tune_ext.BOHBSearch(SPACE, "loss", "min", seed=0)
    return search, _brackets(asynchronous)


def _growth(n: int, inside: str) -> tuple[Any, Any]:
    sizes = [(16, n // 2), (32, n // 3), (64, n - n // 2 - n // 3)]
    search = tune_ext.ImageGrowthSearch(
        inside, sizes, space=SPACE, metric="loss", mode="min", seed=0
    )
    return search, None


CASES: dict[str, tuple[Callable[[int], tuple[Any, Any]], int]] = {
    "BOHB + HyperBand": (_bohb, 10_000),
    "BOHB + HyperBand, asynchronous": (lambda n: _bohb(n, True), 10_000),
    "BOHB, every trial judged once": (
        lambda n: (tune_ext.BOHBSearch(SPACE, "loss", "min", seed=0), None),
        20_000,
    ),
    "image growth (random)": (lambda n: _growth(n, "random"), 10_000),
    "image growth (TPE)": (lambda n: _growth(n, "tpe"), 2_000),
    "SMAC": (
        lambda n: (SMACSearch(SPACE, "loss", "min", n_trials=n, seed=0), None),
        200,
    ),
}


def measure(name: str, trials: int) -> list[dict[str, Any]]:
    """Run a case; what had been spent after each twentieth of its trials."""
    searcher, scheduler = CASES[name][0](trials)
    if scheduler is None:
        from ray.tune.schedulers import FIFOScheduler

        scheduler = FIFOScheduler()
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch, "saved")
        saved.mkdir()
        meter = Meter(searcher, scheduler, saved, max(1, trials // 20))
        simulate(
            Formula,
            search_alg=searcher,
            scheduler=scheduler,
            stopper=None if isinstance(scheduler, tune_ext.HyperBand) else _Once(),
            callbacks=[meter],
            workers=8,
            trials=trials,
            storage=scratch,
        )
    return meter.points


class _Once(tune.Stopper):  # type: ignore[misc]
    """Ends a trial after its first epoch."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return True

    def stop_all(self) -> bool:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "ours.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, (_, most) in CASES.items():
        if given.only in name and name not in found:
            found[name] = measure(name, min(most, given.trials))
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(name, found[name][-1], flush=True)


if __name__ == "__main__":
    main()
