"""Recorded trainings on a grid, and what lies between them. Pure but for reading the file.

Every quantity is taken where it is closest to linear (`_curve`): losses as logarithms, errors
as log odds. There a quantity at a configuration is the mean over the recorded seeds plus a seed's
deviation from it, both linear in the logarithms of the two hyper-parameters.

| symbol | what |
|---|---|
| K | recorded seeds |
| a | weights of the corners of a cell, they sum to 1 |
| v | weights of the recorded seeds, Σv = 1 |
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ext._random import generator
from tune_ext.errors import StateError

__all__ = ["CURVES", "FORMAT", "Answer", "Recorded", "load", "seed_weights"]

FORMAT = 1
"""Of the files; `experiments/response_tables/record.py` writes them."""

CURVES = (
    "train_loss",
    "validation_loss",
    "validation_error",
    "response",
    "response_mean",
    "knowledge_gain",
    "seconds",
)
_ENDS = ("test_loss", "test_error")
_ERRORS = ("validation_error", "test_error")
_LOSSES = ("train_loss", "validation_loss", "test_loss", "step_losses", "seconds")
_SOFT_ERROR = 1e-3
_SOFT_LOSS = 1e-4

Array = NDArray[np.float64]


def _curve(name: str, values: Array) -> Array:
    """Where `name` is closest to linear."""
    if name in _ERRORS:
        return np.asarray(np.log((values + _SOFT_ERROR) / (1 - values + _SOFT_ERROR)))
    if name in _LOSSES:
        return np.asarray(np.log(np.minimum(values, 1e30) + _SOFT_LOSS))
    return values


def _straighten(name: str, values: Array) -> Array:
    """The inverse of `_curve`, in the range that `name` has."""
    if name in _ERRORS:
        odds = np.exp(values)
        values = ((1 + _SOFT_ERROR) * odds - _SOFT_ERROR) / (1 + odds)
    elif name in _LOSSES:
        return np.maximum(np.exp(np.minimum(values, 80.0)) - _SOFT_LOSS, 0.0)
    return values if name == "knowledge_gain" else np.clip(values, 0.0, 1.0)


def seed_weights(seed: int, recorded: int) -> Array:
    """How much of each recorded seed makes up `seed`: v with Σv = 1.

    The first seeds are the recorded ones. Every other is v = 1/K + u with a random direction u,
    Σu = 0 and Σu² = 1: over all of them a quantity has the mean of the recorded seeds and the
    variance that these estimate (with K - 1), and two of them differ as two recorded ones do.

    Args:
        seed: Any.
        recorded: K, how many there are.

    >>> seed_weights(1, 3)
    array([0., 1., 0.])
    >>> v = seed_weights(10, 3)
    >>> bool(abs(v.sum() - 1) < 1e-12 and abs(((v - 1 / 3) ** 2).sum() - 1) < 1e-12)
    True
    """
    if seed < recorded or recorded == 1:
        return np.asarray(np.eye(recorded)[min(seed, recorded - 1)])
    direction = generator(seed, "response-table").normal(size=recorded)
    direction -= direction.mean()
    direction /= np.linalg.norm(direction)
    return np.asarray(1 / recorded + direction)


@dataclass(frozen=True)
class Answer:
    """A training, looked up.

    Attributes:
        epochs: How many epochs it trained before it diverged; all of them if it did not.
        curves: Each of `CURVES`, a value an epoch.
        step_losses: Epochs × steps.
        test: `test_loss` and `test_error`.
    """

    epochs: int
    curves: dict[str, Array]
    step_losses: Array
    test: dict[str, float]


class Recorded:
    """Trainings of one network, over learning rates × weight decays × seeds.

    Args:
        about: What was recorded: "seeds", "batches", "features", "mean_square", ….
        lrs: Increasing.
        decays: Increasing.
        values: Each of `CURVES` as seeds × lrs × decays × epochs, "step_losses" with one more
            axis, "test_loss" and "test_error" without that of the epochs. NaN from the epoch
            on in which a training diverged.
    """

    def __init__(
        self, about: Mapping[str, Any], lrs: Array, decays: Array, values: Mapping[str, Array]
    ) -> None:
        self.about, self.lrs, self.decays = dict(about), lrs, decays
        self.seeds, _, _, self.epochs = values["validation_loss"].shape
        self.values = {name: np.asarray(values[name], np.float64) for name in values}
        finite = np.isfinite(self.values["validation_loss"])
        self._lengths = np.where(finite.all(-1), self.epochs, np.argmin(finite, -1))
        self._means, self._deviations = {}, {}
        for name, raw in self.values.items():
            curved = _curve(name, raw)
            there = np.isfinite(curved)
            total = np.where(there, curved, 0.0).sum(0)
            with np.errstate(invalid="ignore"):
                mean = total / there.sum(0)
            self._means[name] = mean
            self._deviations[name] = np.where(there, curved - mean, 0.0)
        errors = self.values["test_error"]
        self._true = _curve("test_error", np.where(np.isfinite(errors), errors, 1.0).mean(0))

    def corners(self, lr: float, decay: float) -> list[tuple[int, int, float]]:
        """The neighbouring grid points and their weights; outside the grid those of its edge."""
        return [
            (i, j, a * b)
            for i, a in _neighbours(self.lrs, lr)
            for j, b in _neighbours(self.decays, decay)
            if a * b > 0
        ]

    def answer(self, lr: float, decay: float, seed: int, noise: float = 1.0) -> Answer:
        """What a training would have reported.

        It diverges when that of the nearest corner and of the seed with the most weight did.

        Args:
            lr: Learning rate.
            decay: Weight decay.
            seed: See `seed_weights`.
            noise: Factor on the deviation of a seed from the mean of all.
        """
        v = seed_weights(seed, self.seeds)
        corners = self.corners(lr, decay)
        i, j, _ = max(corners, key=lambda corner: corner[2])
        length = int(self._lengths[v.argmax(), i, j])
        found = {name: self._mix(name, corners, v, noise) for name in self.values}
        for name in (*CURVES, "step_losses"):
            if name != "seconds":
                found[name][length:] = math.nan
        if length < self.epochs:
            found |= {name: np.array(math.nan) for name in _ENDS}
        return Answer(
            length,
            {name: found[name] for name in CURVES},
            found["step_losses"],
            {name: float(found[name]) for name in _ENDS},
        )

    def _mix(
        self, name: str, corners: list[tuple[int, int, float]], v: Array, noise: float
    ) -> Array:
        """Mean plus deviation over the corners that have a value."""
        mean, deviation = self._means[name], self._deviations[name]
        total = np.zeros(mean.shape[2:])
        weight = np.zeros(mean.shape[2:])
        for i, j, a in corners:
            value = mean[i, j] + noise * np.tensordot(v, deviation[:, i, j], 1)
            there = np.isfinite(value)
            total += np.where(there, a * value, 0.0)
            weight += a * there
        with np.errstate(invalid="ignore"):
            return np.asarray(_straighten(name, total / weight))

    def true_error(self, lr: float, decay: float) -> float:
        """The mean test error over the recorded seeds, where a diverged one counts as 1."""
        total = sum(a * self._true[i, j] for i, j, a in self.corners(lr, decay))
        return float(_straighten("test_error", np.asarray(total)))


def _neighbours(grid: Array, value: float) -> list[tuple[int, float]]:
    """The two grid points around `value`, with weights linear in the logarithm."""
    value = min(max(value, grid[0]), grid[-1])
    right = min(max(int(np.searchsorted(grid, value)), 1), len(grid) - 1)
    low, high = grid[right - 1], grid[right]
    part = math.log(value / low) / math.log(high / low)
    return [(right - 1, 1 - part), (right, part)]


@lru_cache(maxsize=8)
def load(path: Path) -> Recorded:
    """Read a file of recorded trainings.

    Raises:
        StateError: It is missing, damaged, of another version, or does not hold what it should.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        about = json.loads(str(data.pop("about")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StateError(f"{path} cannot be read ({error}): install tune-ext again") from error
    version = about.get("format") if isinstance(about, dict) else None
    if version != FORMAT:
        raise StateError(f"{path} has format {version!r}; this package reads {FORMAT}")
    lrs, decays = data.pop("lr", np.empty(0)), data.pop("weight_decay", np.empty(0))
    _check(path, about, lrs, decays, data)
    return Recorded(about, lrs, decays, data)


def _check(
    path: Path, about: Mapping[str, Any], lrs: Array, decays: Array, data: Mapping[str, Array]
) -> None:
    wanted = {*CURVES, *_ENDS, "step_losses"}
    if set(data) != wanted:
        raise StateError(f"{path} holds {sorted(data)}, not {sorted(wanted)}")
    for name in ("seeds", "batches", "features", "mean_square"):
        if name not in about:
            raise StateError(f"{path} does not say its {name}")
    grids = [g for g in (lrs, decays) if g.ndim == 1 and len(g) > 1 and (np.diff(g) > 0).all()]
    grid = (len(about["seeds"]), len(lrs), len(decays))
    epochs = data["train_loss"].shape[-1]
    shapes = {
        **dict.fromkeys(CURVES, (*grid, epochs)),
        **dict.fromkeys(_ENDS, grid),
        "step_losses": (*grid, epochs, about["batches"]),
    }
    for name, shape in shapes.items():
        if len(grids) < 2 or data[name].shape != shape:
            raise StateError(
                f"{path} does not fit together: {name} has shape {data[name].shape}, not {shape}"
            )
