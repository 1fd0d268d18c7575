"""One training run as every method goes through it: the same weights, batches and evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from tasks import Batches, Data, Pair, Task
from torch import nn

POINTS = 40  # of the curves that are kept: each the mean over 1/40 of the run


@dataclass(frozen=True)
class Prepared:
    """A task with its data for one seed."""

    task: Task
    seed: int
    data: Data

    @classmethod
    def of(cls, task: Task, seed: int) -> Prepared:
        """Load the data and bring it to the task's device."""
        data = task.load(seed)
        parts = (data.train, data.validation, data.test)
        return cls(task, seed, Data(*((x.to(task.device), y.to(task.device)) for x, y in parts)))

    def network(self) -> nn.Module:
        """A network with this seed's initial weights, in training mode."""
        return self.task.network(self.seed).train()

    def batches(self) -> Batches:
        """This seed's batches, from the first one."""
        return Batches(self.data.train, self.task.batch_size, self.seed)

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return len(self.batches())

    @property
    def steps(self) -> int:
        """Steps of a run."""
        return self.epoch * self.task.epochs


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        losses: The training loss of each step.
        rates: The learning rate of each step.
        metrics: After the run: "train_loss", "validation_loss", "validation", "test_loss",
            "test" (accuracy or mean squared error); None where the run diverged.
        search_steps: Training steps spent before the run.
        lr: The rate that it began with; None where there is none to choose.
        details: What else is worth keeping, as plain JSON.
    """

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    search_steps: int = 0
    lr: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether the run ended with numbers that cannot be used."""
        return self.metrics.get("test") is None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the curves reduced to 40 points."""
        return {
            "metrics": self.metrics,
            "diverged": self.diverged,
            "search_steps": self.search_steps,
            "steps": len(self.losses),
            "lr": self.lr,
            "loss_curve": _reduce(self.losses),
            "rate_curve": _reduce(self.rates),
            **self.details,
        }


def _reduce(values: list[float]) -> list[float | None]:
    count = min(POINTS, len(values))
    ends = [round(i * len(values) / count) for i in range(count + 1)] if count else []
    means = [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
    return [float(f"{m:.5g}") if math.isfinite(m) else None for m in means]


@torch.no_grad()
def evaluate(task: Task, network: nn.Module, data: Pair) -> tuple[float, float]:
    """Mean loss, and accuracy (or the mean squared error again); the network in evaluation mode."""
    x, y = data
    loss, right = 0.0, 0
    for start in range(0, len(x), 2_000):
        part = slice(start, start + 2_000)
        predicted = network(x[part])
        loss += float(task.loss_fn(predicted, y[part])) * len(predicted)
        if task.metric == "accuracy":
            right += int((predicted.argmax(1) == y[part]).sum())
    return loss / len(x), (right if task.metric == "accuracy" else loss) / len(x)


@contextmanager
def _as_it_is(network: nn.Module) -> Iterator[nn.Module]:
    network.eval()
    yield network
    network.train()


@dataclass
class Hooks:
    """Where methods differ.

    Attributes:
        step: Called with the loss after each step of the optimiser.
        epoch: Called after each epoch with the validation loss.
        evaluated: Gives the network to evaluate, in evaluation mode, for as long as it is open.
        keeps_going: Whether the method itself deals with losses that are not finite.
    """

    step: Callable[[float], object] | None = None
    epoch: Callable[[float], object] | None = None
    evaluated: Callable[[], AbstractContextManager[nn.Module]] | None = None
    keeps_going: bool = False


def run(
    prepared: Prepared,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    hooks: Hooks | None = None,
) -> Outcome:
    """Train for the task's epochs and evaluate once.

    A run whose loss is not finite ends there, without metrics.
    """
    hooks = hooks or Hooks()
    evaluated = hooks.evaluated or (lambda: _as_it_is(network))
    outcome, best = Outcome(), _Best(prepared)
    task, batches = prepared.task, prepared.batches()
    for _ in range(task.epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = task.loss_fn(network(x), y)
            loss.backward()
            outcome.rates.append(_rate(optimizer))
            optimizer.step()
            value = loss.item()
            outcome.losses.append(value)
            if not math.isfinite(value) and not hooks.keeps_going:
                return outcome
            if hooks.step is not None:
                hooks.step(value)
        if task.early_stopping or hooks.epoch is not None:
            with evaluated() as current:
                found = evaluate(task, current, prepared.data.validation)[0]
                best.see(found, current)
            if hooks.epoch is not None:
                hooks.epoch(found)
    with evaluated() as current:
        outcome.metrics = _measure(prepared, best.network if task.early_stopping else current)
    return outcome


def _rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate; times its own estimate for those that make one."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) * float(group.get("d", 1.0))


class _Best:
    """The weights of the best validation epoch."""

    def __init__(self, prepared: Prepared) -> None:
        self._loss = math.inf
        self._wanted = prepared.task.early_stopping
        self.network: nn.Module | None = None

    def see(self, loss: float, network: nn.Module) -> None:
        if self._wanted and loss < self._loss:
            self._loss, self.network = loss, copy.deepcopy(network)


def _measure(prepared: Prepared, network: nn.Module | None) -> dict[str, float | None]:
    """The only place that reads test data."""
    if network is None:
        return {}
    metrics: dict[str, float | None] = {}
    data = prepared.data
    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        metrics[f"{name}_loss"], metrics[name] = evaluate(prepared.task, network, part)
    finite = all(value is not None and math.isfinite(value) for value in metrics.values())
    return metrics if finite else {}
