"""Nothing that was reported is lost, whatever ends the driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from tests.raytune.trainables import Counter, answer, environment, notes
from tune_ext import AutoHyperScheduler, AutoHyperSearch
from tune_ext.raytune._records import FILE_NAME


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


@pytest.mark.parametrize("after", [9, 23])
def test_a_restored_run_goes_on_as_if_nothing_had_happened(
    cluster: None, tmp_path: Path, after: int
) -> None:
    space = {"lr": tune.loguniform(1e-6, 1.0), "home": str(tmp_path)}
    tuner = tune.Tuner(
        Counter,
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=AutoHyperSearch(probe_epochs=3, max_probes=9),
            scheduler=AutoHyperScheduler(probe_epochs=3, max_t=9),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="experiment",
            storage_path=str(tmp_path),
            verbose=0,
            callbacks=[Ends(tmp_path, after)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    )
    with pytest.raises(Exception, match="the driver ends here"):
        tuner.fit()
    before, finished = len(notes(tmp_path)), recorded(tmp_path / "experiment")
    results = tune.Tuner.restore(str(tmp_path / "experiment"), trainable=Counter).fit()
    assert not probed(notes(tmp_path)[before:]) & finished
    final = [r for r in results if r.config["tune_ext"]["role"] == "final"]
    assert [r.config["lr"] for r in final] == [answer(max_probes=9)["lr"]]
    assert final[0].metrics["epoch"] == 9
    assert len(results) == 10


@pytest.mark.slow
def test_a_driver_killed_twice_gives_the_same_answer(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment"
    for more in (5, 21, None):
        before, finished = len(notes(tmp_path)), recorded(experiment)
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.raytune.driver", str(tmp_path)],
            env=environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while driver.poll() is None:
                begun = any(experiment.glob("experiment_state-*.json"))
                if more is not None and begun and len(notes(tmp_path)) - before >= more:
                    break
                time.sleep(0.01)
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
        assert not probed(notes(tmp_path)[before:]) & finished
    results = json.loads((tmp_path / "results.json").read_text())
    final = [r for r in results if r["tune_ext"]["role"] == "final"]
    assert [(r["lr"], r["epochs"]) for r in final] == [(answer()["lr"], 8)]
    state = max(experiment.glob("searcher-state-*.json"))
    search = AutoHyperSearch()
    search.restore(str(state))
    assert search.best_config == answer()
    assert len({r["lr"] for r in results}) == len(results) - 1
