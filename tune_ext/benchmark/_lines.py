"""How records are written: strict JSON, one line each, with trials in columns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tune_ext._json import loads
from tune_ext._text import visible_values
from tune_ext.benchmark.history import plain
from tune_ext.errors import StateError

__all__ = ["check_fields", "pack", "parse", "strict", "to_text", "unpack"]


def parse(line: str) -> dict[str, Any]:
    """A line of strict JSON that holds an object; StateError for any other.

    What is shown to people has no control characters: see `visible`.
    """
    try:
        data = loads(line, strict=True)
        if not isinstance(data, dict):
            raise StateError("not a record of a comparison")
        return {k: visible_values(v) if k in _TOLD else v for k, v in data.items()}
    except RecursionError:
        raise StateError("not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, StateError):
            raise
        raise StateError(f"not JSON: {error}") from None


_TOLD = {"task", "label", "method", "error_name", "failures", "recommendation"}
_TOLD |= {"provenance", "known", "details"}
"""What of a record reports show as text."""

_NUMBER = (int, float)
_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("task", "recommendation", "history", "details", "provenance"), dict),
    **dict.fromkeys(("method", "label", "unit", "clock", "error_name"), str),
    **dict.fromkeys(("seed", "workers"), int),
    **dict.fromkeys(("budget", "epochs_used", "search_seconds", "evaluation_seconds"), _NUMBER),
    **dict.fromkeys(("tests", "failures", "anytime", "incumbents"), list),
    **dict.fromkeys(
        ("makespan", "busy_seconds", "worst_error", "cpu_seconds"), (*_NUMBER, type(None))
    ),
    "trials": (list, dict),
    "max_epochs": _NUMBER,  # this and the next as tasks say it, also others' tasks
    "percent": int,
    "regret_range": (list, type(None)),
}
_ITEMS: dict[str, type] = {"tests": dict, "failures": str, "incumbents": list, "anytime": list}


def check_fields(data: Mapping[str, Any]) -> None:
    """Raise a TypeError unless the fields of a record are of the kinds that they have to be."""
    for name, kinds in _FIELDS.items():
        value = data.get(name)
        if name in data and not isinstance(value, kinds):
            raise TypeError(f"its {name} is {value!r:.40}")
    for name, kind in _ITEMS.items():
        if not all(isinstance(item, kind) for item in data.get(name, ())):
            raise TypeError(f"its {name} are {data[name]!r:.40}")
    if not isinstance(data["task"].get("name"), str):
        raise TypeError(f"its task is {data['task']!r:.40}")


def to_text(data: Mapping[str, Any]) -> str:
    """Strict JSON in one line."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"))


_SUMMARY = ("trial", "epochs", "validation_error", "validation_loss", "response_mean")
_MORE = ("train_seconds", "cpu_seconds", "ended")
"""What a summary may say too; then all of them do."""


def pack(trials: list[dict[str, Any]]) -> Any:
    """Summaries of trials as columns, where all have the same parameters; else as they are."""
    more = [key for key in _MORE if trials and key in trials[0]]
    if not trials or any(
        t.keys() != {"config", *_SUMMARY, *more} or t["config"].keys() != trials[0]["config"].keys()
        for t in trials
    ):
        return trials
    names = list(trials[0]["config"])
    columns = {key: [t[key] for t in trials] for key in (*_SUMMARY, *more)}
    for key in ("validation_loss", "response_mean"):
        if all(value is None for value in columns[key]):
            del columns[key]
    return {**columns, "config": {n: [t["config"][n] for t in trials] for n in names}}


def unpack(packed: Any) -> list[dict[str, Any]]:
    """Undo `pack`."""
    if isinstance(packed, list):
        return packed
    count = len(packed["trial"])
    columns = {key: packed.get(key, [None] * count) for key in _SUMMARY}
    columns |= {key: packed[key] for key in _MORE if key in packed}
    config = packed["config"]
    return [
        {"config": {n: config[n][i] for n in config}, **{k: columns[k][i] for k in columns}}
        for i in range(count)
    ]


def strict(value: Any) -> Any:
    """Plain data in which NaN and infinities are None."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    value = plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
