"""Examples as arrays: parts and splits, idx files, and where they may lie."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast, overload

import numpy as np
from numpy.typing import NDArray

from tune_ext.errors import DataNotFoundError

__all__ = [
    "Batches",
    "Part",
    "Parts",
    "Split",
    "channel_scale",
    "data_roots",
    "find_files",
    "read_idx",
    "read_images",
    "resize",
    "stratified",
    "stratified_order",
]

_BYTES = np.arange(256, dtype=np.float64)


@dataclass(frozen=True)
class Part:
    """Some examples with their answers.

    Attributes:
        images: n × channels × height × width (or n × features): float32, ready to be used, or
            the bytes of more images than these, to save memory.
        labels: The classes, int64; for a regression, float32.
        rows: Which of `images` these are; None: all, in order.
        scale: What bytes are scaled by: the mean and the deviation of each channel, float32;
            None where `images` are ready.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    rows: NDArray[np.int64] | None = None
    scale: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, which: slice) -> NDArray[Any]:
        """Some of the images, ready to be used."""
        images = self.images[which if self.rows is None else self.rows[which]]
        if self.scale is None:
            return images
        mean, deviation = (a[:, None, None] for a in self.scale)
        return cast("NDArray[Any]", (images.astype(np.float32) - mean) / deviation)


class Parts(Protocol):
    """The three parts of a data set; see `Split`."""

    @property
    def train(self) -> Part:
        """What the weights are fitted to."""
        ...

    @property
    def validation(self) -> Part:
        """What hyper-parameters may be chosen by."""
        ...

    @property
    def test(self) -> Part:
        """What the final recommendation is judged by; perhaps only now read."""
        ...


class Batches(Sequence[NDArray[Any]]):
    """The inputs of an epoch in order, made when they are asked for.

    Args:
        part: The examples.
        size: Of a batch; an incomplete last one is left out.

    >>> part = Part(np.arange(10.0).reshape(5, 2), np.arange(5))
    >>> [batch.tolist() for batch in Batches(part, 2)]
    [[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]]
    """

    def __init__(self, part: Part, size: int) -> None:
        self._part, self._size = part, size

    def __len__(self) -> int:
        return max(1, len(self._part) // self._size)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[Any]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | list[NDArray[Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        step = range(len(self))[index]
        return self._part.inputs(slice(step * self._size, (step + 1) * self._size))


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


def stratified_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of the indices of `labels` whose every piece keeps the classes' shares.

    The k-th of a class's n members, in random order, stands at a random place between k / n
    and (k + 1) / n of the way.

    Args:
        labels: The class of each item.
        rng: Decides the order.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(place, kind="stable")


def channel_scale(
    images: NDArray[np.uint8], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean and the deviation of each channel of some images, from exact counts of bytes.

    A channel that is the same everywhere has deviation 1.

    Args:
        images: n × channels × height × width.
        rows: Of which images.
    """
    counts = np.zeros((images.shape[1], 256))
    for start in range(0, len(rows), 1000):
        chunk = images[rows[start : start + 1000]]
        for channel, total in enumerate(counts):
            total += np.bincount(chunk[:, channel].ravel(), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ _BYTES
    deviation = np.sqrt(np.maximum(shares @ _BYTES**2 - mean**2, 0))
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


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


def data_roots(data_dir: str | None) -> list[Path]:
    """Where data may lie, in order: where it was said to be, or else the usual places."""
    environment = os.environ.get("TUNE_EXT_DATA")
    roots = [data_dir] if data_dir else [environment, "data", "~/data", "~/.cache/torchvision"]
    return [Path(root).expanduser() for root in roots if root]


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


def read_images(
    images: Path, labels: Path, what: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read two idx files: grey images of 28×28 pixels and their ten classes.

    Args:
        images: The file of images.
        labels: The file of labels.
        what: What they should be, in words.

    Raises:
        DataNotFoundError: They are damaged, or something else.
    """
    pixels, classes = read_idx(images, 3), read_idx(labels, 1).astype(np.int64)
    fits = pixels.shape == (len(classes), 28, 28) and len(classes) > 0
    if not fits or classes.max() > 9:
        raise DataNotFoundError(
            f"{images} and {labels} are not {what}: they hold images of "
            f"shape {pixels.shape} and labels of shape {classes.shape}; fetch them again"
        )
    return pixels, classes
