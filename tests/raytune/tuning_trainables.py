"""Trainables whose loss reaches a plateau that a smaller learning rate lowers: SGD in numpy."""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from tests.raytune.trainables import note
from tune_ext import LossMonitor

EPOCH = 60
"""Steps between two reports."""


class Regression:
    """Linear regression by mini-batches; rates above about 0.25 diverge.

    The rate is taken from outside, after the state was loaded.
    """

    def __init__(self, lr: float, monitor: LossMonitor) -> None:
        self.lr, self.monitor = lr, monitor
        self.generator = np.random.default_rng(0)
        self.truth = self.generator.normal(size=8)
        self.weights, self.epoch = np.zeros(8), 0

    def train(self) -> dict[str, Any]:
        """One epoch, and what is reported of it."""
        loss = math.nan
        for _ in range(EPOCH):
            x = self.generator.normal(size=(16, 8)) * np.linspace(0.2, 1.5, 8)
            error = x @ (self.weights - self.truth) - 0.3 * self.generator.normal(size=16)
            with np.errstate(over="ignore", invalid="ignore"):
                loss = float(np.mean(error**2))
                self.weights = self.weights - self.lr * 2 * x.T @ error / 16
            self.monitor.step(loss)
        self.epoch += 1
        return {"loss": loss, "epoch": self.epoch, **self.monitor.report()}

    def save(self, folder: str) -> None:
        state = {
            "weights": self.weights.tolist(),
            "generator": self.generator.bit_generator.state,
            "monitor": self.monitor.state_dict(),
            "epoch": self.epoch,
        }
        Path(folder, "state.json").write_text(json.dumps(state))

    def load(self, folder: str) -> None:
        state = json.loads(Path(folder, "state.json").read_text())
        self.weights, self.epoch = np.array(state["weights"]), state["epoch"]
        self.generator.bit_generator.state = state["generator"]
        self.monitor.load_state_dict(state["monitor"])


def disturb(config: dict[str, Any], epoch: int) -> None:
    """What happens before an epoch, once, where the configuration asks for it."""
    for name in ("crash", "kill"):
        mark = Path(config["home"], name)
        if config.get(name) == epoch and not mark.exists():
            mark.touch()
            if name == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this life ends here")
    hold = Path(config["home"], "hold")
    if hold.exists() and epoch > int(hold.read_text()):
        while hold.exists():  # this life waits to be killed, however slow the machine is
            time.sleep(0.05)
        os._exit(1)
    time.sleep(config.get("sleep", 0))


def function(config: dict[str, Any]) -> None:
    """Leave a checkpoint every ``config["every"]`` epochs; 0 for none."""
    model = Regression(config["lr"], LossMonitor(config))
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            model.load(folder)
    started = model.epoch
    for _ in range(config.get("epochs", 100)):
        disturb(config, model.epoch + 1)
        if config.get("breaks") == model.epoch + 1 and config["lr"] > config["limit"]:
            model.weights = model.weights + 1e200  # the loss overflows
        result = model.train()
        note(config, epoch=model.epoch, started=started, trial=tune.get_context().get_trial_id())
        every = config.get("every", 1)
        if not every or model.epoch % every:
            tune.report(result)
            continue
        with tempfile.TemporaryDirectory() as folder:
            model.save(folder)
            tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))


class Class(tune.Trainable):
    """The same as a class."""

    def setup(self, config: dict[str, Any]) -> None:
        self.settings, self.started = config, 0
        self.model = Regression(config["lr"], LossMonitor(config))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        disturb(self.settings, self.model.epoch + 1)
        result = self.model.train()
        note(self.settings, epoch=self.model.epoch, started=self.started, trial=self.trial_id)
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.model.save(checkpoint_dir)

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.model.load(checkpoint)
        self.started = self.model.epoch
