"""Ray's state of an experiment, kept whole beside the one that Ray overwrites.

Ray copies its state over the last one, file by file, in a thread. A driver that is killed in the
middle of that leaves a file that ends too early, and so does one that saves again meanwhile. A
restore then finds nothing that it can read, says so in its log and begins the experiment again,
over what was there. On local file systems, where that can happen, our schedulers keep what Ray
has saved in one archive, which is replaced as a whole; and they end an experiment that was to go
on and has begun again, before it trains or saves anything, with Ray's files put back.

That is seen where a file of the state is cut off, or where Ray had already read the trials. Where
it could not read them for another reason, such as a class that is no longer there, nothing tells
such a start from a new experiment of the same name.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickletools
import re
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileSystem

from tune_ext._sealed import unseal
from tune_ext.errors import InvalidTypeError, StateError
from tune_ext.raytune._records import replace_file

__all__ = ["FILE_NAME", "StateCopy", "is_whole", "repair_experiment"]

FILE_NAME = "tune_ext_state.zip"
_MEMBER = re.compile(r"(?!tmp-)([a-z_-]+)-(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)\.(?:json|pkl)")
"""A file of Ray's state: what it is of, and the session, which is when it began."""
_ASIDE = ".cut"
"""What is put behind the name of a file that Ray cannot read."""
_SHARE = 19.0
"""So many times as long as keeping the state takes, it is not kept again, as with Ray's own."""

logger = logging.getLogger(__name__)


def is_whole(name: str, data: bytes) -> bool:
    """Whether a file of Ray's state comes to its end, and says something; nothing in it is run.

    Args:
        name: Of the file: Ray's ``experiment_state-*.json`` and the searchers' ``*.json`` of ours
            hold JSON, all others a pickle.
        data: What it holds.

    >>> is_whole("experiment_state-now.json", b'{"stats": {}}'), is_whole("s.pkl", b"N")
    (True, False)
    >>> is_whole("experiment_state-now.json", b'{"trial_data": []}')  # Ray cannot restore it
    False
    """
    try:
        if name.endswith(".json") and data[:1] in b"{":
            return bool(_document(data).get("trial_data", True))
        for _ in pickletools.genops(data):
            pass
    except MemoryError:
        raise
    except Exception as error:  # whatever pickletools does with what is not a pickle
        logger.debug("%s cannot be read: %r", name, error)
        return False
    return True


def repair_experiment(
    path: str | os.PathLike[str], filesystem: FileSystem | None = None
) -> list[str]:
    """Put Ray's state of an experiment back as one of our schedulers has kept it.

    If a file of the newest state is cut off, all files of the state are as they were when it was
    kept; those of later starts get ".cut" behind their names. Results and checkpoints of trials
    are left alone: what was reported since is trained again.

    Args:
        path: The experiment's directory, as for ``Tuner.restore``.
        filesystem: Where it is, unless `path` says so.

    Returns:
        The names of the files that were put back; empty where all are whole, and left alone.

    Raises:
        InvalidTypeError: An argument is of another type.
        StateError: There is nothing to put back, it is damaged, or a file cannot be written.

    >>> repair_experiment("no/such/experiment")
    Traceback (most recent call last):
    tune_ext.errors.StateError: no/such/experiment cannot be repaired: there is no copy of its
    state (tune_ext_state.zip), which our schedulers keep on local file systems
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidTypeError(f"path must be a string or a path, got {path!r}")
    if not isinstance(filesystem, FileSystem | None):
        raise InvalidTypeError(f"filesystem must be one of pyarrow's, got {filesystem!r}")
    place = os.fspath(path)
    try:
        if filesystem is None:
            filesystem, place = FileSystem.from_uri(_uri(place))
        return _repair(filesystem, place.rstrip("/"))
    except (OSError, ValueError) as error:
        raise StateError(f"{os.fspath(path)} cannot be repaired: {error}") from None


def _uri(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


class StateCopy:
    """Keeps what Ray saves of an experiment; knows one that has begun again by mistake.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._storage: Any = None
        self._state: Path | None = None  # where Ray saves it first
        self._kept: int | None = None
        self._next = -float("inf")

    def step(self, tune_controller: Any) -> None:
        """Look at the experiment once, and keep what Ray has saved since the last time.

        Args:
            tune_controller: Ray's, or what it gives to schedulers.

        Raises:
            StateError: The experiment was to go on, and has begun again.
        """
        controller = getattr(tune_controller, "_tune_controller", tune_controller)
        storage = getattr(controller, "_storage", None)
        if storage is None:  # no experiment that is stored
            return
        if storage is not self._storage:
            self._begin(controller, storage)
        if self._state is not None and self._clock() >= self._next:
            self._keep(self._state)

    def _begin(self, controller: Any, storage: Any) -> None:
        self._storage, self._kept, self._next = storage, None, -float("inf")
        _check(controller, storage)
        # Ray has looked at it for the last time, but saves it: a start that cannot go on from
        # there would take itself for one that can, train nothing and save that.
        controller._resumed = False
        in_place = storage.storage_filesystem.type_name == "local"
        self._state = Path(controller.experiment_state_path) if in_place else None

    def _keep(self, state: Path) -> None:
        began = self._clock()
        try:
            saved = os.stat(state).st_mtime_ns
            if saved == self._kept:
                return
            # The staged files are written in this thread: here they are whole.
            own = _session(state.name)
            files = [path for path in state.parent.iterdir() if _session(path.name) == own]
            _write(Path(self._storage.experiment_fs_path, FILE_NAME), files)
        except FileNotFoundError:  # nothing has been saved yet
            return
        except OSError as error:
            logger.warning("Cannot keep a copy of the experiment's state: %r", error)
        self._kept = saved
        now = self._clock()
        self._next = now + _SHARE * (now - began)


