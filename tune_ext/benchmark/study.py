"""Studies: what is compared, and with which budget.

A study is tasks × methods × seeds under one budget. Every (task, method, seed) is a cell.
Studies are read from TOML files by `study_file`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import json
import numbers
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tune_ext._checks import check_list
from tune_ext._random import derive_seed
from tune_ext._text import visible
from tune_ext.benchmark import tasks
from tune_ext.benchmark.tasks import Task
from tune_ext.errors import InvalidTypeError, InvalidValueError

__all__ = [
    "UNITS",
    "Cell",
    "Study",
    "TaskSpec",
    "check_module",
    "parse_seeds",
    "recorded_task",
    "suggest",
]

UNITS = ("epochs", "trainings", "evaluations", "seconds")
"""What a budget may count: training epochs, full-length trainings, trials that train until they
end by themselves, or seconds of training."""

LARGEST = 10**12
"""Of a budget and other counts: more is a slip of the finger."""

MOST_SEEDS = 100_000
"""Of a study, given as a count."""


@dataclass(frozen=True)
class TaskSpec:
    """A task by name, with the options that rebuild it in another process.

    Args:
        name: One of `tune_ext.benchmark.tasks.names()`, or `"package.module:factory"` for
            a task of your own: that module is imported, and that factory called. Where the name
            comes from a file, see `check_module`.
        options: Keyword arguments of the task, JSON-able.
        label: What the study calls it: two entries may have one name and differ in their
            options. "" stands for the name.
        budget: Instead of the study's.
        methods: Those of the study's methods that search it; None: all of them.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    budget: int | None = None
    methods: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidTypeError(f"name of a task must be text, got {self.name!r}")
        if not isinstance(self.label, str):
            raise InvalidTypeError(f"label of {self.name!r} must be text, got {self.label!r}")
        if not isinstance(self.options, Mapping):
            raise InvalidTypeError(f"options of {self.name!r} must map names, got {self.options!r}")
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if self.methods is not None:
            _check_names("methods", self.methods)
        if self.budget is not None:
            _check_number("budget", self.budget, whole=True)

    def to_json(self) -> dict[str, Any]:
        """What a cell of it depends on, as plain data; what is as usual is left out."""
        data = {"name": self.name, "options": dict(self.options)}
        if self.label != self.name:
            data["label"] = self.label
        return data if self.budget is None else {**data, "budget": self.budget}

    def create(self) -> Task:
        """The task itself; built once in a process.

        Raises:
            InvalidValueError: There is no such task, or it has no such option.
        """
        try:
            options = json.dumps(dict(self.options), sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidValueError(
                f"options of {self.name!r} must be text, numbers, true or false, and lists and "
                f"tables of these: {error}"
            ) from None
        return _create(self.name, options)


@functools.lru_cache(maxsize=64)
def _create(name: str, options: str) -> Task:
    if ":" not in name:
        return tasks.create(name, **json.loads(options))
    module, _, factory = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InvalidValueError(f"tasks: cannot import {name!r}: {error}") from None
    if not callable(make):
        raise InvalidValueError(f"tasks: {name!r} is {make!r}, which makes no task")
    try:
        task = make(**json.loads(options))
    except TypeError as error:
        raise InvalidValueError(f"tasks: {name!r} does not take its options: {error}") from error
    if not isinstance(task, Task):
        raise InvalidValueError(f"tasks: {name!r} made {task!r}, which is no Task")
    return task


def check_module(name: str, modules: Collection[str]) -> None:
    """Raise unless the task of this name, which stands in a file, may have its code run.

    A name such as ``"os:system"`` would make a file a program. So a file can name our own tasks
    alone, and those of modules that whoever reads it has named as well.

    Args:
        name: See `TaskSpec`.
        modules: Those that may be imported.

    Raises:
        InvalidValueError: It is of another module.
    """
    module, of_a_module, _ = name.partition(":")
    if of_a_module and module not in modules:
        raise InvalidValueError(
            f"the task {name!r} is code of the module {module!r}, which a file alone may not run: "
            f"if you trust it, give --task-module {module} (in Python: modules=[{module!r}])"
        )


def recorded_task(task: Mapping[str, Any], modules: Collection[str] = ()) -> Task:
    """The task that a record names.

    Args:
        task: The record's `task`.
        modules: See `check_module`.

    Raises:
        InvalidValueError: It may not be made, there is no such task, or it has no such option.
    """
    check_module(str(task["name"]), modules)
    return TaskSpec(str(task["name"]), dict(task["options"])).create()


@dataclass(frozen=True)
class Cell:
    """One run of a study: a method on a task with one search seed."""

    task: TaskSpec
    method: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies the cell in the records of its study, which are read as `visible`."""
        return (visible(self.task.label), self.method, self.seed)

    def __str__(self) -> str:
        return f"{self.task.label} · {self.method} · seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """What is compared, with which budget.

    Args:
        title: One line for tables and plots.
        tasks: What is tuned.
        methods: Names from `tune_ext.benchmark.methods.METHODS`.
        seeds: Search seeds; seed s gives every method the same data split, initial
            weights and first random configurations.
        budget: For the search of one cell, counted over all its trials, in `unit`. A task
            may have another.
        final_seeds: How many full-length trainings evaluate a recommendation.
        stall_seconds: A cell without progress for this long is stopped as a failure.
        cell_seconds: A cell that takes longer is stopped as a failure.
        description: Free text.
        unit: "epochs"; "trainings": as many epochs as that many full-length trainings of the
            task have; "evaluations", as many trials, each trained until it ends by itself, however
            long that takes; or "seconds" of training, all workers together. In seconds, an epoch
            that is under way when the budget is used up is cut off: its time counts up to
            then, and no method sees its result. Where the processor trains, its seconds count,
            which other work on the machine does not prolong.
        workers: How many trials of a cell can run at once. An epoch is paid for when it
            begins: when all are paid for no other begins, and those that are under way are
            finished. Less exact, by at most `workers - 1` epochs that nobody sees, is a budget
            in seconds of trials that are really trained, as what an epoch takes is known when
            it is over.
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
    unit: str = "epochs"
    workers: int = 1

    def __post_init__(self) -> None:
        tasks = check_list("tasks", self.tasks, "TaskSpec")
        for task in tasks:
            if not isinstance(task, TaskSpec):
                raise InvalidTypeError(f"tasks must hold TaskSpec, got {task!r}")
        _check_names("tasks", [task.label for task in tasks])
        _check_names("methods", self.methods)
        _check_names("seeds", self.seeds)
        object.__setattr__(self, "seeds", parse_seeds(list(self.seeds)))
        for name in ("budget", "final_seeds", "workers"):
            _check_number(name, getattr(self, name), whole=True)
        for name in ("stall_seconds", "cell_seconds"):
            _check_number(name, getattr(self, name), whole=False)
        if not isinstance(self.unit, str) or self.unit not in UNITS:
            fix = suggest(self.unit, UNITS)
            raise InvalidValueError(
                f"unit must be one of {', '.join(UNITS)}, got {self.unit!r}{fix}"
            )

    def cells(self) -> list[Cell]:
        """Every cell; seed by seed, so that an interrupted study has whole seeds."""
        return [
            Cell(task, method, seed)
            for seed in self.seeds
            for task in self.tasks
            for method in self.methods
            if task.methods is None or method in task.methods
        ]

    def budget_of(self, task: TaskSpec) -> int:
        """What a search of `task` may use, in `unit`."""
        return self.budget if task.budget is None else task.budget

    def evaluation_seeds(self, seed: int) -> list[int]:
        """Seeds of the final trainings for search seed `seed`: the same for every method."""
        return [derive_seed(seed, "evaluation", i) % 2**31 for i in range(self.final_seeds)]

    def settings(self) -> dict[str, Any]:
        """What a finished cell depends on, besides its method and seed."""
        return {
            "tasks": [t.to_json() for t in self.tasks],
            "budget": self.budget,
            "budget_unit": self.unit,
            "final_seeds": self.final_seeds,
            "workers": self.workers,
        }

    def with_overrides(
        self,
        *,
        methods: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        budget: int | None = None,
        workers: int | None = None,
    ) -> Study:
        """The study with what the command line says instead."""
        changes: dict[str, Any] = {}
        if methods is not None:
            changes["methods"] = tuple(methods)
        if seeds is not None:
            changes["seeds"] = tuple(seeds)
        if budget is not None:
            changes["budget"] = budget
            changes["tasks"] = tuple(replace(task, budget=None) for task in self.tasks)
        if workers is not None:
            changes["workers"] = workers
        return replace(self, **changes)


def suggest(word: object, known: Iterable[str]) -> str:
    """A question for a word that is nearly one of `known`, else nothing.

    >>> suggest("epoch", UNITS)
    '; did you mean epochs?'
    """
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _check_number(name: str, value: object, *, whole: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "a whole number" if whole else "a number"
        raise InvalidValueError(f"{name} must be {kind}, got {value!r}")
    if not value > 0:
        raise InvalidValueError(f"{name} must be positive, got {value!r}")
    if whole and value > LARGEST:
        raise InvalidValueError(f"{name} must be at most {LARGEST}, got a larger number")


def _check_names(what: str, values: object) -> None:
    values = check_list(what, values, "names")
    if not values:
        raise InvalidValueError(f"{what} must not be empty")
    twice = {str(v) for v in values if values.count(v) > 1}
    if twice:
        fix = "; give one of them a label" if what == "tasks" else ""
        raise InvalidValueError(
            f"{what} must differ from each other; repeated: {sorted(twice)}{fix}"
        )


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
        if value > MOST_SEEDS:
            raise InvalidValueError(f"seeds must be at most {MOST_SEEDS} in number, got {value}")
        return tuple(range(value))
    if isinstance(value, list | tuple) and value and all(map(_is_seed, value)):
        return tuple(map(int, value))
    raise InvalidValueError(
        f"seeds must be a positive count or a list of non-negative integers, got {value!r}"
    )


def _is_seed(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0
