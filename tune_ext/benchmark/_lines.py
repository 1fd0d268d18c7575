"""How records are written: strict JSON, one line each, with trials in columns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tune_ext.benchmark.history import plain
from tune_ext.errors import StateError

__all__ = ["pack", "parse", "strict", "to_text", "unpack"]


def parse(line: str) -> dict[str, Any]:
    """A line of JSON that holds an object; StateError for any other."""
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise StateError(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise StateError("not a record of a comparison")
    return data


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
