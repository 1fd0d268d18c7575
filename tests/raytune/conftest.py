from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Ray starts its workers with niceness 15: beside other work they would hardly get a turn.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One local Ray for all tests: two CPUs and a GPU that only Ray believes in."""
    ray.init(
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=80 * 1024**2,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()


@pytest.fixture
def run(cluster: None, tmp_path: Path) -> Any:
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
