"""Fashion-MNIST (arXiv 1708.07747) and a small ResNet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import check_choice, check_count, check_folder
from tune_ext._random import generator
from tune_ext.benchmark.tasks._data import (
    Part,
    Split,
    data_roots,
    find_files,
    read_images,
    resize,
)
from tune_ext.benchmark.tasks._shared import shared, sharing
from tune_ext.benchmark.tasks._training_task import TrainingTask, check_counts
from tune_ext.errors import DataNotFoundError, InvalidValueError
from tune_ext.resizing import fingerprint_of_files

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FashionMNISTResNet"]

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_TRAINING_IMAGES = 60_000


def _folders(data_dir: str | None) -> Iterator[Path]:
    """Where to look, in order: what was asked for, or else the usual places."""
    for path in data_roots(data_dir):
        yield from (path, path / "raw", path / "FashionMNIST" / "raw", path / "fashion-mnist")
    if not data_dir:
        yield Path("/usr/share/datasets/fashion-mnist")


_Key = tuple[tuple[Path, ...], tuple[int, int], int, str, int]


@lru_cache(maxsize=2)
def _fashion(
    files: tuple[Path, ...], sizes: tuple[int, int], image_size: int, subset: str, seed: int
) -> Split:
    """The parts, cached in this process or, where data is shared, on this machine."""
    key: _Key = (files, sizes, image_size, subset, seed)
    if not sharing():
        return _scaled(*key)
    origin = f"{fingerprint_of_files(files)}|{key}"
    made: list[Split] = []

    def stacked(what: str) -> NDArray[Any]:
        if not made:
            made.append(_scaled(*key))
        parts = (made[0].train, made[0].validation, made[0].test)
        return np.concatenate([getattr(part, what) for part in parts])

    images = shared("fashion", f"fashion|{origin}", lambda: stacked("images"))
    labels = shared("labels", f"fashion|{origin}", lambda: stacked("labels"))
    cuts = (0, sizes[0], sum(sizes), len(labels))
    train, validation, test = (Part(images[a:b], labels[a:b]) for a, b in pairwise(cuts))
    return Split(train, validation, test)


def _scaled(
    files: tuple[Path, ...], sizes: tuple[int, int], image_size: int, subset: str, seed: int
) -> Split:
    train, validation = sizes
    images, labels = read_images(files[0], files[1], "Fashion-MNIST")
    if train + validation > len(labels):
        raise InvalidValueError(
            f"train_size + validation_size must be at most {len(labels)}, got {train + validation}"
        )
    order = np.arange(len(labels))
    if subset == "random":
        order = generator(seed, "fashion-mnist-resnet", "split").permutation(order)
    test_images, test_labels = read_images(files[2], files[3], "Fashion-MNIST")

    def part(indices: NDArray[np.int64]) -> Part:
        return Part(resize(images[indices], image_size), labels[indices])

    return Split.scaled(
        part(order[:train]),
        part(order[train : train + validation]),
        Part(resize(test_images, image_size), test_labels),
    )


class FashionMNISTResNet(TrainingTask):
    """Fashion-MNIST and a ResNet for small images (9 convolutions by default).

    The test images are the official 10,000. Training and validation images are disjoint
    parts of the official 60,000, drawn by seed.

    Nothing is ever downloaded: the four idx files (plain or .gz) are looked for in
    `data_dir`, or, without one, in the directory that the environment variable
    TUNE_EXT_DATA names, ./data, ~/data, ~/.cache/torchvision and
    /usr/share/datasets/fashion-mnist; in each also under FashionMNIST/raw, where
    torchvision puts them.

    Args:
        data_dir: The only place to look for the files.
        train_size: Training images.
        validation_size: Validation images.
        subset: "random" (by seed), or "first": the first images of the file, in order.
        image_size: 28, 14 (average pooling 2×2), or any other (see `resize`).
        width: Channels of the first stage.
        blocks: Residual blocks in each stage.
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Images in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched: "lr", "weight_decay" or both.
        measure_response: Whether runs report the response of the network.
        device: Where to train.
    """

    name = "fashion-mnist-resnet"
    description = "Fashion-MNIST, a ResNet of nine convolutions"

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        train_size: int = 10_000,
        validation_size: int = 2_000,
        subset: str = "random",
        image_size: int = 28,
        width: int = 16,
        blocks: Sequence[int] = (1, 1, 1),
        optimizer: str = "adam",
        epochs: int = 25,
        batch_size: int = 128,
        schedule: str = "cosine",
        parameters: Sequence[str] = ("lr", "weight_decay"),
        measure_response: bool = True,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            schedule=schedule,
            parameters=parameters,
            measure_response=measure_response,
            device=device,
        )
        check_choice("subset", subset, ("random", "first"))
        self._data_dir = check_folder("data_dir", data_dir)
        self._sizes = (
            check_count("train_size", train_size, 2),
            check_count("validation_size", validation_size),
        )
        if sum(self._sizes) > _TRAINING_IMAGES:
            raise InvalidValueError(
                f"train_size + validation_size must be at most {_TRAINING_IMAGES}, "
                f"got {sum(self._sizes)}"
            )
        self._subset = subset
        self._image_size = check_count("image_size", image_size, 4)
        self._width = check_count("width", width)
        self._blocks = check_counts("blocks", blocks)
        self.options |= {
            "data_dir": self._data_dir,
            "train_size": train_size,
            "validation_size": validation_size,
            "subset": subset,
            "image_size": image_size,
            "width": width,
            "blocks": list(self._blocks),
        }

    def _files(self) -> dict[str, Path] | None:
        return find_files(_FILES, _folders(self._data_dir))

    def missing(self) -> str | None:
        """None, unless the four files are nowhere to be found."""
        if self._files() is not None:
            return None
        where = self._data_dir or "TUNE_EXT_DATA, ./data or /usr/share/datasets/fashion-mnist"
        return (
            f"Fashion-MNIST is not in {where}: torchvision.datasets.FashionMNIST('data', "
            "download=True) fetches it into ./data, or on Debian and Ubuntu "
            "apt install dataset-fashion-mnist"
        )

    def _split(self, seed: int) -> Split:
        files = self._files()
        if files is None:
            raise DataNotFoundError(self.missing() or "Fashion-MNIST is not here")
        paths = tuple(files[name].resolve() for name in _FILES)
        key = 0 if self._subset == "first" else seed
        return _fashion(paths, self._sizes, self._image_size, self._subset, key)

    def _network(self) -> nn.Module:
        from tune_ext.benchmark.tasks._networks import ResNet

        return ResNet(1, 10, self._width, self._blocks)
