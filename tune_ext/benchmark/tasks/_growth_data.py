"""Data sets that are had at any size: labels and images from files that all trials share.

The images of a part are brought to the full size once, made grey where that is asked for, and
from there to every other size (`tune_ext.resizing`). A process that finds the files reads nothing
of the original data set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tune_ext import _array_files
from tune_ext._random import generator
from tune_ext.benchmark.tasks._data import Part, channel_scale, stratified_order
from tune_ext.benchmark.tasks._datasets import DataSet, Images, PartName, open_part
from tune_ext.errors import InvalidValueError
from tune_ext.resizing import fingerprint_of_files, resized

__all__ = ["Grown", "Source", "from_data_set", "split"]


@dataclass(frozen=True)
class Source:
    """A data set at any size.

    Attributes:
        title: What it is called.
        full: Height and width from which the other sizes are made.
        grey: Whether its colours are left out.
        fingerprint: What tells its images from all others.
        read: Reads a part, where the files are not there yet.
        cache_dir: Where the files are; None: see `tune_ext.resizing.resized`.
    """

    title: str
    full: int
    grey: bool
    fingerprint: str
    read: Callable[[PartName], Images]
    cache_dir: str | None

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self._key == other._key

    @property
    def _key(self) -> tuple[object, ...]:
        return self.title, self.full, self.grey, self.fingerprint, self.cache_dir

    def labels(self, part: PartName) -> NDArray[np.int64]:
        """The class of each image of a part."""

        def make() -> _array_files.Made:
            labels = self.read(part).labels
            return labels.shape, labels.dtype, [labels]

        origin = f"labels|{self.title}|{part}|{self.fingerprint}"
        return _array_files.open_or_make("labels", origin, make, directory=self.cache_dir)

    def images(self, part: PartName, size: int) -> NDArray[np.uint8]:
        """All images of a part, n × channels × size × size, mapped from a file."""
        kind = "grey" if self.grey else "as they are"
        origin = f"{self.title}|{part}|{self.fingerprint}|{self.full}|{kind}"
        at = partial(resized, fingerprint=origin, cache_dir=self.cache_dir)
        full = partial(at, partial(self._load, part), self.full)
        return full() if size == self.full else at(full, size)

    def _load(self, part: PartName) -> NDArray[np.uint8]:
        source = self.read(part)
        images = source.load(np.arange(len(source.labels)), self.full)
        return _greyed(images) if self.grey and images.shape[1] == 3 else images


def _greyed(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The brightness of colours, n × 1 × height × width (ITU-R BT.601, as torchvision's)."""
    import torch
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    out = np.empty((len(images), 1, *images.shape[2:]), np.uint8)
    for start in range(0, len(images), 1000):
        pixels = torch.from_numpy(np.array(images[start : start + 1000]))
        out[start : start + 1000] = rgb_to_grayscale(pixels).numpy()
    return out


@lru_cache(maxsize=8)
def from_data_set(
    data: DataSet,
    folder: Path,
    files: tuple[str, ...],
    full: int,
    grey: bool,
    cache_dir: str | None,
) -> Source:
    """A data set of files; what they are is looked up once in this process.

    Args:
        data: What it is.
        folder: Where it was found.
        files: Patterns of the names of its files in there.
        full: See `Source`.
        grey: See `Source`.
        cache_dir: See `Source`.
    """
    paths = (path for pattern in files for path in sorted(folder.glob(pattern)))
    fingerprint = fingerprint_of_files(path for path in paths if path.is_file())
    # Not kept in this process: the files that are made of it are what is read.
    read = partial(open_part.__wrapped__, data, folder)
    return Source(data.title, full, grey, fingerprint, read, cache_dir)


@dataclass(frozen=True)
class Grown:
    """The parts of a data set for one seed and size; the test images are read when used."""

    train: Part
    validation: Part
    source: Source
    size: int

    @cached_property
    def test(self) -> Part:
        """The official test images."""
        images, labels = self.source.images("test", self.size), self.source.labels("test")
        return replace(self.train, images=images, labels=labels, rows=np.arange(len(labels)))


@lru_cache(maxsize=4)
def split(
    source: Source, size: int, train: int | None, validation: int | None, share: float, seed: int
) -> Grown:
    """Disjoint training and validation images: the same ones for a seed at every size.

    Args:
        source: The data set.
        size: Height and width.
        train: How many training images; None: all that are left.
        validation: How many validation images; None: `share` of all.
        share: See `validation`.
        seed: Decides which.

    Raises:
        InvalidValueError: There are not so many.
    """
    labels = source.labels("train")
    total = len(labels)
    held_out = max(1, round(total * share)) if validation is None else validation
    count = total - held_out if train is None else train
    if count < 2 or count + held_out > total:
        raise InvalidValueError(
            f"train_size + validation_size must be at most {total}, got {count} + {held_out}"
        )
    order = stratified_order(labels, generator(seed, source.title, "split"))
    # In order within a part: neighbours share pages of the file.
    held, rows = np.sort(order[:held_out]), np.sort(order[held_out : held_out + count])
    images = source.images("train", size)
    scale = channel_scale(images, rows)
    return Grown(
        Part(images, labels[rows], rows, scale),
        Part(images, labels[held], held, scale),
        source,
        size,
    )
