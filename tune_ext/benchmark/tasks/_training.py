"""One training run of a network. Importing this module imports torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from tune_ext._random import derive_seed
from tune_ext.benchmark.tasks._data import Part, Parts
from tune_ext.errors import StateError

if TYPE_CHECKING:
    from tune_ext.benchmark.tasks._augment import Augmentation
    from tune_ext.lowrank import ResponseMeter

__all__ = ["RunSettings", "TrainingRun"]

_STATE_VERSION = 1
_EVALUATION_VALUES = 1000 * 32 * 32
"""Pixels of a channel in an evaluation's batch at most, but never more than 1000 examples."""


@dataclass(frozen=True)
class RunSettings:
    """What an `TrainingRun` does with its network.

    Attributes:
        lr: Learning rate, of the first epoch.
        weight_decay: Coefficient of the L2 penalty.
        optimizer: "adam" or "sgd" (momentum 0.9).
        schedule: "constant", or "cosine": each epoch's rate, down to 0 after `epochs`.
        epochs: The full length of the schedule.
        batch_size: Examples in a batch; an incomplete last batch is left out.
        measure_response: Whether the response of the network is measured each epoch.
        device: Where to train.
        loss: "cross_entropy", or "mse": of one number for each example.
        augmentation: How training images are varied; None: they are not.
    """

    lr: float
    weight_decay: float
    optimizer: str
    schedule: str
    epochs: int
    batch_size: int
    measure_response: bool
    device: str
    loss: str = "cross_entropy"
    augmentation: Augmentation | None = None

    def rate(self, epoch: int) -> float:
        """The learning rate of `epoch`, counted from 0."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1.0)))


class _Source:
    """The examples of a part, by index; bytes become scaled numbers.

    Args:
        part: The examples.
        stored: `part.images`, where they are needed.
    """

    def __init__(self, part: Part, stored: Tensor) -> None:
        device = stored.device
        self._stored = stored
        self._targets = torch.from_numpy(part.labels).to(device)
        self._rows = None if part.rows is None else torch.from_numpy(part.rows).to(device)
        self._scale: tuple[Tensor, ...] | None = None
        if part.scale is not None:
            self._scale = tuple(torch.from_numpy(a[:, None, None]).to(device) for a in part.scale)

    def __call__(
        self, which: Tensor | slice, vary: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The inputs, varied where so asked, and the targets of `which` examples."""
        inputs = self._stored[which if self._rows is None else self._rows[which]]
        if vary is not None:
            inputs = vary(inputs)
        if self._scale is not None:
            mean, deviation = self._scale
            inputs = (inputs.float() - mean) / deviation
        return inputs, self._targets[which]


