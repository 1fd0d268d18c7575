"""A training run with L1 and L2 penalties that ends when the validation gains no more.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tune_ext._patience import NoGain
from tune_ext.benchmark.tasks._data import Parts
from tune_ext.benchmark.tasks._training import RunSettings, TrainingRun

__all__ = ["GrowthRun"]


class GrowthRun(TrainingRun):
    """A `TaskRun` whose epochs say by `ended` when nothing was gained for some of them.

    The penalties l1·Σ|w| + l2·Σw² are over all weights but no biases. They are in the gradient,
    not in the reported losses, so that the losses of different penalties compare.

    Args:
        network: See `TrainingRun`.
        split: See `TrainingRun`.
        settings: See `TrainingRun`; its weight decay is not used for `l2`.
        seed: See `TrainingRun`.
        l1: The L1 penalty's weight.
        l2: The L2 penalty's.
        patience: Epochs without a lower validation error that end the run; None: none do.
    """

    def __init__(
        self,
        network: nn.Module,
        split: Parts,
        settings: RunSettings,
        *,
        seed: int,
        l1: float,
        l2: float,
        patience: int | None,
    ) -> None:
        super().__init__(network, split, settings, seed=seed)
        self._l1, self._l2 = l1, l2
        self._weights: list[Tensor] = [p for p in self._network.parameters() if p.ndim > 1]
        self._optimizer.register_step_pre_hook(self._penalise)
        self._patience = None if patience is None else NoGain(patience)

    @torch.no_grad()
    def _penalise(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Add the penalties' gradient, before the optimiser looks at it."""
        gradients = [p.grad for p in self._weights if p.grad is not None]
        if self._l1:
            torch._foreach_add_(gradients, torch._foreach_sign(self._weights), alpha=self._l1)
        if self._l2:
            torch._foreach_add_(gradients, self._weights, alpha=2 * self._l2)

    def train_epoch(self) -> dict[str, float | bool]:
        """Train one more epoch; see `TaskRun.train_epoch`."""
        metrics = super().train_epoch()
        if self._patience is not None:
            metrics["ended"] = self._patience.add(self.epoch, metrics["validation_error"])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that the run needs to go on."""
        patience = None if self._patience is None else self._patience.state()
        return {**super().state_dict(), "patience": patience}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; see `TrainingRun.load_state_dict`."""
        super().load_state_dict(state)
        if self._patience is not None and state.get("patience") is not None:
            self._patience.load(state["patience"])
