"""Faults of nodes: one dies with its trials; and what Ray does not give back of a node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.util import placement_group, remove_placement_group

from experiments.chaos.outcome import Outcome, case
from experiments.chaos.real import OURS, RAYS, drive
from tests import own_ray

NODE: dict[str, Any] = {"num_cpus": 1}
GROUPS = 300


class Death(Callback):
    """Kills a node with all that runs there after so many results.

    Args:
        cluster: Of `ray.cluster_utils`.
        node: The one.
        after: The number of the result.
    """

    def __init__(self, cluster: Any, node: Any, after: int) -> None:
        self.cluster, self.node, self.after = cluster, node, after
        self.results = self.deaths = 0

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any) -> None:
        """Count."""
        self.results += 1
        if self.results == self.after:
            self.deaths += 1
            self.cluster.remove_node(self.node, allow_graceful=False)


@case("node dies", "one of two nodes dies with its trials", seconds=900)
def node_dies(directory: Path, seed: int) -> Iterator[Outcome]:
    cluster = own_ray.start_nodes(NODE, NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        for number, system in enumerate((*OURS, RAYS[0])):
            if number:
                cluster.add_node(**NODE, object_store_memory=80 * 1024**2)
            nodes = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
            death = Death(cluster, nodes[0], 6)
            yield drive(
                "node dies",
                system,
                directory / system.name.replace(" ", "-"),
                (),
                injected=lambda death=death: death.deaths,
                seconds=0.3,
                callbacks=[death],
            )
    finally:
        ray.shutdown()
        cluster.shutdown()


@case("groups", "placement groups are removed while Ray sets them up", seconds=300)
def groups(directory: Path, seed: int) -> list[Outcome]:
    """The smallest reproduction: nothing but Ray is in it."""
    own_ray.start(num_cpus=2)
    for number in range(GROUPS):
        group = placement_group([{"CPU": 0.01}])
        time.sleep(0.0005 * (number % 10))
        remove_placement_group(group)
    free = own_ray.is_free(20.0, CPU=2)
    lost = 2 - ray.available_resources().get("CPU", 0.0)
    count = 0 if free else round(lost / 0.01)
    note = f"{count} of {GROUPS} groups of 0.01 CPU never came back" if count else ""
    return [Outcome("groups", "ray: core", GROUPS, GROUPS - count, note=note)]