def _session(name: str) -> str:
    found = _MEMBER.fullmatch(name)
    return "" if found is None else found[2]


def _is_state(name: str) -> bool:
    found = _MEMBER.fullmatch(name)
    return found is not None and found[1] == "experiment_state"


def _check(controller: Any, storage: Any) -> None:
    """An error for an experiment that Ray could not restore."""
    if controller.resumed:
        return
    filesystem, path = storage.storage_filesystem, storage.experiment_fs_path
    own = controller.experiment_state_file_name
    try:
        earlier = [name for name in _names(filesystem, path) if _is_state(name) and name != own]
    except Exception as error:  # of any file system
        logger.warning("Cannot look for the state of an earlier start in %s: %r", path, error)
        return
    if not earlier:
        return
    newest = max(earlier)
    # Ray takes up the directory of the driver before, once it has read the trials.
    staged = Path(controller.experiment_state_path).parent
    begun = any(p.name != own for p in staged.glob("experiment_state-*.json"))
    what = (
        f"Ray could not restore the experiment in {path} and would have begun again in its place. "
        "Nothing was overwritten"
    )
    anew = "To begin again, give another name and a new search"
    try:
        data = _read(filesystem, f"{path}/{newest}")
    except OSError as error:
        raise StateError(f"{what}: {newest} cannot be read ({error}). {anew}") from None
    cut = not is_whole(newest, data)
    if not (cut or begun):  # another experiment of that name, as Ray allows
        return
    kept = filesystem.get_file_info(f"{path}/{FILE_NAME}").is_file
    if not (kept or begun) and _has_no_trials(data):  # it ended before there were any
        return
    trouble = ""
    try:
        back = _repair(filesystem, path)
    except (StateError, OSError) as error:
        back, trouble = [], f", and {error}"
    if back:
        _unstage(staged, max(_session(name) for name in back))
        raise StateError(
            f"{what}, and {', '.join(back)} are back as {FILE_NAME} has kept them: the state was "
            "cut off, as it is when a driver is killed while Ray copies it. Restore it once more, "
            f"and it goes on. {anew}"
        )
    if not cut:
        raise StateError(
            f'{what}. Why, Ray has logged after "Failed to restore the run state"{trouble}. {anew}'
        )
    older = [name for name in earlier if name != newest]
    go_on = (
        f". To go on from {max(older)}, remove all files named {_session(newest)}" if older else ""
    )
    raise StateError(
        f"{what}: {newest} is cut off, as it is when a driver is killed while Ray copies it"
        f"{trouble}. {anew}{go_on}"
    )


def _document(data: bytes) -> Any:
    """What a file of JSON says, of Ray's or of ours; an error if it is cut off."""
    return json.loads(unseal(data.decode("utf-8")))


def _has_no_trials(data: bytes) -> bool:
    """Whether a state is whole, but of no trial."""
    try:
        return not _document(data)["trial_data"]
    except (ValueError, KeyError, TypeError):
        return False


def _unstage(staged: Path, session: str) -> None:
    """Take what is later than a session from where Ray stages its state; it looks there first."""
    for path in list(staged.iterdir()) if staged.is_dir() else []:
        if _session(path.name) > session:
            path.unlink(missing_ok=True)


def _repair(filesystem: FileSystem, path: str) -> list[str]:
    there = [name for name in _names(filesystem, path) if _session(name)]
    newest = max((_session(name) for name in there if _is_state(name)), default="")
    needed = [name for name in there if _session(name) >= newest]
    cut = [name for name in needed if not is_whole(name, _read(filesystem, f"{path}/{name}"))]
    if newest and not cut:
        return []
    kept = _kept(filesystem, path)
    session = max(_session(name) for name in kept)
    for name, data in kept.items():
        replace_file(filesystem, f"{path}/{name}", data)
    for name in there:
        if _session(name) > session:
            filesystem.move(f"{path}/{name}", f"{path}/{name}{_ASIDE}")
    return sorted(kept)


def _names(filesystem: FileSystem, path: str) -> list[str]:
    infos = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    return [info.base_name for info in infos if info.is_file]


def _read(filesystem: FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.readall())


def _write(path: Path, files: Iterable[Path]) -> None:
    """Put files into an archive, of which nobody sees half."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", strict_timestamps=False) as archive:
            for file in files:
                archive.write(file, file.name)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _kept(filesystem: FileSystem, path: str) -> dict[str, bytes]:
    """What was kept, by name; an error if there is nothing, or not all of it."""
    where = f"{path}/{FILE_NAME}"
    try:
        data = _read(filesystem, where)
    except FileNotFoundError:
        raise StateError(
            f"there is no copy of its state ({FILE_NAME}), which our schedulers keep on local "
            "file systems"
        ) from None
    except OSError as error:
        raise StateError(f"{where} cannot be read: {error}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise StateError(f"{where} is not one of ours: what is in it is compressed")
            files = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise StateError(f"{where} is damaged: {error}") from None
    for name, content in files.items():
        if not _session(name):
            raise StateError(f"{where} is damaged: {name!r} is no name of a file of Ray's state")
        if not is_whole(name, content):
            raise StateError(f"{where} is damaged: {name} is cut off")
    if not any(_is_state(name) for name in files):
        raise StateError(f"{where} is damaged: no state of an experiment is in it")
    return files
