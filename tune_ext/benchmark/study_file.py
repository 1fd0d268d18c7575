"""Study files: TOML, checked before anything runs, with the line and the fix in every error.

```toml
title = "Seven methods on handwritten digits"

[[tasks]]
name = "digits-cnn"
label = "digits"   # optional: what reports call it; two entries may have one name
options = { parameters = ["lr"] }
budget = 100       # optional: instead of that below
methods = ["default", "autohyper"]   # optional: only these of those below

[compare]
methods = ["default", "random", "autohyper"]
seeds = 3          # 0, 1, 2; or a list
budget = 150       # for each cell's search, all trials together
unit = "epochs"    # optional: or "trainings" (full-length ones), "evaluations" (trials that
                   # end by themselves), or "seconds" (of training)
final_seeds = 3    # optional: trainings of each recommendation, outside the budget
workers = 1        # optional: how many trials of a cell run at once

[limits]           # optional
stall_seconds = 180
cell_seconds = 1800
```
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from tune_ext.benchmark.methods import METHODS, check_methods
from tune_ext.benchmark.study import Study, TaskSpec, check_module, parse_seeds, suggest
from tune_ext.benchmark.tasks import names as task_names
from tune_ext.errors import DataNotFoundError, InvalidTypeError, InvalidValueError

__all__ = ["find_study", "load_study", "parse_study"]

_TABLES = {
    "": {"title", "description", "tasks", "compare", "limits"},
    "tasks": {"name", "label", "options", "budget", "methods"},
    "compare": {"methods", "seeds", "budget", "unit", "workers", "final_seeds"},
    "limits": {"stall_seconds", "cell_seconds"},
}


class _PlacedError(InvalidValueError):
    """An error in the n-th of the [[tasks]], at a key of it."""

    def __init__(self, message: str, number: int, key: str) -> None:
        super().__init__(message)
        self.number, self.key = number, key


def find_study(name: str | Path) -> Path:
    """The file of a study: a path, its directory, or the name of one under ./experiments.

    Raises:
        DataNotFoundError: There is no such file; the message lists the known names.
    """
    path = Path(name)
    for candidate in (path, path / "study.toml", Path("experiments", name, "study.toml")):
        with contextlib.suppress(OSError):  # such as a name that is too long for one
            if candidate.is_file():
                return candidate
    shipped = sorted(p.parent.name for p in Path("experiments").glob("*/study.toml"))
    raise DataNotFoundError(
        f"no study {str(name)!r}{suggest(name, shipped)}; give a TOML file"
        + (f", or one of ./experiments: {', '.join(shipped)}" if shipped else "")
    )


def load_study(path: str | Path, modules: Collection[str] = ()) -> Study:
    """Read and check a study file; `modules` as for `parse_study`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except OSError as error:
        raise DataNotFoundError(f"cannot read the study {path}: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidValueError(
            f"{path}: not UTF-8, which TOML is: save it in that encoding ({error})"
        ) from None
    return parse_study(text, where=str(path), modules=modules)


def parse_study(text: str, where: str = "study", modules: Collection[str] = ()) -> Study:
    """Parse a study from TOML text.

    Args:
        text: Of the file.
        where: What errors begin with.
        modules: Your own, from which its tasks may come: a file alone may run no code.

    Raises:
        InvalidValueError: The message starts with `where` and the line.
    """
    try:
        data = tomllib.loads(text)
        _check_integers(data, where)
    except InvalidValueError:
        raise
    except ValueError as error:  # also of a number with thousands of digits
        raise InvalidValueError(f"{where}: not valid TOML: {error}") from None
    except RecursionError:
        raise InvalidValueError(f"{where}: its brackets are nested too deeply") from None
    try:
        return _build(data, modules)
    except (InvalidTypeError, InvalidValueError) as error:
        raise InvalidValueError(f"{where}{_line_of(text, error)}: {error}") from None


