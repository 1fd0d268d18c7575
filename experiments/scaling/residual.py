"""Where the best learning rate lies for 4 to 32 residual blocks, and what the rule says of it.

A block is x + branch(x), the branch two layers. Plain SGD on Fashion-MNIST at 14 × 14, one epoch;
every copy of a network has a rate of its own on one fine grid (ratio √2) for all depths.

    python experiments/scaling/residual.py run [VARIANT…]   # goes on where it ended
    python experiments/scaling/residual.py report           # the table of residual.md
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from _ensemble import Records, best_rate, curve, finite, images, spread
from torch import Tensor, nn

from tune_ext import scaling
from tune_ext._random import derive_seed

RESULTS = Path(__file__).parent / "results" / "residual.jsonl"
DEPTHS = (4, 8, 16, 32)
BATCH, STEPS = 32, 200


@dataclass(frozen=True)
class Variant:
    """A kind of residual stack.

    Attributes:
        init: What the variance C/fan of the two layers of a branch has for C. "target": 2 and 1,
            2 over the in-degree of the node that the edge enters (the rule). "source": 1 and 2,
            of the node that it leaves. "stream": 2 and 2 over the number of blocks and 1, as all
            blocks add to one sum. These are the `in_degree` of `tune_ext.scaling.plan`.
        form: "post": a layer is Linear (norm) ReLU, as in the published networks. "pre":
            (norm) ReLU Linear, so that what is added has both signs. "resnet": the second layer's
            ReLU comes after the addition.
        norm: BatchNorm.
        conv: 3 × 3 convolutions instead of linear layers.
        width: Units, or channels.
        low: The grid of rates starts at 2^low …
        high: … and ends at 2^high.
    """

    init: str = "target"
    form: str = "post"
    norm: bool = False
    conv: bool = False
    width: int = 64
    low: int = -20
    high: int = 4


VARIANTS = {
    "target": Variant(low=-28, high=3),
    "source": Variant(init="source", low=-28, high=3),
    "batch norm": Variant(norm=True, low=-7, high=6),
    "pre, target": Variant(form="pre", low=-24, high=3),
    "pre, batch norm": Variant(form="pre", norm=True, low=-7, high=6),
    "resnet, target": Variant(form="resnet", low=-24, high=3),
    "resnet, batch norm": Variant(form="resnet", norm=True, low=-9, high=6),
    "stream": Variant(init="stream", low=-12, high=4),
    "pre, stream": Variant(form="pre", init="stream", low=-12, high=4),
    "conv, resnet, target": Variant(form="resnet", conv=True, width=8, low=-20, high=2),
    "conv, resnet, batch norm": Variant(
        form="resnet", conv=True, width=8, norm=True, low=-9, high=5
    ),
}


def layer(variant: Variant, inputs: int, *, first: bool = False) -> list[nn.Module]:
    """One weighted layer with its normalisation and activation."""
    width = variant.width
    weight: nn.Module = nn.Linear(inputs, width)
    if variant.conv:
        weight = nn.Conv2d(inputs, width, 3, stride=2 if first else 1, padding=1)
    norm = nn.BatchNorm2d if variant.conv else nn.BatchNorm1d
    size = inputs if variant.form == "pre" else width
    norms = [norm(size, track_running_stats=False)] if variant.norm else []
    if first and variant.form == "pre":
        return [weight]
    return [*norms, nn.ReLU(), weight] if variant.form == "pre" else [weight, *norms, nn.ReLU()]


class ResidualStack(nn.Module):
    """Stem, blocks of x + branch(x), read-out."""

    def __init__(self, blocks: int, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.stem = nn.Sequential(*layer(variant, 1 if variant.conv else 14 * 14, first=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(*layer(variant, variant.width), *self._second()) for _ in range(blocks)
        )
        self.after = nn.ReLU() if variant.form == "resnet" else nn.Identity()
        last = layer(variant, variant.width)[:-1] if variant.form == "pre" else []
        self.head = nn.Sequential(*last)
        self.out = nn.Linear(variant.width, 10)

    def _second(self) -> list[nn.Module]:
        layers = layer(self.variant, self.variant.width)
        return layers[:-1] if self.variant.form == "resnet" else layers

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images n × 1 × 14 × 14."""
        x = self.stem(x if self.variant.conv else x.flatten(1))
        for block in self.blocks:
            x = self.after(x + block(x))
        x = self.head(x)
        return self.out(x.mean((2, 3)) if self.variant.conv else x)

    @torch.no_grad()
    def initialize_(self, seed: int) -> ResidualStack:
        """Draw the weights as the variant says; biases 0, the read-out mean field, 2/fan²."""
        rng = torch.Generator().manual_seed(seed)
        blocks = len(self.blocks)
        branch = {"target": (2, 1), "source": (1, 2), "stream": (2, 2 / (blocks + 1))}
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            fan, c = module.weight[0].numel(), 2.0
            if name.startswith("blocks."):
                layers = [m for m in self.blocks[0] if isinstance(m, type(module))]
                second = int(name.split(".")[2]) == list(self.blocks[0]).index(layers[1])
                c = branch[self.variant.init][second]
            std = math.sqrt(2) / fan if module is self.out else math.sqrt(c / fan)
            module.weight.normal_(0, std, generator=rng)
            module.bias.zero_()
        return self


