"""The image data sets of the field and their networks, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from tune_ext._checks import check_count, check_flag, check_folder
from tune_ext._random import generator
from tune_ext.benchmark.tasks import _datasets, _image_folder
from tune_ext.benchmark.tasks._data import Part, channel_scale, stratified_order
from tune_ext.benchmark.tasks._datasets import DataSet
from tune_ext.benchmark.tasks._shared import part_images, part_labels
from tune_ext.benchmark.tasks._training_task import TrainingTask
from tune_ext.errors import DataNotFoundError, InvalidValueError

if TYPE_CHECKING:
    from torch import nn

    from tune_ext.benchmark.tasks._augment import Augmentation

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "IMAGE_TASKS",
    "MNIST",
    "STL10",
    "FashionMNIST",
    "Flowers102",
    "ImageDataTask",
    "ImageFolder",
    "check_network",
]

_NETWORKS = ("small-resnet", "resnet18", "resnet34", "vgg16")


def check_network(name: str) -> str:
    """The name of a network, unless there is none of that name.

    Raises:
        InvalidValueError: There is no such network.

    >>> check_network("wrn-28-10")
    'wrn-28-10'
    """
    if name in _NETWORKS:
        return name
    shape = re.fullmatch(r"wrn-(\d+)-([1-9]\d*)", str(name))
    if shape is None or int(shape[1]) < 10 or int(shape[1]) % 6 != 4:
        raise InvalidValueError(
            f"network must be one of {', '.join(_NETWORKS)} or wrn-DEPTH-WIDTH with a depth of "
            f"6n + 4, as wrn-16-4, got {name!r}"
        )
    return str(name)


@dataclass(frozen=True)
class _Drawn:
    """The parts of a data set for one seed; the test images are read when they are used."""

    train: Part
    validation: Part
    data: DataSet
    folder: Path
    size: int

    @cached_property
    def test(self) -> Part:
        """The official test images."""
        images = _test_images(self.data, self.folder, self.size)
        return replace(images, scale=self.train.scale)


@lru_cache(maxsize=1)
def _all_images(data: DataSet, folder: Path, size: int) -> NDArray[np.uint8]:
    rows = np.arange(len(part_labels(data, folder, "train")))
    return part_images(data, folder, "train", size, rows)


@lru_cache(maxsize=1)
def _test_images(data: DataSet, folder: Path, size: int) -> Part:
    labels = part_labels(data, folder, "test")
    rows = np.arange(len(labels))
    return Part(part_images(data, folder, "test", size, rows), labels, rows)


@lru_cache(maxsize=2)
def _draw(
    data: DataSet, folder: Path, size: int, sizes: tuple[int | None, int | None], seed: int
) -> _Drawn:
    """Draw disjoint training and validation images from those that are for training."""
    known = part_labels(data, folder, "train")
    total = len(known)
    validation = max(1, round(total * data.validation_share)) if sizes[1] is None else sizes[1]
    train = total - validation if sizes[0] is None else sizes[0]
    if train < 2 or train + validation > total:
        raise InvalidValueError(
            f"train_size + validation_size must be at most {total}, got {train} + {validation}"
        )
    order = stratified_order(known, generator(seed, data.title, "split"))
    order = order[: train + validation]
    labels = known[order]
    if len(order) == total:  # the same for every seed
        images, rows = _all_images(data, folder, size), order
    else:
        images = part_images(data, folder, "train", size, order)
        rows = np.arange(len(order))
    scale = channel_scale(images, rows[validation:])
    return _Drawn(
        Part(images, labels[validation:], rows[validation:], scale),
        Part(images, labels[:validation], rows[:validation], scale),
        data,
        folder,
        size,
    )


class ImageDataTask(TrainingTask):
    """A data set of images and a network, both by name.

    The test images are the official ones. Training and validation images are disjoint parts of
    the official training images, drawn by seed, with the classes' shares.

    Nothing is ever downloaded: the files are looked for in `data_dir`, or, without one, in the
    directory that the environment variable TUNE_EXT_DATA names, ./data, ~/data and
    ~/.cache/torchvision, as torchvision lays them there.

    Images are kept in memory as bytes, size² × channels each, and scaled batch by batch by the
    mean and deviation of each channel of the training images.

    Args:
        data_dir: The only place to look for the files.
        network: "small-resnet" (9 convolutions), "resnet18", "resnet34", "vgg16" (with batch
            normalisation), or a wide ResNet as "wrn-16-4" (depth and width). ResNets have the
            usual stem for small images up to 64 pixels; VGG-16 ends in one linear layer.
        width: Channels of the first stage of "small-resnet".
        train_size: Training images; None: all that are left.
        validation_size: Validation images; None: a tenth (of Flowers102 one half: its own).
        image_size: Height and width; None: as they are, or the usual size where they differ.
        augment: Whether training images are cropped after padding by an eighth and, where that
            keeps the class, flipped at random; None: for colour images.
        optimizer: "adam" or "sgd" (momentum 0.9).
        epochs: The full length of a run.
        batch_size: Images in a batch.
        schedule: "cosine" (per epoch, over `epochs`) or "constant".
        parameters: What is searched: "lr", "weight_decay" or both.
        measure_response: Whether runs report the response of the network.
        device: Where to train, as "cuda".
    """

    data: ClassVar[DataSet]

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        network: str = "small-resnet",
        width: int = 16,
        train_size: int | None = None,
        validation_size: int | None = None,
        image_size: int | None = None,
        augment: bool | None = None,
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
        self._data_dir = check_folder("data_dir", data_dir)
        self._architecture = check_network(network)
        self._width = check_count("width", width)
        self._sizes = (
            None if train_size is None else check_count("train_size", train_size, 2),
            None if validation_size is None else check_count("validation_size", validation_size),
        )
        size = self.data.size if image_size is None else image_size
        self._image_size = check_count("image_size", size, 8)
        self._augment = (
            self.data.channels == 3 if augment is None else check_flag("augment", augment)
        )
        self.options |= {
            "data_dir": self._data_dir,
            "network": self._architecture,
            "width": self._width,
            "train_size": self._sizes[0],
            "validation_size": self._sizes[1],
            "image_size": self._image_size,
            "augment": self._augment,
        }

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

    def _split(self, seed: int) -> _Drawn:
        return _draw(self.data, self._folder(), self._image_size, self._sizes, seed)

    def _classes(self) -> int:
        return self.data.classes

    def _network(self) -> nn.Module:
        from tune_ext.benchmark.tasks._architectures import make

        return make(
            self._architecture,
            channels=self.data.channels,
            classes=self._classes(),
            size=self._image_size,
            width=self._width,
        )

    def _augmentation(self) -> Augmentation | None:
        from tune_ext.benchmark.tasks._augment import Augmentation

        if not self._augment:
            return None
        return Augmentation(padding=self._image_size // 8, flip=self.data.flip)


class MNIST(ImageDataTask):
    """70,000 handwritten digits of 28×28 pixels; see `ImageDataTask`."""

    name = "mnist"
    description = "MNIST: handwritten digits (28×28), by network"
    data = _datasets.MNIST


class FashionMNIST(ImageDataTask):
    """70,000 garments of 28×28 pixels (arXiv 1708.07747); see `ImageDataTask`."""

    name = "fashion-mnist"
    description = "Fashion-MNIST: garments (28×28), by network"
    data = _datasets.FASHION_MNIST


class CIFAR10(ImageDataTask):
    """60,000 photographs of 32×32 pixels, ten classes; see `ImageDataTask`."""

    name = "cifar10"
    description = "CIFAR-10: photographs (32×32) of ten classes, by network"
    data = _datasets.CIFAR10


class CIFAR100(ImageDataTask):
    """60,000 photographs of 32×32 pixels, a hundred classes; see `ImageDataTask`."""

    name = "cifar100"
    description = "CIFAR-100: photographs (32×32) of a hundred classes, by network"
    data = _datasets.CIFAR100


class STL10(ImageDataTask):
    """13,000 labelled photographs of 96×96 pixels, ten classes; see `ImageDataTask`."""

    name = "stl10"
    description = "STL-10: photographs (96×96) of ten classes, by network"
    data = _datasets.STL10


class Flowers102(ImageDataTask):
    """8,189 photographs of flowers, here of 64×64 pixels; see `ImageDataTask`.

    The official training and validation images together are what is drawn from.
    """

    name = "flowers102"
    description = "Flowers102: photographs of flowers (64×64), by network"
    data = _datasets.FLOWERS102


class ImageFolder(ImageDataTask):
    """Any pictures in a folder for each class, as ImageNet's or TinyImageNet's.

    `data_dir` (or imagenet or tiny-imagenet-200 in one of the usual places) has a folder for each
    class in `train`, and in `val` (or, without it, `test`) the same folders, whose pictures are
    the test images, because the labels of ImageNet's test images are not public; TinyImageNet's
    `val_annotations.txt` is understood. Or it has the folders of the classes itself: then a fifth
    of the pictures are the test images, the same for every seed. See `ImageDataTask` for the rest.
    """

    name = "image-folder"
    description = "pictures in a folder for each class (ImageNet, TinyImageNet), by network"
    data = _image_folder.IMAGE_FOLDER

    def _classes(self) -> int:
        return len(_image_folder.classes(self._folder()))


IMAGE_TASKS: tuple[type[ImageDataTask], ...] = (
    MNIST,
    FashionMNIST,
    CIFAR10,
    CIFAR100,
    STL10,
    Flowers102,
    ImageFolder,
)
"""All of them, for the catalogue."""
