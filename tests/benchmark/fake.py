"""A task without torch that trains in no time, for tests of the comparison's machinery."""

import math
import os
import time
import uuid
from pathlib import Path

import numpy as np
from ConfigSpace import ConfigurationSpace, UniformFloatHyperparameter

from tune_ext.benchmark.tasks import Task

STEPS = 40


class FakeRun:
    """The error falls with the epochs, towards a floor that is lowest at lr = 1e-2.

    So does the training loss, within a few steps of the second half of an epoch at 1e-2.
    """

    def __init__(self, lr, seed, nan_above):
        self.epoch, self.lr, self.seed, self.nan_above = 0, lr, seed, nan_above
        self.step_losses = []

    def _losses(self):
        steps = np.arange(STEPS) + STEPS * (self.epoch - 1)
        floor = 0.2 + 0.2 * max(math.log10(self.lr) + 2.0, 0.0)
        noise = 0.02 * np.random.default_rng([self.seed, self.epoch]).normal(size=STEPS)
        return list((floor + 2 * np.exp(-10 * self.lr * steps)) * (1 + noise))

    def _error(self):
        distance = abs(math.log10(self.lr) + 2.0)
        return min(0.9, 0.05 + 0.1 * distance + 0.4 / (1 + self.epoch) + 0.001 * (self.seed % 7))

    def train_epoch(self):
        self.epoch += 1
        response = 1.0 / (1.0 + (self.lr / 1e-3) ** 0.5)
        self.step_losses = self._losses()
        if self.lr > self.nan_above:
            self.step_losses = [self.step_losses[0], math.nan]
            return {
                "validation_error": math.nan,
                "validation_loss": math.nan,
                "response": math.nan,
                "response_mean": math.nan,
                "diverged": True,
            }
        error = self._error()
        return {
            "validation_error": error,
            "validation_loss": 2 * error,
            "response": response,
            "response_mean": response,
            "diverged": False,
        }

    def test(self):
        return {"test_error": self._error() + 0.01, "test_loss": 1.0}

    def state_dict(self):
        return {"epoch": self.epoch}

    def load_state_dict(self, state):
        self.epoch = state["epoch"]


class FakeTask(Task):
    name = "fake"
    description = "a formula"
    loss = "mse"

    def __init__(self, epochs=4, nan_above=math.inf, absent=False, parameters=("lr",)):
        self.max_epochs = epochs
        self.nan_above = nan_above
        self.absent = absent
        self.space = ConfigurationSpace()
        for name in parameters:
            self.space.add(UniformFloatHyperparameter(name, 1e-6, 1.0, log=True))
        self.default_config = {"lr": 1e-3}
        self.options = {"epochs": epochs, "nan_above": nan_above}

    def missing(self):
        return "the data is not here: fetch it" if self.absent else None

    def start(self, config, *, seed):
        return FakeRun(config.get("lr", 1e-3), seed, self.nan_above)

    def training_inputs(self, seed):
        return [np.full((2, 3), 10.0)] * STEPS


class FakeTaskAlone(FakeTask):
    """Searches nothing but the learning rate."""

    name = "alone"


class SlowTask(FakeTask):
    """Never finishes its first epoch."""

    name = "slow"

    def start(self, config, *, seed):
        run = super().start(config, seed=seed)
        run.train_epoch = lambda: time.sleep(600)
        return run


class CrashTask(FakeTask):
    """Crashes in the second epoch of every trial whose lr is below a bound."""

    name = "crash"

    def __init__(self, epochs=4, below=1e-3):
        super().__init__(epochs)
        self.below = below
        self.options = {"epochs": epochs, "below": below}

    def start(self, config, *, seed):
        run = super().start(config, seed=seed)
        train = run.train_epoch

        def crash():
            if run.epoch and run.lr < self.below:
                raise OSError("the disk is full")
            return train()

        run.train_epoch = crash
        return run


class SeenTask(FakeTask):
    """Leaves in $TUNE_EXT_DATA where each run was started: the node, and the GPUs it sees."""

    name = "seen"

    def start(self, config, *, seed):
        import ray

        told = f"{ray.get_runtime_context().get_node_id()} {os.environ['CUDA_VISIBLE_DEVICES']}"
        Path(os.environ["TUNE_EXT_DATA"], uuid.uuid4().hex).write_text(told, encoding="utf-8")
        return super().start(config, seed=seed)
