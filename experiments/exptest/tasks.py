"""The trainings that the methods are compared on: data, network, length.

Everything derives from the seed: the split into training and validation data (for tables
the test data too), the initial weights and the order of the batches, so that seed s means
the same to every method. Methods see training and validation data; the test data is
evaluated once, when a run has ended.

    python experiments/exptest/tasks.py        # what there is, and what is missing here
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tune_ext._random import derive_seed, generator
from tune_ext.benchmark.tasks._data import Part, Split
from tune_ext.benchmark.tasks._networks import build
from tune_ext.benchmark.tasks.fashion_mnist import FashionMNISTResNet
from tune_ext.errors import DataNotFoundError

Pair = tuple[Tensor, Tensor]

WIDTHS, DEPTHS = (32, 512, 1024), (2, 8, 32)
VGG_16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
VGG_SMALL = (8, "M", 16, 16, "M", 32, 32, "M")


@dataclass(frozen=True)
class Options:
    """What the command line may change.

    Attributes:
        data_dir: Where data sets lie; None looks in the usual places.
        full: The lattice and the VGG at the published size; hours instead of seconds.
    """

    data_dir: str | None = None
    full: bool = False


@dataclass(frozen=True)
class Data:
    """Training, validation and test data, each as inputs and targets."""

    train: Pair
    validation: Pair
    test: Pair


@dataclass(frozen=True)
class Task:
    """One training, all but the learning rate.

    Attributes:
        name: Its name in records.
        description: One line.
        load: From the seed to the data.
        make: The network, on torch's default device.
        loss: "cross_entropy" (metric: accuracy) or "mse" (metric: mean squared error).
        batch_size: Examples of a batch.
        epochs: Length of a run.
        gain: Torch's initial weights times this; √6 makes them He's (arXiv 1502.01852).
        early_stopping: The weights that are tested are those of the best validation epoch:
            for data so small that every good rate over-fits in the end. For every method.
        device: Where it is trained.
        missing: None, or a sentence: what is not here, and how to get it.
    """

    name: str
    description: str
    load: Callable[[int], Data] = field(repr=False)
    make: Callable[[], nn.Module] = field(repr=False)
    loss: str
    batch_size: int
    epochs: int
    gain: float = 1.0
    early_stopping: bool = False
    device: str = "cpu"
    missing: Callable[[], str | None] = field(default=lambda: None, repr=False)

    @property
    def metric(self) -> str:
        """What is compared: "accuracy" (larger is better) or "mse"."""
        return "accuracy" if self.loss == "cross_entropy" else "mse"

    @property
    def loss_fn(self) -> Callable[[Tensor, Tensor], Tensor]:
        """From predictions and targets to the mean loss."""
        return functional.cross_entropy if self.loss == "cross_entropy" else functional.mse_loss

    def network(self, seed: int) -> nn.Module:
        """The network with its initial weights."""
        network = build(self.make, seed=derive_seed(seed, "exptest", "weights"))
        if self.gain != 1.0:
            with torch.no_grad():
                for module in network.modules():
                    if isinstance(module, nn.Linear):
                        module.weight.mul_(self.gain)
        return network.to(self.device)


class Batches:
    """An epoch of batches in a new random order each time; the order derives from the seed."""

    def __init__(self, data: Pair, batch_size: int, seed: int) -> None:
        self._x, self._y = data
        self._size = batch_size
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "exptest", "batches"))

    def __len__(self) -> int:
        return math.ceil(len(self._x) / self._size)

    def __iter__(self) -> Iterator[Pair]:
        order = torch.randperm(len(self._x), generator=self._generator)
        for start in range(0, len(order), self._size):
            chosen = order[start : start + self._size]
            yield self._x[chosen], self._y[chosen]


def fully_connected(sizes: tuple[int, ...]) -> nn.Module:
    """Linear layers with ReLUs between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def vgg(channels: int, size: int, plan: tuple[int | str, ...], hidden: int) -> nn.Module:
    """3×3 convolutions with BatchNorm and ReLU, poolings where the plan says "M", two layers."""
    layers: list[nn.Module] = []
    for item in plan:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
            size //= 2
        else:
            convolution = nn.Conv2d(channels, item, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(item), nn.ReLU()]
            channels = item
    head = [nn.Flatten(), nn.Linear(channels * size * size, hidden), nn.ReLU()]
    return nn.Sequential(*layers, *head, nn.Linear(hidden, 10))


def _tensors(part: Part) -> Pair:
    return torch.from_numpy(part.images), torch.from_numpy(part.labels)


def _from_split(split: Split) -> Data:
    return Data(_tensors(split.train), _tensors(split.validation), _tensors(split.test))


def _fashion(options: Options, train: int, validation: int, size: int) -> dict[str, Any]:
    source = FashionMNISTResNet(
        data_dir=options.data_dir, train_size=train, validation_size=validation, image_size=size
    )
    return {"load": lambda seed: _from_split(source._split(seed)), "missing": source.missing}


def _table(x: np.ndarray, y: np.ndarray, name: str, seed: int) -> Data:
    """60 % training, 20 % validation, 20 % test, scaled by the training part."""
    order = generator(seed, "exptest", name, "split").permutation(len(x))
    x, y = np.asarray(x, np.float64)[order], np.asarray(y, np.float64)[order, None]
    ends = [0, round(0.6 * len(x)), round(0.8 * len(x)), len(x)]
    x = (x - x[: ends[1]].mean(0)) / x[: ends[1]].std(0)
    y = (y - y[: ends[1]].mean(0)) / y[: ends[1]].std(0)
    parts = [
        (torch.from_numpy(np.float32(x[a:b])), torch.from_numpy(np.float32(y[a:b])))
        for a, b in pairwise(ends)
    ]
    return Data(*parts)


