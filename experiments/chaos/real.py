"""Ours and Ray's on a real Ray, with trials whose processes hang or are killed.

`train` is what all of them train: epochs with a checkpoint each. The first trial that comes to a
point where a fault is planned claims it, by a file in the experiment's home; so every fault is
injected once. Every epoch leaves a line there, before and after it is reported.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler

from experiments.chaos.outcome import Ended, Outcome
from tests.raytune.trainables import answer, response
from tune_ext.raytune import AutoHyperScheduler, AutoHyperSearch, BOHBSearch, HyperBand

R = 9
TRIALS = 9
PROBES = 5
MINIMUM: dict[str, Any] = {"metric": "loss", "mode": "min"}


def claim(config: dict[str, Any], epoch: int, point: str) -> bool:
    """Whether a fault is planned for this point of this epoch, and nobody had it yet."""
    if [epoch, point] not in config["plan"]:
        return False
    try:
        with Path(config["home"], f"claimed {epoch} {point}").open("x") as file:
            file.write(name_of(config))
    except FileExistsError:
        return False
    return True


def note(config: dict[str, Any], epoch: int, what: str) -> None:
    """Leave a line; lines this short are written at once."""
    line = json.dumps([name_of(config), epoch, what]) + "\n"
    with Path(config["home"], "notes.jsonl").open("a") as file:
        file.write(line)


def name_of(config: dict[str, Any]) -> str:
    """What tells a trial from others."""
    if "x" in config:
        return f"{config['x']:.12g}"
    return f"{config['lr']:.12g} {config['tune_ext']['role']}"


def die() -> None:
    """End this process as the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)


def train(config: dict[str, Any]) -> None:
    """Epochs with a checkpoint each, and the faults of the plan."""
    first, found = 1, tune.get_checkpoint()
    if found:
        with found.as_directory() as folder:
            first = json.loads(Path(folder, "epoch").read_text()) + 1
    for epoch in range(first, R + 1):
        note(config, epoch, "trained")
        time.sleep(config.get("seconds", 0.0))
        if claim(config, epoch, "training"):
            die()
        if claim(config, epoch, "hang"):
            time.sleep(10**6)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "epoch").write_text(json.dumps(epoch))
            Path(folder, "weights").write_bytes(bytes(10**6))
            _fault_while_saving(config, epoch)
            value = _value(config, epoch)
            tune.report(value, checkpoint=tune.Checkpoint.from_directory(folder))
        note(config, epoch, "reported")
        if claim(config, epoch, "reported"):
            die()


def _value(config: dict[str, Any], epoch: int) -> dict[str, Any]:
    if "x" in config:
        return {"loss": abs(config["x"] - 0.3) + 0.1 / epoch}
    return {"response_mean": response(config["lr"])}


def _fault_while_saving(config: dict[str, Any], epoch: int) -> None:
    """Die when half of a checkpoint is where it is kept, or all of it and no report."""
    half, whole = claim(config, epoch, "saving"), claim(config, epoch, "saved")
    if not (half or whole):
        return
    from ray.train._internal import storage

    copy = storage._pyarrow_fs_copy_files

    def interrupted(source: str, destination: str, *more: Any, **options: Any) -> None:
        if half:
            Path(source, "epoch").unlink()
        copy(source, destination, *more, **options)
        die()

    storage._pyarrow_fs_copy_files = interrupted


@dataclass(frozen=True)
class System:
    """A searcher with a scheduler.

    Args:
        name: "ours: …" or "ray: …".
        options: What `tune.run` is given: `search_alg`, `scheduler`, `config`, …
        answer: Options and trials → what is recommended.
    """

    name: str
    options: Callable[[], dict[str, Any]]
    answer: Callable[[dict[str, Any], list[Any]], Any]


def best(options: dict[str, Any], trials: list[Any]) -> Any:
    """The least loss of the trials that were trained longest."""
    known = [t for t in trials if "loss" in (t.last_result or {})]
    key = {t: (-t.last_result["training_iteration"], t.last_result["loss"]) for t in known}
    return min(known, key=lambda t: key[t]).config["x"] if known else None


def chosen(options: dict[str, Any], trials: list[Any]) -> Any:
    """What autoHyper says, once its final trial was trained, too."""
    final = [t for t in trials if t.config["tune_ext"]["role"] == "final"]
    done = final and all(t.status == "TERMINATED" for t in final)
    return options["search_alg"].best_config if done else None


XS = [0.05, 0.92, 0.41, 0.66, 0.33, 0.78, 0.12, 0.55, 0.27]
"""What is tried; the best is the last."""