def _check_integers(value: Any, where: str) -> None:
    """Raise at a whole number of more than TOML's 64 bits: Python would print none of the long."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_integers(item, where)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidValueError(f"{where}: a whole number has more than TOML's 64 bits")


def _build(data: dict[str, Any], modules: Collection[str]) -> Study:
    compare, limits, tasks = data.get("compare", {}), data.get("limits", {}), data.get("tasks", [])
    for name, table in (("compare", compare), ("limits", limits)):
        if not isinstance(table, dict):
            raise InvalidValueError(f"{name} must be a table, written [{name}]")
    if not isinstance(tasks, list) or not all(isinstance(t, dict) for t in tasks):
        raise InvalidValueError("tasks must be tables, each written [[tasks]]")
    for name, table in (("", data), ("compare", compare), ("limits", limits)):
        _check_keys(name, table)
    for key in ("methods", "seeds", "budget"):
        if key not in compare:
            raise InvalidValueError(f"[compare] needs {key}")
    methods = compare["methods"]
    if not isinstance(methods, list) or not all(isinstance(m, str) for m in methods):
        raise InvalidValueError(f"methods must be a list of names, got {methods!r}")
    _check_known_methods(methods)
    return Study(
        title=str(data.get("title", "untitled study")),
        description=str(data.get("description", "")),
        tasks=tuple(_task(number, t, methods, modules) for number, t in enumerate(tasks)),
        methods=tuple(methods),
        seeds=parse_seeds(compare["seeds"]),
        budget=compare["budget"],
        **{k: compare[k] for k in ("final_seeds", "unit", "workers") if k in compare},
        **limits,
    )


def _check_known_methods(methods: Iterable[str]) -> None:
    for method in methods:
        try:
            check_methods((method,))
        except InvalidValueError as error:
            raise InvalidValueError(f"{error}{suggest(method, METHODS)}") from None


def _task(
    number: int, table: dict[str, Any], methods: list[str], modules: Collection[str]
) -> TaskSpec:
    def wrong(message: str, key: str) -> _PlacedError:
        return _PlacedError(message, number, key)

    for key in table:
        if key not in _TABLES["tasks"]:
            raise wrong(_unknown("tasks", key), key)
    name, options, label = table.get("name"), table.get("options", {}), table.get("label", "")
    if not isinstance(name, str) or not name:
        raise wrong(f"[[tasks]] needs a name, got {name!r}", "name")
    if not isinstance(options, dict):
        raise wrong(f"options must be a table, got {options!r}", "options")
    if not isinstance(label, str):
        raise wrong(f"label must be text, got {label!r}", "label")
    some = table.get("methods")
    whole = isinstance(some, list) and some and all(m in methods for m in some)
    if some is not None and not whole:
        known = ", ".join(methods)
        raise wrong(f"methods must be some of [compare]'s, {known}; got {some!r}", "methods")
    try:
        spec = TaskSpec(name, options, label, table.get("budget"), some and tuple(some))
    except InvalidValueError as error:
        raise wrong(str(error), "methods" if "methods" in str(error) else "budget") from None
    _check_task(spec, wrong, modules)
    return spec


def _check_task(
    spec: TaskSpec, wrong: Callable[[str, str], _PlacedError], modules: Collection[str]
) -> None:
    """Whether there is such a task, with such options."""
    try:
        check_module(spec.name, modules)
    except InvalidValueError as error:
        raise wrong(str(error), "name") from None
    if ":" in spec.name:  # a module of the user's own is imported when the study runs
        return
    if spec.name not in task_names():
        raise wrong(f"there is no task {spec.name!r}{_near(spec.name)}", "name")
    try:
        spec.create()
    except (InvalidTypeError, InvalidValueError) as error:
        raise wrong(str(error), "options") from None


def _near(name: str) -> str:
    close = suggest(name, task_names())
    return close or f"; `tune-ext list` shows the tasks, such as {task_names()[0]}"


def _unknown(table: str, key: str) -> str:
    known = sorted(_TABLES[table])
    place = f"in [{table}]" if table else "at the top"
    for other, keys in _TABLES.items():
        if other != table and key in keys:
            where = f"in [{other}]" if other else "at the top of the file, before the first table"
            return f"{key} does not belong {place}: write it {where}"
    return f"{key} is not known {place}; known: {', '.join(known)}{suggest(key, known)}"


def _check_keys(name: str, table: dict[str, Any]) -> None:
    for key in table:
        if key not in _TABLES[name]:
            raise InvalidValueError(_unknown(name, key))


def _line_of(text: str, error: Exception) -> str:
    """The line that the error is about: of its place, or of the first key that it names."""
    lines: dict[tuple[str, str], int] = {}
    table, count = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*(\[\[?)\s*([A-Za-z_]+)", line):
            count += header.group(1) == "[[" and header.group(2) == "tasks"
            table = f"tasks {count - 1}" if header.group(2) == "tasks" else header.group(2)
            lines.setdefault((table, ""), number)
            if "." in line:  # such as [tasks.options]
                inner = line.strip().strip("[]").rpartition(".")[2].strip()
                lines.setdefault((table, inner), number)
        elif key := re.match(r"\s*\"?([A-Za-z_]+)\"?\s*=", line):
            lines.setdefault((table, key.group(1)), number)
    if isinstance(error, _PlacedError):
        place = f"tasks {error.number}"
        found = lines.get((place, error.key)) or lines.get((place, ""))
        return f", line {found}" if found else ""
    first: dict[str, int] = {}
    for (table, key_name), number in lines.items():
        if key_name and not table.startswith("tasks"):
            first.setdefault(key_name, number)
    named = [word for word in re.findall(r"[A-Za-z_]+", str(error)) if word in first]
    if not named:
        return ""
    inside = re.search(r" in \[([a-z]+)\]", str(error))
    exact = lines.get((inside.group(1), named[0])) if inside else None
    return f", line {exact or first[named[0]]}"
