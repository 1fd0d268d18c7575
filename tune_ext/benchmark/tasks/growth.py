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
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import as_number, check_choice, check_count
from tune_ext._growth_space import GROWTH_DEFAULTS, growth_space
from tune_ext._random import check_seed, derive_seed
from tune_ext.benchmark.tasks import _datasets, _image_folder, _shapes
from tune_ext.benchmark.tasks._datasets import DataSet, Images, InMemory, PartName
from tune_ext.benchmark.tasks._growth_data import Grown, Source, from_data_set, split
from tune_ext.benchmark.tasks._training_task import TrainingTask
from tune_ext.errors import (
    DataNotFoundError,
    InvalidConfigurationError,
    InvalidTypeError,
    InvalidValueError,
)

if TYPE_CHECKING:
    from torch import nn

    from tune_ext.benchmark.tasks._base import TaskRun

__all__ = [
    "GROWTH_TASKS",
    "FashionMNISTGrowth",
    "Flowers102Growth",
    "GrowthTask",
    "ImageFolderGrowth",
    "STL10Growth",
    "ShapesGrowth",
]

_SIZE = "image_size"
_MOST_WEIGHTS = 10_000_000
_LEAST_QUARTER = 14


class GrowthTask(TrainingTask):
    """A data set of images and the network of arXiv 1807.07362, trained at any image size.

    The test images are the official ones; training and validation images are disjoint parts of
    the others, drawn by seed with the classes' shares: the same ones at every size. Images are
    resized once for each size and kept in files that all trials of a machine share
    (`tune_ext.resizing`): of a part of n images, n × channels × size² bytes.

    A configuration that has more poolings than its image size allows, or more than `most_weights`
    weights, is an `InvalidConfigurationError`; a comparison counts its trial as failed.

    Args:
        size: The full height and width.
        data_dir: The only place to look for the files.
        cache_dir: Where the resized images are kept; None: the directory that TUNE_EXT_CACHE
            names, or else ~/.cache/tune_ext.
        train_size: Training images; None: all that are left.
        validation_size: Validation images; None: a tenth.
        grey: Whether colours are left out.
        epochs: The full length of a run.
        patience: Epochs without a lower validation error that end a run; None: none do.
        optimizer: "adam" or "sgd" (momentum 0.9), at a constant rate.
        limits: Other ranges; see `tune_ext.spaces.growth_space`.
        flat: Whether the space is without conditions; see there. Either way a configuration may
            have values of layers that it has not: they are ignored.
        global_pooling: Whether the last maps are averaged and not flattened.
        most_weights: Of a network; more are an invalid configuration, and not a machine without
            memory.
        device: Where to train.
        sizes: The image sizes that a search may grow through, increasing up to the full one;
            None: a quarter, a half and the whole of it, as published, or a half, three quarters
            and the whole where a quarter is less than 14 pixels.
    """

    loss = None  # its rate is no "lr" that a ladder could search
    grey: ClassVar[bool] = False
    share: ClassVar[float] = 0.1

    def __init__(
        self,
        *,
        size: int,
        cache_dir: str | None,
        train_size: int | None,
        validation_size: int | None,
        epochs: int,
        patience: int | None,
        optimizer: str,
        limits: Mapping[str, tuple[float, float]] | None,
        flat: bool,
        global_pooling: bool,
        most_weights: int,
        device: str,
        sizes: Sequence[int] | None,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            epochs=epochs,
            batch_size=int(GROWTH_DEFAULTS["batch_size"]),
            schedule="constant",
            parameters=("lr",),
            measure_response=False,
            device=device,
        )
        self._size = check_count("size", size, 2)
        self.image_sizes = _grown_sizes(self._size, sizes)
        self._cache_dir = None if cache_dir is None else str(cache_dir)
        self._sizes = (
            None if train_size is None else check_count("train_size", train_size, 2),
            None if validation_size is None else check_count("validation_size", validation_size),
        )
        self._patience = None if patience is None else check_count("patience", patience)
        self._pooled = bool(global_pooling)
        self._most_weights = check_count("most_weights", most_weights)
        given = {name: (low, high) for name, (low, high) in (limits or {}).items()}
        self.space = growth_space(flat=bool(flat), limits=given)
        every = growth_space(flat=True, limits=given)
        self.default_config = {k: v for k, v in _defaults(every).items()} | {_SIZE: self._size}
        self.options = {
            "size": self._size,
            "cache_dir": self._cache_dir,
            "train_size": self._sizes[0],
            "validation_size": self._sizes[1],
            "epochs": self.max_epochs,
            "patience": self._patience,
            "optimizer": optimizer,
            "limits": {name: list(pair) for name, pair in given.items()} or None,
            "flat": bool(flat),
            "global_pooling": self._pooled,
            "most_weights": self._most_weights,
            "device": device,
            "sizes": None if sizes is None else list(self.image_sizes),
        }

    def start(self, config: Mapping[str, Any], *, seed: int) -> TaskRun:
        """Start a run; see `Task.start`."""
        values = self._values(config)
        if check_seed(seed) is None:
            raise InvalidTypeError("seed must be an integer, got None")
        build = partial(self.build, values)
        self._check_weights(build)
        if problem := self.missing():
            raise DataNotFoundError(problem)
        from tune_ext.benchmark.tasks._growth_run import GrowthRun
        from tune_ext.benchmark.tasks._networks import build as weighted
        from tune_ext.benchmark.tasks._training import RunSettings

        settings = RunSettings(
            lr=values["learning_rate"],
            weight_decay=0.0,
            optimizer=self._optimizer,
            schedule="constant",
            epochs=self.max_epochs,
            batch_size=values["batch_size"],
            measure_response=False,
            device=self._device,
        )
        return GrowthRun(
            weighted(build, seed=derive_seed(seed, self.name, "weights")),
            self._parts(int(seed), values[_SIZE]),
            settings,
            seed=int(seed),
            l1=values["l1"],
            l2=values["l2"],
            patience=self._patience,
        )

    def _values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The default configuration, overwritten by `config`."""
        for name in config:
            check_choice("a name in config", name, self.default_config)
        values = {**self.default_config, **config}
        for name in ("learning_rate", "l1", "l2"):
            number = as_number(f"config[{name!r}]", values[name])
            if not 0 <= number < float("inf"):
                raise InvalidValueError(
                    f"config[{name!r}] must be a finite number of at least 0, got {number!r}"
                )
            values[name] = number
        for name in ("batch_size", _SIZE):
            values[name] = check_count(f"config[{name!r}]", values[name])
        return values

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The network of a configuration, for images of its size."""
        from tune_ext._growth_network import growth_network

        values = {**self.default_config, **config}
        return growth_network(
            values, self._channels(), self._classes(), values[_SIZE], global_pooling=self._pooled
        )

    def _check_weights(self, build: partial[nn.Module]) -> None:
        import torch

        with torch.device("meta"):
            weights = sum(p.numel() for p in build().parameters())
        if weights > self._most_weights:
            raise InvalidConfigurationError(
                f"the network has {weights:,} weights, and the option most_weights allows "
                f"{self._most_weights:,}: take more convolutions (each is followed by a pooling) "
                "or fewer filters and units"
            )

    def _split(self, seed: int) -> Grown:
        return self._parts(int(seed), self._size)

    def _parts(self, seed: int, size: int) -> Grown:
        return split(self._source(), size, *self._sizes, self.share, seed)

    def _network(self) -> nn.Module:
        return self.build(self.default_config)

    def _source(self) -> Source:
        raise NotImplementedError

    def _channels(self) -> int:
        raise NotImplementedError

    def _classes(self) -> int:
        raise NotImplementedError


def _grown_sizes(size: int, sizes: Sequence[int] | None) -> tuple[int, ...]:
    if sizes is None:
        parts = (size // 4, size // 2, size)
        parts = parts if parts[0] >= _LEAST_QUARTER else (size // 2, 3 * size // 4, size)
        return tuple(sorted({max(2, part) for part in parts}))
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise InvalidTypeError(f"sizes must be a list of whole numbers, got {sizes!r}")
    checked = tuple(check_count("a size of sizes", part, 2) for part in sizes)
    if not checked or list(checked) != sorted(set(checked)) or checked[-1] != size:
        raise InvalidValueError(f"sizes must increase up to size={size}, got {list(checked)}")
    return checked


def _defaults(space: Any) -> dict[str, Any]:
    config = dict(space.get_default_configuration())
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in config.items()}


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
        most_weights: int = _MOST_WEIGHTS,
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
        self._grey = bool(grey)
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
        most_weights: int = _MOST_WEIGHTS,
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
        self._data_dir = None if data_dir is None else str(data_dir)
        self._grey = self.grey if grey is None else bool(grey)
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
