"""Probes that have finished, kept beside the experiment so that no kill can lose one.

Ray writes the experiment's state every ten seconds or more and never a scheduler's. What
finished in between would be trained again after the driver was killed. `FinishedProbes` is one
JSON file in the experiment's directory, rewritten at once whenever a probe ends.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from tune_ext.raytune._base import RESERVED_KEY

__all__ = ["FILE_NAME", "FinishedProbes"]

FILE_NAME = "autohyper-probes.json"
_VERSION = 1

logger = logging.getLogger(__name__)


class FinishedProbes:
    """What finished in one experiment, of this session and of those before it.

    Args:
        storage: The storage context of any trial of the experiment.
    """

    def __init__(self, storage: Any) -> None:
        self._filesystem = storage.storage_filesystem
        self._path, self._run = _where(storage)
        self._records = self._read()
        self._earlier = dict(self._records)

    def belongs_to(self, storage: Any) -> bool:
        """Whether these are the records of the experiment that is stored there."""
        return (self._path, self._run) == _where(storage)

    def add(self, trial: Any) -> None:
        """Record that a probe has ended with the trial's last result."""
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
        try:
            with self._filesystem.open_input_stream(self._path) as stream:
                document = json.loads(stream.readall())
            if document["version"] != _VERSION or document["run"] != self._run:
                return {}
            return dict(document["probes"])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("Ignoring %s, which cannot be read: %r", self._path, error)
            return {}

    def _write(self) -> None:
        document = {"version": _VERSION, "run": self._run, "probes": self._records}
        try:
            _write_whole(self._filesystem, self._path, json.dumps(document))
        except OSError as error:
            logger.warning("Cannot write %s: %r", self._path, error)


def _where(storage: Any) -> tuple[str, str]:
    """The file of an experiment, and what tells the experiment from others.

    Ray keeps the time of its first start when it resumes an experiment, and only then; another
    experiment in the same directory has its own.
    """
    return f"{storage.experiment_fs_path}/{FILE_NAME}", str(getattr(storage, "_timestamp", ""))


def write_result(trial: Any, result: Mapping[str, Any]) -> None:
    """Leave the result where Ray looks for a trial's history, unless it is there already."""
    filesystem = trial.storage.storage_filesystem
    path = f"{trial.storage.trial_fs_path}/result.json"
    try:
        if not filesystem.get_file_info(path).is_file:
            filesystem.create_dir(trial.storage.trial_fs_path)
            _write_whole(filesystem, path, json.dumps(_plain(result)) + "\n")
    except OSError as error:
        logger.warning("Cannot write %s: %r", path, error)


def _write_whole(filesystem: Any, path: str, text: str) -> None:
    """Write a file so that a reader, or a kill, finds the old one or the new one."""
    temporary = f"{path}.tmp"
    with filesystem.open_output_stream(temporary) as stream:
        stream.write(text.encode())
    filesystem.move(temporary, path)


def _values(trial: Any) -> dict[str, Any]:
    """What the searcher suggested for a trial, without what is ours."""
    suggested = trial.evaluated_params or {}
    return {k: v for k, v in suggested.items() if not k.startswith(f"{RESERVED_KEY}/")}


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