def _diabetes(seed: int) -> Data:
    from sklearn.datasets import load_diabetes

    return _table(*load_diabetes(return_X_y=True), "diabetes", seed)


def _friedman(seed: int, examples: int = 6_000) -> Data:
    from sklearn.datasets import make_friedman1

    state = derive_seed(seed, "exptest", "friedman1") % 2**32
    return _table(
        *make_friedman1(examples, n_features=10, noise=1.0, random_state=state), "friedman1", seed
    )


@lru_cache(maxsize=1)
def _california_table(folder: str | None) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import fetch_california_housing

    return fetch_california_housing(data_home=folder, download_if_missing=False, return_X_y=True)


def _california_missing(options: Options) -> str | None:
    try:
        _california_table(options.data_dir)
    except OSError:
        return (
            "California Housing is not here: "
            "sklearn.datasets.fetch_california_housing(data_home=DIR) fetches it; then --data DIR"
        )
    return None


def _cifar_folder(options: Options) -> Path:
    return Path(options.data_dir or os.environ.get("TUNE_EXT_DATA") or "data").expanduser()


def _cifar_missing(options: Options) -> str | None:
    if (_cifar_folder(options) / "cifar-10-batches-py").is_dir():
        return None
    return (
        f"CIFAR-10 is not in {_cifar_folder(options)}: "
        "torchvision.datasets.CIFAR10('data', download=True) fetches it into ./data"
    )


def _cifar(options: Options, seed: int) -> Data:
    from torchvision.datasets import CIFAR10

    if (missing := _cifar_missing(options)) is not None:
        raise DataNotFoundError(missing)

    def part(train: bool) -> Part:
        source = CIFAR10(str(_cifar_folder(options)), train=train)
        images = source.data.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        return Part(images, np.asarray(source.targets, np.int64))

    known, test = part(True), part(False)
    order = generator(seed, "exptest", "cifar-10", "split").permutation(len(known))
    train, validation = (Part(known.images[i], known.labels[i]) for i in np.split(order, [45_000]))
    return _from_split(Split.scaled(train, validation, test))


def _images(options: Options) -> Iterator[Task]:
    fashion = _fashion(options, 20_000, 5_000, 28)
    models = {
        "logistic": ("logistic regression", (784, 10)),
        "mlp": ("fully connected 784-128-128-10", (784, 128, 128, 10)),
    }
    for name, (text, layers) in models.items():
        for size in (128, 256, 512):
            yield Task(
                f"{name}-{size}",
                f"{text}, Fashion-MNIST, batches of {size}",
                make=lambda layers=layers: fully_connected(layers),
                loss="cross_entropy",
                batch_size=size,
                epochs=10,
                **fashion,
            )
    yield Task(
        "vgg-small",
        "five convolutions with BatchNorm, Fashion-MNIST, 6,000 images of 14×14",
        make=lambda: vgg(1, 14, VGG_SMALL, 64),
        loss="cross_entropy",
        batch_size=64,
        epochs=8,
        **_fashion(options, 6_000, 2_000, 14),
    )
    yield Task(
        "vgg16-cifar10",
        "VGG-16 with BatchNorm and two layers at its end, CIFAR-10 (for a GPU)",
        load=lambda seed: _cifar(options, seed),
        make=lambda: vgg(3, 32, VGG_16, 512),
        loss="cross_entropy",
        batch_size=128,
        epochs=100,
        device="cuda" if torch.cuda.is_available() else "cpu",
        missing=lambda: _cifar_missing(options),
    )


def _regressions(options: Options) -> Iterator[Task]:
    small = Task(
        "diabetes",
        "fully connected 10-64-64-1, diabetes (442 patients), best validation epoch",
        load=_diabetes,
        make=lambda: fully_connected((10, 64, 64, 1)),
        loss="mse",
        batch_size=32,
        epochs=60,
        early_stopping=True,
    )
    yield small
    yield replace(
        small,
        name="friedman1",
        description="fully connected 10-64-64-1, Friedman's function 1 with noise (synthetic)",
        load=_friedman,
        batch_size=64,
        epochs=30,
        early_stopping=False,
    )
    yield replace(
        small,
        name="california",
        description="fully connected 8-64-64-1, California Housing",
        load=lambda seed: _table(*_california_table(options.data_dir), "california", seed),
        make=lambda: fully_connected((8, 64, 64, 1)),
        batch_size=128,
        epochs=20,
        early_stopping=False,
        missing=lambda: _california_missing(options),
    )


def _lattice(options: Options) -> Iterator[Task]:
    """Width × depth, as in the paper's Fig. 5; d hidden layers of width w."""
    for width in WIDTHS:
        for depth in DEPTHS:
            yield Task(
                f"lattice-{width}-{depth}",
                f"{depth} hidden layers of {width}, Friedman's function 1 (synthetic)",
                load=lambda seed: _friedman(seed, 20_000 if options.full else 2_000),
                make=lambda w=width, d=depth: fully_connected((10, *([w] * d), 1)),
                loss="mse",
                batch_size=64 if options.full else 32,
                epochs=50 if options.full else 3,
                gain=math.sqrt(6.0),
            )


def tasks(options: Options | None = None) -> dict[str, Task]:
    """Every task by its name."""
    options = options or Options()
    every = [*_images(options), *_regressions(options), *_lattice(options)]
    return {task.name: task for task in every}


def main() -> None:
    parser = argparse.ArgumentParser(description="List the tasks.")
    parser.add_argument("--data", help="where the data sets lie")
    for task in tasks(Options(parser.parse_args().data)).values():
        print(f"{task.name:16} {task.missing() or task.description}")


if __name__ == "__main__":
    main()