def _hyperband() -> dict[str, Any]:
    points = [{"x": x} for x in XS]
    return {
        "search_alg": BOHBSearch(points_to_evaluate=points, **MINIMUM),
        "scheduler": HyperBand(max_t=R, brackets=1, **MINIMUM),
        "config": {"x": tune.uniform(0, 1)},
        "num_samples": TRIALS,
    }


def _autohyper() -> dict[str, Any]:
    return {
        "search_alg": AutoHyperSearch(probe_epochs=3, max_probes=PROBES),
        "scheduler": AutoHyperScheduler(probe_epochs=3, max_t=6),
        "config": {"lr": tune.loguniform(1e-6, 1.0)},
        "num_samples": -1,
    }


def _rays(scheduler: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "scheduler": scheduler(),
        "config": {"x": tune.grid_search(XS)},
        "num_samples": 1,
    }


OURS = (
    System("ours: HyperBand + BOHBSearch", _hyperband, best),
    System("ours: autoHyper", _autohyper, chosen),
)
RAYS = (
    System("ray: HyperBandScheduler", _rays(lambda: HyperBandScheduler(max_t=R, **MINIMUM)), best),
    System("ray: ASHA", _rays(lambda: ASHAScheduler(max_t=R, **MINIMUM)), best),
)


def expected(system: System) -> Any:
    """The answer without a fault."""
    if system.answer is chosen:
        return answer(max_probes=PROBES)
    return min(XS, key=lambda x: abs(x - 0.3))


def drive(
    case: str,
    system: System,
    home: Path,
    plan: Sequence[tuple[int, str]],
    *,
    injected: Callable[[], int] | None = None,
    seconds: float = 0.0,
    **options: Any,
) -> Outcome:
    """Run a system on the Ray that runs, and say how it took the plan.

    Args:
        case: Its name.
        system: What runs.
        home: An empty directory.
        plan: Epochs and points of faults.
        injected: How many faults there were that are not in the plan.
        seconds: Of an epoch.
        options: More for `tune.run`.
    """
    home.mkdir(parents=True)
    given = system.options()
    config = {**given["config"], "home": str(home), "plan": [list(p) for p in plan]}
    given["config"] = {**config, "seconds": seconds}
    limits: dict[str, Any] = {"raise_on_failed_trial": False, "verbose": 0, "reuse_actors": True}
    where = {"storage_path": str(home), "name": "experiment", "max_failures": 5}
    began, error, trials = time.monotonic(), "", []
    try:
        trials = tune.run(train, **{**given, **limits, **where, **options}).trials
        ended: Ended = "finished"
    except Exception as crash:  # whatever a system under test raises is its result
        ended, error = "crashed", f"{type(crash).__name__}: {str(crash).splitlines()[-1][:100]}"
    found = system.answer(given, trials) if trials else None
    deaths = injected() if injected else 0
    faults = len(list(home.glob("claimed *"))) + deaths
    lost, repeated = accounts(home, trials, deaths)
    unfinished = sum(t.status != "TERMINATED" for t in trials)
    same = found == expected(system)
    well = same and ended == "finished" and not (lost or repeated or unfinished)
    told = [error] if error else []
    told += [f"{unfinished} of {len(trials)} trials did not end well"] if unfinished else []
    return Outcome(
        case,
        system.name,
        injected=faults,
        survived=faults if well else 0,
        lost_results=lost,
        repeated_trials=repeated,
        same_answer=same,
        ended=ended,
        seconds=time.monotonic() - began,
        note="; ".join(told),
    )


def noted(home: Path) -> list[Any]:
    """What trials have noted: (name, epoch, what) each."""
    notes = home / "notes.jsonl"
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def accounts(home: Path, trials: Sequence[Any], deaths: int) -> tuple[int, int]:
    """Trials whose last report is not known, and trials that trained an epoch for nothing.

    An epoch may be trained again once for every fault that hit it, or any of `deaths`.
    """
    lines = noted(home)
    reported: dict[str, int] = {}
    begun, allowed = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for name, epoch, what in lines:
        if what == "reported":
            reported[name] = max(reported.get(name, 0), epoch)
        else:
            begun[name, epoch] += 1
    for path in home.glob("claimed *"):
        allowed[path.read_text(), int(path.name.split()[1])] += 1
    known = {name_of(t.config): (t.last_result or {}).get("training_iteration", 0) for t in trials}
    lost = sum(known.get(name, 0) < epoch for name, epoch in reported.items())
    again = {name for (name, e), times in begun.items() if times > 1 + allowed[name, e] + deaths}
    return lost, len(again)
