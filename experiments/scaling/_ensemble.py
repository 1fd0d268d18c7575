"""Many learning rates at once: copies of one network, trained side by side by `torch.vmap`.

Every copy starts from the same weights, sees the same batches and has a learning rate of its
own, so that neighbouring rates differ by nothing else. A copy that diverges harms no other one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from tune_ext._random import generator
from tune_ext.benchmark.tasks._datasets import FASHION_MNIST, open_part

SIDE = 14
Pair = tuple[Tensor, Tensor]


@lru_cache(maxsize=1)
def images(count: int, data_dir: str | None = None) -> Pair:
    """Random Fashion-MNIST images for training, n × 1 × 14 × 14, and their labels.

    Pixels are standardised over all of them together.
    """
    folder = FASHION_MNIST.find(data_dir)
    if folder is None:
        raise SystemExit(f"no Fashion-MNIST here: {FASHION_MNIST.fetch}")
    part = open_part(FASHION_MNIST, folder, "train")
    rows = np.sort(generator(0, "images").permutation(len(part.labels))[:count])
    pixels = torch.from_numpy(part.load(rows, SIDE)).float()
    pixels = (pixels - pixels.mean()) / pixels.std()
    return pixels, torch.from_numpy(part.labels[rows])


def _loss(model: nn.Module, state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(functional_call(model, state, (x,)), y)


def train(
    model: nn.Module,
    rates: Tensor,
    data: Pair,
    *,
    batch: int,
    steps: int,
    seed: int,
    multipliers: Mapping[str, float] | None = None,
    evaluate: int = 2000,
) -> tuple[list[float], list[float]]:
    """Train a copy of `model` by plain SGD with each of `rates`.

    Args:
        model: Its weights are where every copy starts; it is left alone.
        rates: The learning rates.
        data: Inputs and labels; the order of the batches comes from `seed`.
        batch: Examples of a batch.
        steps: How many steps.
        seed: Of the order.
        multipliers: Of the rates of single parameters, by name; 1 where it names none.
        evaluate: The loss at the end is that of so many of the training images.

    Returns:
        The loss at the end, and the mean over the last fifth of the steps, of each copy.
    """
    inputs, labels = data
    order = generator(seed, "batches")
    rows = np.concatenate(
        [order.permutation(len(labels)) for _ in range(-(-batch * steps // len(labels)))]
    )
    parameters, _ = stack_module_state([model] * len(rates))
    steps_of = {
        name: (rates * (multipliers or {}).get(name, 1.0)).view(-1, *[1] * (p.dim() - 1))
        for name, p in parameters.items()
    }
    loss_of = vmap(
        lambda state, x, y: _loss(model, state, x, y), in_dims=(0, None, None), randomness="error"
    )
    tail: list[Tensor] = []
    for step in range(steps):
        chosen = torch.from_numpy(rows[step * batch : (step + 1) * batch])
        losses = loss_of(parameters, inputs[chosen], labels[chosen])
        gradients = torch.autograd.grad(losses.sum(), list(parameters.values()))
        with torch.no_grad():
            for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
                p -= steps_of[name] * gradient
        if step >= steps - max(1, steps // 5):
            tail.append(losses.detach())
    with torch.no_grad():
        parts = [
            loss_of(parameters, x, y)
            for x, y in zip(inputs[:evaluate].split(500), labels[:evaluate].split(500), strict=True)
        ]
    return torch.stack(parts).mean(0).tolist(), torch.stack(tail).mean(0).tolist()


def rate_grid(low: int, high: int, per_octave: int = 2) -> list[float]:
    """2^low … 2^high in steps of 2^(1/per_octave)."""
    return [2 ** (k / per_octave) for k in range(low * per_octave, high * per_octave + 1)]


def train_around(
    coarse: list[float],
    coarse_losses: list[float | None],
    model: nn.Module,
    data: Pair,
    **options: Any,
) -> tuple[list[float], list[float], list[float]]:
    """Train with powers of √2, three octaves to both sides of the best of some powers of 4.

    Where the loss is smallest within an octave of an end, three octaves more are trained there.

    Args:
        coarse: The powers of 4.
        coarse_losses: Their losses; None where one diverged.
        model: As for `train`.
        data: As for `train`.
        **options: As for `train`.

    Returns:
        Rates, ascending, and what `train` says of them.
    """
    best = coarse[int(np.argmin([np.inf if v is None else v for v in coarse_losses]))]
    center = round(math.log2(best))
    low, high = center - 3, center + 3
    found: dict[float, tuple[float, float]] = {}
    for _ in range(4):
        rates = [rate for rate in rate_grid(low, high) if rate not in found]
        if not rates:
            break
        ends = train(model, torch.tensor(rates), data, **options)
        found.update(zip(rates, zip(*ends, strict=True), strict=True))
        usable = {rate: end if np.isfinite(end) else np.inf for rate, (end, _) in found.items()}
        best = min(usable, key=usable.__getitem__)
        low -= 3 * (best <= 2.0 ** (low + 1))
        high += 3 * (best >= 2.0 ** (high - 1))
    rates = sorted(found)
    return rates, [found[r][0] for r in rates], [found[r][1] for r in rates]


def curve(rows: list[dict[str, Any]], key: str = "loss") -> tuple[list[float], np.ndarray]:
    """The rates that all of some records have, and seeds × rates losses; what diverged is ∞."""
    each = [dict(zip(row["rates"], row[key], strict=True)) for row in rows]
    rates = sorted(set(each[0]).intersection(*each))
    losses = [[np.inf if row[r] is None else row[r] for r in rates] for row in each]
    return rates, np.array(losses)


def best_rate(rates: list[float], losses: np.ndarray) -> float:
    """Where the loss is smallest, from the parabola through the best point and its neighbours.

    Args:
        rates: A geometric grid.
        losses: seeds × rates; a rate counts by the mean over the seeds, and not at all if one
            of them diverged.

    Returns:
        The rate, or NaN if the best one is at an end of the grid.
    """
    with np.errstate(invalid="ignore"):
        mean = np.where(np.isfinite(losses).all(0), losses.mean(0), np.inf)
    k = int(np.argmin(mean))
    if k in (0, len(rates) - 1):
        return float("nan")
    left, middle, right = mean[k - 1 : k + 2]
    shift = 0.0
    if np.isfinite(left) and np.isfinite(right):
        shift = 0.5 * (left - right) / (left - 2 * middle + right)
    return float(rates[k] * (rates[k + 1] / rates[k]) ** shift)


def spread(rates: list[float]) -> tuple[float, float]:
    """Largest over smallest, and the standard deviation of the logarithm to base 2."""
    return max(rates) / min(rates), float(np.std(np.log2(rates), ddof=1))


class Records:
    """A JSONL file that a study goes on with where it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines() if line]

    def missing(self, cells: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Those cells that no record agrees with."""
        for cell in cells:
            if not any(all(row.get(k) == v for k, v in cell.items()) for row in self.rows):
                yield cell

    def add(self, row: dict[str, Any]) -> None:
        """Append a record; what is not finite becomes null."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def coarse_or_fine(
        self,
        cell: dict[str, Any],
        coarse: list[float],
        model: nn.Module,
        data: Pair,
        **options: Any,
    ) -> tuple[list[float], list[float], list[float]]:
        """Train what a cell says: the powers of 4, or `train_around` the best of those.

        Args:
            cell: With "grid": "coarse" or "fine", and "seed"; coarse cells have seed 0.
            coarse: The powers of 4.
            model: As for `train`.
            data: As for `train`.
            **options: As for `train`.

        Returns:
            Rates, and what `train` says of them.
        """
        if cell["grid"] == "coarse":
            return coarse, *train(model, torch.tensor(coarse), data, **options)
        key = cell | {"grid": "coarse", "seed": 0}
        (row,) = [r for r in self.rows if all(r[k] == v for k, v in key.items())]
        return train_around(coarse, row["loss"], model, data, **options)


def finite(values: list[float]) -> list[float | None]:
    """Losses as JSON has them."""
    return [round(v, 6) if np.isfinite(v) else None for v in values]
