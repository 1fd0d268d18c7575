"""Networks whose factor is known, and a trainable that wants the rate of its depth.

Workers import this, so torch is imported in no more than what builds a network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune


def network(config: Mapping[str, Any]) -> Any:
    """A path of `depth` + 1 layers, for inputs of four values."""
    from torch import nn

    width, layers = config.get("width", 8), []
    for i in range(config["depth"]):
        layers += [nn.Linear(width if i else 4, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 2))


def factor(depth: int, base: int = 2) -> float:
    """The factor of one path against another, equation 8 by hand: Σ L³ has one summand."""
    return math.sqrt((base + 1) ** 3 / (depth + 1) ** 3)


class WantsItsOwnRate(tune.Trainable):
    """The loss is the distance of the rate from the best one for the depth, .01 at depth 2."""

    def setup(self, config: dict[str, Any]) -> None:
        self.distance = abs(math.log10(config["lr"] / (0.01 * factor(config["depth"]))))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return {"loss": self.distance}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "state.json").write_text(json.dumps(self.distance))

    def load_checkpoint(self, checkpoint: Any) -> None:
        assert json.loads(Path(checkpoint, "state.json").read_text()) == self.distance
