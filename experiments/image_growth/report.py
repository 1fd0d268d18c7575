"""What growing images save, and at which error: tables and a picture from a study's records.

    python experiments/image_growth/report.py [RESULTS …]   # studies' directories

Writes growth.md, growth.json, growth.png and growth.svg into the first of them, about all; without
any, about those of this experiment that have records. Each searcher is compared with itself: the
same number of evaluations, all at the full size, or most of them on smaller images. Time is the
processor's, of all trials of a search; seeds are paired.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gains import GOAL_SAVED, GOAL_WORSE, Cells, Gain, Pooled, cells, gains, pooled, stages

from tune_ext.benchmark.records import RecordStore
from tune_ext.benchmark.stats import Interval
from tune_ext.errors import StateError, TuneExtError

HERE = Path(__file__).parent
RESULTS = [HERE / "results" / name for name in ("", "upscaled", "shapes")]
PUBLISHED = (9, 42)
"""Per cent of time saved: the least and the most of the paper's experiments."""

# Tables -------------------------------------------------------------------------------------


_GAINS = (
    "task | searcher | seeds | CPU s, full size | CPU s, growing | time saved, % | "
    "error, full size, % | error, growing, % | relative change, % | lower / higher | goal"
)
_STAGES = (
    "task | searcher | size | evaluations | CPU s a trial | rank correlation with the size before, "
    "median (lowest) | carried, mean weight | failed"
)
_EQUAL = "task | searcher | all at the full size, cut off | growing images, whole"


def page(title: str, made: Sequence[Gain], found: Cells) -> str:
    """The page in Markdown."""
    told = sentences(made, pooled(found))
    lines = [f"# What growing images save: {title}", "", *(f"* {s}" for s in told), ""]
    lines += ["![Time and error with and without growing images](growth.svg)", ""]
    lines += _table(_GAINS, [_row(g) for g in made])
    lines += ["## At equal time", ""]
    lines += [
        "Best validation error at the full size, median over seeds, %. A search that is cut off "
        "chose among more evaluations at the full size than one that grew, so that its best is "
        "flattered more.",
        "",
    ]
    lines += _table(
        _EQUAL,
        [[g.task, g.method, *(f"{100 * e:.2f}" for e in g.at_equal_time)] for g in made],
    )
    lines += ["## The stages", "", *_table(_STAGES, [_stage_row(row) for row in stages(found)])]
    return "\n".join(lines).rstrip() + "\n"


def sentences(made: Sequence[Gain], together: Sequence[Pooled] = ()) -> list[str]:
    """What came out against the goal and the published numbers."""
    if not made:
        return ["No searcher has finished both ways yet."]
    saved = [100 * g.saved.value for g in made]
    told = [
        f"Time saved: {min(saved):.0f} to {max(saved):.0f} % (published: {PUBLISHED[0]} to "
        f"{PUBLISHED[1]} %).",
    ]
    for p in together:
        own = [g for g in made if g.task == p.task]
        worst = max(own, key=lambda g: g.relative.value)
        told.append(
            f"{p.task}, mean over {p.searchers} searchers, {p.seeds} seeds: time saved "
            f"{_percent(p.saved)} %, error {_percent(p.relative, sign='+')} % relative; at worst "
            f"{100 * worst.relative.value:+.1f} % ({worst.method}); "
            + "; ".join(f"{g.method}: {g.verdict}" for g in own)
            + "."
        )
    met = sum(g.verdict == "met" for g in made)
    missed = sum(g.relative.value > GOAL_WORSE for g in made)
    sure = sum(g.relative.high <= GOAL_WORSE for g in made)
    worse = f"{100 * GOAL_WORSE:.0f} %"
    told.append(
        f"The goal, {100 * GOAL_SAVED:.0f} % less time at no higher error in the interquartile "
        f"mean, is met by {met} of {len(made)}; {missed} are more than {worse} relative worse."
    )
    told.append(
        f"The 95 % interval excludes an error {worse} worse for {sure} of {len(made)}, and, over "
        f"all searchers, on {sum(p.relative.high <= GOAL_WORSE for p in together)} of "
        f"{len(together)} tasks."
    )
    return told


