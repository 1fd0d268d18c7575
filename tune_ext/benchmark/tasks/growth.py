"""Image classification at any image size: what searches over growing images are compared on.

The network, its parameters and the early stop are those of Hinz, Navarro-Guerrero, Magg and
Wermter (arXiv 1807.07362); the ranges are ours (`tune_ext.spaces.growth_space`). A configuration
may say at which `image_size` it is trained; where it does not, that is the full size. The size is
no parameter of the searched space: a search over growing images sets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import check_count, check_flag, check_folder
from tune_ext._random import check_seed
from tune_ext.benchmark.tasks import _datasets, _image_folder, _shapes
from tune_ext.benchmark.tasks._datasets import DataSet, Images, InMemory, PartName
from tune_ext.benchmark.tasks._growth_data import Source, from_data_set
from tune_ext.benchmark.tasks._growth_task import MOST_WEIGHTS, GrowthTask
from tune_ext.errors import DataNotFoundError, InvalidTypeError

__all__ = [
    "GROWTH_TASKS",
    "FashionMNISTGrowth",
    "Flowers102Growth",
    "GrowthTask",
    "ImageFolderGrowth",
    "STL10Growth",
    "ShapesGrowth",
]


class ShapesGrowth(GrowthTask):
    """Generated pictures of shapes with textures, ten classes; see `_shapes` and `GrowthTask`.

    They are drawn at 128×128 when the first trial needs them (some 4 milliseconds each), and
    kept; nothing is downloaded.
    """

    name = "shapes-growth"
    description = "generated shapes with textures (128×128) at any image size; a CNN and its space"

    def __init__(
        self,
        *,
        size: int = _shapes.SIZE,
        cache_dir: str | None = None,
        train_size: int | None = 1_000,
        validation_size: int | None = 500,
        test_size: int = 1_000,
        data_seed: int = 0,
        grey: bool = False,
        epochs: int = 30,
        patience: int | None = 5,
        optimizer: str = "adam",
        limits: Mapping[str, tuple[float, float]] | None = None,
        flat: bool = False,
        global_pooling: bool = False,
        most_weights: int = MOST_WEIGHTS,
        device: str = "cpu",
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            size=size,
            cache_dir=cache_dir,
            train_size=train_size,
            validation_size=validation_size,
            epochs=epochs,
            patience=patience,
            optimizer=optimizer,
            limits=limits,
            flat=flat,
            global_pooling=global_pooling,
            most_weights=most_weights,
            device=device,
            sizes=sizes,
        )
        self._grey = check_flag("grey", grey)
        self._test_size = check_count("test_size", test_size)
        seed_of_data = check_seed(data_seed, "data_seed")
        if seed_of_data is None:
            raise InvalidTypeError("data_seed must be an integer, got None")
        self._data_seed = seed_of_data
        train, validation = (1_000 if n is None else n for n in self._sizes)
        self._count = train + validation
        self.options |= {
            "test_size": self._test_size,
            "data_seed": self._data_seed,
            "grey": self._grey,
        }

    def missing(self) -> str | None:
        """None: it is made where it is needed."""
        return None

    def _channels(self) -> int:
        return 1 if self._grey else 3

    def _classes(self) -> int:
        return len(_shapes.CLASSES)

    def _source(self) -> Source:
        counts = {"train": self._count, "test": self._test_size}
        told = f"{_shapes.VERSION}|{self._data_seed}|{self._count}|{self._test_size}"
        read = partial(_drawn, counts, self._data_seed)
        return Source("shapes", self._size, self._grey, told, read, self._cache_dir)


class _Drawn:
    """Images that are drawn when they are loaded."""

    def __init__(self, count: int, seed: int, part: str) -> None:
        self.labels, self._seed, self._part = _shapes.labels_of(count), seed, part

    def load(self, rows: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """See `Images.load`."""
        images = _shapes.pictures(len(self.labels), seed=self._seed, part=self._part)
        return InMemory(images, self.labels).load(rows, size)


def _drawn(counts: Mapping[str, int], seed: int, part: PartName) -> Images:
    return _Drawn(counts[part], seed, part)


class _FilesGrowth(GrowthTask):
    """A data set of files."""

    data: ClassVar[DataSet]
    files: ClassVar[tuple[str, ...]]
    """Patterns of the names of its files, in the folder where it is found."""
    usual: ClassVar[int]
    """The full size, where nothing else is asked for."""

    def __init__(
        self,
        *,
        size: int | None = None,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        train_size: int | None = None,
        validation_size: int | None = None,
        grey: bool | None = None,
        epochs: int = 30,
        patience: int | None = 5,
        optimizer: str = "adam",
        limits: Mapping[str, tuple[float, float]] | None = None,
        flat: bool = False,
        global_pooling: bool = False,
        most_weights: int = MOST_WEIGHTS,
        device: str = "cpu",
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            size=self.usual if size is None else size,
            cache_dir=cache_dir,
            train_size=train_size,
            validation_size=validation_size,
            epochs=epochs,
            patience=patience,
            optimizer=optimizer,
            limits=limits,
            flat=flat,
            global_pooling=global_pooling,
            most_weights=most_weights,
            device=device,
            sizes=sizes,
        )
        self._data_dir = check_folder("data_dir", data_dir)
        self._grey = self.grey if grey is None else check_flag("grey", grey)
        self.options |= {"data_dir": self._data_dir, "grey": self._grey}

    def missing(self) -> str | None:
        """None, unless the files are nowhere to be found."""
        if self.data.find(self._data_dir) is not None:
            return None
        where = self._data_dir or "TUNE_EXT_DATA, ./data, ~/data or ~/.cache/torchvision"
        return f"{self.data.title} is not in {where}: {self.data.fetch}"

    def _folder(self) -> Path:
        folder = self.data.find(self._data_dir)
        if folder is None:
            raise DataNotFoundError(self.missing() or f"{self.data.title} is not here")
        return folder.resolve()

    def _channels(self) -> int:
        return 1 if self._grey else self.data.channels

    def _classes(self) -> int:
        return self.data.classes

    def _source(self) -> Source:
        return from_data_set(
            self.data, self._folder(), self.files, self._size, self._grey, self._cache_dir
        )


class FashionMNISTGrowth(_FilesGrowth):
    """70,000 garments of 28×28 pixels (arXiv 1708.07747); see `GrowthTask`."""

    name = "fashion-mnist-growth"
    description = "Fashion-MNIST at any image size (28, 21, 14, …); a CNN and its space"
    data = _datasets.FASHION_MNIST
    files = ("*-ubyte", "*-ubyte.gz")
    usual = 28


class STL10Growth(_FilesGrowth):
    """13,000 labelled photographs of 96×96 pixels, grey as in the paper; see `GrowthTask`."""

    name = "stl10-growth"
    description = "STL-10 (grey) at any image size (96, 48, 32, …); a CNN and its space"
    data = _datasets.STL10
    files = ("stl10_binary/t*_*.bin",)
    usual = 96
    grey = True


class Flowers102Growth(_FilesGrowth):
    """8,189 photographs of flowers, here of 128×128 pixels; see `GrowthTask`."""

    name = "flowers102-growth"
    description = "Flowers102 at any image size (128, 64, 32, …); a CNN and its space"
    data = _datasets.FLOWERS102
    files = ("flowers-102/*.mat", "flowers-102/jpg/*")
    usual = 128
    share = _datasets.FLOWERS102.validation_share


class ImageFolderGrowth(_FilesGrowth):
    """Pictures in a folder for each class, as Cohn-Kanade's; grey by option; see `GrowthTask`.

    See `tune_ext.benchmark.tasks.images.ImageFolder` for what the folders may look like. The
    full size is 128 where nothing else is asked for.
    """

    name = "image-folder-growth"
    description = "pictures in a folder for each class at any image size; a CNN and its space"
    data = _image_folder.IMAGE_FOLDER
    files = ("**/*",)
    usual = 128

    def _classes(self) -> int:
        return len(_image_folder.classes(self._folder()))


GROWTH_TASKS: tuple[type[GrowthTask], ...] = (
    FashionMNISTGrowth,
    ShapesGrowth,
    STL10Growth,
    Flowers102Growth,
    ImageFolderGrowth,
)
"""All of them, for the catalogue."""
