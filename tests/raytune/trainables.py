"""Trainables whose response is a known function of the learning rate: no training."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ray import tune

from tune_ext.autohyper import AutoHyper, Parameter

RATES = [1e-5 * 2**k for k in (3, 1, 6, 0, 5, 2, 4)]
"""For searches that are given what to try."""


def response(lr: float) -> float:
    return 1 / (1 + lr / 1e-3)


def answer(**options: Any) -> dict[str, float]:
    """What the core finds when it is asked one probe at a time."""
    search = AutoHyper([Parameter.learning_rate(upper=1.0)], **options)
    while not search.finished:
        for probe in search.ask():
            search.tell(probe.id, response(probe.values["lr"]))
    assert search.best is not None
    return search.best


def note(config: dict[str, Any], **entry: Any) -> None:
    """Leave a line that the test can read; lines this short are written at once."""
    role = config.get("tune_ext", {}).get("role")
    entry = {"lr": config["lr"], "role": role, **entry}
    with Path(config["home"], "notes.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def notes(home: Path) -> list[dict[str, Any]]:
    path = home / "notes.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def function(config: dict[str, Any]) -> None:
    """Report for ever; leave a checkpoint at every epoch when the configuration says so."""
    epoch, origin = 0, None
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            epoch, origin = json.loads(Path(folder, "state.json").read_text())
    for _ in range(50):
        epoch += 1
        note(config, epoch=epoch, origin=origin, trial=tune.get_context().get_trial_id())
        result = {"response_mean": response(config["lr"]), "epoch": epoch}
        if not config.get("checkpoints"):
            tune.report(result)
            continue
        with tempfile.TemporaryDirectory() as folder:
            state = [epoch, tune.get_context().get_trial_id()]
            Path(folder, "state.json").write_text(json.dumps(state))
            tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))


class Counter(tune.Trainable):
    """Count epochs; a checkpoint holds the count and the trial that wrote it."""

    def setup(self, config: dict[str, Any]) -> None:
        self.epoch, self.origin = 0, None
        self.settings = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        time.sleep(self.settings.get("sleep", 0))
        self.epoch += 1
        note(self.settings, epoch=self.epoch, origin=self.origin, trial=self.trial_id)
        return {"response_mean": response(self.settings["lr"]), "epoch": self.epoch}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "state.json").write_text(json.dumps([self.epoch, self.trial_id]))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.epoch, self.origin = json.loads(Path(checkpoint, "state.json").read_text())


def meets_another(config: dict[str, Any]) -> None:
    """Report only after another trial has started, too."""
    home = Path(config["home"])
    (home / f"here-{tune.get_context().get_trial_id()}").touch()
    for _ in range(5000):
        if len(list(home.glob("here-*"))) >= 2:
            break
        time.sleep(0.05)
    met = len(list(home.glob("here-*"))) >= 2
    for _ in range(50):
        tune.report({"response_mean": response(config["lr"]), "met": met})


def fails_once(config: dict[str, Any]) -> None:
    """Crash at the second epoch of the largest rate's first life."""
    mark = Path(config["home"], "failed")
    for epoch in range(50):
        if epoch == 1 and config["lr"] > 1.2e-4 and not mark.exists():
            mark.touch()
            raise RuntimeError("this life ends here")
        tune.report({"response_mean": response(config["lr"])})


def fails_above(config: dict[str, Any]) -> None:
    """Crash at large rates, without a report."""
    if config["lr"] > config["limit"]:
        raise RuntimeError("too large")
    for _ in range(50):
        tune.report({"response_mean": response(config["lr"])})


def diverges_above(config: dict[str, Any]) -> None:
    """Say so, in one of two ways, at large rates."""
    bad = config["lr"] > config["limit"]
    for _ in range(50):
        value = float("nan") if bad and not config["says_so"] else response(config["lr"])
        tune.report({"response_mean": value, "diverged": bad and config["says_so"]})


def ends_by_itself(config: dict[str, Any]) -> None:
    epochs = 3 if config["tune_ext"]["role"] == "probe" else 7
    for _ in range(epochs):
        tune.report({"response_mean": response(config["lr"])})


def reports_loss(config: dict[str, Any]) -> None:
    for _ in range(50):
        tune.report({"loss": 3.0})


def environment() -> dict[str, str]:
    """The environment of a driver that runs in a process of its own."""
    quiet = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
