"""Records as tables for other tools: Parquet, with the version of the schema in each file.

* `cells.parquet`: one row a cell; what is nested (task options, recommendation, tests,
  failures, details, provenance) as JSON text.
* `trials.parquet`: one row a trial of a search, its configuration as JSON text.
* `incumbents.parquet`: one row for every change of what would be recommended.

The columns `label`, `method` and `seed` join them. A file's metadata say
`tune_ext.schema` and `tune_ext.version`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_ext.benchmark._lines import strict
from tune_ext.errors import MissingDependencyError, StateError

if TYPE_CHECKING:
    from tune_ext.benchmark.records import CellRecord

__all__ = ["VERSION", "write_parquet"]

VERSION = 1

_KEY = {"label": "string", "method": "string", "seed": "int64"}
_COLUMNS: dict[str, dict[str, str]] = {
    "cells": {
        **_KEY,
        "task": "string",
        "budget": "float64",
        "unit": "string",
        "epochs_used": "int64",
        "max_epochs": "int64",
        "workers": "int64",
        "clock": "string",
        "makespan": "float64",
        "busy_seconds": "float64",
        "cpu_seconds": "float64",
        "search_seconds": "float64",
        "evaluation_seconds": "float64",
        "test_error": "float64",
        "error_name": "string",
        "percent": "bool",
        "worst_error": "float64",
        "regret_best": "float64",
        "regret_median": "float64",
        "failed": "bool",
        "source": "string",
        "options": "string",
        "recommendation": "string",
        "tests": "string",
        "failures": "string",
        "details": "string",
        "provenance": "string",
    },
    "trials": {
        **_KEY,
        "trial": "int64",
        "epochs": "int64",
        "validation_error": "float64",
        "validation_loss": "float64",
        "response_mean": "float64",
        "train_seconds": "float64",
        "cpu_seconds": "float64",
        "ended": "bool",
        "config": "string",
    },
    "incumbents": {**_KEY, "used": "float64", "seconds": "float64", "error": "float64"},
}


def write_parquet(records: Sequence[CellRecord], directory: Path) -> list[Path]:
    """Write the three tables of `records`.

    Args:
        records: Of one study.
        directory: Where to; created when it does not exist.

    Returns:
        The files: cells, trials, incumbents.

    Raises:
        StateError: There are no records.
        MissingDependencyError: pyarrow is not installed.
    """
    if not records:
        raise StateError("there is no finished cell to export yet")
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError("pyarrow is not installed: pip install pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in (("cells", _cells), ("trials", _trials), ("incumbents", _incumbents)):
        fields = [
            pa.field(column, {"string": pa.string(), "bool": pa.bool_()}.get(kind) or kind)
            for column, kind in _COLUMNS[name].items()
        ]
        about = {"tune_ext.schema": f"tune-ext.{name}", "tune_ext.version": str(VERSION)}
        table = pa.Table.from_pylist(
            [row for record in records for row in rows(record)],
            schema=pa.schema(fields, metadata=about),
        )
        written.append(directory / f"{name}.parquet")
        pq.write_table(table, written[-1])
    return written


def _key(record: CellRecord) -> dict[str, Any]:
    return {"label": record.label, "method": record.method, "seed": record.seed}


def _text(value: Any) -> str:
    return json.dumps(strict(value), allow_nan=False)


def _cells(record: CellRecord) -> Iterator[dict[str, Any]]:
    best, median = record.regret_range or (None, None)
    same = {
        name: getattr(record, name)
        for name in _COLUMNS["cells"]
        if hasattr(record, name) and name != "task"
    }
    nested = {name: _text(getattr(record, name)) for name in _NESTED}
    yield {
        **same,
        **nested,
        "task": record.task["name"],
        "options": _text(record.task.get("options", {})),
        "regret_best": best,
        "regret_median": median,
        "failed": bool(record.failures),
        "source": record.recommendation.get("source"),
    }


_NESTED = ("recommendation", "tests", "failures", "details", "provenance")


def _trials(record: CellRecord) -> Iterator[dict[str, Any]]:
    for trial in record.trials:
        yield {**_key(record), **trial, "config": _text(trial["config"])}


def _incumbents(record: CellRecord) -> Iterator[dict[str, Any]]:
    for used, seconds, error in record.incumbents:
        yield {**_key(record), "used": used, "seconds": seconds, "error": error}
