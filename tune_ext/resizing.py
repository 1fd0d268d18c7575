"""Images resized once for each size, and shared by all processes of a machine.

A search over growing images trains many trials at each size. `resized` brings a data set to a size
once (antialiased, torchvision's resize of bytes) and keeps it in a file, which every trial maps
into its memory: the pages are the machine's, not the process's.

Memory: a file is as large as `memory_use` says (60,000 grey images of 28×28 are 47 MB), and so is
what it takes of the page cache at most, once, however many trials read it. Making it takes the
original images and a thousand resized ones.

A file is written under another name and takes its own when it is whole, under a lock, so that one
process resizes and the others wait for it. Its end holds digests of its pixels and of what they
were made from: a file that is damaged, half-written or of other images is made again.

>>> import numpy as np, tempfile
>>> images = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
>>> with tempfile.TemporaryDirectory() as directory:
...     small = resized(images, 16, cache_dir=directory)
...     small.shape, small.dtype.name, type(small).__name__
((10, 3, 16, 16), 'uint8', 'memmap')

Importing this module starts neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ext import _array_files
from tune_ext._checks import LARGEST_LAYER, check_count, check_flag
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = ["CACHE_VARIABLE", "fingerprint_of_files", "memory_use", "resize", "resized"]

CACHE_VARIABLE = _array_files.CACHE_VARIABLE
"""The environment variable that names the directory of the files, where none is given."""

_RULE = 1
"""Counted up when the same images would be resized to others."""
_CHUNK = 1000


def resized(
    images: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]],
    size: int,
    *,
    fingerprint: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    verify: bool = True,
) -> NDArray[np.uint8]:
    """Images of another size, smaller or larger, from a file that is made at the first call.

    Args:
        images: Bytes, n × channels × height × width, or n × height × width for grey ones. Or a
            function that returns them and is called only where the file has to be made, so that a
            trial need not read the original images.
        size: The new height and width. Where it is the old one, the images as they are.
        fingerprint: What tells these images from all others, as `fingerprint_of_files` makes it
            of the files they are read from. None: a digest of the images themselves.
        cache_dir: Where the files are; None: the directory that the environment variable
            TUNE_EXT_CACHE names, or else ~/.cache/tune_ext. It may be deleted at any time: what is
            missing is made again.
        verify: Whether all pixels of a file are compared with their digest when this process
            opens it for the first time (about a second for each gigabyte); False trusts a file
            that has the right length and origin.

    Returns:
        The images in the same order and layout, mapped from the file. Writing into them changes
        neither the file nor what others see.

    Raises:
        InvalidTypeError: `images` are no bytes, or a function without a `fingerprint`.
        InvalidValueError: A size is below 1, or the directory cannot be written; the message
            says how to name another one.
    """
    size = check_count("size", size)
    check_flag("verify", verify)
    if callable(images):
        if not fingerprint:
            raise InvalidTypeError("a function for images needs a fingerprint of what it returns")
        key, load = fingerprint, images
    else:
        own = _checked(images)
        key, load = fingerprint or _digest(own), lambda: own
    origin = f"resized {_RULE}|{size}|{key}"

    def make() -> tuple[tuple[int, ...], np.dtype[Any], Iterable[NDArray[np.uint8]]]:
        original = _checked(load())
        shape = (*original.shape[:-2], size, size)
        return shape, original.dtype, _chunks(original, size)

    return _array_files.open_or_make(
        f"images-{size}", origin, make, directory=cache_dir, verify=verify
    )


def _chunks(images: NDArray[np.uint8], size: int) -> Iterable[NDArray[np.uint8]]:
    return (resize(images[i : i + _CHUNK], size) for i in range(0, len(images), _CHUNK))


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize images in memory, without a file: bilinear, antialiased where they get smaller.

    Args:
        images: See `resized`.
        size: The new height and width.
    """
    images, size = _checked(images), check_count("size", size, 1, LARGEST_LAYER)
    if images.shape[-2:] == (size, size):
        return images
    import torch
    from torchvision.transforms.v2 import functional

    small: NDArray[np.uint8] = functional.resize(
        torch.from_numpy(np.array(images)), [size, size], antialias=True
    ).numpy()
    return small


def memory_use(count: int, size: int, channels: int = 3) -> int:
    """Bytes that so many images of a size take, on disk and of the page cache.

    >>> memory_use(60_000, 28, channels=1), memory_use(60_000, 14, channels=1)
    (47040000, 11760000)
    """
    return count * channels * size * size


def fingerprint_of_files(paths: Iterable[str | PathLike[str]]) -> str:
    """A digest of the names, lengths and times of change of files, which are not read.

    Args:
        paths: Files, in an order that matters. A folder that moves keeps its fingerprint where
            the last two parts of each path stay the same.

    Raises:
        FileNotFoundError: There is no such file.
    """
    found = blake2b(digest_size=16)
    for path in map(Path, paths):
        info = path.stat()
        name = "/".join(path.parts[-2:])
        found.update(f"{name}|{info.st_size}|{info.st_mtime_ns}\n".encode())
    return found.hexdigest()


def _checked(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise InvalidTypeError(f"images must be an array of uint8, got {found}")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise InvalidValueError(
            "images must be n × channels × height × width or n × height × width with something "
            f"in it, got shape {images.shape}"
        )
    return images


def _digest(images: NDArray[np.uint8]) -> str:
    found = blake2b(repr(images.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(images).data)
    return found.hexdigest()
