"""What every node of a cluster reaches: a bucket or a shared directory, through pyarrow.

The records of a study are kept there as well as on the driver's machine, which may be gone
when they are wanted: `Mirror` fetches what is there before a study goes on, and puts there what
has been added.
"""

from __future__ import annotations

import contextlib
import functools
import time
import uuid
from pathlib import Path
from typing import Any

from tune_ext.errors import InvalidValueError, StateError

__all__ = ["Mirror", "Storage"]

_RECORDS = "records.jsonl"

_EVERY = 10.0
"""Seconds between two uploads of the records, at least."""


class Storage:
    """A place for files: anything that pyarrow opens, such as s3://, gs://, or a directory.

    Args:
        where: A path, or a URI; options may follow a question mark, as pyarrow reads them. It is
            opened when it is first used, which raises InvalidValueError where pyarrow does not
            know it or cannot reach it.
    """

    def __init__(self, where: str | Path) -> None:
        text = str(where)
        self.where = text if "://" in text else str(Path(text).expanduser().resolve())

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        from pyarrow import fs

        try:
            files, root = fs.FileSystem.from_uri(self.where)
        except (OSError, ValueError, NotImplementedError) as error:
            told = f"cannot use the storage {self.where!r}: {_told(error)}"
            raise InvalidValueError(told) from None
        return files, root

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    def inside(self, name: str) -> Storage:
        """A directory in it."""
        path, mark, options = self.where.partition("?")
        return Storage(f"{path.rstrip('/')}/{name}{mark}{options}")

    def write(self, name: str, data: bytes) -> None:
        """Write a file; OSError when that fails. Nobody sees half of it."""
        path = self._path(name)
        self._files.create_dir(path.rpartition("/")[0], recursive=True)
        # An object in a bucket appears when it is whole; elsewhere a move sees to that.
        in_bucket = self._files.type_name in ("s3", "gcs", "abfs")
        first = f"{path}.{uuid.uuid4().hex}"
        if in_bucket:
            self._fill(path, data)
            return
        try:
            self._fill(first, data)
            self._files.move(first, path)
        except BaseException:  # a full disk would keep a part of every attempt
            with contextlib.suppress(OSError):
                self._files.delete_file(first)
            raise

    def _fill(self, path: str, data: bytes) -> None:
        with self._files.open_output_stream(path) as stream:
            stream.write(data)

    def read(self, name: str) -> bytes | None:
        """What a file holds; None where there is none; OSError when reading fails."""
        try:
            with self._files.open_input_stream(self._path(name)) as stream:
                return bytes(stream.readall())
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none; OSError when that cannot be told."""
        info = self._files.get_file_info(self._path(name))
        return int(info.size) if info.is_file else None

    def remove(self, name: str = "") -> None:
        """Remove a file or a directory with everything in it; nothing to remove is fine."""
        path = self._path(name) if name else self._root
        from pyarrow import fs

        kind = self._files.get_file_info(path).type
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            if kind == fs.FileType.File:
                self._files.delete_file(path)
            elif kind != fs.FileType.NotFound:
                self._files.delete_dir(path)

    def names(self) -> list[str]:
        """The files directly in it."""
        from pyarrow import fs

        chosen = fs.FileSelector(self._root, allow_not_found=True)
        return sorted(i.base_name for i in self._files.get_file_info(chosen) if i.is_file)

    def check(self) -> None:
        """Write, read and remove a file.

        Raises:
            InvalidValueError: One of these is not possible.
        """
        name, data = f"probe-{uuid.uuid4().hex}", b"tune-ext"
        _ = self._opened
        try:
            self.write(name, data)
            found = self.read(name)
            self.remove(name)
        except (OSError, ValueError, NotImplementedError) as error:
            raise InvalidValueError(
                f"cannot write to the storage {self.where!r}: {_told(error)}"
            ) from None
        if found != data:
            raise InvalidValueError(f"the storage {self.where!r} does not keep what is written")

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


class Mirror:
    """A study's records on a storage.

    Args:
        directory: Where the records are written.
        storage: Where they are kept as well.
    """

    def __init__(self, directory: str | Path, storage: Storage) -> None:
        self._directory, self._storage = Path(directory), storage
        self._sent: dict[str, tuple[int, int]] = {}
        self._next = 0.0
        self._problem: str | None = None
        self._ours: set[int | None] | None = None  # lengths that the records there may have

    def fetch(self, *names: str) -> None:
        """Take over what is there and not here; `names`, or else study.json and the records.

        Records are only ever added to, so that of two copies one begins with the other.

        Raises:
            StateError: The two copies have gone different ways, or it cannot be read.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in names or ("study.json", _RECORDS):
            try:
                there = self._storage.read(name)
            except OSError as error:
                raise StateError(f"cannot read {self._storage.where}: {_told(error)}") from None
            if name == _RECORDS:
                self._ours = {None if there is None else len(there)}
            if there is None:
                continue
            path = self._directory / name
            here = path.read_bytes() if path.exists() else b""
            if name == _RECORDS:
                here = here[: here.rfind(b"\n") + 1]  # a crash may have cut the last line
                if here.startswith(there):
                    continue
                if not there.startswith(here):
                    raise StateError(
                        f"the records in {self._directory} and in {self._storage.where} have "
                        "gone different ways: two runs have written them. Move one away, or "
                        "give another directory with --out"
                    )
            elif here:
                continue
            temporary = path.with_name(path.name + ".fetched")
            temporary.write_bytes(there)
            temporary.replace(path)

    def put(self, *, now: bool = False) -> None:
        """Send what has changed, now and then or now; what fails is remembered, and tried again."""
        if now or time.monotonic() >= self._next:
            self._put(("study.json", _RECORDS))
            self._next = time.monotonic() + _EVERY

    def finish(self) -> None:
        """Send everything: the records, the report, the logs.

        Raises:
            StateError: The last attempt failed; the records here are whole.
        """
        logs = [f"logs/{path.name}" for path in self._directory.glob("logs/*.log")]
        files = [path.name for path in self._directory.iterdir() if path.is_file()]
        self._put([name for name in files if name != "lock"] + logs)
        if self._problem is not None:
            raise StateError(
                f"the records are whole in {self._directory}, but not in "
                f"{self._storage.where}: {self._problem}. The same command tries again"
            )

    def _put(self, names: Any) -> None:
        self._problem = None
        for name in names:
            path = self._directory / name
            if not path.exists():
                continue
            stamp = path.stat()
            seen = (stamp.st_size, stamp.st_mtime_ns)
            if self._sent.get(name) == seen:
                continue
            try:
                self._write(name, path.read_bytes())
            except (OSError, ValueError) as error:
                self._problem = _told(error)
                return
            self._sent[name] = seen

    def _write(self, name: str, data: bytes) -> None:
        """Send a file; ValueError where another run has written its records meanwhile."""
        if name == _RECORDS and self._ours is not None:
            if self._storage.size(name) not in self._ours:
                raise ValueError("another run writes its records there")
            self._ours.add(len(data))  # also what seems to fail may have arrived
        self._storage.write(name, data)


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
