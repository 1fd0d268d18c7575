"""Data that is read once on a machine: the trials that train there map the same files.

On a cluster, and wherever the environment variable TUNE_EXT_CACHE names a directory, the arrays
of a data set are kept in files there (`tune_ext._array_files`); elsewhere each process reads its
own. The numbers are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ext._array_files import CACHE_VARIABLE, Made, open_or_make
from tune_ext.benchmark.tasks._datasets import DataSet, Images, PartName, open_part
from tune_ext.resizing import fingerprint_of_files

__all__ = ["part_images", "part_labels", "shared", "sharing"]

_FILES = {
    "MNIST": "*-ubyte*",
    "Fashion-MNIST": "*-ubyte*",
    "CIFAR-10": "cifar-10-batches-py/*",
    "CIFAR-100": "cifar-100-python/*",
    "STL-10": "stl10_binary/*.bin",
    "Flowers102": "flowers-102/**/*",
}
"""The files of a data set in its folder, where other things may lie as well."""


def sharing() -> bool:
    """Whether arrays are kept in files."""
    return bool(os.environ.get(CACHE_VARIABLE))


def shared(name: str, origin: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """An array that is made once on this machine, or in this process where nothing is shared.

    Args:
        name: What its file's name begins with.
        origin: What it depends on.
        make: Makes it.
    """
    if not sharing():
        return make()

    def made() -> Made:
        array = make()
        return array.shape, array.dtype, [array]

    return open_or_make(name, origin, made)


def part_labels(data: DataSet, folder: Path, part: PartName) -> NDArray[np.int64]:
    """The class of each image of a part."""
    if not sharing():
        return open_part(data, folder, part).labels
    return shared("labels", _origin(data, folder, part), lambda: _open(data, folder, part).labels)


def part_images(
    data: DataSet, folder: Path, part: PartName, size: int, rows: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Some images of a part as bytes, n × channels × size × size.

    Args:
        data: The data set.
        folder: Where it was found.
        part: Which part.
        size: Height and width.
        rows: Which images.
    """
    if not sharing():
        return open_part(data, folder, part).load(rows, size)
    origin = f"{_origin(data, folder, part)}|{size}|{_digest(rows)}"
    return shared(f"images-{size}", origin, lambda: _open(data, folder, part).load(rows, size))


def _open(data: DataSet, folder: Path, part: PartName) -> Images:
    """The part, which is not kept in this process: the files that are made of it are read."""
    opened: Images = open_part.__wrapped__(data, folder, part)
    return opened


@lru_cache(maxsize=8)
def _origin(data: DataSet, folder: Path, part: PartName) -> str:
    pattern = _FILES.get(data.title, "**/*")
    files = fingerprint_of_files(p for p in sorted(folder.glob(pattern)) if p.is_file())
    return f"{data.title}|{part}|{folder}|{files}"


def _digest(rows: NDArray[np.int64]) -> str:
    return blake2b(np.ascontiguousarray(rows, np.int64).data, digest_size=16).hexdigest()
