"""Write the generated shapes with textures to files, with a preview.

The task `shapes-growth` draws the same pictures by itself; this is for looking at them, and for
other programs. They are made by a rule from a seed and depend on nothing else: they may be used
for anything.

    python experiments/image_growth/shapes.py DIRECTORY --train 1500 --test 1000 --sizes 128 64 32
    python experiments/image_growth/shapes.py DIRECTORY --as arrays
    python experiments/image_growth/shapes.py --preview preview.png

As pictures, there is DIRECTORY/SIZE/{train,test}/CLASS/*.png, what torchvision's ImageFolder and
the task `image-folder-growth` read; as arrays, DIRECTORY/{part}-{size}.npy (n × 3 × size × size
bytes) and DIRECTORY/{part}-labels.npy. The smaller sizes are the largest, resized with
antialiasing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tune_ext.benchmark.tasks import _shapes
from tune_ext.resizing import resize

CHUNK = 200


def write(
    directory: Path, counts: dict[str, int], sizes: list[int], seed: int, *, arrays: bool
) -> None:
    """Write all pictures of all sizes."""
    for part, count in counts.items():
        labels = _shapes.labels_of(count)
        pictures = _shapes.pictures(count, seed=seed, part=part)
        for size in sizes:
            if arrays:
                directory.mkdir(parents=True, exist_ok=True)
                np.save(directory / f"{part}-{size}.npy", resize(pictures, size))
            else:
                write_folder(directory / str(size) / part, pictures, labels, size)
        if arrays:
            np.save(directory / f"{part}-labels.npy", labels)


def write_folder(
    folder: Path, pictures: NDArray[np.uint8], labels: NDArray[np.int64], size: int
) -> None:
    """Write pictures of one size, in a folder for each class."""
    names = [name.replace(" ", "-") for name in _shapes.CLASSES]
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for start in range(0, len(pictures), CHUNK):
        small = resize(pictures[start : start + CHUNK], size).transpose(0, 2, 3, 1)
        for index, picture in enumerate(small, start):
            path = folder / names[labels[index]] / f"{index:05d}.png"
            Image.fromarray(picture).save(path)


def write_preview(path: Path, seed: int, sizes: tuple[int, ...] = (128, 64, 32)) -> None:
    """A picture of each class, beside each other, at each size; all drawn equally large."""
    pictures = _shapes.pictures(len(_shapes.CLASSES), seed=seed)
    rows = []
    for size in sizes:
        large = resize(pictures, size).repeat(_shapes.SIZE // size, 2)
        large = large.repeat(_shapes.SIZE // size, 3).transpose(0, 2, 3, 1)
        rows.append(np.concatenate(list(large), axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).quantize(256).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", type=Path, nargs="?", help="where the files go")
    parser.add_argument("--train", type=int, default=1500, help="training and validation pictures")
    parser.add_argument("--test", type=int, default=1000, help="test pictures")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 64, 32])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as", dest="kind", choices=("pictures", "arrays"), default="pictures")
    parser.add_argument(
        "--preview", type=Path, help="where a picture of each class at each size goes"
    )
    options = parser.parse_args()
    if options.directory is None and options.preview is None:
        parser.error("name a directory, or --preview and a file")
    if options.directory is not None:
        counts = {"train": options.train, "test": options.test}
        arrays = options.kind == "arrays"
        write(options.directory, counts, options.sizes, options.seed, arrays=arrays)
    if options.preview is not None:
        write_preview(options.preview, options.seed)


if __name__ == "__main__":
    main()
