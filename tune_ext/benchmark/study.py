"""Studies: what is compared, read from one TOML file and checked before anything runs.

A study is tasks × methods × seeds under one budget. Every (task, method, seed) is a cell.

```toml
title = "Seven methods on handwritten digits"

[[tasks]]
name = "digits-cnn"
options = { parameters = ["lr"] }

[compare]
methods = ["default", "random", "autohyper"]
seeds = 3          # 0, 1, 2; or a list
budget = 150       # training epochs for each cell's search, all trials together
final_seeds = 3    # trainings of each recommendation, outside the budget

[limits]           # optional
stall_seconds = 180
cell_seconds = 1800
```
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tune_ext._random import derive_seed
from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks import Task
from tune_ext.errors import DataNotFoundError, InvalidValueError

__all__ = ["Cell", "Study", "TaskSpec", "find_study", "load_study", "parse_seeds", "parse_study"]

_TABLES = {
    "": {"title", "description", "tasks", "compare", "limits"},
    "tasks": {"name", "options"},
    "compare": {"methods", "seeds", "budget", "final_seeds"},
    "limits": {"stall_seconds", "cell_seconds"},
}


@dataclass(frozen=True)
class TaskSpec:
    """A task by name, with the options that rebuild it in another process.

    Args:
        name: One of `tune_ext.benchmark.tasks.names()`, or `"package.module:factory"` for
            a task of your own.
        options: Keyword arguments of the task, JSON-able.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The specification as plain data."""
        return {"name": self.name, "options": dict(self.options)}

    def create(self) -> Task:
        """The task itself; built once in a process.

        Raises:
            InvalidValueError: There is no such task, or it has no such option.
        """
        return _create(self.name, json.dumps(dict(self.options), sort_keys=True))


@functools.lru_cache(maxsize=16)
def _create(name: str, options: str) -> Task:
    if ":" not in name:
        return tasks.create(name, **json.loads(options))
    module, _, factory = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise InvalidValueError(f"tasks: cannot import {name!r}: {error}") from None
    task: Task = make(**json.loads(options))
    return task


@dataclass(frozen=True)
class Cell:
    """One run of a study: a method on a task with one search seed."""

    task: TaskSpec
    method: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies the cell in the records of its study."""
        return (self.task.name, self.method, self.seed)

    def __str__(self) -> str:
        return f"{self.task.name} · {self.method} · seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """What is compared, with which budget.

    Args:
        title: One line for tables and plots.
        tasks: What is tuned.
        methods: Names from `tune_ext.benchmark.methods.METHODS`.
        seeds: Search seeds; seed s gives every method the same data split, initial
            weights and first random configurations.
        budget: Training epochs for the search of one cell, counted over all its trials.
        final_seeds: How many full-length trainings evaluate a recommendation.
        stall_seconds: A cell without progress for this long is stopped as a failure.
        cell_seconds: A cell that takes longer is stopped as a failure.
        description: Free text.
    """

    title: str
    tasks: tuple[TaskSpec, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: int
    final_seeds: int = 1
    stall_seconds: float = 180.0
    cell_seconds: float = 3600.0
    description: str = ""

    def __post_init__(self) -> None:
        _check_names("tasks", [t.name for t in self.tasks])
        _check_names("methods", self.methods)
        _check_names("seeds", self.seeds)
        for name in ("budget", "final_seeds", "stall_seconds", "cell_seconds"):
            value = getattr(self, name)
            whole = name in ("budget", "final_seeds")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise InvalidValueError(f"{name} must be {kind}, got {value!r}")
            if not value > 0:
                raise InvalidValueError(f"{name} must be positive, got {value!r}")

    def cells(self) -> list[Cell]:
        """Every cell; seed by seed, so that an interrupted study has whole seeds."""
        return [
            Cell(task, method, seed)
            for seed in self.seeds
            for task in self.tasks
            for method in self.methods
        ]

    def evaluation_seeds(self, seed: int) -> list[int]:
        """Seeds of the final trainings for search seed `seed`: the same for every method."""
        return [derive_seed(seed, "evaluation", i) % 2**31 for i in range(self.final_seeds)]

    def settings(self) -> dict[str, Any]:
        """What a finished cell depends on, besides its method and seed."""
        return {
            "tasks": [t.to_json() for t in self.tasks],
            "budget": self.budget,
            "budget_unit": "epochs",
            "final_seeds": self.final_seeds,
        }

    def with_overrides(
        self,
        *,
        methods: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        budget: int | None = None,
    ) -> Study:
        """The study with what the command line says instead."""
        changes: dict[str, Any] = {}
        if methods is not None:
            changes["methods"] = tuple(methods)
        if seeds is not None:
            changes["seeds"] = tuple(seeds)
        if budget is not None:
            changes["budget"] = budget
        return replace(self, **changes)


def _check_names(what: str, values: Iterable[object]) -> None:
    values = list(values)
    if not values:
        raise InvalidValueError(f"{what} must not be empty")
    twice = {str(v) for v in values if values.count(v) > 1}
    if twice:
        raise InvalidValueError(f"{what} must differ from each other; repeated: {sorted(twice)}")


def parse_seeds(value: object) -> tuple[int, ...]:
    """Seeds from a count (3 means 0, 1, 2), a list, or the command line's text.

    >>> parse_seeds(3), parse_seeds([4, 7]), parse_seeds("2"), parse_seeds("5,9")
    ((0, 1, 2), (4, 7), (0, 1), (5, 9))
    """
    if isinstance(value, str):
        try:
            numbers = [int(part) for part in value.split(",") if part.strip()]
        except ValueError:
            raise InvalidValueError(
                f"seeds must be a count or numbers with commas between, got {value!r}"
            ) from None
        value = numbers if "," in value else (numbers[0] if numbers else 0)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return tuple(range(value))
    if isinstance(value, list | tuple) and value and all(map(_is_seed, value)):
        return tuple(value)
    raise InvalidValueError(
        f"seeds must be a positive count or a list of non-negative integers, got {value!r}"
    )


def _is_seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def find_study(name: str | Path) -> Path:
    """The file of a study: a path, its directory, or the name of one under ./experiments.

    Raises:
        DataNotFoundError: There is no such file; the message lists the known names.
    """
    path = Path(name)
    for candidate in (path, path / "study.toml", Path("experiments", name, "study.toml")):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(p.parent.name for p in Path("experiments").glob("*/study.toml")))
    raise DataNotFoundError(
        f"no study {str(name)!r}: give a TOML file"
        + (f", or one of ./experiments: {shipped}" if shipped else "")
    )


def load_study(path: str | Path) -> Study:
    """Read and check a study file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataNotFoundError(f"cannot read the study {path}: {error}") from None
    return parse_study(text, where=str(path))