def _row(g: Gain) -> list[str]:
    return [
        g.task,
        g.method,
        str(g.seeds),
        *(f"{s:.1f}" for s in g.seconds),
        _percent(g.saved),
        *(f"{100 * e:.2f}" for e in g.errors),
        _percent(g.relative, sign="+"),
        f"{g.better} / {g.worse}",
        g.verdict,
    ]


def _percent(interval: Interval, sign: str = "") -> str:
    value, low, high = (format(100 * part, f"{sign}.1f") for part in interval)
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def _stage_row(row: Mapping[str, Any]) -> list[str]:
    rank, weight = row["correlation"], row["weight"]
    return [
        row["task"],
        row["method"],
        str(row["size"]),
        f"{row['evaluations']:g}",
        f"{row['seconds']:.2f}",
        "" if rank is None else f"{rank:.2f} ({row['lowest']:.2f})",
        "" if weight is None else f"{weight:.2f}",
        str(row["failed"]),
    ]


def _table(columns: str, rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|" + " --- |" * (columns.count("|") + 1)
    return [f"| {columns} |", rule, *(f"| {' | '.join(row)} |" for row in rows), ""]


# The picture --------------------------------------------------------------------------------


def draw(made: Sequence[Gain], path: Path) -> list[Path]:
    """An arrow a searcher from all evaluations at the full size to growing images."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(g.task for g in made))
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    with mpl.rc_context({"svg.hashsalt": "tune-ext", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.6 * max(1, len(tasks)), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for place, task in enumerate(tasks):
            axes = figure.add_subplot(1, len(tasks), place + 1)
            for colour, g in zip(colours, (g for g in made if g.task == task), strict=False):
                (x, u), (y, v) = g.seconds, (100 * e for e in g.errors)
                arrow = {"arrowstyle": "->", "color": colour, "lw": 1.6}
                axes.annotate("", (u, v), (x, y), arrowprops=arrow)
                axes.scatter([x, u], [y, v], s=(18, 32), color=colour, label=g.method)
            axes.set_xlim(left=0)
            axes.set_title(f"{task}: full size → growing", fontsize=10)
            axes.set_xlabel("CPU seconds of a search's trials")
            axes.set_ylabel("test error, %, interquartile mean")
            axes.grid(alpha=0.25)
            axes.legend(fontsize=8)
        written = []
        for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
            written.append(path.with_suffix(suffix))
            figure.savefig(written[-1], dpi=130, metadata=metadata)
    return written


def write(directories: Sequence[Path]) -> list[Path]:
    """Write everything into the first directory, about all; returns the files, the page first.

    Raises:
        StateError: There is no searcher with and without growth yet, or no study.
    """
    stores = [RecordStore(directory) for directory in directories]
    title = stores[0].load_settings()["title"]
    found = cells([record for store in stores for record in store.load()])
    made = gains(found)
    if not made:
        names = ", ".join(map(str, directories))
        raise StateError(f"{names}: no searcher has finished with and without growth yet")
    first = directories[0]
    written = [first / "growth.md", first / "growth.json"]
    written[0].write_text(page(title, made, found), encoding="utf-8")
    data = {
        "gains": [asdict(g) | {"verdict": g.verdict} for g in made],
        "pooled": [asdict(p) for p in pooled(found)],
        "stages": [*stages(found)],
    }
    written[1].write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return written + draw(made, first / "growth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("results", nargs="*", type=Path)
    known = [path for path in RESULTS if (path / "study.json").exists()] or RESULTS[:1]
    try:
        for path in write(parser.parse_args(arguments).results or known):
            print(path)
    except TuneExtError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
