"""What ten thousand short trials cost the driver, on a Ray of four nodes.

    python experiments/cluster/scale.py [--trials 10000] [--minutes 30] [--only METHOD]

Four raylets with a processor each on this machine; a trial looks up a formula, and actors are
reused, as for anything that short. The driver's memory and processor time are noted as trials
add up, and of the time what our searcher and scheduler used and what saving took; of each saving
the bytes that are the searcher's and those that are Ray's. A method ends after so many trials or
minutes. One that is in the results in full is not run again.

`scale_plot.py` draws the results that are there, and says the exponents.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from nodes import conditions, started
from ray import tune
from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from short import SPACE, Short

HERE = Path(__file__).parent
NODES = 4


class Meter(Callback):  # type: ignore[misc]
    """Notes the driver's memory and times as trials add up, and ends the run in time.

    Args:
        path: Where the lines go.
        parts: Name → object, of which calls are timed.
        every: Trials between two lines.
    """

    CALLS = (
        "suggest",
        "on_trial_add",
        "on_trial_result",
        "on_trial_complete",
        "choose_trial_to_run",
        "on_pause",
        "on_unpause",
        "save_to_dir",
    )

    def __init__(self, path: Path, parts: dict[str, Any], every: int) -> None:
        self._path, self._every, self._ended = path, every, 0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._written: defaultdict[str, int] = defaultdict(int)
        self._process = psutil.Process()
        for kind, part in parts.items():  # of the class: an instance may be pickled
            for name in self.CALLS:
                if hasattr(part, name):
                    call = getattr(type(part), name)
                    setattr(type(part), name, self._timed(f"{kind}.{name}", call))
        self._watch_saving()
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def _watch_saving(self) -> None:
        """Time Ray's own saving of the experiment, and count what it leaves."""
        save = TuneController.save_to_dir
        seconds, written = self._seconds, self._written

        def timed(controller: Any) -> None:
            begun = time.process_time()
            save(controller)
            seconds["saving"] += time.process_time() - begun
            written["savings"] += 1
            for file in Path(controller._storage.experiment_driver_staging_path).iterdir():
                if file.is_file():
                    ours = file.name.startswith("searcher-state")
                    size = file.stat().st_size
                    written["searcher's bytes" if ours else "Ray's bytes"] += size

        TuneController.save_to_dir = timed

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(this: Any, *arguments: Any, **named: Any) -> Any:
            begun = time.process_time()
            try:
                return call(this, *arguments, **named)
            finally:
                self._seconds[name] += time.process_time() - begun

        return timed

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count it, and note a line now and then."""
        self._ended += 1
        if self._ended % self._every == 0:
            self.note(done=False)

    def note(self, *, done: bool) -> None:
        """Append a line."""
        line = {
            "trials": self._ended,
            "wall": time.monotonic() - self._wall,
            "driver": time.process_time() - self._cpu,
            "rss": self._process.memory_info().rss,
            "seconds": dict(self._seconds),
            "written": dict(self._written),
            "done": done,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(self._path.stem, {k: v for k, v in line.items() if k != "seconds"}, flush=True)


def _random() -> tuple[Any, Any]:
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import BasicVariantGenerator

    return BasicVariantGenerator(max_concurrent=NODES, random_state=0), FIFOScheduler()


def _ours() -> tuple[Any, Any]:
    import tune_ext

    search = tune_ext.BOHBSearch(metric="loss", mode="min", seed=0)
    return search, tune_ext.HyperBand(metric="loss", mode="min", max_t=9)


def _builtin() -> tuple[Any, Any]:
    from ray.tune.schedulers import HyperBandForBOHB
    from ray.tune.search.bohb import TuneBOHB

    search = TuneBOHB(metric="loss", mode="min", seed=0)
    return search, HyperBandForBOHB(metric="loss", mode="min", max_t=9, reduction_factor=3)


METHODS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "our BOHB + HyperBand": _ours,
    "random search": _random,
    "TuneBOHB + HyperBandForBOHB": _builtin,
}


def measure(name: str, trials: int, minutes: float, path: Path) -> None:
    """Run a method on the Ray of this process."""
    search, scheduler = METHODS[name]()
    parts = {"searcher": search, "scheduler": scheduler}
    meter = Meter(path, parts, max(1, trials // 100))
    plain = name == "random search"
    with tempfile.TemporaryDirectory() as scratch:
        tune.run(
            Short,
            config=dict(SPACE),
            search_alg=search,
            scheduler=scheduler,
            num_samples=trials,
            max_concurrent_trials=None if plain else NODES,
            stop={"training_iteration": 1} if plain else None,
            resources_per_trial={"cpu": 1},
            callbacks=[meter],
            time_budget_s=60 * minutes,
            reuse_actors=True,
            storage_path=scratch,
            verbose=0,
            raise_on_failed_trial=False,
        )
    meter.note(done=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", choices=METHODS)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in METHODS if given.only is None else [given.only]:
        path = given.out / f"scale-{name.replace(' ', '-').lower()}.jsonl"
        if path.exists() and '"done": true' in path.read_text(encoding="utf-8"):
            print(f"{name}: is there")
        elif given.only is None:  # each in a process of its own: memory is measured
            subprocess.run([sys.executable, *sys.argv, "--only", name], check=True)
        else:
            path.unlink(missing_ok=True)
            with started([{"num_cpus": 1}] * NODES):
                measure(name, given.trials, given.minutes, path)
    about = {**conditions(), "trials": given.trials, "minutes": given.minutes}
    text = json.dumps(about, indent=1) + "\n"
    (given.out / "scale-conditions.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