def cells(names: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    for name in names:
        for depth in DEPTHS:
            yield {"variant": name, "depth": depth, "grid": "coarse", "seed": 0}
        for seed in range(seeds):
            for depth in DEPTHS:
                yield {"variant": name, "depth": depth, "grid": "fine", "seed": seed}


def activation_growth(model: ResidualStack, x: Tensor) -> float:
    """RMS of what enters the last layers over that of what the stem gives, at initialisation."""
    sizes: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, out, k=key: sizes.update({k: float(out.square().mean().sqrt())})
        )
        for key, module in (("stem", model.stem), ("block", model.blocks[-1]))
    ]
    hooks.append(
        model.out.register_forward_pre_hook(
            lambda _m, args: sizes.update(end=float(args[0].square().mean().sqrt()))
        )
    )
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return sizes["end"] / sizes["stem"]


def run(names: list[str], seeds: int) -> None:
    records = Records(RESULTS)
    data = images(BATCH * STEPS)
    for cell in records.missing(cells(names, seeds)):
        start = time.process_time()
        variant = VARIANTS[cell["variant"]]
        seed = derive_seed(cell["seed"], "weights", cell["depth"])
        model = ResidualStack(cell["depth"], variant).initialize_(seed)
        coarse = [4.0**k for k in range(variant.low // 2, variant.high // 2 + 1)]
        options = {"batch": BATCH, "steps": STEPS, "seed": cell["seed"]}
        rates, end, tail = records.coarse_or_fine(cell, coarse, model, data, **options)
        growth = round(activation_growth(model, data[0][:500]), 4)
        seconds = round(time.process_time() - start, 1)
        losses = {"loss": finite(end), "tail": finite(tail)}
        records.add(cell | {"seconds": seconds, "growth": growth, "rates": rates} | losses)
        print(cell, f"{seconds} s", flush=True)


AGGREGATES: tuple[Literal["sum", "mean", "gain"], ...] = ("sum", "mean", "gain")


def factors(depth: int, variant: Variant) -> dict[str, float]:
    """What each aggregate makes of the best rate of another network, up to a constant."""
    model = ResidualStack(depth, variant)
    options: dict[str, Any] = {"in_degree": variant.init}
    found = {"none": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scaling.ScalingWarning)
        for kind in AGGREGATES:
            plan = scaling.plan(model, torch.zeros(2, 1, 14, 14), aggregate=kind, **options)
            found[kind] = plan.factor()
    model.initialize_(0)
    for layer in plan.layers:  # what was trained is what a plan would have drawn
        std = float(model.get_parameter(layer.layer.name).detach().std())
        assert abs(std / layer.std - 1) < 0.2, (layer, std)
    return found


def loss_at(rate: float, coarse: dict[str, Any], fine: list[dict[str, Any]], key: str) -> float:
    """The loss of a rate, from its neighbours on the fine grid, or else on the coarse one."""
    known = dict(zip(coarse["rates"], curve([coarse], key)[1][0], strict=True))
    rates, losses = curve(fine, key)
    known = {r: v for r, v in known.items() if not rates[0] <= r <= rates[-1]}
    known |= dict(zip(rates, losses.mean(0), strict=True))
    grid = sorted(known)
    with np.errstate(invalid="ignore"):
        return float(np.interp(math.log2(rate), np.log2(grid), [known[r] for r in grid]))


def report(key: str) -> None:
    """Print the best rates, their spread over depths with each aggregate, and what that costs."""
    rows = Records(RESULTS).rows
    kinds = ("none", *AGGREGATES)
    spreads, losses = [], []
    for name, variant in VARIANTS.items():
        cells = {d: [r for r in rows if (r["variant"], r["depth"]) == (name, d)] for d in DEPTHS}
        fine = {d: [r for r in cells[d] if r["grid"] == "fine"] for d in DEPTHS}
        coarse = {d: next((r for r in cells[d] if r["grid"] == "coarse"), {}) for d in DEPTHS}
        seeds = min(map(len, fine.values()))
        if not seeds:
            continue
        best = {d: best_rate(*curve(fine[d], key)) for d in DEPTHS}
        scale = {d: factors(d, variant) for d in DEPTHS}
        row = [f"{best[d]:.2g} (×{np.mean([r['growth'] for r in fine[d]]):.2g})" for d in DEPTHS]
        for kind in kinds:
            ratio, std = spread([best[d] / scale[d][kind] for d in DEPTHS])
            row.append(f"{ratio:.3g} ({std:.2g})")
        spreads.append([name, str(seeds), *row])
        row = [f"{loss_at(best[d], coarse[d], fine[d], key):.3g}" for d in DEPTHS]
        for kind in kinds:
            rate = {d: best[DEPTHS[0]] * scale[d][kind] / scale[DEPTHS[0]][kind] for d in DEPTHS}
            got = [loss_at(rate[d], coarse[d], fine[d], key) for d in DEPTHS[1:]]
            row.append(", ".join("∞" if not math.isfinite(v) else f"{v:.3g}" for v in got))
        losses.append([name, *row])
    depths = [f"{d} blocks" for d in DEPTHS]
    _print(["network", "seeds", *depths, "unscaled", *AGGREGATES], spreads)
    _print(["network", *depths, "unscaled", *AGGREGATES], losses)


def _print(head: list[str], rows: list[list[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("variants", nargs="*", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--by", choices=["tail", "loss"], default="tail")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if options.what == "run":
        run(options.variants or list(VARIANTS), options.seeds)
    else:
        report(options.by)


if __name__ == "__main__":
    main()
