"""Where the best learning rate lies for widths 32 to 512: standard, ours, and mup's rule.

A multilayer perceptron of two hidden layers. Plain SGD on Fashion-MNIST at 14 × 14, one epoch;
every copy of a network has a rate of its own on one fine grid (ratio √2) for all widths.

mup's rule is written from table 3 of Yang et al., "Tensor Programs V" (arXiv 2203.03466), for SGD.

    python experiments/scaling/width.py run [RULE…]     # goes on where it ended
    python experiments/scaling/width.py report          # the table of residual.md
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _ensemble import Records, best_rate, curve, finite, images, spread
from torch import nn

from tune_ext import scaling
from tune_ext._random import derive_seed

RESULTS = Path(__file__).parent / "results" / "width.jsonl"
WIDTHS = (32, 64, 128, 256, 512)
BASE_WIDTH = 64
HIDDEN = 2
BATCH, STEPS = 32, 200
COARSE = [4.0**k for k in range(-6, 5)]
RULES = {
    "torch": "torch's own initialisation, one rate",
    "standard": "N(0, 2/fan), the read-out N(0, 1/fan), biases 0, one rate",
    "ours": "N(0, 2/fan), the read-out N(0, 2/fan²), biases 0, one rate: plan.initialize_",
    "mup": "as ours, but rates: first layer and biases × width/64, read-out × 64/width",
}


def network(width: int) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Flatten()]
    for inputs in (14 * 14, *[width] * (HIDDEN - 1)):
        parts += [nn.Linear(inputs, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def initialise(model: nn.Sequential, rule: str, seed: int) -> None:
    """Draw the weights as a rule says."""
    rng = torch.Generator().manual_seed(seed)
    if rule in ("ours", "mup"):
        scaling.plan(model, torch.zeros(2, 1, 14, 14)).initialize_(model, rng)
        return
    with torch.no_grad():
        for layer in (m for m in model if isinstance(m, nn.Linear)):
            gain = 1 if layer is model[-1] else 2
            bound = 1 / math.sqrt(layer.in_features)
            if rule == "torch":
                layer.weight.uniform_(-bound, bound, generator=rng)
                layer.bias.uniform_(-bound, bound, generator=rng)
            else:
                layer.weight.normal_(0, math.sqrt(gain) * bound, generator=rng)
                layer.bias.zero_()


def multipliers(model: nn.Sequential, rule: str) -> dict[str, float]:
    """The rates of mup for SGD, 1 for all at the base width."""
    if rule != "mup":
        return {}
    ratio = model[-1].in_features / BASE_WIDTH
    rates = {name: ratio for name, _ in model.named_parameters() if name.endswith("bias")}
    last = len(model) - 1
    return rates | {"1.weight": ratio, f"{last}.weight": 1 / ratio, f"{last}.bias": 1.0}


def cells(rules: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    for rule in rules:
        for width in WIDTHS:
            yield {"rule": rule, "width": width, "grid": "coarse", "seed": 0}
        for seed in range(seeds):
            for width in WIDTHS:
                yield {"rule": rule, "width": width, "grid": "fine", "seed": seed}


def run(rules: list[str], seeds: int) -> None:
    records = Records(RESULTS)
    data = images(BATCH * STEPS)
    for cell in records.missing(cells(rules, seeds)):
        start = time.process_time()
        model = network(cell["width"])
        initialise(model, cell["rule"], derive_seed(cell["seed"], "weights", cell["width"]))
        options = {"batch": BATCH, "steps": STEPS, "seed": cell["seed"]}
        options["multipliers"] = multipliers(model, cell["rule"])
        rates, end, tail = records.coarse_or_fine(cell, COARSE, model, data, **options)
        seconds = round(time.process_time() - start, 1)
        losses = {"loss": finite(end), "tail": finite(tail)}
        records.add(cell | {"seconds": seconds, "rates": rates} | losses)
        print(cell, f"{seconds} s", flush=True)


def report() -> None:
    rows = [r for r in Records(RESULTS).rows if r["grid"] == "fine"]
    print("| rule |", *(f"{w} |" for w in WIDTHS), "largest/smallest | log2 std |")
    print("|---|" + "---|" * (len(WIDTHS) + 2))
    for rule in RULES:
        best, loss = {}, {}
        for width in WIDTHS:
            mine = [r for r in rows if r["rule"] == rule and r["width"] == width]
            if mine:
                best[width] = best_rate(*curve(mine, "tail"))
                loss[width] = curve(mine, "tail")[1].mean(0).min()
        if len(best) == len(WIDTHS):
            ratio, std = spread(list(best.values()))
            values = [f"{best[w]:.3g} ({loss[w]:.3f})" for w in WIDTHS]
            print("|", rule, "|", *(f"{v} |" for v in values), f"{ratio:.2f} | {std:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("rules", nargs="*", help=", ".join(RULES))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if options.what == "run":
        run(options.rules or list(RULES), options.seeds)
    else:
        report()


if __name__ == "__main__":
    main()