def parse_study(text: str, where: str = "study") -> Study:
    """Parse a study from TOML text.

    Raises:
        InvalidValueError: The message starts with `where` and the line.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidValueError(f"{where}: not valid TOML: {error}") from None
    try:
        return _build(data)
    except InvalidValueError as error:
        raise InvalidValueError(f"{where}{_line_of(text, str(error))}: {error}") from None


def _build(data: dict[str, Any]) -> Study:
    compare, limits, tasks = data.get("compare", {}), data.get("limits", {}), data.get("tasks", [])
    for name, table in (("compare", compare), ("limits", limits)):
        if not isinstance(table, dict):
            raise InvalidValueError(f"{name} must be a table, written [{name}]")
    if not isinstance(tasks, list) or not all(isinstance(t, dict) for t in tasks):
        raise InvalidValueError("tasks must be tables, each written [[tasks]]")
    for name, table in [("", data), ("compare", compare), ("limits", limits)] + [
        ("tasks", t) for t in tasks
    ]:
        _check_keys(name, table)
    for key in ("methods", "seeds", "budget"):
        if key not in compare:
            raise InvalidValueError(f"[compare] needs {key}")
    methods = compare["methods"]
    if not isinstance(methods, list) or not all(isinstance(m, str) for m in methods):
        raise InvalidValueError(f"methods must be a list of names, got {methods!r}")
    return Study(
        title=str(data.get("title", "untitled study")),
        description=str(data.get("description", "")),
        tasks=tuple(_task(t) for t in tasks),
        methods=tuple(methods),
        seeds=parse_seeds(compare["seeds"]),
        budget=compare["budget"],
        final_seeds=compare.get("final_seeds", 1),
        **limits,
    )


def _task(table: dict[str, Any]) -> TaskSpec:
    name, options = table.get("name"), table.get("options", {})
    if not isinstance(name, str) or not name:
        raise InvalidValueError(f"[[tasks]] needs a name, got {name!r}")
    if not isinstance(options, dict):
        raise InvalidValueError(f"options must be a table, got {options!r}")
    return TaskSpec(name, options)


def _check_keys(name: str, table: dict[str, Any]) -> None:
    for key in table:
        if key not in _TABLES[name]:
            place = f"in [{name}]" if name else "at the top"
            raise InvalidValueError(
                f"{key} is not known {place}; known: {', '.join(sorted(_TABLES[name]))}"
            )


def _line_of(text: str, message: str) -> str:
    """The line that the message is about: that of the first key that the message names."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if key := re.match(r"\s*([A-Za-z_]+)\s*=", line):
            lines.setdefault(key.group(1), number)
    named = [word for word in re.findall(r"[A-Za-z_]+", message) if word in lines]
    return f", line {lines[named[0]]}" if named else ""
