"""A study's report: the page, its pictures, and Markdown for a README."""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_ext._text import markdown as _shown
from tune_ext._text import visible, visible_values
from tune_ext.benchmark import html, plots
from tune_ext.benchmark._unavailable import grouped
from tune_ext.benchmark.analysis import Across, Analysis, MethodResult, TaskAnalysis, analyse
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.errors import StateError

__all__ = [
    "COLUMNS",
    "TaskReport",
    "load_analysis",
    "markdown",
    "not_run",
    "record_lines",
    "table_rows",
    "write_report",
]

COLUMNS = (
    "method",
    "test error, interquartile mean [95 % interval]",
    "mean ± SE",
    "used (median)",
    "search, s (median)",
    "training in it, s (median)",
    "chosen (median, range)",
    "failures",
)


_NO_BRACKETS = str.maketrans("[]", "()")
"""The text beside a picture ends at a bracket."""


@dataclass(frozen=True)
class TaskReport:
    """One task's part of a report, as text."""

    task: str
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]
    failures: tuple[str, ...]
    parameters: int = 0


def table_rows(task: TaskAnalysis) -> list[tuple[str, ...]]:
    """The table's cells as text, lowest interquartile mean first, those without any last."""
    return [
        (
            m.method,
            _middle(m, task),
            _mean(m, task),
            f"{m.units:.4g}",
            f"{m.seconds:.1f}",
            "" if m.trained is None else f"{m.trained:.1f}",
            ", ".join(f"{name} {told}" for name, told in m.chosen.items()) or "none",
            f"{m.failed} of {len(m.cells)}",
        )
        for m in task.methods
    ]


def _number(task: TaskAnalysis, error: float) -> str:
    return f"{100 * error:.2f}" if task.percent else f"{error:.3g}"


def _mean(m: MethodResult, task: TaskAnalysis) -> str:
    if not m.scores:
        return "none"
    spread = "(one seed)" if math.isnan(m.error) else f"± {_number(task, m.error)}"
    return f"{_number(task, m.mean)} {spread}{task.unit}"


def _middle(m: MethodResult, task: TaskAnalysis) -> str:
    if m.iqm is None:
        return "none"
    if not math.isfinite(m.iqm.low):
        return f"{_number(task, m.iqm.value)}{task.unit}"
    low, high = _number(task, m.iqm.low), _number(task, m.iqm.high)
    return f"{_number(task, m.iqm.value)}{task.unit} [{low}, {high}]"


def markdown(analysis: Analysis) -> str:
    """The whole report as Markdown."""
    lines = [f"# {_shown(analysis.title)}", ""]
    for paragraph in filter(str.strip, analysis.description.split("\n\n")):
        lines += [*map(_shown, paragraph.strip().splitlines()), ""]
    lines += _list(analysis.sentences)
    if analysis.across is not None:
        lines += _across(analysis, analysis.across)
    for number, task in enumerate(analysis.tasks):
        lines += [f"## {_shown(task.label)}", ""]
        if analysis.across is not None:
            lines += _list(task.sentences)
        lines += _table(COLUMNS, table_rows(task))
        name = plots.picture_name(analysis, number)
        called = _shown(task.label.translate(_NO_BRACKETS))
        lines += [f"![Anytime curves and test errors of {called}]({name}.svg)", ""]
        lines += _failures(task)
    if analysis.not_run:
        lines += ["## Not run", "", *_list([f"{n}: {why}" for n, why in analysis.not_run])]
    lines += ["## Conditions", "", *_list([*analysis.conditions, *analysis.versions])]
    return "\n".join(lines).rstrip() + "\n"


def _list(sentences: Sequence[str]) -> list[str]:
    return [*(f"* {_shown(s)}" for s in sentences), ""]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    clean = ([_shown(cell, cell=True) for cell in row] for row in rows)
    return [*lines, *("| " + " | ".join(row) + " |" for row in clean), ""]


