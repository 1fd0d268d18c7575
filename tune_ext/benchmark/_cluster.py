"""What a worker process needs when trials run on a Ray cluster that is there already."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["call", "if_nodes_are_lost", "on_cluster"]

_HANDED_ON = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    "TUNE_EXT_CACHE",
    "TUNE_EXT_DATA",
)
"""Of this process's environment, what trials on other machines get as well."""

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where `ray job submit` leaves its settings; it allows none of them to be named again."""


def on_cluster(address: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Arguments of `ray.init` that connect to a cluster.

    Args:
        address: Of the cluster.
        environment: Of this process.

    >>> on_cluster("auto", {"TUNE_EXT_DATA": "/data", "HOME": "/root"})["runtime_env"]
    {'env_vars': {'TUNE_EXT_CACHE': '~/.cache/tune_ext', 'TUNE_EXT_DATA': '/data'}}
    """
    job = json.loads(environment.get(_JOB, "{}")).get("runtime_env") or {}
    named = job.get("env_vars") or {}
    # With a cache, a node reads a data set once and not once for each of its trials.
    known = {"TUNE_EXT_CACHE": "~/.cache/tune_ext", **environment}
    handed = {k: known[k] for k in _HANDED_ON if k in known and k not in named}
    return {"address": address, "runtime_env": {"env_vars": handed}}


def if_nodes_are_lost() -> dict[str, Any]:
    """Arguments of `tune.run`: a trial whose node is lost goes on from its last epoch."""
    from ray.tune import CheckpointConfig

    kept = CheckpointConfig(checkpoint_frequency=1, num_to_keep=2)
    return {"max_failures": 3, "checkpoint_config": kept}


def call(
    function: Callable[[Any], Any],
    argument: Any,
    place: Mapping[str, Any],
    waiting: Callable[[str], None],
) -> Any:
    """Call a function where trials run, with what a trial is given.

    Args:
        function: What to call.
        argument: With what.
        place: As of `Place`.
        waiting: Called now and then until the answer is there.
    """
    import ray

    remote = ray.remote(num_cpus=place["cpus_per_trial"], num_gpus=place["gpus_per_trial"])
    answer = remote(function).remote(argument)
    while not ray.wait([answer], timeout=5.0)[0]:
        waiting("measuring what an epoch costs")
    return ray.get(answer)
