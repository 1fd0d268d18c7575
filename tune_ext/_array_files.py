"""Arrays that are made once, kept in files, and mapped into the memory of every process.

A file is one that `numpy.load` reads, with a few bytes behind the array: what it was made from and
a digest of its values. It appears whole or not at all; one process makes it, under a lock that the
system takes from a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tune_ext.errors import InvalidValueError

__all__ = ["CACHE_VARIABLE", "directory_of", "open_or_make"]

CACHE_VARIABLE = "TUNE_EXT_CACHE"

_MAGIC = b"tune_ext array 1"
_TRAILER = struct.Struct("<16s16s16s")  # magic, digest of the origin, digest of the values
_BLOCK = 1 << 24

Made = tuple[tuple[int, ...], "np.dtype[Any]", Iterable[NDArray[Any]]]
"""Shape and type of an array, and the pieces of it, along its first axis."""

_verified: dict[Path, tuple[int, int, int]] = {}
"""What this process has compared with its digest: the file's number, length and time."""


def directory_of(directory: str | PathLike[str] | None) -> Path:
    """Where the files are: as told, as the environment says, or below ~/.cache."""
    if directory is None:
        directory = os.environ.get(CACHE_VARIABLE) or None
    if directory is None:
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        directory = Path(home) / "tune_ext"
    return Path(directory).expanduser()


def open_or_make(
    name: str,
    origin: str,
    make: Callable[[], Made],
    *,
    directory: str | PathLike[str] | None = None,
    verify: bool = True,
) -> NDArray[Any]:
    """The array that was made from `origin`, from its file; it is made where there is none.

    Args:
        name: What the file's name begins with, for people.
        origin: What the array depends on: another origin is another file.
        make: Makes it.
        directory: See `directory_of`.
        verify: Whether the values are compared with their digest, once in a process.

    Raises:
        InvalidValueError: The file has to be made, and the directory cannot be written.
    """
    found = _digest(origin.encode())
    folder = directory_of(directory)
    path = folder / f"{name}-{found.hex()}.npy"
    array = _open(path, found, verify)
    if array is not None:
        return array
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            array = _open(path, found, verify)  # perhaps made while this process waited
            if array is None:
                _make(path, found, make())
    except OSError as error:
        if isinstance(error, ValueError):  # one of ours, from `make`
            raise
        raise InvalidValueError(
            f"{folder} cannot keep {path.name} ({error}): name another directory by cache_dir or "
            f"the environment variable {CACHE_VARIABLE}"
        ) from error
    return array if array is not None else _map(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(path: Path, origin: bytes, made: Made) -> None:
    """Write the file; what others have left of their trials to do so is removed."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shape, dtype, pieces = made
    try:
        with temporary.open("xb") as file:
            digest = _write(file, shape, dtype, pieces)
            file.write(_TRAILER.pack(_MAGIC, origin, digest))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    info = path.stat()
    _verified[path] = info.st_ino, info.st_size, info.st_mtime_ns


def _write(
    file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterable[NDArray[Any]]
) -> bytes:
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    digest = blake2b(digest_size=16)
    rows = 0
    for piece in pieces:
        if piece.dtype != dtype or piece.shape[1:] != shape[1:]:
            raise InvalidValueError(f"a piece of shape {piece.shape} is no part of {shape}")
        data = np.ascontiguousarray(piece).data
        digest.update(data)
        file.write(data)
        rows += len(piece)
    if rows != shape[0]:
        raise InvalidValueError(f"{rows} rows were made of {shape[0]}")
    return digest.digest()


def _open(path: Path, origin: bytes, verify: bool) -> NDArray[Any] | None:
    """The array in a file; None if there is no such file, or not that array."""
    try:
        with path.open("rb") as file:
            start, length = _layout(file)
            info = os.fstat(file.fileno())
            if info.st_size != start + length + _TRAILER.size:
                return None
            file.seek(start + length)
            magic, of, digest = _TRAILER.unpack(file.read(_TRAILER.size))
            if (magic, of) != (_MAGIC, origin):
                return None
            known = (info.st_ino, info.st_size, info.st_mtime_ns)
            if verify and _verified.get(path) != known:
                if _digest_of(file, start, length) != digest:
                    return None
                _verified[path] = known
    except Exception:  # not there; or numpy parses its header as Python, which raises anything
        return None
    return _map(path)


def _layout(file: BinaryIO) -> tuple[int, int]:
    """Where the values begin, and their bytes."""
    if npy.read_magic(file) != (1, 0):
        raise ValueError("another version of the format")
    shape, fortran, dtype = npy.read_array_header_1_0(file)
    if fortran or dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("another layout")
    return file.tell(), math.prod(shape) * dtype.itemsize


def _map(path: Path) -> NDArray[Any]:
    """The array, copied where it is written to: torch takes no arrays that cannot be."""
    array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _digest_of(file: BinaryIO, start: int, length: int) -> bytes:
    digest = blake2b(digest_size=16)
    file.seek(start)
    while length:
        block = file.read(min(length, _BLOCK))
        if not block:
            break
        digest.update(block)
        length -= len(block)
    return digest.digest()


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
