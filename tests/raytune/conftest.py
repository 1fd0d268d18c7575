from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune


@pytest.fixture
def run(cluster: str, tmp_path: Path) -> Any:
    """`tune.run` with what every test here wants."""

    def start(trainable: Any, **options: Any) -> Any:
        defaults = {
            "config": {"lr": tune.loguniform(1e-6, 1.0), "home": str(tmp_path)},
            "num_samples": -1,
            "reuse_actors": True,
            "storage_path": str(tmp_path),
            "verbose": 0,
            "raise_on_failed_trial": False,
        }
        return tune.run(trainable, **{**defaults, **options})

    return start
