"""Recorded trainings as tasks: the response of real networks on a simulated clock.

autoHyper decides by a response that is measured inside the network, and ExpTest by the losses of
the training steps. No public table holds either, so these were recorded: every epoch of real
trainings over a grid of learning rate, weight decay and seed
(`experiments/response_tables`, with how far the tables can be trusted). A training that took
seconds is looked up in less than a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import as_number, check_state
from tune_ext._random import check_seed
from tune_ext.benchmark.tasks._base import Task, TaskRun
from tune_ext.benchmark.tasks._recorded import CURVES, Recorded, load
from tune_ext.benchmark.tasks._training_task import check_values, make_space
from tune_ext.errors import InvalidTypeError, InvalidValueError, StateError

__all__ = [
    "ResponseDigitsCNN",
    "ResponseFashionCNN",
    "ResponseFashionResNet",
    "ResponseTable",
    "ResponseTableRun",
]

_DATA = Path(__file__).parent / "data"
_STATE_VERSION = 1


class ResponseTable(Task):
    """Real trainings of a small network, looked up.

    Between recorded points every quantity is interpolated (`_recorded`). What lies outside the
    recorded ranges is answered as their edge, and so is weight decay 0. A recorded seed is
    answered as recorded; there are few of them, so every other seed is a mixture of them, of the
    same mean and variance (`_recorded.seed_weights`). A training of weight decay and learning
    rate that change on the way was not recorded: each epoch is that of its own configuration.

    Args:
        parameters: What is searched: "lr", "weight_decay" or both.
        noise: Factor on how far a seed is from the mean of all seeds: 1 is as recorded, with 0
            all seeds are the same.
    """

    loss = "cross_entropy"
    simulated = True
    table: ClassVar[str]

    def __init__(
        self, *, parameters: Sequence[str] = ("lr", "weight_decay"), noise: float = 1.0
    ) -> None:
        self._noise = as_number("noise", noise)
        if not 0 <= self._noise < math.inf:
            raise InvalidValueError(f"noise must be finite and at least 0, got {noise!r}")
        path = _DATA / f"{self.table}.npz"
        self._recorded = load(path)
        self.max_epochs = self._recorded.epochs
        self.default_config = {"lr": 1e-3, "weight_decay": 0.0}
        self.space = make_space(self.name, parameters, self.default_config)
        self.options = {"parameters": list(self.space.keys()), "noise": self._noise}
        self.regret_range = _regret_range(path, tuple(self.space.keys()))

    def missing(self) -> str | None:
        """None: the recordings are a part of the package."""
        return None

    def start(self, config: Mapping[str, Any], *, seed: int) -> TaskRun:
        """Start a run; see `Task.start`."""
        values = check_values(config, self.default_config)
        if check_seed(seed) is None:
            raise InvalidTypeError("seed must be an integer, got None")
        return ResponseTableRun(
            self._recorded, values, seed=int(seed), noise=self._noise, name=self.name
        )

    def training_inputs(self, seed: int) -> Sequence[NDArray[Any]]:
        """One input a batch, whose mean square is that of the recorded training images.

        That is what ExpTest's bound (`learning_rate_bound` by the trace) asks of them.

        Args:
            seed: Makes no difference: the images are scaled to the same mean square.
        """
        about = self._recorded.about
        level = math.sqrt(float(np.mean(about["mean_square"])))
        return [np.full((1, about["features"]), level) for _ in range(about["batches"])]

    def true_error(self, config: Mapping[str, Any]) -> float:
        """The mean test error over the recorded seeds; one that diverged counts as 1."""
        values = check_values(config, self.default_config)
        return self._recorded.true_error(values["lr"], values["weight_decay"])


@lru_cache(maxsize=32)
def _regret_range(path: Path, parameters: tuple[str, ...]) -> tuple[float, float]:
    """The best and the median true error over the space, on a fine grid with the recorded points.

    What is not searched has its default.
    """
    recorded = load(path)
    lrs, decays = np.array([1e-3]), np.array([0.0])
    if "lr" in parameters:
        lrs = np.geomspace(recorded.lrs[0], recorded.lrs[-1], 61)
    if "weight_decay" in parameters:
        decays = np.geomspace(recorded.decays[0], recorded.decays[-1], 13)
    even = [recorded.true_error(lr, decay) for lr in lrs for decay in decays]
    corners = [
        recorded.true_error(lr, decay)
        for lr in (recorded.lrs if "lr" in parameters else lrs)
        for decay in (recorded.decays if "weight_decay" in parameters else decays)
    ]
    return min(even + corners), float(np.median(even))


class ResponseTableRun:
    """A `TaskRun` that looks its epochs up.

    Args:
        recorded: Where.
        config: "lr" and "weight_decay".
        seed: See `_recorded.seed_weights`.
        noise: See `ResponseTable`.
        name: Of the task, for its states.
    """

    def __init__(
        self,
        recorded: Recorded,
        config: Mapping[str, float],
        *,
        seed: int,
        noise: float,
        name: str,
    ) -> None:
        self.epoch = 0
        self._answer = recorded.answer(config["lr"], config["weight_decay"], seed, noise)
        self._epochs = recorded.epochs
        self._seed, self._name = seed, name

    @property
    def _diverged(self) -> bool:
        return bool(min(self.epoch, self._epochs) > self._answer.epochs)

    @property
    def step_losses(self) -> list[float]:
        """See `TaskRun.step_losses`."""
        if self.epoch == 0:
            return []
        losses = self._answer.step_losses[min(self.epoch, self._epochs) - 1]
        return [math.nan] if self._diverged else [float(loss) for loss in losses]

    def train_epoch(self) -> dict[str, float | bool]:
        """Look one more epoch up; beyond the recorded ones, the last again.

        Returns:
            See `TaskRun.train_epoch`, and `seconds`: what the epoch took when it was recorded.
        """
        self.epoch += 1
        place = min(self.epoch, self._epochs) - 1
        metrics: dict[str, float | bool] = {
            name: float(self._answer.curves[name][place]) for name in CURVES
        }
        return {**metrics, "diverged": self._diverged}

    def test(self) -> dict[str, float]:
        """Loss and error of the full training on the test images; NaN if it diverged."""
        return dict(self._answer.test)

    def state_dict(self) -> dict[str, Any]:
        """How far the run is; what it goes on with is looked up."""
        return {
            "kind": self._name,
            "version": _STATE_VERSION,
            "seed": self._seed,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the epoch of `state`, with this run's own configuration.

        Raises:
            StateError: `state` is not of this version, or of another task or seed.
        """
        check_state(state, self._name, _STATE_VERSION, f"a run of {self._name}")
        if state.get("seed") != self._seed:
            raise StateError(f"state must have seed {self._seed}, got {state.get('seed')!r}")
        epoch = state.get("epoch")
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise StateError(f"state must have a whole number of epochs, got {epoch!r}")
        self.epoch = epoch


