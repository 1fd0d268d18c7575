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
        self._path = f"{storage.experiment_fs_path}/{FILE_NAME}"
        # Ray keeps this when it resumes an experiment, and only then: it tells our file from
        # that of an earlier experiment in the same directory.
        self._run = str(getattr(storage, "_timestamp", ""))
        self._records = self._read()
        self._earlier = dict(self._records)

    def add(self, trial: Any, result: Mapping[str, Any]) -> None:
        """Record that a probe has ended with `result`."""
        checkpoint = trial.checkpoint
        self._records[trial.trial_id] = {
            "values": _values(trial),
            "result": {k: v for k, v in result.items() if _is_plain(k, v)},
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
        temporary = f"{self._path}.tmp"
        try:
            with self._filesystem.open_output_stream(temporary) as stream:
                stream.write(json.dumps(document).encode())
            self._filesystem.move(temporary, self._path)
        except OSError as error:
            logger.warning("Cannot write %s: %r", self._path, error)


def _values(trial: Any) -> dict[str, Any]:
    """What the searcher suggested for a trial, without what is ours."""
    suggested = trial.evaluated_params or {}
    return {k: v for k, v in suggested.items() if not k.startswith(f"{RESERVED_KEY}/")}


def _is_plain(key: str, value: Any) -> bool:
    return isinstance(value, bool | int | float | str | None) and not key.startswith("config/")
