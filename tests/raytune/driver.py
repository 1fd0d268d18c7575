"""A driver in a process of its own, to be killed: ``python -m tests.raytune.driver HOME KIND``.

The second time it finds its experiment and restores it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
from ray import tune

from tests import own_ray
from tests.raytune import exptest_trainables, tuning_trainables
from tests.raytune.scaled_trainables import network
from tests.raytune.trainables import RATES, Counter
from tune_ext import (
    ArchitectureScaledSearch,
    AutoHyperScheduler,
    AutoHyperSearch,
    BOHBSearch,
    ExpTestScheduler,
    ExpTestSearch,
    HyperBand,
)


def main(home: Path, kind: str) -> None:
    if kind in ("tuning", "hyperband"):
        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0.2"  # few checkpoints are unknown after a kill
    own_ray.start()
    experiment = home / "experiment"
    trainable: Any = TRAINABLES[kind]
    if experiment.exists():
        tuner = tune.Tuner.restore(str(experiment), trainable=trainable)
    else:
        rate = 0.2 if kind == "tuning" else tune.loguniform(1e-6, 1.0)
        space = {"lr": rate, "home": str(home), "sleep": 0.1 if kind == "tuning" else 0.03}
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                **parts(kind),
                num_samples={"tuning": 1, "hyperband": len(RATES)}.get(kind, -1),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=experiment.name,
                storage_path=str(home),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_frequency=int(kind == "tuning"),
                    checkpoint_at_end=trainable is Counter,
                ),
            ),
        )
    results = tuner.fit()
    ran = [r for r in results if r.config]  # not those that were cancelled before they did
    rows = [{**r.config, "epochs": r.metrics["training_iteration"]} for r in ran]
    (home / "results.json").write_text(json.dumps(rows))
    ray.shutdown()


TRAINABLES = {
    "autohyper": Counter,
    "exptest": exptest_trainables.function,
    "hyperband": Counter,
    "scaled": Counter,
    "tuning": tuning_trainables.Class,
}


def deeper(search: Any) -> ArchitectureScaledSearch:
    """A search for networks of five layers and a read-out."""
    import torch

    return ArchitectureScaledSearch(search, lambda c: network({"depth": 5}), torch.zeros(1, 4))


def parts(kind: str) -> dict[str, Any]:
    if kind == "exptest":
        return {
            "search_alg": ExpTestSearch(bound=0.01),
            "scheduler": ExpTestScheduler(max_t=5),
        }
    if kind == "tuning":
        return {"scheduler": ExpTestScheduler(max_t=12)}
    if kind == "hyperband":
        highest: dict[str, Any] = {"metric": "response_mean", "mode": "max"}
        points = [{"lr": rate} for rate in RATES]
        return {
            "search_alg": BOHBSearch(points_to_evaluate=points, **highest),
            "scheduler": HyperBand(max_t=4, reduction_factor=2, **highest),
        }
    search = AutoHyperSearch(probe_epochs=3)
    return {
        "search_alg": search if kind == "autohyper" else deeper(search),
        "scheduler": AutoHyperScheduler(probe_epochs=3, max_t=8),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
