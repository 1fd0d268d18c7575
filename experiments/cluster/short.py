"""A trial that takes no time: a formula with a valley, for `scale.py`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ray import tune

__all__ = ["SPACE", "Short"]

SPACE = {
    "x": tune.uniform(0.0, 1.0),
    "y": tune.loguniform(1e-4, 1.0),
    "z": tune.choice(["a", "b", "c", "d"]),
}


class Short(tune.Trainable):  # type: ignore[misc]
    """Looks up the loss of an epoch."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin a trial."""
        self.given, self.epoch = config, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another one in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """An epoch."""
        self.epoch += 1
        x, y, z = self.given["x"], self.given["y"], "abcd".index(self.given["z"])
        return {"loss": (x - 0.3) ** 2 + abs(math.log10(y) + 2) + 0.1 * z + 1 / self.epoch}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """What a paused trial needs."""
        Path(checkpoint_dir, "epoch").write_text(str(self.epoch), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from it."""
        self.epoch = int(Path(checkpoint, "epoch").read_text(encoding="utf-8"))
