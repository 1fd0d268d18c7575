"""Noise as losses of mini-batches may have it: synthetic, and of a small model on real data.

Every function of `NOISE` takes a generator, a number of curves and a number of steps, and gives
ln ℓ of shape (curves, steps), of variance 1 (up to the sampling of "epochs") and without a trend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.signal import lfilter

Array = np.ndarray
Noise = Callable[[np.random.Generator, int, int], Array]

EPOCH = 45  # steps of an epoch of the noises that have one: 1,437 digits, batch 32
_WARM_UP = 500


def gaussian(rng: np.random.Generator, curves: int, n: int) -> Array:
    return rng.normal(size=(curves, n))


def student(rng: np.random.Generator, curves: int, n: int) -> Array:
    return rng.standard_t(3, size=(curves, n)) / np.sqrt(3)


def log_normal(rng: np.random.Generator, curves: int, n: int) -> Array:
    """Skewed: what transform="identity" sees of log-normal losses, whose logarithm is Gaussian."""
    return rng.lognormal(size=(curves, n)) / np.sqrt((np.e - 1) * np.e)


def ar(rho: float, rng: np.random.Generator, curves: int, n: int, draw: Noise = gaussian) -> Array:
    innovations = np.sqrt(1 - rho**2) * draw(rng, curves, n + _WARM_UP)
    return lfilter([1.0], [1.0, -rho], innovations)[:, _WARM_UP:]


def ma(weights: list[float], rng: np.random.Generator, curves: int, n: int) -> Array:
    k = len(weights) - 1
    return lfilter(weights, [1.0], gaussian(rng, curves, n + k))[:, k:] / np.linalg.norm(weights)


def epochs(rng: np.random.Generator, curves: int, n: int, *, shuffle: bool = True) -> Array:
    """The same batches in every epoch, in a new order or always in the same one."""
    batches = gaussian(rng, curves, EPOCH)
    if shuffle:
        order = np.argsort(rng.random((curves, -(-n // EPOCH), EPOCH)), axis=-1)
        return np.take_along_axis(batches[:, None], order, -1).reshape(curves, -1)[:, :n]
    return np.tile(batches, (1, -(-n // EPOCH)))[:, :n]


def white_and_slow(rng: np.random.Generator, curves: int, n: int) -> Array:
    """Independent noise of the batches on top of weights that wander slowly."""
    return (gaussian(rng, curves, n) + 0.3 * ar(0.95, rng, curves, n)) / np.sqrt(1.09)


NOISE: dict[str, Noise] = {
    "Gaussian": gaussian,
    "Student t, 3 d.o.f.": student,
    "log-normal": log_normal,
    "AR(1) ρ=.3": partial(ar, 0.3),
    "AR(1) ρ=.6": partial(ar, 0.6),
    "AR(1) ρ=.9": partial(ar, 0.9),
    "AR(1) ρ=.9, Student t": partial(ar, 0.9, draw=student),
    "AR(1) ρ=−.5": partial(ar, -0.5),
    "MA(1) θ=1": partial(ma, [1.0, 1.0]),
    "MA(4) equal weights": partial(ma, [1.0] * 5),
    "epochs, shuffled": epochs,
    "epochs, fixed order": partial(epochs, shuffle=False),
    "white + .3 · AR(1) ρ=.95": white_and_slow,
}


@dataclass(frozen=True)
class Setting:
    """How the losses of the real model come about.

    Args:
        name: What it is called.
        lr: Learning rate as a multiple of the bound; 0 leaves the weights at the optimum.
        momentum: Of SGD.
        replacement: Whether batches are drawn with replacement, rather than epoch by epoch.
    """

    name: str
    lr: float = 0.0
    momentum: float = 0.0
    replacement: bool = False


SETTINGS = (
    Setting("fixed weights, epochs"),
    Setting("fixed weights, with replacement", replacement=True),
    Setting("SGD at the bound, epochs", 1.0),
    Setting("SGD at the bound, with replacement", 1.0, replacement=True),
    Setting("momentum .9, rate/(1−.9) at the bound, epochs", 0.1, 0.9),
    Setting("momentum .9, rate/(1−.9) at the bound, with replacement", 0.1, 0.9, True),
    Setting("momentum .9 at the bound, epochs", 1.0, 0.9),
    Setting("momentum .9 at the bound, with replacement", 1.0, 0.9, True),
)


class Digits:
    """Logistic regression on scikit-learn's digits at its optimum, many runs side by side."""

    batch = 32
    l2 = 1e-3

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        from tune_ext._curvature import learning_rate_bound

        data = load_digits()
        pixels = (data.data / 16).astype(np.float32)
        self.bound = learning_rate_bound([pixels], loss="cross_entropy")
        self.x = np.c_[pixels, np.ones(len(pixels), np.float32)]
        self.y = data.target
        self.optimum = self._descend()

    def _descend(self) -> Array:
        w = np.zeros((1, self.x.shape[1], 10), np.float32)
        velocity = np.zeros_like(w)
        everything = np.arange(len(self.x))[None]
        for _ in range(4000):
            velocity = 0.9 * velocity + self._step(w, everything)[1]
            w = w - 0.3 * velocity
        return w

    def _step(self, w: Array, rows: Array) -> tuple[Array, Array]:
        """Losses and gradients of one batch for every run: w (runs, 65, 10), rows (runs, b)."""
        x, y = self.x[rows], self.y[rows][..., None]
        z = x @ w
        z -= z.max(-1, keepdims=True)
        e = np.exp(z)
        total = e.sum(-1, keepdims=True)
        losses = (np.log(total) - np.take_along_axis(z, y, -1)).mean((1, 2))
        p = e / total
        np.put_along_axis(p, y, np.take_along_axis(p, y, -1) - 1, -1)
        return losses, np.swapaxes(x, 1, 2) @ p / rows.shape[1] + self.l2 * w

    def _rows(self, setting: Setting, runs: int, rng: np.random.Generator) -> Iterator[Array]:
        n = len(self.x)
        while True:
            if setting.replacement:
                yield rng.integers(n, size=(runs, self.batch))
            else:
                order = np.argsort(rng.random((runs, n)), axis=1)
                for i in range(n // self.batch):
                    yield order[:, i * self.batch : (i + 1) * self.batch]

    def losses(
        self, setting: Setting, runs: int, steps: int, rng: np.random.Generator, warm_up: int = 2000
    ) -> Array:
        """Logarithms of the losses, shape (runs, steps), after a warm-up from the optimum."""
        w = np.repeat(self.optimum, runs, 0)
        velocity = np.zeros_like(w)
        out = np.empty((runs, steps))
        skip = warm_up if setting.lr else 0
        for t, rows in zip(range(-skip, steps), self._rows(setting, runs, rng), strict=False):
            losses, gradient = self._step(w, rows)
            if t >= 0:
                out[:, t] = np.log(losses)
            if setting.lr:
                velocity = setting.momentum * velocity + gradient
                w -= setting.lr * self.bound * velocity
        return out
