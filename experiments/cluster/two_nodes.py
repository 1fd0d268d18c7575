"""The short part of `nodes.py`, which the tests run: one cluster of two nodes, a line of JSON.

    python experiments/cluster/two_nodes.py

Which nodes are used is said by a resource of each trial: "one" is on the first node alone, "two"
half on each.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from nodes import run_case, started

NODES = [
    {"num_cpus": 2, "num_gpus": 1, "resources": {"one": 2, "two": 1}},
    {"num_cpus": 1, "num_gpus": 1, "resources": {"two": 1}},
]


def needs(where: str) -> dict[str, Any]:
    """What a trial asks for: half a GPU, on one node or two."""
    return {"cpu": 1, "gpu": 0.5, "custom_resources": {where: 1}}


def main() -> None:
    """Run, and print what came out."""
    name = "BOHB + HyperBand, asynchronous"
    with started(NODES), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = {
            "one node": run_case(name, folder, needs("one"), workers=2, trials=9),
            "two nodes": run_case(name, folder, needs("two"), workers=2, trials=9),
            "autoHyper": run_case("autoHyper", folder, needs("two"), workers=2),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
