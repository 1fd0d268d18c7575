"""Images and labels as arrays: splits, idx files, and where they may lie."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from tune_ext.errors import DataNotFoundError

__all__ = ["Part", "Split", "find_files", "read_idx", "resize", "stratified"]


@dataclass(frozen=True)
class Part:
    """Some labelled images.

    Attributes:
        images: float32, n × channels × height × width.
        labels: int64, n.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """The three parts of a data set, scaled by the mean and deviation of the first.

    Attributes:
        train: What the weights are fitted to.
        validation: What hyper-parameters may be chosen by.
        test: What the final recommendation is judged by.
    """

    train: Part
    validation: Part
    test: Part

    @classmethod
    def scaled(cls, train: Part, validation: Part, test: Part) -> Split:
        """Scale all parts to the training images' zero mean and unit deviation."""
        mean = float(train.images.mean(dtype=np.float64))
        deviation = float(train.images.std(dtype=np.float64))

        def scale(part: Part) -> Part:
            images = (part.images - np.float32(mean)) / np.float32(deviation)
            return Part(np.ascontiguousarray(images), part.labels)

        return cls(scale(train), scale(validation), scale(test))


def stratified(
    labels: NDArray[np.int64], fractions: Iterable[float], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Split the indices of `labels` at random into parts that keep the classes' shares.

    Args:
        labels: The class of each item.
        fractions: The share of each part but the last, which gets the rest.
        rng: Decides who goes where.

    Returns:
        Sorted indices, one array a part.
    """
    bounds = np.cumsum(list(fractions))
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(len(bounds) + 1)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(bounds * len(members)).astype(int)
        for part, chunk in zip(parts, np.split(members, cuts), strict=True):
            part.append(chunk)
    return [np.sort(np.concatenate(part)) for part in parts]


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Bring square grey images to `size` and to [0, 1], with a channel axis.

    A divisor of the original size is average pooling; any other size is bilinear with
    antialiasing.

    Args:
        images: n × height × width.
        size: The new height and width.
    """
    old = images.shape[-1]
    if old == size:
        return images[:, None].astype(np.float32) / np.float32(255)
    if old % size == 0:
        k = old // size
        blocks = images.reshape(len(images), size, k, size, k)
        sums = blocks.sum(axis=(2, 4), dtype=np.float32)
        return cast("NDArray[np.float32]", sums[:, None] / np.float32(255 * k * k))
    import torch

    pixels = torch.from_numpy(images[:, None].astype(np.float32) / np.float32(255))
    resized = torch.nn.functional.interpolate(
        pixels, size=(size, size), mode="bilinear", antialias=True
    )
    return cast("NDArray[np.float32]", resized.numpy())


def find_files(names: Iterable[str], folders: Iterable[Path]) -> dict[str, Path] | None:
    """The first folder's files that has all of `names`, each plain or with .gz."""
    wanted = tuple(names)
    for folder in folders:
        found = {}
        for name in wanted:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    found[name] = path
                    break
        if len(found) == len(wanted):
            return found
    return None


def read_idx(path: str | os.PathLike[str], ndim: int) -> NDArray[np.uint8]:
    """Read a file of unsigned bytes in the idx format, plain or gzipped (by its name).

    The format: two zero bytes, the type (8 is unsigned byte), the number of dimensions,
    each dimension as a big-endian 32-bit integer, then the values.

    Args:
        path: The file.
        ndim: How many dimensions it must have.

    Raises:
        DataNotFoundError: The file cannot be read, or is not what it should be.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with cast(BinaryIO, opener(path, "rb")) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataNotFoundError(f"{path} cannot be read ({error}): fetch it again") from error
    header = 4 + 4 * ndim
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) < header:
        raise DataNotFoundError(
            f"{path} is not an idx file of unsigned bytes with {ndim} dimensions: fetch it again"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", ndim, offset=4))
    if len(data) - header != math.prod(shape):
        raise DataNotFoundError(
            f"{path} is damaged: it promises {math.prod(shape)} values and has "
            f"{len(data) - header}: fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