class TrainingRun:
    """A `TaskRun` over a network and a split of examples.

    With the same number of torch threads, on the CPU, the same network, split, settings
    and seed give the same numbers to the last bit, also across `state_dict`.

    Args:
        network: With its initial weights; it is trained in place.
        split: The examples.
        settings: How to train.
        seed: Decides the order of the batches.
    """

    def __init__(
        self, network: nn.Module, split: Parts, settings: RunSettings, *, seed: int
    ) -> None:
        self.epoch = 0
        self.step_losses: list[float] = []
        self._seed = seed
        self._split = split
        self._settings = settings
        self._diverged = False
        self._stored: dict[int, Tensor] = {}
        # Channels last is a quarter faster on a CPU for these small convolutions.
        self._network = network.to(settings.device).to(memory_format=torch.channels_last)
        self._optimizer = self._make_optimizer()
        self._meter: ResponseMeter | None = None
        if settings.measure_response:
            from tune_ext.lowrank import ResponseMeter

            self._meter = ResponseMeter(self._network)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        weights, decay = self._network.parameters(), self._settings.weight_decay
        if self._settings.optimizer == "adam":
            return torch.optim.Adam(weights, lr=self._settings.lr, weight_decay=decay)
        return torch.optim.SGD(weights, lr=self._settings.lr, momentum=0.9, weight_decay=decay)

    def train_epoch(self) -> dict[str, float | bool]:
        """Train one more epoch; see `TaskRun.train_epoch`."""
        self.step_losses = []
        train_loss = math.nan if self._diverged else self._fit()
        self.epoch += 1
        return self._report(train_loss)

    def _report(self, train_loss: float) -> dict[str, float | bool]:
        """The metrics of the weights as they are now."""
        metrics: dict[str, float | bool] = {"train_loss": train_loss}
        metrics |= self._evaluate(self._split.validation, "validation")
        if self._meter is not None:
            metrics |= self._measure(self._meter)
        metrics["diverged"] = self._diverged
        if self._diverged:  # perhaps by the last step alone
            self.step_losses[-1:] = [math.nan]
        return metrics

    def _fit(self) -> float:
        """One pass over the training examples; returns the mean loss, NaN if it diverges."""
        draw = self._draws()
        self._network.train()
        total = 0.0
        for step in range(self._batches):
            value = self._step(*draw(step), self._settings.rate(self.epoch))
            if self._diverged:
                return math.nan
            total += value
        return total / self._batches

    @property
    def _batches(self) -> int:
        """How many batches an epoch has."""
        return max(1, len(self._split.train) // self._settings.batch_size)

    def _draws(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        """What gives the inputs and targets of each batch of the current epoch."""
        settings, part = self._settings, self._split.train
        source = self._source(part)
        vary = None
        if settings.augmentation is not None:
            seed = derive_seed(self._seed, "augmentation", self.epoch)
            vary = settings.augmentation.draw(len(part), seed=seed)
        seed = derive_seed(self._seed, "batches", self.epoch)
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
        order = order.to(settings.device)

        def draw(step: int) -> tuple[Tensor, Tensor]:
            batch = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            return source(batch, None if vary is None else partial(vary, which=batch))

        return draw

    def _step(self, inputs: Tensor, targets: Tensor, rate: float) -> float:
        """Train with one batch; returns its loss from before the step."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(self._network(inputs), targets)
        value = loss.item()
        self.step_losses.append(value)
        if not math.isfinite(value):
            self._diverged = True
            return math.nan
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's signature is untyped
        self._optimizer.step()
        return value

    def _loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        if self._settings.loss == "mse":
            return mse_loss(outputs[:, 0], targets, reduction=reduction)
        return cross_entropy(outputs, targets, reduction=reduction)

    def _source(self, part: Part) -> _Source:
        """The examples of `part` on the device."""
        device = self._settings.device
        if part.rows is None:
            stored = torch.from_numpy(part.images).to(device)
        else:  # parts share these: they are kept there, once
            if id(part.images) not in self._stored:
                self._stored[id(part.images)] = torch.from_numpy(part.images).to(device)
            stored = self._stored[id(part.images)]
        return _Source(part, stored)

    @torch.no_grad()
    def _evaluate(self, part: Part, name: str) -> dict[str, float]:
        """Loss and error on `part`; NaN, and the run counts as diverged, if not finite."""
        nothing = {f"{name}_loss": math.nan, f"{name}_error": math.nan}
        if self._diverged:
            return nothing
        source = self._source(part)
        self._network.eval()
        loss, wrong = 0.0, 0
        size = max(1, min(1000, _EVALUATION_VALUES // math.prod(part.images.shape[2:])))
        for start in range(0, len(part), size):
            inputs, targets = source(slice(start, start + size))
            outputs = self._network(inputs)
            loss += self._loss(outputs, targets, "sum").item()
            if self._settings.loss != "mse":
                wrong += int((outputs.argmax(1) != targets).sum().item())
        if not math.isfinite(loss):
            self._diverged = True
            return nothing
        error = (loss if self._settings.loss == "mse" else wrong) / len(part)
        return {f"{name}_loss": loss / len(part), f"{name}_error": error}

    def _measure(self, meter: ResponseMeter) -> dict[str, float | bool]:
        """The response of the weights as they are now; NaN if diverged."""
        names = ("response", "response_mean", "knowledge_gain")
        if not self._diverged:
            measured = meter.measure()
            self._diverged = bool(measured["diverged"])
            if not self._diverged:
                return {name: float(measured[name]) for name in names}
        return dict.fromkeys(names, math.nan)

    def test(self) -> dict[str, float]:
        """Loss and error on the test examples; NaN if the run diverged."""
        return self._evaluate(self._split.test, "test")

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that the run needs to go on."""
        return {
            "version": _STATE_VERSION,
            "seed": self._seed,
            "epoch": self.epoch,
            "diverged": self._diverged,
            "optimizer_name": self._settings.optimizer,
            "network": copy.deepcopy(self._network.state_dict()),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "meter": None if self._meter is None else self._meter.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; learning rate and weight decay stay this run's own.

        Raises:
            StateError: `state` is not of this version, or of another seed (whose
                training images are among this run's validation images), optimiser or
                network.
        """
        if state.get("version") != _STATE_VERSION:
            raise StateError(
                f"state must have version {_STATE_VERSION}, got {state.get('version')!r}"
            )
        for name, own in (("seed", self._seed), ("optimizer_name", self._settings.optimizer)):
            if state.get(name) != own:
                raise StateError(f"state must have {name} {own!r}, got {state.get(name)!r}")
        if lost := {"epoch", "diverged", "network", "optimizer", "meter"} - state.keys():
            raise StateError(f"state lacks {', '.join(sorted(lost))}")
        try:
            self._network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        except (RuntimeError, ValueError, KeyError) as error:
            raise StateError(f"state is of another network: {error}") from error
        for group in self._optimizer.param_groups:
            group["weight_decay"] = self._settings.weight_decay
        if self._meter is not None and state["meter"] is not None:
            self._meter.load_state_dict(state["meter"])
        self.epoch = int(state["epoch"])
        self._diverged = bool(state["diverged"])
