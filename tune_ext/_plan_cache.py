"""What a function read of a configuration, and a memory of its answers keyed by that.

A model builder reads a few of a configuration's entries: the width, the depth. Two configurations
that agree on all that it read give the same model, whatever their other entries are. `Recorder`
notes what is read, and `ReadCache` finds the answer of an earlier configuration that agrees.

This rests on one assumption: what the function does next depends on the configuration and on
nothing else that changes.

>>> config = {"width": 8, "deep": False, "depth": 3, "decay": 0.1}
>>> recorder = Recorder(config)
>>> def build(config):
...     return config["width"] * (config["depth"] if config["deep"] else 1)
>>> answer, cache = build(recorder.lend()), ReadCache[int]()
>>> cache.add(config, recorder.reads, answer)
True
>>> cache.find({"width": 8, "deep": False, "depth": 9, "decay": 0.2})
8
>>> cache.find({"width": 8, "deep": True, "depth": 9, "decay": 0.2})
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Generic, TypeVar

import numpy as np

from tune_ext.errors import StateError

__all__ = ["Path", "Read", "ReadCache", "Recorder"]

Path = tuple[Any, ...]
Read = tuple[str, Path]
"""What was asked about a path: "value", "has" (is there something) or "keys" (of a mapping)."""

T = TypeVar("T")

_KINDS = ("has", "value", "keys")


class Recorder:
    """Lends a configuration to a function and notes what the function reads of it.

    Args:
        config: A nested configuration. What the function writes into what it was lent does not
            reach it.
        ignored: Paths of values of which the function's answer does not depend, although it may
            read them; whether they are there is noted all the same.
    """

    def __init__(self, config: Mapping[Any, Any], ignored: Collection[Path] = ()) -> None:
        self._ignored = frozenset(ignored)
        self._reads: dict[Read, None] = {}
        self._config = config

    def lend(self) -> MutableMapping[Any, Any]:
        """The configuration, of which every reading is noted."""
        return _Recorded(self._config, (), self._note)

    @property
    def reads(self) -> tuple[Read, ...]:
        """What was read so far, in a fixed order."""
        return tuple(sorted(self._reads, key=repr))

    def read_everything(self) -> None:
        """Note that all of it was read, for a function of which it is not known."""
        _plain_dict(self.lend())

    def _note(self, kind: str, path: Path) -> None:
        self._reads["has" if kind == "value" and path in self._ignored else kind, path] = None


class _Recorded(MutableMapping[Any, Any]):
    """A configuration, or a part of one, of which every reading is noted.

    It is no dict: code in C reads dicts without asking their methods, and would go unnoticed.
    """

    def __init__(self, source: Mapping[Any, Any], path: Path, note: Any) -> None:
        self._values = dict(source)
        self._path, self._note = path, note
        self._own: set[Any] = set()  # what the function wrote or was given to write into

    def __getitem__(self, key: Any) -> Any:
        if key not in self._own:
            self._note("value", (*self._path, key))
            value = self._values[key]
            if isinstance(value, Mapping):
                self._values[key] = _Recorded(value, (*self._path, key), self._note)
            else:
                self._values[key] = copy.deepcopy(value)
            self._own.add(key)
        return self._values[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._own.add(key)
        self._values[key] = value

    def __delitem__(self, key: Any) -> None:
        if key not in self._own:
            self._note("has", (*self._path, key))
        del self._values[key]
        self._own.add(key)

    def __contains__(self, key: Any) -> bool:
        if key not in self._own:
            self._note("has", (*self._path, key))
        return key in self._values

    def __iter__(self) -> Iterator[Any]:
        self._note("keys", self._path)
        return iter(list(self._values))

    def __len__(self) -> int:
        self._note("keys", self._path)
        return len(self._values)

    def __or__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return {**other, **self}

    def __repr__(self) -> str:
        return repr(_plain_dict(self))

    def copy(self) -> _Recorded:
        """A copy of which every reading is noted too, as of this one."""
        return self._twin(lambda value: value)

    def __copy__(self) -> _Recorded:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Recorded:
        return self._twin(lambda value: copy.deepcopy(value, memo))

    def _twin(self, copied: Any) -> _Recorded:
        values = {key: copied(value) for key, value in self._values.items()}
        twin = _Recorded(values, self._path, self._note)
        twin._own = set(self._own)
        return twin

    def __reduce__(self) -> Any:
        return dict, (_plain_dict(self),)


def _plain_dict(value: Any) -> Any:
    """Dictionaries instead of recorders, all of which has then been read."""
    if not isinstance(value, _Recorded):
        return value
    return {key: _plain_dict(item) for key, item in value.items()}


class ReadCache(Generic[T]):
    """Answers by what was read of the configurations that they are for.

    Looking up compares as many values as the functions read, once for each different set of
    entries that they read: 1,000 architectures that read the same entries cost one comparison.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[Read, ...], dict[tuple[str, ...], T]] = {}

    def __len__(self) -> int:
        return sum(len(known) for known in self._answers.values())

    def answers(self) -> Iterator[T]:
        """All that is known."""
        for known in self._answers.values():
            yield from known.values()

    def find(self, config: Mapping[Any, Any]) -> T | None:
        """The answer of a configuration that agrees with this one on all that was read of it."""
        for reads, known in self._answers.items():
            seen = _observe(config, reads)
            if seen is not None and seen in known:
                return known[seen]
        return None

    def add(self, config: Mapping[Any, Any], reads: tuple[Read, ...], answer: T) -> bool:
        """Keep an answer; False if something that was read cannot be compared with others."""
        seen = _observe(config, reads)
        if seen is None or not all(_savable(path) for _, path in reads):
            return False
        self._answers.setdefault(reads, {})[seen] = answer
        return True

    def state(self) -> list[dict[str, Any]]:
        """The cache as JSON-able values, if the answers are."""
        return [
            {
                "reads": [[kind, list(path)] for kind, path in reads],
                "answers": [[list(seen), answer] for seen, answer in known.items()],
            }
            for reads, known in self._answers.items()
        ]

    @classmethod
    def of_state(cls, state: Iterable[Mapping[str, Any]]) -> ReadCache[T]:
        """What `state` gave.

        Raises:
            StateError: It is damaged.
        """
        made = cls()
        for part in state:
            reads = tuple((str(kind), tuple(path)) for kind, path in part["reads"])
            known = {tuple(seen): answer for seen, answer in part["answers"]}
            shapes = {len(seen) for seen in known} | {len(reads)}
            if len(shapes) > 1 or any(kind not in _KINDS for kind, _ in reads):
                raise StateError(f"the saved plans have an impossible entry: {part!r}")
            made._answers[reads] = known
        return made


def _savable(path: Path) -> bool:
    return all(key is None or isinstance(key, bool | int | float | str) for key in path)


def _observe(config: Mapping[Any, Any], reads: Iterable[Read]) -> tuple[str, ...] | None:
    """What the reads see in a configuration; None if one sees what has no text."""
    try:
        return tuple(_look(config, kind, path) for kind, path in reads)
    except (TypeError, ValueError):
        return None


def _look(config: Mapping[Any, Any], kind: str, path: Path) -> str:
    node: Any = config
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            return "absent"
        node = node[key]
    if kind == "has":
        return "present"
    if kind == "keys":
        return _text(list(node)) if isinstance(node, Mapping) else "no mapping"
    return "mapping" if isinstance(node, Mapping) else _text(node)


def _text(value: Any) -> str:
    """The value as JSON; 1, 1.0 and true differ, and NaN has none, as it agrees with nothing."""
    return json.dumps(value, default=_plain, sort_keys=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be compared")
