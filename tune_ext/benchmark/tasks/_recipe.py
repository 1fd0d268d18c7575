"""Training as in the joint search: Nesterov, warm restarts, Mixup, Cutout. Imports torch.

Source: Zela, Klein, Falkner, Hutter, "Towards automated deep learning: efficient joint neural
architecture and hyperparameter search" (arXiv 1807.06906).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tune_ext._random import derive_seed, generator
from tune_ext._warm_restarts import CosineRestarts
from tune_ext.benchmark.tasks._augment import Cutout, Mixup
from tune_ext.benchmark.tasks._data import Parts
from tune_ext.benchmark.tasks._training import RunSettings, TrainingRun
from tune_ext.errors import StateError
from tune_ext.models import seed_noise_

__all__ = ["RecipeRun", "RecipeSettings"]

_ROUNDING = 1e-9
"""Relative differences that come from rounding alone."""


@dataclass(frozen=True)
class RecipeSettings(RunSettings):
    """What a `RecipeRun` does with its network; see `RunSettings` for the rest.

    Attributes:
        momentum: Of Nesterov's; 0 is plain SGD.
        restarts: What the learning rate is multiplied by.
        unit: What positions in `restarts` count: "epochs", or "seconds" of training.
        cutout: What is cut out of training images, after scaling; None: nothing.
        mixup: How training images are mixed; None: they are not.
    """

    momentum: float = 0.9
    restarts: CosineRestarts = field(default_factory=lambda: CosineRestarts((1.0,)))
    unit: Literal["epochs", "seconds"] = "epochs"
    cutout: Cutout | None = None
    mixup: Mixup | None = None

    def rate(self, position: float) -> float:
        """The learning rate at a position, in units."""
        return self.lr * self.restarts.rate_factor(position)


class RecipeRun(TrainingRun):
    """A `TaskRun` that can stop, and go on, between any two batches.

    With `unit="epochs"` the same state continues to the same numbers, to the last bit, on the
    CPU; seconds are never the same twice.

    Args:
        network: With its initial weights; it is trained in place.
        split: The examples.
        settings: How to train.
        seed: Decides batches, crops, flips, squares, pairs and the network's noise.
        clock: What seconds are read from.
    """

    _settings: RecipeSettings

    def __init__(
        self,
        network: nn.Module,
        split: Parts,
        settings: RecipeSettings,
        *,
        seed: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(network, split, settings, seed=seed)
        self.train_seconds = 0.0
        self._clock = clock
        self._done = 0  # batches of the current epoch
        self._draw: Callable[[int], tuple[Tensor, Tensor]] | None = None

    def _make_optimizer(self) -> torch.optim.Optimizer:
        settings = self._settings
        return torch.optim.SGD(
            self._network.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )

    @property
    def position(self) -> float:
        """How long the run has been trained: epochs, or seconds without validation."""
        if self._settings.unit == "seconds":
            return self.train_seconds
        return self.epoch + self._done / self._batches

    def train_epoch(self) -> dict[str, float | bool]:
        """Train to the end of the epoch; see `TaskRun.train_epoch`."""
        return self.train_to(math.inf)

    def train_to(
        self, position: float, *, across: bool = False, seconds: float = math.inf
    ) -> dict[str, float | bool]:
        """Train until a position is reached, and one batch at least.

        Args:
            position: In epochs or seconds; the batch that reaches it is the last.
            across: Whether to go on where an epoch ends.
            seconds: Train no longer than that.

        Returns:
            As `TaskRun.train_epoch`; `train_loss` is the mean over these batches.
        """
        self.step_losses = []
        if self._diverged:
            self.epoch += 1
            return self._report(math.nan)
        self._network.train()
        until = self.train_seconds + seconds
        while True:
            self._train_batch()
            reached = self._reached(position) or self.train_seconds >= until
            if self._diverged or reached or not (across or self._done):
                break
        losses = self.step_losses
        return self._report(math.nan if self._diverged else sum(losses) / len(losses))

    def measure(self) -> dict[str, float | bool]:
        """The metrics of `train_epoch` without training; `train_loss` is NaN."""
        return self._report(math.nan)

    def _reached(self, position: float) -> bool:
        return self.position >= position * (1 - _ROUNDING)

    def _train_batch(self) -> None:
        """One step, and on to the next epoch after the last; a diverged epoch is over at once."""
        started = self._clock()
        if self._draw is None:
            self._draw = self._draws()
        seed_noise_(self._network, derive_seed(self._seed, "noise", self.epoch, self._done))
        self._step(*self._draw(self._done), self._settings.rate(self.position))
        self._done += 1
        if self._done == self._batches or self._diverged:
            self.epoch, self._done, self._draw = self.epoch + 1, 0, None
        self.train_seconds += self._clock() - started

    def _draws(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        # Without this run itself, which would then outlive whoever lets go of it.
        plain, seed, epoch = super()._draws(), self._seed, self.epoch
        cutout, mixup = self._settings.cutout, self._settings.mixup

        def draw(step: int) -> tuple[Tensor, Tensor]:
            inputs, targets = plain(step)
            rng = generator(seed, "recipe", epoch, step)
            if cutout is not None:
                inputs = cutout(inputs, rng)
            return (inputs, targets) if mixup is None else mixup(inputs, targets, rng)

        return draw

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that the run needs to go on."""
        return {
            **super().state_dict(),
            "batches": self._done,
            "train_seconds": self.train_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; rates, momentum and weight decay stay this run's own.

        Raises:
            StateError: As `TrainingRun.load_state_dict`; or an epoch of `state` has other
                batches and is not over.
        """
        if lost := {"batches", "train_seconds"} - state.keys():
            raise StateError(f"state lacks {', '.join(sorted(lost))}")
        done = int(state["batches"])
        if not 0 <= done < self._batches:
            raise StateError(
                f"state must have fewer batches than the {self._batches} of an epoch, got {done}"
            )
        super().load_state_dict(state)
        for group in self._optimizer.param_groups:
            group["momentum"] = self._settings.momentum
            group["nesterov"] = self._settings.momentum > 0
        self._done, self._draw = done, None
        self.train_seconds = float(state["train_seconds"])
