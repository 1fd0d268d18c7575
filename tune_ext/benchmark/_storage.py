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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tune_ext.benchmark._lease import Lease
from tune_ext.errors import InvalidValueError, StateError

__all__ = ["Mirror", "Storage"]

_RECORDS = "records.jsonl"

_PART = f"{_RECORDS}.from-"
"""Begins the name of a file with records that `_RECORDS` there does not have yet; the byte at
which they begin ends it."""

_TAIL = 256
"""Bytes by which records are known that were sent before."""

_TRIES = 3

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
        if not text.strip() or "\0" in text:
            raise InvalidValueError(f"a storage must be a directory or a URI, got {text!r}")
        try:
            self.where = text if "://" in text else str(Path(text).expanduser().resolve())
        except (OSError, RuntimeError, ValueError) as error:  # loops, homes that nobody has
            raise InvalidValueError(f"cannot use the storage {text!r}: {error}") from None

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        from pyarrow import fs

        try:
            files, root = fs.FileSystem.from_uri(self.where)
        except (OSError, ValueError, NotImplementedError) as error:
            told = f"cannot use the storage {self.where!r}: {_told(error)}"
            raise InvalidValueError(told) from None
        if not root:
            raise InvalidValueError(f"the storage {self.where!r} names no bucket and no directory")
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

    No storage can be told to add to a file, and all records anew each time would be quadratic
    in their number. What is new is sent as a part, a file of its own, together with the parts
    before it that have no more bytes, as a binary counter carries: of n sendings a record is in
    log₂ n at most, and there are no more parts than that.

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
        self._parts: set[str] = set()  # names that parts there may have
        self._starts: list[int] = []  # the bytes at which the whole and the parts there begin
        self._end = 0  # bytes of the records there
        self._tail = b""  # the last of these
        self._lease, self._holders = Lease(storage), 0
        self._is_lost = False  # another run has taken over, which owns what is there

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs away from the storage; may be asked for again inside.

        Raises:
            StateError: Another run uses it.
        """
        if not self._holders:
            with contextlib.suppress(OSError):  # `renew` tries again; nobody writes there now
                self._lease.take()
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._lease.release()

    def renew(self) -> None:
        """Say now and then that this run is there; StateError if another has taken over."""
        if self._holders:
            try:
                self._lease.renew()
            except StateError:
                self._is_lost = True
                raise

    def fetch(self, *names: str) -> None:
        """Take over what is there and not here; `names`, or else study.json and the records.

        Records are only ever added to, so that of two copies one begins with the other.

        Raises:
            StateError: The two copies have gone different ways, or it cannot be read.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in names or ("study.json", _RECORDS):
            there = self._read(name)
            if there is None:
                continue
            path = self._directory / name
            here = path.read_bytes() if path.exists() else b""
            if name == _RECORDS:
                here = here[: here.rfind(b"\n") + 1]  # a crash may have cut the last line
                if here.startswith(there):
                    continue
                if not there.startswith(here):
                    raise self._different()
            elif here:
                continue
            temporary = path.with_name(path.name + ".fetched")
            temporary.write_bytes(there)
            temporary.replace(path)

    def _read(self, name: str) -> bytes | None:
        try:
            return self._read_records() if name == _RECORDS else self._storage.read(name)
        except OSError as error:
            raise StateError(f"cannot read {self._storage.where}: {_told(error)}") from None

    def _read_records(self) -> bytes | None:
        """The records there with their parts; None where there are none."""
        for _ in range(_TRIES):
            whole = self._storage.read(_RECORDS)
            names = self._names()
            data = self._with_parts(whole or b"", sorted(names, key=_start))
            if data is not None:
                break
        else:
            raise self._different()
        self._ours, self._parts = {None if whole is None else len(whole)}, names
        later = sorted(start for start in map(_start, names) if start >= len(whole or b""))
        self._starts = [0, *later] if whole else later
        self._end, self._tail = len(data), data[-_TAIL:]
        return None if whole is None and not names else data

    def _with_parts(self, data: bytes, names: list[str]) -> bytes | None:
        """The whole with its parts, some of which may be in it; None where one is missing.

        That is so while another process makes them one file.
        """
        for name in names:
            part, start = self._storage.read(name), _start(name)
            if part is None or start > len(data):
                return None
            both = min(len(data) - start, len(part))
            if data[start : start + both] != part[:both]:
                raise self._different()
            data += part[both:]
        return data

    def _different(self) -> StateError:
        return StateError(
            f"the records in {self._directory} and in {self._storage.where} have "
            "gone different ways: two runs have written them. Move one away, or "
            "give another directory with --out"
        )

    def put(self, *, now: bool = False) -> None:
        """Send what has changed, now and then or now; what fails is remembered, and tried again."""
        if not self._is_lost and (now or time.monotonic() >= self._next):
            self._put(("study.json", _RECORDS))
            self._next = time.monotonic() + _EVERY

    def finish(self) -> None:
        """Send everything: the records in one file, the report, the logs.

        Raises:
            StateError: The last attempt failed; the records here are whole.
        """
        logs = [f"logs/{path.name}" for path in self._directory.glob("logs/*.log")]
        files = [path.name for path in self._directory.iterdir() if path.is_file()]
        if self._parts:
            self._sent.pop(_RECORDS, None)
        self._put([name for name in files if name != "lock"] + logs, whole=True)
        if self._problem is not None:
            raise StateError(
                f"the records are whole in {self._directory}, but not in "
                f"{self._storage.where}: {self._problem}. The same command tries again"
            )

    def _put(self, names: Any, *, whole: bool = False) -> None:
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
                if name == _RECORDS and self._ours is not None:
                    self._send_records(path, whole=whole)
                else:
                    self._storage.write(name, path.read_bytes())
            except (OSError, ValueError) as error:
                self._problem = _told(error)
                return
            self._sent[name] = seen

    def _send_records(self, path: Path, *, whole: bool) -> None:
        """Send what is new; ValueError where another run has written its records meanwhile."""
        assert self._ours is not None
        strange = self._storage.size(_RECORDS) not in self._ours
        if strange or not self._names() <= self._parts:
            raise ValueError("another run writes its records there")
        with path.open("rb") as file:
            file.seek(self._end - len(self._tail))
            new = file.read()
            if not new.startswith(self._tail):  # it was repaired
                whole = True
            end = self._end - len(self._tail) + new.rfind(b"\n") + 1  # half a line is not sent
            starts, start = ([], 0) if whole else (list(self._starts), self._end)
            while starts and start - starts[-1] <= end - start:
                start = starts.pop()
            file.seek(start)
            data = file.read(max(0, end - start))
        if data:
            self._send(start, data)
            self._starts, self._end = [*starts, start], end
            self._tail = data[-_TAIL:]
            self._remove({name for name in self._parts if _start(name) > start})

    def _send(self, start: int, data: bytes) -> None:
        assert self._ours is not None
        if start:
            name = f"{_PART}{start:012d}"
            self._parts.add(name)  # also what seems to fail may have arrived
            self._storage.write(name, data)
        else:
            self._ours.add(len(data))
            self._storage.write(_RECORDS, data)
            self._ours = {len(data)}

    def _names(self) -> set[str]:
        """The parts there; not what an interrupted write has left."""
        names = self._storage.names()
        return {n for n in names if n.startswith(_PART) and n.removeprefix(_PART).isdigit()}

    def _remove(self, parts: set[str]) -> None:
        """Remove parts that are in the whole; one that stays does no harm."""
        for name in parts:
            with contextlib.suppress(OSError):
                self._storage.remove(name)
                self._parts.discard(name)


def _start(name: str) -> int:
    """The byte at which a part begins."""
    return int(name.removeprefix(_PART))


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
