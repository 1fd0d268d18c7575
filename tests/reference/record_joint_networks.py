"""Record how many parameters the published code's networks have: run once, see tests/data.

    python -m tests.reference.record_joint_networks CHECKOUT/workers/arch_space \
        tests/data/joint_networks_published.json

CHECKOUT is a clone of the code published with arXiv 1807.06906 (EfficientNAS). Its networks are
built as they are, on the meta device.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch
from torch import nn

from tune_ext.spaces import joint_space

CONFIGURATIONS = 20


def published_parameters(network: type[nn.Module], config: dict[str, float]) -> int:
    """Build one network as the published worker asks for it, and count."""
    options = {f"{name}_{i}": 0 for name in _BY_GROUP for i in range(1, 6)} | config
    options |= {f"filters_size_{i}": 3 for i in range(1, 6)}
    options |= {"nr_main_blocks": 3, "nr_convs": 2, "dataset": "cifar10", "shake_image": True}
    options |= dict.fromkeys(["forward_shake", "backward_shake"], True)
    options |= dict.fromkeys(["apply_shakeDrop", "apply_shakeShake"], True)
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in network(argparse.Namespace(**options)).parameters())
    finally:
        del nn.Module.config  # where the published code puts it


_BY_GROUP = ("nr_residual_blocks", "widen_factor", "res_branches")


def main(sources: Path, target: Path) -> None:
    """Record random configurations of the published space."""
    sys.path.insert(0, str(sources))
    network = importlib.import_module("model.macro_model").Network
    space = joint_space(flat=True, part="architecture")
    space.seed(0)
    found = [dict(config) for config in space.sample_configuration(CONFIGURATIONS)]
    for config in found:
        config["parameters"] = published_parameters(network, config)
    origin = (
        "networks of the code published with arXiv 1807.06906 (arberzela/EfficientNAS, cf62e0b, "
        "workers/arch_space/model/macro_model.py), built by record_joint_networks.py for random "
        "configurations of its space"
    )
    lines = ",\n".join(json.dumps(config) for config in found)
    target.write_text(f'{{"origin": {json.dumps(origin)}, "networks": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