class ResponseDigitsCNN(ResponseTable):
    """Recorded: `digits-cnn` with SGD, 12 epochs; learning rate and weight decay.

    Args:
        parameters: What is searched: "lr", "weight_decay" or both.
        noise: See `ResponseTable`.
    """

    name = "response-digits-cnn"
    description = "Recorded trainings of digits-cnn with SGD, looked up"
    table = "digits-cnn"


class ResponseFashionResNet(ResponseTable):
    """Recorded: a small `fashion-mnist-resnet` with SGD, 2,000 images of 14×14, 8 epochs.

    Args:
        parameters: What is searched: "lr", "weight_decay" or both.
        noise: See `ResponseTable`.
    """

    name = "response-fashion-resnet"
    description = "Recorded trainings of a small ResNet on Fashion-MNIST with SGD, looked up"
    table = "fashion-resnet"


class ResponseFashionCNN(ResponseTable):
    """Recorded: five plain convolutions with Adam on 2,000 images of Fashion-MNIST, 8 epochs.

    Args:
        parameters: What is searched: "lr", "weight_decay" or both.
        noise: See `ResponseTable`.
    """

    name = "response-fashion-cnn"
    description = "Recorded trainings of a plain CNN on Fashion-MNIST with Adam, looked up"
    table = "fashion-cnn"
