"""Tiny files in the true formats of the data sets, written by hand for tests.

The classes are told apart by where an image is bright, or by a linear function.
"""

import gzip
import pickle
from pathlib import Path

import numpy as np


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, *, train: int = 300, test: int = 50, packed: bool = False) -> Path:
    """Four idx files, as of MNIST and Fashion-MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 100, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 4] += 150
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            path = folder / f"{prefix}-{name}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)
    return folder


def coloured(count, classes, size, seed):
    """Labels in turn, and images n × 3 × size × size, bright in rows that tell the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 100, (count, 3, size, size), dtype=np.int64)
    for image, label in zip(images, labels, strict=True):
        row = label * (size - 4) // classes
        image[label % 3, row : row + 4] += 150
    return images.astype(np.uint8), labels


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        images, labels = coloured(20, 10, 32, seed)
        entry = {"data": images.reshape(20, -1), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", 200), ("test", 100)):
        images, labels = coloured(count, 100, 32, count)
        entry = {"data": images.reshape(count, -1), "fine_labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
    meta = {"fine_label_names": [f"class {i}" for i in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(meta))


def write_stl10(root: Path) -> None:
    """Columns first, and classes counted from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for name, count in (("train", 60), ("test", 20)):
        images, labels = coloured(count, 10, 96, count)
        images.transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")
        (labels + 1).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "unlabeled_X.bin").touch()


def save_picture(path: Path, image, shape=None) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image.transpose(1, 2, 0))
    (picture if shape is None else picture.resize(shape)).save(path)


def write_flowers(root: Path, count=306) -> None:
    from scipy.io import savemat

    folder = root / "flowers-102"
    images, labels = coloured(count, 102, 16, 0)
    for number, image in enumerate(images, 1):
        save_picture(folder / "jpg" / f"image_{number:05d}.jpg", image, (20, 16 + number % 8))
    savemat(folder / "imagelabels.mat", {"labels": (labels + 1)[None]})
    train, valid, test = np.split(np.arange(1, count + 1), 3)
    savemat(folder / "setid.mat", {"trnid": train, "valid": valid, "tstid": test})


def write_classes(folder: Path, count: int, seed: int, below: str = "") -> None:
    """A folder for each of three classes, of pictures; `below` each, if so asked."""
    images, labels = coloured(count, 3, 24, seed)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_picture(folder / f"n0{label}" / below / f"{number}.png", image, (30, 24))


def write_tiny_imagenet(root: Path) -> None:
    write_classes(root / "train", 60, 0, "images")
    images, labels = coloured(15, 3, 24, 1)
    lines = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_picture(root / "val" / "images" / f"val_{number}.JPEG", image)
        lines.append(f"val_{number}.JPEG\tn0{label}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    save_picture(root / "test" / "images" / "test_0.JPEG", images[0])


def write_housing(folder: Path, count: int = 400) -> None:
    """What scikit-learn keeps: value, income, age, rooms, bedrooms, people, households, place."""
    import joblib

    rng = np.random.default_rng(0)
    income = rng.uniform(1, 10, count)
    households = rng.integers(100, 500, count).astype(float)
    columns = [
        40_000 * income + rng.normal(0, 10_000, count),
        income,
        rng.integers(1, 50, count),
        households * rng.uniform(4, 7, count),
        households * rng.uniform(0.9, 1.2, count),
        households * rng.uniform(2, 4, count),
        households,
        rng.uniform(32, 42, count),
        rng.uniform(-124, -114, count),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump(np.stack(columns, axis=1), folder / "cal_housing_py3.pkz", compress=6)
