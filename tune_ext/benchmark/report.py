"""What a study's records say, in words: the table, the verdict, the page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tune_ext.benchmark import plots
from tune_ext.benchmark.methods import METHODS
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.benchmark.stats import MethodSummary, summarize, verdict
from tune_ext.errors import StateError

__all__ = [
    "COLUMNS",
    "TaskReport",
    "build_report",
    "markdown",
    "not_run",
    "table_rows",
    "write_report",
]

COLUMNS = (
    "method",
    "test error, % (mean ± SE)",
    "epochs used (median)",
    "search, s (median)",
    "chosen (median, range)",
    "failures",
)

_OURS = tuple(name for name, method in METHODS.items() if method.ours)


@dataclass(frozen=True)
class TaskReport:
    """One task's part of a report."""

    task: str
    options: dict[str, Any]
    records: tuple[CellRecord, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]
    failures: tuple[str, ...]


def table_rows(summaries: Sequence[MethodSummary]) -> list[tuple[str, ...]]:
    """The table's cells as text, best mean test error first, those without any last."""
    ranked = sorted(summaries, key=lambda s: (not s.test_error, s.mean if s.test_error else 0.0))
    return [
        (
            s.method,
            _mean(s),
            f"{s.epochs:g}",
            f"{s.seconds:.1f}",
            ", ".join(_spread(name, values) for name, values in s.chosen.items()) or "none",
            f"{s.failed_cells} of {s.cells}",
        )
        for s in ranked
    ]


def _mean(summary: MethodSummary) -> str:
    if not summary.test_error:
        return "none"
    if len(summary.test_error) < 2:
        return f"{100 * summary.mean:.2f} (one seed)"
    return f"{100 * summary.mean:.2f} ± {100 * summary.error:.2f}"


def _spread(name: str, values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    middle = f"{name} {median(values):.2g}"
    return middle if low == high else f"{middle} ({low:.2g} to {high:.2g})"


def build_report(records: Sequence[CellRecord]) -> list[TaskReport]:
    """One part a task, in the order of the records."""
    groups: dict[str, list[CellRecord]] = {}
    for record in records:
        groups.setdefault(record.task["name"], []).append(record)
    parts = []
    for name, group in groups.items():
        summaries = summarize(group)
        parts.append(
            TaskReport(
                task=name,
                options=dict(group[0].task["options"]),
                records=tuple(group),
                rows=tuple(table_rows(summaries)),
                sentences=tuple(verdict(summaries, _OURS)),
                failures=tuple(f"{s.method}, {why}" for s in summaries for why in s.failures),
            )
        )
    return parts


def markdown(title: str, study: dict[str, Any], parts: Sequence[TaskReport]) -> str:
    """The whole report as Markdown."""
    lines = [f"# {title}", ""]
    if study.get("description"):
        lines += [study["description"].strip(), ""]
    for part in parts:
        lines += [f"## {part.task}", "", *part.sentences, ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
        lines += ["| " + " | ".join(row) + " |" for row in part.rows]
        name = _picture(part, parts)
        lines += ["", f"![Anytime validation error and test error]({name}.svg)", ""]
        lines += _failures(part)
        lines += [f"Not run here: {line}." for line in not_run(study)]
        lines += _conditions(part, study)
    return "\n".join(lines).rstrip() + "\n"


def not_run(study: dict[str, Any]) -> list[str]:
    """Methods and tasks that could not run where the study ran last, each with the reason."""
    return [f"{name}: {why}" for name, why in study.get("unavailable", {}).items()]


def _failures(part: TaskReport) -> list[str]:
    if not part.failures:
        return ["No cell failed.", ""]
    return ["Failures:", "", *(f"* {failure}" for failure in part.failures), ""]


def _conditions(part: TaskReport, study: dict[str, Any]) -> list[str]:
    settings = study["settings"]
    finals = settings["final_seeds"]
    first = part.records[0].provenance
    seeds = sorted({r.seed for r in part.records})
    revisions = sorted({str(r.provenance.get("git")) for r in part.records})
    options = ", ".join(f"{k} = {v}" for k, v in part.options.items()) or "the defaults"
    versions = ", ".join(f"{k} {v}" for k, v in first.get("versions", {}).items() if v)
    hardware = first.get("hardware", {})
    return [
        f"Conditions: {settings['budget']} training epochs for each search, over all its trials; "
        f"search seeds {', '.join(map(str, seeds))}; each recommendation trained at full length "
        f"with {finals} other seed{'s' * (finals > 1)} and tested once each, outside the budget. "
        f"Task options: {options}.",
        "",
        "The curves show the lowest validation error among all epochs trained so far. A method "
        f"need not choose by it: {_choices(part)}the other searches recommend the trial with the "
        "lowest validation error at its last epoch.",
        "",
        f"{versions}; {hardware.get('processor')}, {hardware.get('cores')} cores; "
        f"revision {', '.join(revisions)}.",
        "",
    ]


def _choices(part: TaskReport) -> str:
    """Which methods of the task choose by something else, as the beginning of a sentence."""
    present = dict.fromkeys(r.method for r in part.records)
    said = [
        f"{name} chooses by {method.chooses} alone and sees no validation data; "
        for name, method in METHODS.items()
        if name in present and method.chooses is not None
    ]
    return "".join(said)


def _picture(part: TaskReport, parts: Sequence[TaskReport]) -> str:
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in part.task)
    return "comparison" if len(parts) == 1 else f"comparison-{name}"


def write_report(store: RecordStore) -> tuple[list[TaskReport], list[Path]]:
    """Write report.md and the pictures beside the records.

    Returns:
        The parts of the report, and the files that were written.

    Raises:
        StateError: There are no records, or they are damaged.
    """
    study = store.load_settings()
    records = _in_order(store.load(), study)
    if not records:
        raise StateError(f"{store.path} holds no finished cell yet")
    parts = build_report(records)
    page = store.directory / "report.md"
    page.write_text(markdown(study["title"], study, parts), encoding="utf-8")
    written = [page]
    for part in parts:
        path = store.directory / _picture(part, parts)
        written += plots.draw(part.records, f"{study['title']}: {part.task}", path)
    return parts, written


def _in_order(records: Sequence[CellRecord], study: dict[str, Any]) -> list[CellRecord]:
    methods = {method: place for place, method in enumerate(study["methods"])}
    tasks = {task["name"]: place for place, task in enumerate(study["settings"]["tasks"])}
    return sorted(
        records,
        key=lambda r: (tasks.get(r.key[0], 99), methods.get(r.method, 99), r.method, r.seed),
    )
