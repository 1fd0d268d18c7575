"""A driver in a process of its own, to be killed: ``python -m tests.raytune.driver HOME``.

The second time it finds its experiment and restores it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
from ray import tune

from tests.raytune.trainables import Counter
from tune_ext import AutoHyperScheduler, AutoHyperSearch


def main(home: Path) -> None:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 1024**2,
        log_to_driver=False,
    )
    experiment = home / "experiment"
    if experiment.exists():
        tuner = tune.Tuner.restore(str(experiment), trainable=Counter)
    else:
        space = {"lr": tune.loguniform(1e-6, 1.0), "home": str(home), "sleep": 0.03}
        tuner = tune.Tuner(
            Counter,
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=AutoHyperSearch(probe_epochs=3),
                scheduler=AutoHyperScheduler(probe_epochs=3, max_t=8),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=experiment.name,
                storage_path=str(home),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            ),
        )
    results = tuner.fit()
    rows = [{**r.config, "epochs": r.metrics["training_iteration"]} for r in results]
    (home / "results.json").write_text(json.dumps(rows))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
