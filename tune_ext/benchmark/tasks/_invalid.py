"""A run of a configuration that cannot be built: it ends as one that diverged, and says why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["InvalidRun"]


class InvalidRun:
    """A `TaskRun` that trains nothing.

    Args:
        reason: Why, in words.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.epoch = 0
        self.step_losses: list[float] = [math.nan]

    def train_epoch(self) -> dict[str, Any]:
        """Nothing: the metrics of a run that diverged, and `invalid`, the reason."""
        self.epoch += 1
        names = ("train_loss", "validation_loss", "validation_error")
        return {**dict.fromkeys(names, math.nan), "diverged": True, "invalid": self.reason}

    def test(self) -> dict[str, float]:
        """NaN."""
        return {"test_error": math.nan, "test_loss": math.nan}

    def state_dict(self) -> dict[str, Any]:
        """How often nothing was trained."""
        return {"invalid": self.reason, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on doing nothing."""
        self.epoch = int(state["epoch"])
