"""Matrices to factorise: noise, structure in noise, degenerate ones, and trained layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

STRENGTHS = (0.1, 0.5, 1.0, 2.0, 5.0, 30.0, 1e3)
SHAPES = (
    (3, 40),
    (8, 8),
    (9, 72),
    (12, 108),
    (16, 9),
    (16, 16),
    (24, 60),
    (27, 16),
    (40, 12),
    (32, 144),
)


def synthetic(repeats: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Named float32 matrices; `repeats` of each kind and shape."""
    rng = np.random.default_rng(seed)
    for repeat in range(repeats):
        for rows, columns in SHAPES:
            name = f"{rows}x{columns} #{repeat}"
            noise = rng.normal(size=(rows, columns))
            yield f"noise {name}", noise.astype(np.float32)
            rank = int(rng.integers(1, min(rows, columns) // 2 + 1))
            signal = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
            signal /= np.sqrt(rank)
            for strength in STRENGTHS:
                yield f"strength {strength} {name}", (noise + strength * signal).astype(np.float32)
            yield f"offset {name}", (noise + rng.exponential(3)).astype(np.float32)
            scales = np.exp(rng.normal(size=(rows, 1)))
            yield f"unequal rows {name}", (scales * noise).astype(np.float32)
            yield f"heavy tails {name}", rng.standard_t(2, size=(rows, columns)).astype(np.float32)


def degenerate(seed: int = 1) -> Iterator[tuple[str, np.ndarray]]:
    """Rows, columns, zeros, exact low rank, duplicates, extreme scales."""
    rng = np.random.default_rng(seed)
    for n in (1, 2, 3, 7, 50, 400):
        yield f"1x{n}", rng.normal(size=(1, n))
        yield f"{n}x1", rng.normal(size=(n, 1))
        yield f"zeros 1x{n}", np.zeros((1, n))
        yield f"zeros {n}x3", np.zeros((n, 3))
        yield f"identity {n}", np.eye(min(n, 50))
        yield f"2x{n}", rng.normal(size=(2, n))
    for rows, columns in SHAPES:
        name = f"{rows}x{columns}"
        noise = rng.normal(size=(rows, columns))
        for rank in {1, min(rows, columns) // 3}:
            whole = rng.integers(-4, 5, size=(rows, rank)) @ rng.integers(
                -4, 5, size=(rank, columns)
            )
            yield f"exactly rank {rank} {name}", whole.astype(float)
            rounded = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
            yield f"rank {rank} in float32 {name}", rounded.astype(np.float32)
        yield f"each row twice {name}", np.repeat(noise[: (rows + 1) // 2], 2, axis=0)
        dead = noise.copy()
        dead[::2] = 0.0
        yield f"half of the rows dead {name}", dead
        for scale in (1e-200, 1e-30, 1e-6, 1e30, 1e200):
            yield f"scale {scale} {name}", scale * (noise + 3.0)


def trained(
    rates: tuple[float, ...] = (1e-3, 1e-2, 5e-2), epochs: int = 3
) -> list[tuple[str, torch.Tensor]]:
    """Weights of a small convolutional network, trained on handwritten digits with Adam."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    weights = []
    for rate in rates:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = digits_network()
            optimizer = torch.optim.Adam(model.parameters(), lr=rate)
            for epoch in range(epochs):
                for batch in torch.randperm(len(x)).split(64):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                    optimizer.step()
                for name, parameter in model.named_parameters():
                    if parameter.ndim == 4:
                        weight = parameter.detach().clone()
                        weights.append((f"rate {rate} epoch {epoch} {name}", weight))
    return weights


def digits_network() -> nn.Sequential:
    """Four convolutions, one of them 1 × 1 with more inputs than outputs."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 24, 1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(32, 10),
    )