def _across(analysis: Analysis, across: Across) -> list[str]:
    ranks = across.ranks.ranks if across.ranks else {}
    rows = []
    for method, found in across.regret.items():
        firsts = sum(places[method] == 1 for places in across.places.values())
        failed = sum(m.failed for t in analysis.tasks for m in t.methods if m.method == method)
        rows.append(
            (
                method,
                f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]",
                f"{ranks[method]:.2f}" if method in ranks else "",
                f"{firsts} of {len(across.tasks)}",
                str(failed),
            )
        )
    columns = (
        "method",
        "normalised regret, interquartile mean [95 % interval]",
        "average rank",
        "tasks on which it is the best",
        "failed cells",
    )
    pictures = ["![All tasks together](comparison.svg)", ""]
    if across.ranks is not None:
        pictures += ["![Average ranks and critical difference](comparison-ranks.svg)", ""]
    return ["## All tasks", "", *_table(columns, rows), *pictures]


def _failures(task: TaskAnalysis) -> list[str]:
    failed = _failed(task)
    if not failed:
        return ["No cell failed.", ""]
    return ["Failures:", "", *_list(failed)]


def _failed(task: TaskAnalysis) -> tuple[str, ...]:
    """Every failure once, with the seeds in which it happened."""
    found: dict[tuple[str, str], list[int]] = {}
    for m in task.methods:
        for cell in m.cells:
            for why in cell.failures:
                found.setdefault((m.method, why), []).append(cell.seed)
    return tuple(
        f"{method}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}: {why}"
        for (method, why), seeds in found.items()
    )


def not_run(study: dict[str, Any]) -> list[str]:
    """Methods and tasks that could not run where the study ran last, each with the reason."""
    return [f"{name}: {why}" for name, why in grouped(study.get("unavailable", {}))]


def record_lines(path: Path) -> dict[tuple[str, str, int], int]:
    """The key of each record → the number of its line; of the last one, if there are several."""
    found = {}
    packed = path.with_suffix(".jsonl.xz")
    name, opened = (path, open) if path.exists() else (packed, lzma.open)
    with opened(name, "rt", encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n"):
                data = json.loads(line)
                if "method" in data:
                    label = data.get("label") or data["task"]["name"]
                    found[visible(label), data["method"], data["seed"]] = number
    return found


def load_analysis(store: RecordStore) -> Analysis:
    """The analysis of a study's directory.

    Raises:
        StateError: There are no records, or they are damaged.
    """
    study = visible_values(store.load_settings())
    records = _in_order(store.load(), study)
    if not records:
        raise StateError(f"{store.path} holds no finished cell yet")
    return analyse(records, study, record_lines(store.path))


def write_report(store: RecordStore) -> tuple[list[TaskReport], list[Path]]:
    """Write report.html, report.md and the pictures beside the records.

    Needs vl-convert-python, of the extra `compare`.

    Returns:
        The parts of the report as text, and the files that were written.

    Raises:
        StateError: There are no records, or they are damaged.
    """
    analysis = load_analysis(store)
    written = [store.directory / "report.html", store.directory / "report.md"]
    for path, text in zip(written, (html.page(analysis), markdown(analysis)), strict=True):
        path.write_text(text, encoding="utf-8")
    written += plots.draw(analysis, store.directory)
    parts = [
        TaskReport(
            t.label,
            tuple(table_rows(t)),
            t.sentences,
            _failed(t),
            parameters=max((len(m.chosen) for m in t.methods), default=0),
        )
        for t in analysis.tasks
    ]
    return parts, written


def _in_order(records: Sequence[CellRecord], study: dict[str, Any]) -> list[CellRecord]:
    methods = {method: place for place, method in enumerate(study["methods"])}
    tasks = {
        task.get("label") or task["name"]: place
        for place, task in enumerate(study["settings"]["tasks"])
    }
    return sorted(
        records,
        key=lambda r: (tasks.get(r.key[0], 99), methods.get(r.method, 99), r.method, r.seed),
    )
