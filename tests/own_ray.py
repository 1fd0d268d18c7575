"""A Ray of a process's own, or several nodes, started patiently."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.cluster_utils import Cluster

ATTEMPTS = 3
"""On a busy machine a limit of 30 s passes that Ray does not let us change."""


def be_patient(seconds: float = 90.0) -> None:
    """Let a node take its time to register; Ray gives up after 30 s, and no option changes that."""
    services = ray._private.services
    ask = services.get_node
    if ask.__name__ != "get_node":
        return

    def get_patiently(*arguments: Any, **named: Any) -> Any:
        end = time.monotonic() + seconds
        while True:
            try:
                return ask(*arguments, **named)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    services.get_node = get_patiently


def start(**options: Any) -> None:
    """Start a local Ray; "local", as another process of this machine may have one, too."""
    be_patient()
    given = {
        "address": "local",
        "num_cpus": 2,
        "include_dashboard": False,
        "object_store_memory": 80 * 1024**2,
        "log_to_driver": False,
    }
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(**{**given, **options})
        except Exception:
            ray.shutdown()
            if attempt == ATTEMPTS:
                raise
        else:
            return


def is_free(patience: float = 15.0, **resources: float) -> bool:
    """Whether all of some resources are free, or will be within so many seconds.

    Ray loses those of a placement group for good that is removed after its node has set them
    aside and before the group is confirmed, as may happen to that of a trial cancelled ahead.
    """
    end = time.monotonic() + patience
    while any(ray.available_resources().get(name, 0) < all_ for name, all_ in resources.items()):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def start_nodes(*nodes: dict[str, Any]) -> Cluster:
    """Start a head that trains nothing, and nodes; this process is connected to none of them.

    Args:
        nodes: What each has, such as `{"num_cpus": 1, "num_gpus": 1}`; GPUs only Ray believes in.
    """
    small = {"object_store_memory": 80 * 1024**2}
    be_patient()
    for attempt in range(1, ATTEMPTS + 1):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False, **small)
            for node in nodes:
                cluster.add_node(**node, **small)
        except Exception:
            cluster.shutdown()
            if attempt == ATTEMPTS:
                raise
        else:
            break
    return cluster
