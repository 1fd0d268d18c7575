"""Tables and pictures of the joint search: what it gains over its parts, and which method it needs.

    python experiments/joint_search/report.py [RESULTS]     # a study's directory; default: results

Writes joint.md, joint.json, anytime.png and errors.png beside the records. The differences are of
test errors on the same search seed, so negative is in favour of the first of the two.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from tune_ext.benchmark.analysis import cell_points, median_curve, used
from tune_ext.benchmark.cell_run import NO_RESULT
from tune_ext.benchmark.records import CellRecord, RecordStore
from tune_ext.benchmark.stats import (
    PairedDifference,
    bootstrap_iqm,
    holm,
    idle_share,
    paired_difference,
    standard_error,
)
from tune_ext.benchmark.study import recorded_task
from tune_ext.errors import StateError, TuneExtError

HERE = Path(__file__).parent
JOINT, PARTS = "joint", ("architecture", "hyper-parameters")
BUILT_IN, OURS, SCALED = "bohb", "our-bohb", "our-bohb+scaled"
REFERENCES = {"random": "Against random search", "default": "Against no search: the defaults"}
HUNG = ("no progress for", "not finished within")
Cells = Mapping[tuple[str, str], Mapping[int, CellRecord]]


@dataclass(frozen=True)
class Comparison:
    """Two searches on the same seeds.

    Attributes:
        question: What the comparison belongs to: "parts", "built-in", "scaling", or one of
            `REFERENCES`.
        first: (what is searched, method).
        second: The same of the other.
        difference: Of their test errors.
        wins: Seeds on which the first is better.
        losses: Seeds on which the second is.
        p: Of Wilcoxon's signed-rank test, exact; with Holm's correction within the question.
    """

    question: str
    first: tuple[str, str]
    second: tuple[str, str]
    difference: PairedDifference
    wins: int
    losses: int
    p: float


def gather(records: Sequence[CellRecord]) -> dict[tuple[str, str], dict[int, CellRecord]]:
    """(What is searched, method) → seed → record, in the order in which they first come."""
    cells: dict[tuple[str, str], dict[int, CellRecord]] = {}
    for record in records:
        cells.setdefault((record.key[0], record.method), {})[record.seed] = record
    return cells


def scores(group: Mapping[int, CellRecord]) -> dict[int, float]:
    """Seed → test error; a cell without a result counts as the worst."""
    worst = {seed: 1.0 if r.worst_error is None else r.worst_error for seed, r in group.items()}
    return {s: worst[s] if r.test_error is None else r.test_error for s, r in group.items()}


def pairs(cells: Cells) -> Iterator[tuple[str, tuple[str, str], tuple[str, str]]]:
    """What is compared with what, and for which question."""
    labels = dict.fromkeys(label for label, _ in cells)
    methods = dict.fromkeys(method for _, method in cells)
    for method in methods:
        for part in PARTS:
            yield "parts", (JOINT, method), (part, method)
    for label in labels:
        yield "built-in", (label, OURS), (label, BUILT_IN)
    for label in labels:
        yield "scaling", (label, SCALED), (label, OURS)
    for reference in REFERENCES:
        for label, method in cells:
            if (label, method) != (JOINT, reference) and method != "default":
                yield reference, (label, method), (JOINT, reference)


def compare(cells: Cells) -> list[Comparison]:
    """Every comparison whose two sides have seeds in common."""
    found: list[Comparison] = []
    for question, first, second in pairs(cells):
        if first not in cells or second not in cells:
            continue
        a, b = scores(cells[first]), scores(cells[second])
        differences = [a[s] - b[s] for s in sorted(a.keys() & b.keys())]
        if differences:
            wins, losses = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
            p = 1.0 if not wins + losses else float(wilcoxon(differences).pvalue)
            two = paired_difference(a, b)
            found.append(Comparison(question, first, second, two, wins, losses, p))
    corrected = {}
    for question in dict.fromkeys(c.question for c in found):
        of = [i for i, c in enumerate(found) if c.question == question]
        corrected |= dict(zip(of, holm([found[i].p for i in of]).tolist(), strict=True))
    return [Comparison(**{**vars(c), "p": corrected[i]}) for i, c in enumerate(found)]


def ran(group: Mapping[int, CellRecord]) -> dict[str, Any]:
    """How the searches of one kind ran: numbers that are no errors, means over seeds."""
    records = list(group.values())
    failures = [f for r in records for f in r.failures]
    full = [sum(t["epochs"] >= r.max_epochs for t in r.trials) for r in records]
    busy = [sum(t.get("train_seconds", math.nan) for t in r.trials) for r in records]
    idle = [
        idle_share(b, r.makespan, r.workers)
        for b, r in zip(busy, records, strict=True)
        if r.makespan and math.isfinite(b)
    ]
    tests = [t["seconds"] for r in records for t in r.tests if t.get("seconds")]
    return {
        "cells": len(records),
        "failed": sum(bool(r.failures) for r in records),
        "hung": sum(any(h in f for h in HUNG) for f in failures),
        "without a result": sum(f == NO_RESULT for f in failures),
        "failures": dict.fromkeys(failures),
        "trials": fmean(len(r.trials) for r in records),
        "full": fmean(full),
        "epochs": fmean(r.epochs_used for r in records),
        "used": fmean(used(r) for r in records),
        "idle": fmean(idle) if idle else None,
        "final_seconds": median(tests) if tests else None,
        "parameters": _parameters(records),
    }


def _parameters(records: Sequence[CellRecord]) -> float | None:
    """The median number of weights of what was recommended; None where it cannot be built."""
    import torch

    counts = []
    for record in records:
        task = recorded_task(record.task)
        if not task.searches_architecture:
            return None
        with torch.device("meta"):
            network = task.build(record.recommendation["config"])
        counts.append(sum(p.numel() for p in network.parameters()))
    return median(counts)


def percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def name(which: tuple[str, str]) -> str:
    return f"{which[1]}, {which[0]}"


def error_table(cells: Cells) -> list[str]:
    """Test errors: a row a method, a column what is searched."""
    labels = list(dict.fromkeys(label for label, _ in cells))
    lines = [
        "| method | " + " | ".join(labels) + " |",
        "|---|" + "---|" * len(labels),
    ]
    for method in dict.fromkeys(method for _, method in cells):
        row = [_cell(cells.get((label, method))) for label in labels]
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    return lines


def _cell(group: Mapping[int, CellRecord] | None) -> str:
    if not group:
        return ""
    values = list(scores(group).values())
    middle = bootstrap_iqm([values])
    return (
        f"{percent(fmean(values))} ± {percent(standard_error(values))}, middle "
        f"{percent(middle.value)} [{percent(middle.low)}, {percent(middle.high)}]"
    )


def comparison_table(found: Sequence[Comparison]) -> list[str]:
    """Differences in points, with intervals."""
    lines = [
        "| first | second | first − second, points [95 % interval] | seeds won, lost | p |",
        "|---|---|---:|---:|---:|",
    ]
    for c in found:
        d = c.difference
        interval = "" if math.isnan(d.low) else f" [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
        lines.append(
            f"| {name(c.first)} | {name(c.second)} | {100 * d.mean:+.2f}{interval} "
            f"| {c.wins}, {c.losses} | {c.p:.2f} |"
        )
    return lines


def running_table(how: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """What was trained, what failed, how large what was recommended is."""
    lines = [
        "| search | cells | failed | hung | trials | at full length | epochs | idle, % "
        "| weights recommended | its training, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for which, n in how.items():
        weights = "" if n["parameters"] is None else f"{n['parameters']:,.0f}"
        final = "" if n["final_seconds"] is None else f"{n['final_seconds']:.1f}"
        lines.append(
            f"| {name(which)} | {n['cells']} | {n['failed']} | {n['hung']} | {n['trials']:.1f} "
            f"| {n['full']:.1f} | {n['epochs']:.0f} | {percent(n['idle'], 0)} | {weights} "
            f"| {final} |"
        )
    return lines


def markdown(
    study: Mapping[str, Any],
    cells: Cells,
    found: Sequence[Comparison],
    how: Mapping[tuple[str, str], Mapping[str, Any]],
) -> str:
    """The whole report."""
    settings = study["settings"]
    seeds = sorted({seed for group in cells.values() for seed in group})
    tests = settings["final_seeds"]
    lines = [
        f"# {study['title']}",
        "",
        f"Seeds {', '.join(map(str, seeds))}; a search has {settings['budget']} "
        f"{settings['budget_unit']}, all trials together; what it recommends is trained {tests} "
        f"time{'s' * (tests > 1)} in full. Test errors in %, mean ± standard error over search "
        "seeds, and their interquartile mean with a bootstrap interval.",
        "",
        *error_table(cells),
        "",
        "![Error against budget](anytime.png)",
        "![Test errors](errors.png)",
    ]
    titles = {
        "parts": "What the joint search gains over its parts",
        "built-in": "Our BOHB against the built-in",
        "scaling": "With and without scaled rates and weights",
        **REFERENCES,
    }
    for question, title in titles.items():
        chosen = [c for c in found if c.question == question]
        if chosen:
            lines += ["", f"## {title}", "", *comparison_table(chosen)]
    lines += ["", "## How the searches ran", "", *running_table(how), ""]
    for which, numbers in how.items():
        lines += [f"* {name(which)}: {failure}" for failure in numbers["failures"]]
    return "\n".join(lines).rstrip() + "\n"


def draw_anytime(cells: Cells, path: Path) -> None:
    """The best validation error against the budget: a panel for what is searched, a line a method.

    The first panel has one method, the one that is there for most of what is searched.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(label for label, _ in cells))
    methods = dict.fromkeys(method for _, method in cells)
    common = max(methods, key=lambda m: (sum((la, m) in cells for la in labels), m == OURS))
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    panels[0].set_title(f"{common}: what is searched", fontsize=10)
    for label in labels:
        if (label, common) in cells:
            _line(panels[0], cells[label, common], label)
    first = JOINT if JOINT in labels else labels[0]
    panels[1].set_title(f"{first}: how it is searched", fontsize=10)
    for method in methods:
        if any(cell_points(r) for r in cells.get((first, method), {}).values()):
            _line(panels[1], cells[first, method], method)
    unit = next(r.unit for group in cells.values() for r in group.values())
    for axis in panels:
        axis.set_xlabel(f"budget used, {unit}")
        axis.legend(fontsize=8)
    panels[0].set_ylabel("validation error of the best so far, %")
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter("{x:g}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axis: Any, group: Mapping[int, CellRecord], label: str) -> None:
    """The median over seeds, and the range that holds it."""
    seeds = [[(x, e) for x, _, e in cell_points(r)] for r in group.values()]
    grid = np.linspace(0, max(r.budget for r in group.values()), 200)
    curve = median_curve(seeds, grid)

    def numbers(values: Sequence[float | None]) -> list[float]:
        return [math.nan if v is None else 100 * v for v in values]

    (drawn,) = axis.plot(curve.x, numbers(curve.value), drawstyle="steps-post", label=label)
    low, high = numbers(curve.low), numbers(curve.high)
    axis.fill_between(curve.x, low, high, step="post", alpha=0.15, color=drawn.get_color(), lw=0)


def draw_errors(cells: Cells, path: Path) -> None:
    """The test error of every cell, a row a search, and the means."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.32 * len(cells)))
    for row, group in enumerate(cells.values()):
        values = [100 * v for v in scores(group).values()]
        axis.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.6, markersize=5)
        axis.plot([fmean(values)] * 2, [row - 0.3, row + 0.3], color="black", lw=2)
    axis.set_yticks(range(len(cells)), [name(which) for which in cells], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("test error, % (a point a search seed; bar: mean)")
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(results: Path) -> dict[str, Any]:
    """Write the report of a study's directory.

    Raises:
        StateError: There are no records, or they are damaged.
    """
    store = RecordStore(results)
    study, records = store.load_settings(), store.load()
    if not records:
        raise StateError(f"{results} holds no finished cell yet")
    cells = _in_order(gather(records), study)
    found = compare(cells)
    how = {which: ran(group) for which, group in cells.items()}
    out: dict[str, Any] = {
        "versions": records[-1].provenance,
        "errors": {name(w): {str(s): e for s, e in scores(g).items()} for w, g in cells.items()},
        "comparisons": [asdict(c) for c in found],
        "searches": {name(w): {**n, "failures": list(n["failures"])} for w, n in how.items()},
    }
    (results / "joint.json").write_text(json.dumps(_plain(out), indent=1) + "\n", encoding="utf-8")
    text = markdown(study, cells, found, how)
    (results / "joint.md").write_text(text, encoding="utf-8")
    draw_anytime(cells, results / "anytime.png")
    draw_errors(cells, results / "errors.png")
    return out


def _in_order(
    cells: Mapping[tuple[str, str], dict[int, CellRecord]], study: Mapping[str, Any]
) -> dict[tuple[str, str], dict[int, CellRecord]]:
    """The searches in the order of the study file, seeds ascending."""
    labels = [t.get("label") or t["name"] for t in study["settings"]["tasks"]]
    wanted = [(label, method) for label in labels for method in study["methods"]]
    every = [w for w in wanted if w in cells] + [w for w in cells if w not in wanted]
    return {w: dict(sorted(cells[w].items())) for w in every}


def _plain(value: Any) -> Any:
    """Strict JSON: what is no finite number is None."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=HERE / "results")
    args = parser.parse_args()
    try:
        report(args.results)
    except TuneExtError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    print((args.results / "joint.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
