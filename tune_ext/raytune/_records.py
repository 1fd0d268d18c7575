"""Short trials that have finished, kept beside the experiment so that no kill can lose one.

Ray writes the experiment's state every ten seconds or more and never a scheduler's. What
finished in between would be trained again after the driver was killed. `FinishedTrials` is one
JSON file in the experiment's directory, rewritten at once whenever such a trial ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict

from tune_ext._json import loads
from tune_ext._sealed import seal, unseal
from tune_ext.raytune._base import RESERVED_KEY

__all__ = [
    "FinishedTrials",
    "JsonFile",
    "beside",
    "checkpoint_of",
    "finish",
    "identity",
    "replace_file",
]

_VERSION = 1

logger = logging.getLogger(__name__)


class JsonFile:
    """One JSON document on any file system that Ray stores experiments on.

    Trouble with it is logged and otherwise ignored: it must not end an experiment.

    Args:
        filesystem: A file system of pyarrow.
        path: Where the document is.
        sealed: Whether it is written with a checksum, as one that others read need not be.
    """

    def __init__(self, filesystem: Any, path: str, *, sealed: bool = True) -> None:
        self._filesystem, self.path, self._sealed = filesystem, path, sealed

    def read(self) -> Any:
        """The document; None if there is none, or none that can be read."""
        try:
            with self._filesystem.open_input_stream(self.path) as stream:
                return loads(unseal(stream.readall().decode("utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("Ignoring %s, which cannot be read: %r", self.path, error)
            return None

    def write(self, document: Any) -> None:
        """Replace the document so that a reader, or a kill, finds the old one or the new one."""
        text = json.dumps(document)
        text = (seal(text) if self._sealed else text) + "\n"
        try:
            self._filesystem.create_dir(self.path.rpartition("/")[0])
            replace_file(self._filesystem, self.path, text.encode())
        except OSError as error:
            logger.warning("Cannot write %s: %r", self.path, error)


def replace_file(filesystem: Any, path: str, data: bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old one or the new one.

    Raises:
        OSError: It cannot be written; the old one is there, and nothing else.
    """
    temporary = f"{path}.tmp"
    try:
        with filesystem.open_output_stream(temporary) as stream:
            stream.write(data)
        filesystem.move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            filesystem.delete_file(temporary)
        raise


def beside(storage: Any, name: str) -> JsonFile:
    """A document in the directory of an experiment, which a restore by Ray does not turn back.

    When Ray restores, it copies all JSON files of that directory into one of its own, and that one
    over the directory whenever it saves: what was written meanwhile would be as it was before.

    Args:
        storage: The storage context of any trial of the experiment.
        name: Of the file.
    """
    try:
        staging = getattr(storage, "experiment_driver_staging_path", None)
    except AssertionError:  # named after Ray's session; without one nothing is staged
        staging = None
    if staging is not None:
        try:
            Path(staging, name).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("Cannot remove %s from %s: %r", name, staging, error)
    return JsonFile(storage.storage_filesystem, f"{storage.experiment_fs_path}/{name}")


class FinishedTrials:
    """What finished in one experiment, of this session and of those before it.

    Args:
        storage: The storage context of any trial of the experiment.
        name: The file's name.
        kind: What the trials are called in the file.
    """

    def __init__(self, storage: Any, name: str, kind: str) -> None:
        self._storage, self._kind = identity(storage), kind
        self._file = beside(storage, name)
        self._records = self._read()
        self._earlier = dict(self._records)

    def belongs_to(self, storage: Any) -> bool:
        """Whether these are the records of the experiment that is stored there."""
        return self._storage == identity(storage)

    def add(self, trial: Any) -> None:
        """Record that a trial has ended with its last result."""
        checkpoint = trial.checkpoint
        self._records[trial.trial_id] = {
            "values": _values(trial),
            "result": _plain({k: v for k, v in trial.last_result.items() if k != "config"}),
            "checkpoint": checkpoint.path if checkpoint else None,
        }
        self._write()

    def take(self, trial: Any) -> Mapping[str, Any] | None:
        """The record of an earlier session that answers `trial`, each one once.

        A trial that Ray restored is known by its id. One that finished after Ray's last
        snapshot is forgotten by Ray: the searcher asks for its values again, in a new trial.
        """
        key = trial.trial_id
        if key not in self._earlier:
            values = _values(trial)
            same = [i for i, record in self._earlier.items() if record["values"] == values]
            if not same:
                return None
            key = same[0]
        return self._earlier.pop(key)

    def known(self, trial_id: str) -> Mapping[str, Any] | None:
        """What is recorded of a trial."""
        return self._records.get(trial_id)

    def forget_earlier(self, trial_id: str) -> None:
        """Let no other trial take the record of a trial that Ray has restored as finished."""
        self._earlier.pop(trial_id, None)

    def _read(self) -> dict[str, dict[str, Any]]:
        document = self._file.read()
        if document is None:
            return {}
        try:
            if document["version"] != _VERSION or document["run"] != self._storage[1]:
                return {}
            return dict(document[self._kind])
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("Ignoring %s, which is damaged: %r", self._file.path, error)
            return {}

    def _write(self) -> None:
        document = {"version": _VERSION, "run": self._storage[1], self._kind: self._records}
        self._file.write(document)


def identity(storage: Any) -> tuple[str, str]:
    """The place of an experiment, and what tells the experiment from others in that place.

    Ray keeps the time of its first start when it resumes an experiment, and only then; another
    experiment in the same directory has its own.
    """
    return str(storage.experiment_fs_path), str(getattr(storage, "_timestamp", ""))


def finish(tune_controller: Any, trial: Any, record: Mapping[str, Any]) -> None:
    """End a trial before it starts, with the result that it is known to have."""
    ours = {"trial_id": trial.trial_id, "config": dict(trial.config), "done": True}
    result = {**record["result"], **ours}
    trial.init_local_path()
    trial.update_last_result(result)
    manager = trial.run_metadata.checkpoint_manager
    manager._latest_checkpoint_result = checkpoint_of(trial, record)
    trial.set_status(Trial.TERMINATED)
    _write_result(trial, result)
    tune_controller.search_alg.on_trial_complete(trial.trial_id, result=flatten_dict(result))


def checkpoint_of(trial: Any, record: Mapping[str, Any]) -> Any:
    """The recorded checkpoint as Ray keeps it, or None."""
    if record["checkpoint"] is None:
        return None
    checkpoint = Checkpoint(record["checkpoint"], filesystem=trial.storage.storage_filesystem)
    return _TrainingResult(checkpoint=checkpoint, metrics=dict(record["result"]))


def _write_result(trial: Any, result: Mapping[str, Any]) -> None:
    """Leave the result where Ray looks for a trial's history, unless it is there already."""
    filesystem = trial.storage.storage_filesystem
    path = f"{trial.storage.trial_fs_path}/result.json"
    try:
        there = filesystem.get_file_info(path).is_file
    except OSError as error:
        logger.warning("Cannot look for %s: %r", path, error)
        return
    if not there:
        JsonFile(filesystem, path, sealed=False).write(_plain(result))


def _values(trial: Any) -> dict[str, Any]:
    """What the searcher suggested for a trial, without what is ours."""
    suggested = trial.evaluated_params or {}
    ours = f"{RESERVED_KEY}/"
    return {k: _plain(v) for k, v in suggested.items() if not k.startswith(ours)}


def _plain(value: Any) -> Any:
    """The value as JSON has it; what JSON cannot hold becomes its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return str(value)
