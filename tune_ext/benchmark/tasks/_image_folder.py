"""Pictures in a folder for each class: ImageNet's layout, TinyImageNet's, or one folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tune_ext._random import generator
from tune_ext.benchmark.tasks._data import data_roots, stratified_order
from tune_ext.benchmark.tasks._datasets import DataSet, Images, OnDisk, PartName
from tune_ext.errors import DataNotFoundError

__all__ = ["IMAGE_FOLDER", "classes"]

_ANNOTATIONS = "val_annotations.txt"
_USUAL = ("imagenet", "tiny-imagenet-200")


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _held_out(root: Path) -> Path | None:
    """Where the test images are, if they are apart: with train's classes, or annotated."""
    wanted = _folders(root / "train")
    for name in ("val", "test"):
        if (root / name / _ANNOTATIONS).is_file() or set(_folders(root / name)) & set(wanted):
            return root / name
    return None


def _training(root: Path) -> Path:
    return root / "train" if (root / "train").is_dir() else root


def classes(root: Path) -> list[str]:
    """The names of the classes of the training images, in order.

    Args:
        root: See `tune_ext.benchmark.tasks.images.ImageFolder`.
    """
    return _folders(_training(root))


def _find(data_dir: str | None) -> Path | None:
    for root in data_roots(data_dir):
        for folder in [root] if data_dir else [root / name for name in _USUAL]:
            if len(classes(folder)) > 1:
                return folder
    return None


def _annotated(folder: Path, names: list[str]) -> OnDisk:
    """TinyImageNet's: all pictures in one folder, and a table of their classes."""
    number = {name: index for index, name in enumerate(names)}
    lines = (folder / _ANNOTATIONS).read_text().splitlines()
    rows = [line.split("\t")[:2] for line in lines if line.strip()]
    if unknown := sorted({row[-1] for row in rows} - set(names)):
        raise DataNotFoundError(
            f"{folder / _ANNOTATIONS} names classes that train has not, as {unknown[0]!r}"
        )
    if strange := [row[0] for row in rows if Path(row[0]).name != row[0] or row[0] == ".."]:
        raise DataNotFoundError(f"{folder / _ANNOTATIONS} names a file elsewhere: {strange[0]!r}")
    paths = [folder / "images" / row[0] for row in rows]
    return OnDisk(paths, np.asarray([number[row[1]] for row in rows], np.int64))


def _listed(folder: Path, names: list[str]) -> OnDisk:
    """As torchvision lists them: all pictures of a class's folder and of those in it."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    samples = make_dataset(
        str(folder),
        {name: index for index, name in enumerate(names)},
        extensions=IMG_EXTENSIONS,
        allow_empty=True,
    )
    labels = np.asarray([label for _, label in samples], np.int64)
    return OnDisk([Path(path) for path, _ in samples], labels)


def _read(root: Path, part: PartName) -> Images:
    names, held_out = classes(root), _held_out(root)
    if held_out is not None:
        if part == "train":
            return _listed(root / "train", names)
        if (held_out / _ANNOTATIONS).is_file():
            return _annotated(held_out, names)
        return _listed(held_out, names)
    together = _listed(_training(root), names)
    order = stratified_order(together.labels, generator(0, "image-folder", "test"))
    cut = max(1, round(0.2 * len(order)))
    rows = np.sort(order[:cut] if part == "test" else order[cut:])
    return OnDisk([together.paths[row] for row in rows], together.labels[rows])


IMAGE_FOLDER = DataSet(
    title="A folder of pictures",
    channels=3,
    classes=1_000_000,  # a task asks the folder itself
    size=64,
    find=_find,
    read=_read,
    fetch="give `data_dir` a folder with train/CLASS/*.jpg and val/CLASS/*.jpg (ImageNet from "
    "image-net.org, TinyImageNet from cs231n.stanford.edu/tiny-imagenet-200.zip), or with "
    "CLASS/*.jpg",
)
