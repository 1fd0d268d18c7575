"""Nothing that was reported is lost, whatever ends the driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from tests.raytune.trainables import Counter, answer, environment, notes
from tune_ext import AutoHyperScheduler, AutoHyperSearch, repair_experiment
from tune_ext.raytune.autohyper_scheduler import FILE_NAME


def recorded(experiment: Path) -> set[float]:
    """The learning rates of the probes that are known to have finished."""
    path = experiment / FILE_NAME
    if not path.exists():
        return set()
    probes = json.loads(path.read_text())["probes"].values()
    return {probe["values"]["lr"] for probe in probes}


def probed(entries: list[dict[str, Any]]) -> set[float]:
    return {entry["lr"] for entry in entries if entry["role"] == "probe"}


class Ends(tune.Callback):
    """End the driver's control loop, without a last snapshot, after some results."""

    def __init__(self, home: Path, after: int) -> None:
        self.mark, self.after = home / "ended", after

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        self.after -= 1
        if self.after == 0 and not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("the driver ends here")


def wait_for_copies() -> None:
    """After a driver has ended in this process: its last copy goes on."""
    for thread in threading.enumerate():
        if "(entrypoint)" in thread.name:  # what Ray calls the function that copies
            thread.join(30)


def let_ray_end(experiment: Path) -> None:
    """As `wait_for_copies`; the last copy may have been cut, too."""
    wait_for_copies()
    repair_experiment(str(experiment))


def options(home: Path, after: int) -> dict[str, Any]:
    return {
        "search_alg": AutoHyperSearch(probe_epochs=3, max_probes=9),
        "scheduler": AutoHyperScheduler(probe_epochs=3, max_t=9),
        "num_samples": -1,
        "reuse_actors": True,
        "config": {"lr": tune.loguniform(1e-6, 1.0), "home": str(home)},
        "name": "experiment",
        "storage_path": str(home),
        "verbose": 0,
        "callbacks": [Ends(home, after)],
        "checkpoint_config": tune.CheckpointConfig(checkpoint_at_end=True),
    }


def by_tuner(home: Path, after: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    given = options(home, after)
    names = ("search_alg", "scheduler", "num_samples", "reuse_actors")
    tuner = tune.Tuner(
        Counter,
        param_space=given.pop("config"),
        tune_config=tune.TuneConfig(**{name: given.pop(name) for name in names}),
        run_config=tune.RunConfig(**given),
    )
    if (home / "ended").exists():
        tuner = tune.Tuner.restore(str(home / "experiment"), trainable=Counter)
    return [(r.config, r.metrics) for r in tuner.fit()]


def by_run(home: Path, after: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    resume = (home / "ended").exists()
    analysis = tune.run(Counter, resume=resume, **options(home, after))
    return [(trial.config, trial.last_result) for trial in analysis.trials]


@pytest.mark.parametrize(("start", "after"), [(by_tuner, 9), (by_run, 23)])
def test_a_restored_run_goes_on_as_if_nothing_had_happened(
    cluster: str, tmp_path: Path, start: Any, after: int
) -> None:
    with pytest.raises(Exception, match="the driver ends here"):
        start(tmp_path, after)
    let_ray_end(tmp_path / "experiment")
    before, finished = len(notes(tmp_path)), recorded(tmp_path / "experiment")
    results = start(tmp_path, after)
    assert finished
    assert not probed(notes(tmp_path)[before:]) & finished
    final = [(c, m) for c, m in results if c["tune_ext"]["role"] == "final"]
    assert [(c["lr"], m["epoch"]) for c, m in final] == [(answer(max_probes=9)["lr"], 9)]
    assert len(results) == 10


def saved(experiment: Path) -> list[int]:
    """When Ray last copied its state of the experiment, in ns."""
    return [path.stat().st_mtime_ns for path in experiment.glob("experiment_state-*.json")]


def whole(experiment: Path) -> bool:
    """Whether no copy of Ray's state is cut off: it is overwritten in place."""
    for path in experiment.glob("experiment_state-*.json"):
        try:
            json.loads(path.read_text())
        except json.JSONDecodeError:
            return False
    return True


def kill(driver: Any, experiment: Path) -> None:
    """End a driver and its Ray at once, but not in the middle of a copy of Ray's state."""
    while driver.poll() is None:
        os.kill(driver.pid, signal.SIGSTOP)
        if whole(experiment):
            os.killpg(driver.pid, signal.SIGKILL)
            return
        os.kill(driver.pid, signal.SIGCONT)
        time.sleep(0.01)


def drive(home: Path, kind: str, more: int | None, saves: int = 0) -> None:
    """Run a driver; kill it and its Ray when its trials have left so many more notes.

    Before the kill, Ray saves its state another `saves` times.
    """
    before, experiment = len(notes(home)), home / "experiment"
    said = home / "driver.log"
    with said.open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.raytune.driver", str(home), kind],
            env=environment(),
            start_new_session=True,
            stdout=log,
            stderr=log,
        )
    try:
        last: list[int] = []
        while driver.poll() is None:
            time.sleep(0.01)
            if more is None or not saved(experiment) or len(notes(home)) - before < more:
                continue
            if saves >= 0 and saved(experiment) != last:
                last, saves = saved(experiment), saves - 1
            if saves < 0:
                kill(driver, experiment)
                break
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert more is not None or driver.returncode == 0, said.read_text()[-4000:]


@pytest.mark.slow
def test_a_driver_killed_twice_gives_the_same_answer(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment"
    for more in (5, 21, None):
        before, finished = len(notes(tmp_path)), recorded(experiment)
        drive(tmp_path, "autohyper", more)
        assert not probed(notes(tmp_path)[before:]) & finished
    results = json.loads((tmp_path / "results.json").read_text())
    final = [r for r in results if r["tune_ext"]["role"] == "final"]
    assert [(r["lr"], r["epochs"]) for r in final] == [(answer()["lr"], 8)]
    state = max(experiment.glob("searcher-state-*.json"))
    search = AutoHyperSearch()
    search.restore(str(state))
    assert search.best_config == answer()
    assert len({r["lr"] for r in results}) == len(results) - 1
