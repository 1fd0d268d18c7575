"""What the trials of `nodes.py` train: formulas, with everything that our methods read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

__all__ = ["Formula", "network"]


def network(config: Mapping[str, Any]) -> Any:
    """A path of `depth` + 1 layers for inputs of four values; torch only where it is built."""
    from torch import nn

    layers: list[Any] = []
    for i in range(config["depth"]):
        layers += [nn.Linear(8 if i else 4, 8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, 2))


def _losses(rate: float) -> Iterator[float]:
    """The losses of plain SGD on a regression, always over the same batches."""
    generator = np.random.default_rng(0)
    truth, weights = generator.normal(size=8), np.zeros(8)
    while True:
        x = generator.normal(size=(16, 8)) * np.linspace(0.2, 1.5, 8)
        error = x @ weights - x @ truth - 0.3 * generator.normal(size=16)
        with np.errstate(over="ignore", invalid="ignore"):  # never around a yield: numpy crashes
            loss = float(np.mean(error**2))
            weights = weights - rate * 2 * x.T @ error / 16
        yield loss


class Formula(tune.Trainable):  # type: ignore[misc]
    """A step is an epoch: a loss with a valley at lr = .01, and autoHyper's response.

    Where the configuration has a ladder's part (`tune_ext`), an epoch is 20 mini-batches of a
    regression, and the report has ExpTest's statistics.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Begin a trial."""
        self.given, self.epoch, self.monitor = config, 0, None
        if "rung" in config.get("tune_ext", {}):
            from tune_ext import LossMonitor

            self.monitor, self.losses = LossMonitor(config), _losses(config["lr"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train an epoch when it is this trial's turn."""
        desk = ray.get_actor(self.given["desk"])
        context = ray.get_runtime_context()
        ids = tuple(sorted(context.get_accelerator_ids()["GPU"]))
        share = float(context.get_assigned_resources().get("GPU", 0.0))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if ids and tuple(sorted(visible.split(","))) != ids:
            raise RuntimeError(f"given the GPUs {ids}, and CUDA_VISIBLE_DEVICES={visible!r}")
        ray.get(desk.take.remote(self.trial_id, context.get_node_id(), ids, share))
        self.epoch += 1
        result = self._trained()
        desk.leave.remote(self.trial_id)
        return result

    def _trained(self) -> dict[str, Any]:
        rate, depth = self.given["lr"], self.given.get("depth", 2)
        if self.monitor is not None:
            for _ in range(20):
                loss = next(self.losses)
                if self.monitor.step(loss):
                    return {"loss": loss, **self.monitor.report(), "done": True}
            return {"loss": loss, **self.monitor.report()}
        distance = abs(math.log10(rate) + 2) + 0.1 * abs(depth - 3)
        size = self.given.get("image_size", 64)
        return {
            "loss": distance + 1 / self.epoch + 1 / size + self.given.get("weight_decay", 0.0),
            "response_mean": 1 / (1 + rate / 1e-3),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write what a paused trial needs."""
        Path(checkpoint_dir, "epoch.json").write_text(json.dumps(self.epoch), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from it; a ladder's trial has trained the same batches again."""
        self.epoch = json.loads(Path(checkpoint, "epoch.json").read_text(encoding="utf-8"))
