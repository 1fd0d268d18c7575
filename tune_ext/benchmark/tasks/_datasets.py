"""The image data sets: where they lie, and how they become arrays of bytes.

Nothing is ever downloaded. torchvision's data sets check and read the files; idx files are read
here, because they are also found where torchvision does not look, and packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tune_ext.benchmark.tasks._data import data_roots, find_files, read_images
from tune_ext.errors import DataNotFoundError

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "FASHION_MNIST",
    "FLOWERS102",
    "MNIST",
    "STL10",
    "DataSet",
    "Images",
    "PartName",
    "decode",
    "open_part",
]

PartName = Literal["train", "test"]


class Images(Protocol):
    """Labelled images that are read when they are needed."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each."""
        ...

    def load(self, rows: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Some of them as bytes, n × channels × size × size."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Images that come as one array."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def load(self, rows: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """See `Images.load`: bilinear with antialiasing."""
        if self.images.shape[-1] == size:
            everything = np.array_equal(rows, np.arange(len(self.images)))
            return self.images if everything else self.images[rows]
        import torch
        from torch.nn.functional import interpolate

        out = np.empty((len(rows), self.images.shape[1], size, size), np.uint8)
        for start in range(0, len(rows), 1000):
            pixels = torch.from_numpy(self.images[rows[start : start + 1000]]).float()
            small = interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
            out[start : start + 1000] = small.round().clamp(0, 255).byte().numpy()
        return out


@dataclass(frozen=True)
class OnDisk:
    """Images that are a file each.

    Attributes:
        paths: Their files.
        labels: The class of each.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]

    def load(self, rows: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """See `Images.load`: the middle square, in colour."""
        return decode([self.paths[row] for row in rows], size)


def decode(paths: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """Read pictures: the middle square of each, n × 3 × size × size; several at once.

    Args:
        paths: Files of any format that Pillow reads.
        size: The new height and width.

    Raises:
        DataNotFoundError: A file cannot be read.
    """
    from PIL import Image, ImageOps

    out = np.empty((len(paths), 3, size, size), np.uint8)

    def read(index: int) -> None:
        try:
            with Image.open(paths[index]) as picture:
                picture.draft("RGB", (size, size))  # decodes a large JPEG in part
                square = ImageOps.fit(
                    picture.convert("RGB"), (size, size), Image.Resampling.BILINEAR
                )
        except (OSError, SyntaxError) as error:
            raise DataNotFoundError(
                f"{paths[index]} cannot be read ({error}): fetch it again"
            ) from error
        out[index] = np.asarray(square).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), 4096):  # few jobs wait at a time
            list(pool.map(read, range(start, min(start + 4096, len(paths)))))
    return out


@dataclass(frozen=True)
class DataSet:
    """What is known about a data set, and how to find and read it.

    Attributes:
        title: Its name.
        channels: 1 or 3.
        classes: How many.
        size: Height and width of its images, or the usual one where they differ.
        find: The folder to be read below one of the usual places (or in one that was named), or
            None.
        read: Reads a part from that folder.
        fetch: How to get it.
        flip: Whether a mirrored image is of the same class.
        validation_share: Of the training images, where nothing else is asked for.
    """

    title: str
    channels: int
    classes: int
    size: int
    find: Callable[[str | None], Path | None]
    read: Callable[[Path, PartName], Images]
    fetch: str
    flip: bool = True
    validation_share: float = 0.1


@lru_cache(maxsize=4)
def open_part(data: DataSet, folder: Path, part: PartName) -> Images:
    """A part of a data set, kept in this process.

    Raises:
        DataNotFoundError: It is damaged, or something else.
    """
    try:
        images = data.read(folder, part)
    except DataNotFoundError:
        raise
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise DataNotFoundError(
            f"{folder} does not hold {data.title} as it should ({error}): {data.fetch} again"
        ) from error
    labels = images.labels
    if not len(labels):
        raise DataNotFoundError(f"{folder} holds no images for {part}: {data.fetch}")
    if labels.min() < 0 or labels.max() >= data.classes:
        raise DataNotFoundError(f"{folder} holds labels that {data.title} has not: {data.fetch}")
    return images


# Files in the idx format ---------------------------------------------------------------

_IDX = {"train": "train", "test": "t10k"}
_IDX_FILES = [f"{p}-{kind}-ubyte" for p in _IDX.values() for kind in ("images-idx3", "labels-idx1")]


def _idx_folders(name: str, folder: str, data_dir: str | None) -> Iterator[Path]:
    for root in data_roots(data_dir):
        yield from (root / name / "raw", root / folder)
    if data_dir:  # all such data sets have the same names of files: these places must be named
        yield from (Path(data_dir).expanduser() / "raw", Path(data_dir).expanduser())
    else:
        yield Path("/usr/share/datasets") / folder


def _idx(title: str, name: str, folder: str, fetch: str, *, flip: bool) -> DataSet:
    def find(data_dir: str | None) -> Path | None:
        files = find_files(_IDX_FILES, _idx_folders(name, folder, data_dir))
        return None if files is None else files[_IDX_FILES[0]].parent

    def read(found: Path, part: PartName) -> Images:
        wanted = [f"{_IDX[part]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        files = find_files(wanted, [found]) or {}
        images, labels = read_images(files[wanted[0]], files[wanted[1]], title)
        return InMemory(images[:, None].copy(), labels)  # torch wants to be able to write

    return DataSet(title, 1, 10, 28, find, read, fetch, flip)


def _call(name: str) -> str:
    return f"torchvision.datasets.{name} fetches it into ./data"


MNIST = _idx("MNIST", "MNIST", "mnist", _call("MNIST('data', download=True)"), flip=False)
FASHION_MNIST = _idx(
    "Fashion-MNIST",
    "FashionMNIST",
    "fashion-mnist",
    _call("FashionMNIST('data', download=True)")
    + ", or on Debian and Ubuntu apt install dataset-fashion-mnist",
    flip=True,
)

# What torchvision reads ----------------------------------------------------------------


def _below(*files: str) -> Callable[[str | None], Path | None]:
    """Find the folder that has all of `files`; also where their own folder was named."""

    def find(data_dir: str | None) -> Path | None:
        for root in data_roots(data_dir):
            for folder in (root, root.parent) if data_dir else (root,):
                if all((folder / file).exists() for file in files):
                    return folder
        return None

    return find


def _cifar(name: str) -> Callable[[Path, PartName], Images]:
    def read(root: Path, part: PartName) -> Images:
        from torchvision import datasets

        data: Any = getattr(datasets, name)(root, train=part == "train", download=False)
        images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
        return InMemory(images, np.asarray(data.targets, np.int64))

    return read


def _read_stl10(root: Path, part: PartName) -> Images:
    from torchvision import datasets

    data: Any = datasets.STL10(root, split=part, download=False)
    return InMemory(np.ascontiguousarray(data.data), np.asarray(data.labels, np.int64))


def _read_flowers(root: Path, part: PartName) -> Images:
    from torchvision import datasets

    labels: list[int] = []
    paths: list[Path] = []
    for split in ("train", "val") if part == "train" else ("test",):
        # A loader that does not load: the pictures are read when their size is known.
        data: Any = datasets.Flowers102(root, split=split, download=False, loader=Path)
        for index in range(len(data)):
            path, label = data[index]
            paths.append(path)
            labels.append(int(label))
    return OnDisk(paths, np.asarray(labels, np.int64))


_CIFAR10 = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
_STL10 = ("train_X", "train_y", "test_X", "test_y", "unlabeled_X")

CIFAR10 = DataSet(
    "CIFAR-10",
    3,
    10,
    32,
    _below(*(f"cifar-10-batches-py/{file}" for file in _CIFAR10)),
    _cifar("CIFAR10"),
    _call("CIFAR10('data', download=True)"),
)
CIFAR100 = DataSet(
    "CIFAR-100",
    3,
    100,
    32,
    _below(*(f"cifar-100-python/{file}" for file in ("train", "test", "meta"))),
    _cifar("CIFAR100"),
    _call("CIFAR100('data', download=True)"),
)
STL10 = DataSet(
    "STL-10",
    3,
    10,
    96,
    _below(*(f"stl10_binary/{file}.bin" for file in _STL10)),
    _read_stl10,
    _call("STL10('data', download=True)"),
)
FLOWERS102 = DataSet(
    "Flowers102",
    3,
    102,
    64,
    _below(*(f"flowers-102/{file}" for file in ("jpg", "imagelabels.mat", "setid.mat"))),
    _read_flowers,
    _call("Flowers102('data', download=True)"),
    validation_share=0.5,
)
