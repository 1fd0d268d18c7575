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


class Deaths(Callback):
    """Kills a node with all that runs there after some results, and adds another.

    Args:
        cluster: Of `ray.cluster_utils`.
        nodes: Those that may die, the first one first.
        after: The numbers of the results.
    """

    def __init__(self, cluster: Any, nodes: list[Any], after: tuple[int, ...]) -> None:
        self.cluster, self.nodes, self.after = cluster, nodes, after
        self.results = self.deaths = 0

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any) -> None:
        """Count."""
        self.results += 1
        if self.results in self.after:
            self.deaths += 1
            self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
            self.nodes.append(self.cluster.add_node(**NODE, object_store_memory=80 * 1024**2))


@case("node dies", "two of two nodes die with their trials, one after another", seconds=900)
def node_dies(directory: Path, seed: int) -> Iterator[Outcome]:
    cluster = own_ray.start_nodes(NODE, NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    nodes = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    try:
        for system in (*OURS, RAYS[0]):
            deaths = Deaths(cluster, nodes, (4, 9))
            nodes = deaths.nodes
            home = directory / system.name.replace(" ", "-")
            yield drive(
                "node dies",
                system,
                home,
                (),
                injected=lambda deaths=deaths: deaths.deaths,
                seconds=0.3,
                callbacks=[deaths],
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
